"""The model families that a study compares."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """
    Attributes:
        name: as on the command line and in file names.
        title: as in tables.
        model: settings of the `model` section; `encoder` is added where it is needed.
    """

    name: str
    title: str
    model: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.model["kind"]

    @property
    def needs_encoder(self) -> bool:
        return self.kind == "encoder" or self.model.get("embeddings") == "encoder"


FAMILIES = {
    family.name: family
    for family in (
        Family("lstm", "BiLSTM from scratch", {"kind": "lstm"}),
        Family("lstm-embeddings", "BiLSTM, pretrained embeddings", {"kind": "lstm", "embeddings": "encoder"}),
        Family("encoder", "fine-tuned encoder", {"kind": "encoder"}),
    )
}
REFERENCE = "encoder"  # the family that gaps are measured from
