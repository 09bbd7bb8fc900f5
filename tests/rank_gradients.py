"""Cases of one optimizer step, and its gradients as ranks find them together.

A rank must find this file by its name.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from tiny_encoders import CONFIGS
from torch import nn
from torch.nn import functional as F

from penstock.engine.data.loader import Batch
from penstock.engine.models import EncoderClassifier, LSTMClassifier, LSTMClassifierConfig
from penstock.engine.models.output import MULTI_LABEL
from penstock.engine.training.distributed import World
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.shard import place, whole
from penstock.engine.training.step import Stepper
from penstock.kernels import Ragged, use_backend

LABELS, VOCAB = 3, 101
WEIGHTS = (0.5, 3.0, 1.25)
MODELS = ("lstm", "bert")
LOSSES = ("mean", "class weights", "weights, smoothed", "labels, weighted")
# texts of a step: enough for all, fewer than there are batches, one
TEXTS = (29, 5, 1)


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        clipped: to a norm that the gradient is longer than.
        dropout: whether some is dropped.
    """

    model: str
    loss: str
    texts: int
    clipped: bool = False
    dropout: bool = False

    def __str__(self) -> str:
        words = (self.model, self.loss, f"{self.texts} texts", "clipped" * self.clipped, "dropout" * self.dropout)
        return ", ".join(filter(None, words))

    @property
    def settings(self) -> dict[str, Any]:
        smoothing = 0.1 if self.loss == "weights, smoothed" else 0.0
        return {"label_smoothing": smoothing, "max_grad_norm": 1e-3 if self.clipped else 0.0, "learning_rate": 0.1}

    @property
    def weights(self) -> torch.Tensor | None:
        return None if self.loss == "mean" else torch.tensor(WEIGHTS)


CASES = [Case(*values) for values in itertools.product(MODELS, LOSSES, TEXTS)]
CASES += [Case(model, LOSSES[1], TEXTS[0], clipped=True) for model in MODELS]
CASES += [Case("modernbert-mean", LOSSES[0], texts) for texts in TEXTS]
DROPPING = [Case(model, LOSSES[1], texts, dropout=True) for model in MODELS for texts in TEXTS]


def model_of(case: Case) -> Any:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate("abc")), "label2id": {name: at for at, name in enumerate("abc")}}
    rate = 0.3 if case.dropout else 0.0
    model: Any
    if case.model == "lstm":
        rates = {"embedding_dropout": rate, "dropout": rate, "head_dropout": rate}
        config = LSTMClassifierConfig(vocab_size=VOCAB, hidden_size=7, embedding_size=5, num_layers=2, **rates, **names)
        model = LSTMClassifier(config)
    else:
        made = CONFIGS[case.model]()
        for name in vars(made):
            if "dropout" in name:
                setattr(made, name, None if name == "classifier_dropout" and made.model_type == "bert" else rate)
        made.id2label, made.label2id = names["id2label"], names["label2id"]
        model = EncoderClassifier(transformers.AutoModelForSequenceClassification.from_config(made))
    if case.loss.startswith("labels"):
        model.config.problem_type = MULTI_LABEL
    return model


def texts_of(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Token ids, and labels: int64 (texts,), or of lists float32 (texts, labels)."""
    draw = torch.Generator().manual_seed(case.texts)
    lengths = torch.randint(1, 30, (case.texts,), generator=draw).tolist()
    texts = [torch.randint(2, VOCAB, (length,), generator=draw, dtype=torch.int32) for length in lengths]
    if case.loss.startswith("labels"):
        return texts, (torch.rand(case.texts, LABELS, generator=draw) < 0.4).float()
    return texts, torch.randint(0, LABELS, (case.texts,), generator=draw)


def batch_of(texts: list[torch.Tensor], labels: torch.Tensor, rows: range) -> Batch:
    values = torch.cat([torch.zeros(0, dtype=torch.int32), *(texts[row] for row in rows)])
    lengths = torch.tensor([len(texts[row]) for row in rows], dtype=torch.int64)
    return Batch(Ragged.from_lengths(values, lengths, torch.tensor(rows, dtype=torch.int64)), labels[list(rows)])


def normalizer(case: Case, labels: torch.Tensor) -> float | None:
    """The sum of the texts' class weights, where they have any."""
    return float(torch.tensor(WEIGHTS)[labels].sum()) if "weights" in case.loss else None


def gradients(cases: list[Case], batches_per_step: int, shard: bool) -> list[tuple[dict[str, np.ndarray], list[float]]]:
    """For each case, with the step's texts dealt to this many batches: (gradients as the optimizer takes them, float32;
    loss, number of right ones and norm as reported)."""
    world = World.join("cpu")
    return [_of_case(case, batches_per_step, shard, world) for case in cases]


def _of_case(case: Case, batches_per_step: int, shard: bool, world: World) -> tuple[dict[str, np.ndarray], list[float]]:
    texts, labels = texts_of(case)
    # uneven, the last ones empty where there are few
    bounds = [round(len(texts) * (place / batches_per_step) ** 0.7) for place in range(batches_per_step + 1)]
    batches = [batch_of(texts, labels, range(*pair)) for pair in itertools.pairwise(bounds)]
    model, settings = model_of(case), TrainingSettings(shard=shard, **case.settings)
    names = [name for name, _ in model.named_parameters()]
    place(model, settings, world)
    stepper = Stepper(model, settings, "fp32", world, case.weights)
    found: dict[str, np.ndarray] = {}

    def note(optimizer: Any, *_: Any) -> None:
        divisor = getattr(optimizer, "grad_scale", None)  # by which it divides as it reads them
        for name, parameter in zip(names, model.parameters(), strict=True):
            gradient = whole(parameter.grad).numpy()
            found[name] = gradient.copy() if divisor is None else gradient / float(divisor)

    stepper._optimizer.register_step_pre_hook(note)
    mine = batches[world.rank :: world.size]
    weight = normalizer(case, labels)
    report = stepper(mine, step=1, num_examples=len(texts), weight=weight, learning_rate=0.1)
    return found, [report.loss_sum, report.correct, report.grad_norm]


def reference(case: Case) -> tuple[dict[str, np.ndarray], list[float]]:
    """As `gradients`, of one batch, in float64 and plain torch."""
    texts, labels = texts_of(case)
    model: nn.Module = model_of(case).double().train()
    batch = batch_of(texts, labels, range(len(texts)))
    with use_backend("reference"):
        logits = model(batch.tokens).logits
        weights = None if case.weights is None else case.weights.double()
        if case.loss.startswith("labels"):
            loss = F.binary_cross_entropy_with_logits(logits, labels.double(), pos_weight=weights)
            right = ((logits >= 0) == (labels > 0)).all(-1)
        else:
            smoothing = case.settings["label_smoothing"]
            loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
            right = logits.argmax(-1) == labels
        loss.backward()
    found = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    norm = float(np.sqrt(sum((gradient**2).sum() for gradient in found.values())))
    if 0 < (most := case.settings["max_grad_norm"]) < norm:
        found = {name: gradient * (most / (norm + 1e-6)) for name, gradient in found.items()}
    return found, [loss.item() * len(texts), int(right.sum()), norm]
