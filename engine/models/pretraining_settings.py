"""The `pretraining` section of the configuration."""

from dataclasses import dataclass
from typing import Literal

from penstock.engine.setting import check_section, setting


@dataclass(frozen=True)
class PretrainingSettings:
    """How `penstock pretrain` learns. Without an objective a run trains a classifier.

    What the two objectives made of an LSTM is in docs/log.md.
    """

    objective: Literal["masked", "replaced"] | None = setting(
        None, "what is learnt of texts without labels: to tell hidden tokens, or which tokens were replaced"
    )
    share: float = setting(0.15, "of the tokens, hidden or replaced", minimum=0.01, maximum=0.9)
    candidates: int = setting(
        4096,
        "tokens of the vocabulary that a hidden one is told from in training, drawn for each batch",
        minimum=1,
        used_by="lstm",
    )
    tokens: int | None = setting(None, "tokens read at most, over all passes; null: by training.epochs", minimum=1)

    def __post_init__(self) -> None:
        check_section(self, "pretraining")
