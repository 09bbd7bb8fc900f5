"""Running a model over data without training it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.engine.data.loader import Batch, Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.store import Store
from penstock.engine.models.encoder import EncoderClassifier
from penstock.engine.models.lstm import LSTMClassifier
from penstock.engine.models.output import is_multi_label, multi_label_loss
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluation import EvaluationCounter
from penstock.engine.training.metrics import Metrics, count_confusion
from penstock.engine.training.multi_label import MultiLabelMetrics, thresholds_of
from penstock.engine.training.multi_label_evaluation import MultiLabelCounter
from penstock.engine.training.precision import autocast, resolve_precision
from penstock.engine.training.step import batch_memory, logits_of
from penstock.kernels import LSTM

Output = TypeVar("Output")


def evaluate(
    model: nn.Module,
    store: Store,
    *,
    rows: np.ndarray | None = None,
    tokens_per_batch: int = 8192,
    precision: str = "auto",
    world: World | None = None,
    watch: Callable[[Iterable[Batch], World], Iterable[Batch]] = lambda batches, world: batches,
) -> Metrics:
    """The metrics of a model on a store's rows; under several processes each takes its share.

    Example:
        >>> from penstock.engine import Store, evaluate, load_model
        >>> evaluate(load_model("run"), Store.open("test")).num_examples
        30

    Args:
        model: on its device; called with ragged batches of token ids.
        rows: int64, the rows to evaluate; all by default.
        watch: passes the batches on, and may end the evaluation, see `StopSignal.watch`.
    """
    world = world or World.alone(model)
    batches = watch(store_batches(store, rows, tokens_per_batch, world), world)
    return evaluate_batches(model, batches, store.label_names, precision, world)


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    label_names: Sequence[str],
    precision: str = "auto",
    world: World | None = None,
) -> Metrics:
    """As `evaluate`, of this process's batches."""
    num_labels = len(label_names)
    world = world or World.alone(model)
    if is_multi_label(model):
        return _evaluate_lists(model, batches, label_names, precision, world)
    confusion = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=world.device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
    for batch, logits in run(model, batches, precision):
        count_confusion(confusion, batch.labels, logits.argmax(-1))
        loss_sum += F.cross_entropy(logits, batch.labels, reduction="sum")
    return Metrics.from_confusion(world.sum(confusion).cpu(), world.sum(loss_sum).item(), label_names)


def _evaluate_lists(
    model: nn.Module, batches: Iterable[Batch], label_names: Sequence[str], precision: str, world: World
) -> MultiLabelMetrics:
    """As `evaluate_batches`, of examples with lists of labels, at the model's thresholds."""
    num_labels, device = len(label_names), world.device
    thresholds = torch.from_numpy(thresholds_of(getattr(model, "config", None), num_labels)).to(device)
    counts = torch.zeros(3, num_labels, dtype=torch.int64, device=device)
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, examples all right, examples
    for batch, logits in run(model, batches, precision):
        truth = batch.labels > 0
        predicted = class_probabilities(model, logits).double() >= thresholds
        counts += torch.stack([(truth & predicted).sum(0), predicted.sum(0), truth.sum(0)])
        totals[0] += multi_label_loss(logits, batch.labels, "sum")
        totals[1] += (truth == predicted).all(-1).sum()
        totals[2] += len(batch)
    loss, exact, examples = world.sum(totals).tolist()
    counts = world.sum(counts).cpu()
    return MultiLabelMetrics.from_counts(counts, int(exact), int(examples), loss, label_names)


def evaluate_fully(
    model: nn.Module,
    batches: Iterable[Batch],
    label_names: Sequence[str],
    precision: str = "auto",
) -> EvaluationCounter | MultiLabelCounter:
    """As `evaluate_batches`, class by class and with what depends on the probabilities; in one process."""
    counter: EvaluationCounter | MultiLabelCounter = EvaluationCounter(label_names)
    if is_multi_label(model):
        counter = MultiLabelCounter(label_names, thresholds_of(getattr(model, "config", None), len(label_names)))
    for batch, probabilities, loss_sum in judged(model, batches, precision):
        counter.add(batch.labels, probabilities, loss_sum)
    return counter


def judged(
    model: nn.Module, batches: Iterable[Batch], precision: str = "auto"
) -> Iterator[tuple[Batch, Tensor, float]]:
    """The batches, their probabilities, float32 (batch, num_labels), and their summed losses, nats."""
    several = is_multi_label(model)
    for batch, logits in run(model, batches, precision):
        if several:
            loss = multi_label_loss(logits, batch.labels, "sum")
        else:
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        yield batch, class_probabilities(model, logits), loss.item()


def class_probabilities(model: nn.Module, logits: Tensor) -> Tensor:
    """float32 (batch, num_labels), from a model's logits of the same shape: the one place that decides how."""
    return logits.sigmoid() if is_multi_label(model) else logits.softmax(-1)


def run(model: nn.Module, batches: Iterable[Batch], precision: str = "auto") -> Iterator[tuple[Batch, Tensor]]:
    """The batches, on the model's device, and their logits, float32 (batch, num_labels), in evaluation mode."""
    for batch, logits in run_forward(model, batches, precision, logits_of):
        yield batch, logits.float()


@torch.no_grad()
def run_forward(
    model: nn.Module, batches: Iterable[Batch], precision: str, forward: Callable[[nn.Module, Batch], Output]
) -> Iterator[tuple[Batch, Output]]:
    """The batches, on the model's device, and what `forward` makes of each, in evaluation mode."""
    device = next(model.parameters()).device
    precision = resolve_precision(precision, device)
    was_training = model.training
    model.eval()
    try:
        prepare(model, precision)
        for batch in batches:
            batch = batch.to(device)
            with batch_memory(batch, "evaluating"), autocast(precision, device):
                output = forward(model, batch)
            yield batch, output
    finally:
        if was_training:
            model.train()


def prepare(model: nn.Module, precision: str) -> None:
    """Packs the weights of an LSTM or an encoder once for all batches, where they can be; training takes it back.

    Args:
        precision: resolved.
    """
    is_lstm = isinstance(model, LSTMClassifier) and isinstance(model.lstm, LSTM)
    if not (is_lstm or isinstance(model, EncoderClassifier)) or model.prepared is not None:
        return
    with autocast(precision, model.device), contextlib.suppress(ValueError):  # what cannot be packed answers as it is
        model.prepare_inference()


def store_batches(store: Store, rows: np.ndarray | None, tokens_per_batch: int, world: World) -> Iterator[Batch]:
    """This process's share of the rows."""
    yield from evaluation_loader(store, rows, tokens_per_batch, world).batches()


def evaluation_loader(store: Store, rows: np.ndarray | None, tokens_per_batch: int, world: World) -> Loader:
    """The rows grouped by length: an evaluation has no order, and an LSTM then idles less."""
    parameters = PlanParameters(tokens_per_batch=tokens_per_batch, batches_per_step=world.size, mode="bucket")
    return Loader(
        store, seed=0, parameters=parameters, rows=rows, rank=world.rank, world_size=world.size, shuffle=False
    )
