"""The model families that a study compares: one line each."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What trains it is either the training loop, which `model` has settings for, or a baseline.

    Attributes:
        name: as on the command line and in file names.
        title: as in tables.
        model: of a family that the loop trains: settings of the `model` section; `encoder` is added where it is needed.
        baseline: of any other: its module in `penstock.engine.study.baselines`.
        reads_encoder: of a baseline: whether it needs the pretrained encoder.
        learns: whether more examples change its accuracy.
        teacher: the family whose trial of the same size and seed it learns from, on the rest of the training texts,
            whose labels it does not see; None for one that has no teacher.
        pretrains: its trials fine-tune what was learnt, once in the study, from the training texts without labels.
    """

    name: str
    title: str
    model: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    reads_encoder: bool = False
    learns: bool = True
    teacher: str | None = None
    pretrains: bool = False

    @property
    def kind(self) -> str | None:
        """The kind of model that the loop trains; None of a baseline."""
        return self.model["kind"] if self.baseline is None else None

    @property
    def needs_encoder(self) -> bool:
        return self.reads_encoder or self.kind == "encoder" or self.model.get("embeddings") == "encoder"


# in the order of tables and plots; trials of one size and seed run in the order of their names
FAMILIES = {
    family.name: family
    for family in (
        Family("majority", "most frequent class", baseline="majority", learns=False),
        Family("linear", "TF-IDF, logistic regression", baseline="linear"),
        Family("bag", "bag of n-grams", {"kind": "bag"}),
        Family("lstm", "BiLSTM from scratch", {"kind": "lstm"}),
        Family("lstm-embeddings", "BiLSTM, pretrained embeddings", {"kind": "lstm", "embeddings": "encoder"}),
        Family("lstm-pretrained", "BiLSTM, pretrained on the texts", {"kind": "lstm"}, pretrains=True),
        Family("lstm-distilled", "BiLSTM, distilled from the encoder", {"kind": "lstm"}, teacher="encoder"),
        Family(
            "lstm-pretrained-distilled",
            "BiLSTM, pretrained on the texts, then distilled",
            {"kind": "lstm"},
            teacher="encoder",
            pretrains=True,
        ),
        Family("frozen", "frozen encoder, logistic regression", baseline="frozen", reads_encoder=True),
        Family("encoder", "fine-tuned encoder", {"kind": "encoder"}),
    )
}
# what a study compares unless told otherwise; reading all of a large set is not cheap
ON_REQUEST = ("lstm-pretrained", "lstm-distilled", "lstm-pretrained-distilled", "frozen")
USUAL_FAMILIES = tuple(name for name in FAMILIES if name not in ON_REQUEST)
REFERENCE = "encoder"  # the family that gaps are measured from


def learns(name: str) -> bool:
    """Whether more examples change a family's accuracy; of a family that another penstock had, as most do."""
    return name not in FAMILIES or FAMILIES[name].learns
