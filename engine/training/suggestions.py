"""What to say to a key that is no setting: the one that was meant, where that can be known, else nothing made up."""

import difflib
from collections.abc import Sequence

_NOTHING = "nothing: "
_BATCH = "data.tokens_per_batch (a batch is counted in tokens, not in texts)"
_DEVICE = "nothing: a GPU is used where there is one"
_LABELS = "nothing: the classes are those of the data"
_OPTIMIZER = "nothing: the optimizer is AdamW"
_OUT = "the option --out"
_PRECISION = "training.precision, such as training.precision={}"

# The names that other libraries have for these things, and what they are here.
_ELSEWHERE = {
    "lr": "training.learning_rate",
    "base_lr": "training.learning_rate",
    "max_lr": "training.learning_rate",
    "peak_lr": "training.learning_rate",
    "eta": "training.learning_rate",
    "step_size": "training.learning_rate",
    "wd": "training.weight_decay",
    "l2": "training.weight_decay",
    "decay": "training.weight_decay",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "n_epochs": "training.epochs",
    "max_epochs": "training.epochs",
    "nb_epoch": "training.epochs",
    "epoch": "training.epochs",
    "passes": "training.epochs",
    "steps": "training.max_steps",
    "num_steps": "training.max_steps",
    "num_training_steps": "training.max_steps",
    "total_steps": "training.max_steps",
    "max_iter": "training.max_steps",
    "warmup_ratio": "training.warmup",
    "warmup_proportion": "training.warmup",
    "warmup_steps": "training.warmup (a share of the run, 0 to 1, not steps)",
    "num_warmup_steps": "training.warmup (a share of the run, 0 to 1, not steps)",
    "lr_scheduler_type": "training.schedule",
    "lr_scheduler": "training.schedule",
    "lr_schedule": "training.schedule",
    "scheduler": "training.schedule",
    "fp16": _PRECISION.format("fp16"),
    "half": _PRECISION.format("fp16"),
    "bf16": _PRECISION.format("bf16"),
    "bfloat16": _PRECISION.format("bf16"),
    "fp32": _PRECISION.format("fp32"),
    "amp": "training.precision",
    "mixed_precision": "training.precision",
    "dtype": "training.precision",
    "torch_dtype": "training.precision",
    "torch_compile": "training.compile",
    "jit": "training.compile",
    "label_smoothing_factor": "training.label_smoothing",
    "smoothing": "training.label_smoothing",
    "class_weight": "training.class_weights",
    "weights": "training.class_weights",
    "pos_weight": "training.class_weights",
    "weight": "training.class_weights",
    "gradient_accumulation_steps": "data.batches_per_step",
    "accumulate_grad_batches": "data.batches_per_step",
    "grad_accum": "data.batches_per_step",
    "accumulation_steps": "data.batches_per_step",
    "accumulation": "data.batches_per_step",
    "grad_clip": "training.max_grad_norm",
    "clip": "training.max_grad_norm",
    "clip_grad": "training.max_grad_norm",
    "clipnorm": "training.max_grad_norm",
    "gradient_clip_val": "training.max_grad_norm",
    "clip_grad_norm": "training.max_grad_norm",
    "random_seed": "training.seed",
    "random_state": "training.seed",
    "data_seed": "training.seed",
    "early_stopping": "training.patience",
    "early_stopping_patience": "training.patience",
    "early_stop": "training.patience",
    "metric_for_best_model": "training.metric",
    "monitor": "training.metric",
    "eval_metric": "training.metric",
    "eval_steps": "training.evaluate_every_steps",
    "eval_every": "training.evaluate_every_steps",
    "eval_interval": "training.evaluate_every_steps",
    "evaluation_strategy": "training.evaluate_every_steps",
    "eval_strategy": "training.evaluate_every_steps",
    "val_check_interval": "training.evaluate_every_steps",
    "save_steps": "training.checkpoint_every_steps",
    "save_every": "training.checkpoint_every_steps",
    "save_strategy": "training.checkpoint_every_steps",
    "checkpoint_every": "training.checkpoint_every_steps",
    "logging_steps": "training.log_every_steps",
    "log_every": "training.log_every_steps",
    "log_interval": "training.log_every_steps",
    "log_every_n_steps": "training.log_every_steps",
    "report_to": "training.wandb_project or training.tensorboard",
    "wandb": "training.wandb_project",
    "temperature_scaling": "training.calibrate",
    "calibration": "training.calibrate",
    "batch_size": _BATCH,
    "bs": _BATCH,
    "batch": _BATCH,
    "train_batch_size": _BATCH,
    "eval_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "per_gpu_train_batch_size": _BATCH,
    "max_tokens": _BATCH,
    "group_by_length": "data.mode=bucket",
    "packing": "data.mode=pack",
    "val_split": "data.validation_fraction",
    "val_fraction": "data.validation_fraction",
    "val_size": "data.validation_fraction",
    "validation_split": "data.validation_fraction",
    "validation_size": "data.validation_fraction",
    "test_size": "data.validation_fraction",
    "dev_fraction": "data.validation_fraction",
    "model_name_or_path": "model.encoder",
    "model_name": "model.encoder",
    "model": "model.kind",
    "type": "model.kind",
    "model_type": "model.kind",
    "arch": "model.kind",
    "architecture": "model.kind",
    "pretrained": "model.encoder",
    "pretrained_model": "model.encoder",
    "checkpoint": "model.encoder or model.start_from",
    "from": "model.start_from",
    "init_from": "model.start_from",
    "init_checkpoint": "model.start_from",
    "warm_start": "model.start_from",
    "resume_from_checkpoint": "the option --out alone, which resumes its run",
    "resume": "the option --out alone, which resumes its run",
    "layers": "model.num_layers",
    "n_layers": "model.num_layers",
    "num_hidden_layers": "model.num_layers",
    "depth": "model.num_layers",
    "hidden_dim": "model.hidden_size",
    "hidden": "model.hidden_size",
    "hidden_units": "model.hidden_size",
    "num_units": "model.hidden_size",
    "units": "model.hidden_size",
    "rnn_size": "model.hidden_size",
    "d_model": "model.hidden_size",
    "embedding_dim": "model.embedding_size",
    "embed_dim": "model.embedding_size",
    "emb_dim": "model.embedding_size",
    "emb_size": "model.embedding_size",
    "input_size": "model.embedding_size",
    "bidir": "model.bidirectional",
    "pool": "model.pooling",
    "dropout": "model.dropout or model.head_dropout (lstm), model.encoder_dropout (encoder)",
    "dropout_rate": "model.dropout or model.head_dropout (lstm), model.encoder_dropout (encoder)",
    "drop_rate": "model.dropout or model.head_dropout (lstm), model.encoder_dropout (encoder)",
    "hidden_dropout": "model.encoder_dropout",
    "hidden_dropout_prob": "model.encoder_dropout",
    "attention_dropout": "model.encoder_attention_dropout",
    "attention_probs_dropout_prob": "model.encoder_attention_dropout",
    "classifier_dropout": "model.head_dropout (lstm), model.encoder_head_dropout (encoder)",
    "num_labels": _LABELS,
    "num_classes": _LABELS,
    "n_classes": _LABELS,
    "labels": _LABELS,
    "max_length": "data.max_length",
    "max_len": "data.max_length",
    "maxlen": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "model_max_length": "data.max_length",
    "truncation": "data.truncation",
    "truncation_side": "data.truncation",
    "tokenizer": "the option --tokenizer of `penstock prepare`",
    "vocab_size": "the option --tokenizer of `penstock prepare`, such as train:wordpiece:30000",
    "optim": _OPTIMIZER,
    "optimizer": _OPTIMIZER,
    "device": _DEVICE,
    "no_cuda": _DEVICE,
    "use_cpu": _DEVICE,
    "gpu": _DEVICE,
    "gpus": _DEVICE,
    "output_dir": _OUT,
    "out": _OUT,
    "run": _OUT,
    "train": "the option --train",
    "eval": "the option --eval",
    "test": "the option --eval",
    "config": "the option --config",
}


def suggest(key: str, known: Sequence[str]) -> str | None:
    """What to write instead of a key that is none of the known ones, as a clause; None where nothing is near.

    Args:
        key: as it was written, with or without a section.
        known: "section.key" of every setting.
    """
    name = key.strip().lstrip("-").lower().replace("-", "_").rpartition(".")[2]
    names = [candidate.rpartition(".")[2] for candidate in known]
    if name in _ELSEWHERE:
        return _clause(_ELSEWHERE[name])
    if name in names:
        return _clause(known[names.index(name)])
    # the shorter the word, the more of its letters another one has by accident
    close = difflib.get_close_matches(name, [*names, *_ELSEWHERE], n=1, cutoff=0.8 if len(name) > 4 else 0.86)
    if not close:
        return None
    return _clause(known[names.index(close[0])] if close[0] in names else _ELSEWHERE[close[0]])


def _clause(meant: str) -> str:
    if meant.startswith(_NOTHING):
        return f"there is no such setting: {meant.removeprefix(_NOTHING)}"
    return f"here that is {meant}" if " " in meant or "=" in meant else f"did you mean {meant!r}?"
