"""The sections of a run's configuration, models' aside: every setting with its default and its meaning."""

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from penstock.engine.models.pretraining_settings import PretrainingSettings
from penstock.engine.models.settings import ModelSettings
from penstock.engine.setting import check_section, describe_range, describe_type, setting


@dataclass(frozen=True)
class DataSettings:
    tokens_per_batch: int | Literal["auto"] | None = setting(
        None,
        "tokens in one batch at most, padding never counts; null: by the recipe; auto: as many as memory has room for",
        minimum=1,
    )
    batches_per_step: int = setting(1, "batches in one optimizer step: ranks x accumulation", minimum=1)
    mode: Literal["auto", "pack", "bucket"] = setting(
        "auto", "pack in shuffled order, or group by length; auto: by model"
    )
    validation_fraction: float | None = setting(
        None,
        "share of the training rows kept for validation; null: 0.1, of few rows 0.2, in pretraining 1,000 rows",
        minimum=0.0,
        maximum=0.5,
    )
    validation_max: int = setting(5000, "rows kept for validation at most", minimum=1)
    max_length: int | Literal["whole"] | None = setting(
        None,
        "tokens read of a text at most; whole: all that the store keeps; null: encoder 512, lstm 1024, bag whole",
        minimum=1,
    )
    truncation: Literal["auto", "head", "tail", "head+tail"] = setting(
        "auto", "what is read of a longer text; auto: as the store was prepared"
    )
    reader: Literal["auto", "mmap", "pread"] = setting(
        "auto", "how stores are read: mapped, or with system calls; auto: pread on network and FUSE file systems"
    )

    def __post_init__(self) -> None:
        check_section(self, "data")

    @property
    def tokens(self) -> int:
        """`tokens_per_batch`, once resolved."""
        assert isinstance(self.tokens_per_batch, int)
        return self.tokens_per_batch


@dataclass(frozen=True)
class TrainingSettings:
    epochs: int | None = setting(None, "passes over the training rows; null: by the recipe", minimum=1)
    max_steps: int | None = setting(None, "optimizer steps at most", minimum=1)
    learning_rate: float | None = setting(
        None, "peak learning rate; null: lstm 2e-3, encoder 5e-5 at width 768, bag 0.2", minimum=0.0
    )
    weight_decay: float = setting(
        0.01, "AdamW's decoupled decay, not on biases and norms", minimum=0.0, used_by=("lstm", "encoder")
    )
    layer_decay: float | None = setting(
        None,
        "a layer's learning rate as a share of the one above it, such as 0.9",
        minimum=0.0,
        maximum=1.0,
        used_by=("lstm", "encoder"),
    )
    warmup: float = setting(0.06, "share of the run in which the learning rate rises", minimum=0.0, maximum=1.0)
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "how the learning rate falls after warm-up")
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: never", minimum=0.0)
    class_weights: Literal["balanced"] | dict[str, float] | None = setting(  # noqa: RUF009 -- a frozen default
        None,
        "weights of the examples in the training loss, by label; balanced: each class weighs the same in total; for "
        "lists of labels: what a label weighs where it is present, balanced: as much as all the rows without it",
        minimum=1e-6,
        maximum=1e6,
    )
    label_smoothing: float = setting(0.0, "share of a training label spread over all classes", minimum=0.0, below=1.0)
    calibrate: bool = setting(False, "scale the best model's logits by one temperature, found on the validation rows")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "auto: bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU; a bag computes in fp32",
        used_by=("lstm", "encoder"),
    )
    tf32: bool | None = setting(
        None, "multiply float32 matrices in TF32, on GPUs; null: as torch is set", used_by=("lstm", "encoder")
    )
    compile: bool = setting(False, "run the model through torch.compile", used_by=("lstm", "encoder"))
    cuda_graphs: bool = setting(
        False,
        "on a GPU, replay forward and backward from CUDA graphs, of batches filled up to few shapes",
        used_by=("lstm", "encoder"),
    )
    seed: int = setting(
        0, "seeds the initial weights, the order, dropout and the validation split", minimum=0, maximum=2**63 - 1
    )
    evaluate_every_steps: int = setting(0, "steps between evaluations; 0: after every epoch", minimum=0)
    metric: Literal["accuracy", "macro_f1", "micro_f1", "loss"] = setting(
        "accuracy", "what chooses the best model, of lists of labels micro_f1; between equals the lower loss does"
    )
    patience: int | None = setting(
        None, "evaluations without a better one before stopping; 0: never; null: by the recipe", minimum=0
    )
    checkpoint_every_steps: int = setting(0, "steps between checkpoints; 0: about every five minutes", minimum=0)
    keep_checkpoints: int = setting(
        2, "checkpoints to resume from that are kept, the best model beside them", minimum=1
    )
    log_every_steps: int = setting(10, "steps between lines of metrics.jsonl", minimum=1)
    rank_timeout: float = setting(
        600.0, "seconds that a process waits for another one before the run ends", minimum=1.0, maximum=1e6
    )
    shard: bool = setting(
        False,
        "under torchrun, each process keeps a share of weights, gradients and optimizer (FSDP2) instead of all of them",
        used_by=("lstm", "encoder"),
    )
    tensorboard: bool = setting(True, "write TensorBoard events where it is installed")
    wandb_project: str | None = setting(None, "log to this Weights & Biases project")

    def __post_init__(self) -> None:
        check_section(self, "training")


