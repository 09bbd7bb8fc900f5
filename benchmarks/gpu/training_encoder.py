"""Fine-tuning of a RoBERTa-base (random weights of that shape) against the Hugging Face Trainer at its best.

Dropout stays on, as the configuration has it. The Trainer gets like lengths in a batch, bf16, fused AdamW, SDPA and
worker processes that collate; then the same with torch.compile, if the time allows.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penstock.benchmarks.gpu import backends, floors
from penstock.benchmarks.gpu.attention import draw_lengths
from penstock.benchmarks.gpu.context import Context, emit, key, reason
from penstock.benchmarks.gpu.training_lstm import random_store, report, train_variants
from penstock.benchmarks.random_store import word_tokenizer
from penstock.engine.data.store import Store

MODEL, TOKENS_PER_BATCH, MEAN, PAD = "roberta-base", 32_768, 150, 1
OPERATIONS = ("varlen_attention", "residual_norm", "bias_gelu", "geglu", "rotary")
_WARM_UP = 15  # steps, of which no time is taken
_COMPILE_SECONDS = 60  # compiling alone takes about so long


def run(context: Context) -> None:
    tokens, longest = (600, 24) if context.smoke else (6_000_000, 512)
    lengths = np.array(draw_lengths(8 if context.smoke else MEAN, tokens, longest), np.int32)
    folder, config = write_encoder(context.folder / "encoder", context.smoke)
    store = random_store(context.folder / "encoder-store", lengths, config.vocab_size)
    size = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    flops = floors.encoder(lengths.tolist(), *size) / int(lengths.sum())
    settings = [
        "model.kind=encoder",
        f"model.encoder={folder}",
        f"data.tokens_per_batch={200 if context.smoke else TOKENS_PER_BATCH}",
    ]
    variants = backends.model_variants(OPERATIONS, context)
    peers = {"HF Trainer": False, "HF Trainer, torch.compile": True}
    train_variants(context, store, settings, MODEL, variants, flops, len(variants) + 1)
    for label, compiled in peers.items():
        if label in context.done:
            continue
        needed = _COMPILE_SECONDS if compiled else 3
        if context.left() < needed or (compiled and context.smoke):
            why = f"not run: it needs {needed} s and {max(0, context.left()):.0f} s were left"
            emit(kind="training", model=MODEL, contestant=label, why=why)
            continue
        seconds = math.inf if context.smoke else context.left() if compiled else context.share(1)
        if (what := key(MODEL, label)) in context.off:
            report(MODEL, label, {"why": context.off[what]}, flops, context)
            continue
        context.at(what, 2 * _COMPILE_SECONDS if context.smoke else context.left() + _COMPILE_SECONDS)
        try:
            figures = trainer(context, folder, store, compiled, seconds)
        except (RuntimeError, ValueError, TypeError, ImportError) as failure:
            figures = {"why": reason(failure)}
        report(MODEL, label, figures, flops, context)


def write_encoder(folder: Path, smoke: bool) -> tuple[Path, Any]:
    """A checkpoint of RoBERTa-base's shape, and its configuration."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes: dict[str, Any] = {"vocab_size": 50_265, "max_position_embeddings": 514}
    if smoke:
        sizes = {"vocab_size": 100, "max_position_embeddings": 40, "hidden_size": 16, "intermediate_size": 24}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(type_vocab_size=1, pad_token_id=PAD, num_labels=2, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    word_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder, config


def trainer(context: Context, folder: Path, store: Store, compiled: bool, seconds: float) -> dict[str, Any]:
    from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    cuda = context.device.type == "cuda"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    mean = float(store.lengths.mean())
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    grouped = (
        {"train_sampling_strategy": "group_by_length"}
        if "train_sampling_strategy" in known
        else {"group_by_length": True}
    )
    arguments = TrainingArguments(
        output_dir=str(context.folder / "trainer"),
        per_device_train_batch_size=max(1, round((200 if context.smoke else TOKENS_PER_BATCH) / mean)),
        max_steps=4 if context.smoke else 100_000,
        learning_rate=5e-5,
        bf16=cuda,
        use_cpu=not cuda,
        optim="adamw_torch_fused",
        dataloader_num_workers=0 if context.smoke else 4,
        dataloader_pin_memory=cuda,
        torch_compile=compiled,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **grouped,
    )
    clock = _Clock(context, 1 if context.smoke else _WARM_UP, seconds)

    class Timed(Trainer):
        def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            clock.batch(inputs["attention_mask"])
            return super().training_step(model, inputs, *args, **kwargs)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if clock.step(state.global_step):
                control.should_training_stop = True

    Timed(model, arguments, data_collator=collate, train_dataset=Rows(store), callbacks=[Watch()]).train()
    return clock.figures()


class Rows(torch.utils.data.Dataset):
    """A store's rows as the Trainer takes them."""

    def __init__(self, store: Store) -> None:
        self._tokens = [store.tokens(row).tolist() for row in range(store.num_examples)]
        self._labels = store.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self._tokens[row], "labels": self._labels[row]}


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Padded to the longest, rounded up to 8, which is what tensor cores like."""
    longest = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
    input_ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(input_ids)
    for place, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[place, :length] = torch.tensor(row["input_ids"])
        mask[place, :length] = 1
    return {"input_ids": input_ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


class _Clock:
    """Real tokens of the steps behind the warm-up, and their time, the device waited for at every tenth step."""

    def __init__(self, context: Context, warm_up: int, seconds: float) -> None:
        self._cuda = context.device.type == "cuda"
        self._warm_up, self._ends = warm_up, time.perf_counter() + seconds
        self._began: float | None = None
        self._tokens: list[Tensor] = []
        self._examples = self._steps = 0
        self._figures: dict[str, Any] = {"why": "not ten steps after the warm-up within its time"}

    def batch(self, mask: Tensor) -> None:
        if self._began is not None:
            self._tokens.append(mask.sum())
            self._examples += len(mask)

    def step(self, number: int) -> bool:
        """Whether it is over."""
        over = time.perf_counter() > self._ends
        if self._began is None:
            if number == self._warm_up:
                self._synchronize()
                self._began = time.perf_counter()
            return over
        self._steps += 1
        if over or self._steps % 10 == 0 or not self._cuda:
            self._synchronize()
            elapsed = time.perf_counter() - self._began
            tokens = sum(int(count) for count in self._tokens)
            self._figures = {"tokens_per_second": tokens / elapsed, "examples_per_second": self._examples / elapsed}
            self._figures |= {"steps": self._steps, "seconds": elapsed}
        return over

    def figures(self) -> dict[str, Any]:
        return self._figures | ({"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if self._cuda else {})

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
