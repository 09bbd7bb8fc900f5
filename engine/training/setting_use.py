"""Which settings a run uses, and which of them it may change on the way."""

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

from penstock.engine.errors import ConfigError
from penstock.engine.training.sections import default_values, used_by

if TYPE_CHECKING:
    from penstock.engine.training.settings import Settings

# What does not change the run's result: a run may go on with other values of these.
FREE_KEYS = frozenset(
    (
        "data.reader",
        "training.checkpoint_every_steps",
        "training.keep_checkpoints",
        "training.log_every_steps",
        "training.rank_timeout",
        "training.shard",
        "training.tensorboard",
        "training.wandb_project",
    )
)
# What says when a run is over: it may go on with larger ones.
ENDING_KEYS = ("training.epochs", "training.max_steps", "training.patience", "pretraining.tokens")
# Those of them without which a run has one limit less; without epochs it has the recipe's.
LIMITS = ("training.max_steps", "pretraining.tokens")
# What a new run decides where it is left open: one that has begun keeps what it has.
DECIDED = frozenset(
    (
        "model.kind",
        "model.preset",
        "model.embedding_size",
        "model.buckets",
        "model.encoder",
        "data.tokens_per_batch",
        "data.mode",
        "data.validation_fraction",
        "data.max_length",
        "data.truncation",
        "training.epochs",
        "training.learning_rate",
        "training.patience",
    )
)

# What has no meaning without validation rows.
WITH_VALIDATION = frozenset(
    (
        "data.validation_max",
        "training.metric",
        "training.patience",
        "training.evaluate_every_steps",
        "training.calibrate",
    )
)
# What a run without labels has no use for, or does not offer.
CLASSIFIER_ONLY = frozenset(
    (
        "model.pooling",
        "model.head_dropout",
        "model.encoder_head_dropout",
        "model.freeze_embeddings",
        "model.freeze_layers",
        "model.lora_rank",
        "model.start_from",
        "training.layer_decay",
        "training.class_weights",
        "training.label_smoothing",
        "training.calibrate",
        "training.metric",
        "training.compile",
        "training.cuda_graphs",
        "training.shard",
    )
)
# The kinds of model that each way of learning without labels is for.
OBJECTIVES = {"masked": ("lstm", "encoder"), "replaced": ("lstm",)}
# What cannot be had where most labels are the teachers', and why.
NOT_DISTILLED = {
    "training.class_weights": "most of its labels are the teachers'",
    "training.calibrate": "most of its validation labels are the teachers'",
    "training.cuda_graphs": "graphs hold no teachers' logits",
}


def check_used(settings: "Settings", keys: Iterable[str], where: str = "") -> None:
    """
    Args:
        keys: "section.key" of the settings that were stated.
        where: the beginning of the message.

    Raises:
        ConfigError: the model or the run has no use for one of them.
    """
    flat = settings.flat()
    for key in keys:
        section, name = key.split(".")
        reason = (settings.model.unused(name) if section == "model" else None) or _unused(settings, key)
        if reason is not None:
            raise ConfigError(f"{where}{key}={flat[key]} has no effect: {reason}")


def _unused(settings: "Settings", key: str) -> str | None:
    """Why a run does not use a setting; None if it does."""
    value, model = settings.flat()[key], settings.model
    if key.startswith("pretraining.") and not settings.pretrains:
        return "this run trains a classifier: penstock pretrain reads it"
    if settings.pretrains and (key in CLASSIFIER_ONLY or key.startswith("distillation.")) and value:
        return "this run learns from texts without labels: leave it out, or give it to penstock train"
    if key == "pretraining.objective" and not model.is_of(OBJECTIVES[value]):
        return f"this model is {model.named}, which does not learn so: penstock pretrain is for lstm and encoder" + (
            " (masked)" if model.kind == "encoder" else ""
        )
    if key == "pretraining.candidates" and settings.pretraining.objective == "replaced":
        return "pretraining.objective=replaced tells no tokens from others: leave it out"
    if key == "training.precision" and value == "fp32" and model.kind == "bag":
        return None  # that is what a bag computes in, and its config.yaml says
    if value is not None and not model.is_of(used_by(key)):
        return f"this model is {model.named}, which does not use it: leave it out"
    if key in WITH_VALIDATION and value and settings.data.validation_fraction == 0:
        return "data.validation_fraction=0 leaves no rows to evaluate on"
    if key == "training.wandb_project" and value and not importlib.util.find_spec("wandb"):
        return "wandb is not installed: pip install 'penstock[tracking]'"
    return None


def check_distillation(settings: "Settings") -> None:
    """
    Raises:
        ConfigError: a setting has no meaning where most labels are the teachers'.
    """
    flat = settings.flat()
    for key, why in NOT_DISTILLED.items():
        if flat[key]:
            raise ConfigError(f"{key}={flat[key]} cannot be had in a distillation: {why}; leave it out")


def check_not_distilled(settings: "Settings") -> None:
    """
    Raises:
        ConfigError: a setting of the section `distillation` asks for something, of a run that learns from labels alone.
    """
    flat, defaults = settings.flat(), default_values()
    for key in sorted(key for key in flat if key.startswith("distillation.") and flat[key] != defaults[key]):
        raise ConfigError(
            f"{key}={flat[key]} has no effect: this run learns from labels alone; leave it out, or learn "
            "from a teacher with penstock distil"
        )