@dataclass(frozen=True)
class DistillationSettings:
    """What `penstock distil` reads; a training from labels alone reads none of it."""

    temperature: float = setting(
        2.0, "by which the teachers' and the student's logits are divided before they are compared", minimum=0.01
    )
    mix: float = setting(
        0.5,
        "of a row with a true label, the share of that label in its loss; the rest is what the teachers say",
        minimum=0.0,
        maximum=1.0,
    )
    texts: int | None = setting(
        None, "unlabelled texts that are learned from at most, drawn at random; null: all", minimum=1
    )
    drop_overlap: bool = setting(
        False, "leave out unlabelled texts that are test texts too, which are an error otherwise (--drop-overlap)"
    )

    def __post_init__(self) -> None:
        check_section(self, "distillation")


def describe_settings() -> str:
    """One line for each setting: key, default, type and range, meaning."""
    lines = []
    for key, (annotation, metadata) in known_settings().items():
        only = f"{' and '.join(metadata['used_by'])} only" if metadata["used_by"] else ""
        limits = ", ".join(part for part in (describe_range(metadata), only) if part)
        more = f"  [{limits}]" if limits else ""
        default = json.dumps(metadata["default"])
        lines.append(f"{key}={default}  ({describe_type(annotation)})  {metadata['help']}{more}")
    return "\n".join(lines)


def used_by(key: str) -> tuple[str, ...]:
    """The kinds of model that read a setting; empty if all do, or if there is no such setting."""
    return known_settings()[key][1]["used_by"] if key in known_settings() else ()


@functools.cache
def section_types() -> dict[str, type]:
    """By name, in the order of a run's config.yaml."""
    return {
        "model": ModelSettings,
        "data": DataSettings,
        "training": TrainingSettings,
        "pretraining": PretrainingSettings,
        "distillation": DistillationSettings,
    }


def values_of(sections: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value} of sections by their names."""
    return {
        f"{section}.{name}": value
        for section, made in sections.items()
        for name, value in dataclasses.asdict(made).items()
    }


@functools.cache
def default_values() -> dict[str, Any]:
    """{"section.key": value}"""
    return values_of({section: cls() for section, cls in section_types().items()})


@functools.cache
def known_settings() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """{"section.key": (type, metadata and default)}"""
    return {
        f"{section}.{entry.name}": (
            typing.get_type_hints(cls)[entry.name],
            {**entry.metadata, "default": entry.default},
        )
        for section, cls in section_types().items()
        for entry in dataclasses.fields(cls)
    }
