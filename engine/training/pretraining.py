"""A run that learns from texts without labels: its model, its vocabulary, its loss on texts kept for validation."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penstock.engine.data.loader import Batch
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError
from penstock.engine.models.build import check_pair_types, settings_of_saved
from penstock.engine.models.pretrained import build_pretraining, load_pretraining
from penstock.engine.models.pretraining import PretrainingOutput, Vocabulary
from penstock.engine.training.distributed import World
from penstock.engine.training.evaluate import run_forward, store_batches
from penstock.engine.training.pretraining_metrics import PretrainingMetrics
from penstock.engine.training.settings import Settings
from penstock.engine.training.state import check_stored, check_weights
from penstock.engine.training.step import pretraining_output

_CHUNK = 4_096  # rows whose tokens are counted at a time


def build_pretraining_run_model(settings: Settings, store: Store, rows: np.ndarray, last: Path | None) -> Any:
    """The model: new, or as the last checkpoint has it.

    Args:
        store: as the run reads it. rows: int64, those that are trained on.

    Raises:
        ModelError: it cannot be built for this data. ConfigError: there is nothing to learn from.
        StateError: the checkpoint is not of this model.
    """
    wanted = settings.model if last is None else settings_of_saved(settings.model, last)
    model: Any = build_pretraining(wanted, settings.pretraining, store.vocab_size, store.tokenizer())
    if store.seconds is not None:
        check_pair_types(model)
    model.learn_from(vocabulary_of(store, rows))
    if last is not None:
        weights = load_pretraining(last, settings.pretraining.share).state_dict()
        check_weights(weights, model.state_dict())
        model.load_state_dict(weights)
        check_stored(last, model.saved_state(), None)
    return model


def vocabulary_of(store: Store, rows: np.ndarray) -> Vocabulary:
    """
    Raises:
        ConfigError: the texts consist of special tokens alone.
    """
    counts = np.zeros(store.vocab_size, np.int64)
    for begin in range(0, len(rows), _CHUNK):
        values, _ = store.gather(np.ascontiguousarray(rows[begin : begin + _CHUNK]))
        counts += np.bincount(values, minlength=len(counts))
    tokenizer = store.tokenizer()
    special = [number for number in tokenizer.all_special_ids if number < len(counts)]
    counts[special] = 0
    if not counts.any():
        raise ConfigError(f"{store.path}: its texts consist of special tokens alone: there is nothing to learn from")
    return Vocabulary(counts, special, tokenizer.mask_token_id)


def evaluate_pretraining(
    model: nn.Module,
    store: Store,
    *,
    rows: np.ndarray | None = None,
    tokens_per_batch: int = 8192,
    precision: str = "auto",
    world: World | None = None,
    watch: Callable[[Iterable[Batch], World], Iterable[Batch]] = lambda batches, world: batches,
) -> PretrainingMetrics:
    """As `evaluate`, of a model that learns from texts without labels: always with the same tokens hidden."""
    world = world or World.alone(model)
    totals = torch.zeros(4, dtype=torch.float64, device=world.device)
    batches = watch(store_batches(store, rows, tokens_per_batch, world), world)
    for batch, output in outputs(model, batches, precision):
        if len(batch):
            totals += torch.stack([value.double() for value in (*output, output.told.new_tensor(len(batch)))])
    loss, correct, told, examples = world.sum(totals).tolist()
    return PretrainingMetrics(loss / max(told, 1.0), correct / max(told, 1.0), int(told), int(examples))


def outputs(
    model: nn.Module, batches: Iterable[Batch], precision: str = "auto"
) -> Iterator[tuple[Batch, PretrainingOutput]]:
    """The batches, on the model's device, and what the model made of them, in evaluation mode."""
    return run_forward(model, batches, precision, pretraining_output)
