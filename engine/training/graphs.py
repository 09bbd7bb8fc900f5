"""A batch's forward, loss and backward from a CUDA graph: the host gives one order in the place of hundreds.

A graph is of one shape, so batches are filled up to few shapes, with texts behind the real ones that no loss counts and
no real text sees. The first batch of a shape runs as it always does, and so warms up what the second one captures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.engine.data.loader import Batch
from penstock.engine.errors import ConfigError, RunError, first_line, is_out_of_memory
from penstock.engine.models.ragged_input import filled_up
from penstock.engine.training.distributed import World
from penstock.engine.training.sections import TrainingSettings

ABSENT = -100  # the label of a text that fills up; torch's own sign for a label that no loss counts
_MOST_SHAPES = 64  # graphs that are kept: a batch of one more shape runs without
_LEAST = 16

# What runs a batch: (filled batch, what its loss is multiplied by) to (sum of the losses, texts predicted right)
Compute = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]


class Shape(NamedTuple):
    tokens: int
    texts: int
    longest: int


def check_graphs(settings: TrainingSettings, world: World) -> None:
    """
    Raises:
        ConfigError: `training.cuda_graphs` is asked for where there can be none.
    """
    if not settings.cuda_graphs:
        return
    if world.device.type != "cuda" or torch.version.hip is not None:
        raise ConfigError(
            f"training.cuda_graphs=true needs an NVIDIA GPU, this run is on {world.device.type}: leave it out"
        )
    if world.size > 1:
        raise ConfigError(f"training.cuda_graphs=true is for one process, this run has {world.size}: leave it out")
    if settings.compile:
        raise ConfigError("training.cuda_graphs and training.compile do not go together: set one of them to false")


def shape_for(batch: Batch, limit: int | None = None) -> Shape:
    """The shape that a batch is filled up to: at most an eighth more tokens, powers of two for the others.

    Args:
        limit: the length of a text that the model can read, if it has one.
    """
    tokens = _eighths(max(batch.num_tokens, _LEAST))
    longest = _power_of_two(max(batch.tokens.max_seqlen, _LEAST))
    if limit is not None:
        longest = max(min(longest, limit), batch.tokens.max_seqlen)
    more = -(-(tokens - batch.num_tokens) // longest)
    return Shape(tokens, _power_of_two(max(len(batch) + more, _LEAST)), longest)


def filled(batch: Batch, shape: Shape) -> Batch:
    """The batch, followed by texts without a label."""
    more = shape.texts - len(batch)
    behind = (0, 0) * (batch.labels.ndim - 1) + (0, more)
    return Batch(
        filled_up(batch.tokens, *shape),
        F.pad(batch.labels, behind, value=ABSENT),
        None if batch.seconds is None else F.pad(batch.seconds, (0, more)),
    )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _eighths(number: int) -> int:
    """The next of 8, 9, ... 15 times a power of two."""
    unit = 1 << max(number.bit_length() - 4, 0)
    return -(-number // unit) * unit


@dataclass
class _Captured:
    """A graph with the tensors that it reads and those that it leaves its results in."""

    replay: Callable[[], object]
    inputs: list[Tensor]
    results: tuple[Tensor, Tensor]


class StepGraphs:
    """Runs batches, from the second of a shape on from a graph. Gradients add up in `.grad`, which stays in place."""

    def __init__(self, compute: Compute, device: torch.device, limit: int | None = None) -> None:
        """
        Args:
            compute: asks the device for nothing, and reads its tensors alone: other values are captured as they are.
            limit: as for `shape_for`.
        """
        self._compute, self._device, self._limit = compute, device, limit
        self._graphs: dict[Shape, _Captured | None] = {}  # None: met once
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, factor: float) -> tuple[Tensor, Tensor]:
        """What `compute` gives. The results are overwritten by the next call.

        Args:
            batch: on the device. factor: the loss's.

        Raises:
            RunError: the model asks for what cannot be captured.
        """
        shape = shape_for(batch, self._limit)
        batch = filled(batch, shape)
        given = _tensors(batch), torch.full((), factor, device=self._device)
        if shape not in self._graphs:
            if len(self._graphs) < _MOST_SHAPES:
                self._graphs[shape] = None
            return self._warm_up(batch, given[1])
        graph = self._graphs[shape]
        if graph is None:
            graph = self._graphs[shape] = self._capture(batch, given[1])
        for kept, new in zip(graph.inputs, [*given[0], given[1]], strict=True):
            kept.copy_(new)
        graph.replay()
        return graph.results

    def _warm_up(self, batch: Batch, factor: Tensor) -> tuple[Tensor, Tensor]:
        """On the stream that captures, for what is made ready there at the first time must be ready before."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = self._compute(batch, factor)
        current.wait_stream(self._stream)
        return results

    def _capture(self, batch: Batch, factor: Tensor) -> _Captured:
        inputs, factor = [tensor.clone() for tensor in _tensors(batch)], factor.clone()
        graph = torch.cuda.CUDAGraph()
        # other threads may go on: they copy batches and checkpoints
        where: dict[str, Any] = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **where):
                results = self._compute(_of_tensors(batch, inputs), factor)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"training.cuda_graphs=true: a step of this model cannot be captured ({first_line(error)}): set "
                "training.cuda_graphs=false"
            ) from error
        return _Captured(graph.replay, [*inputs, factor], results)


def _tensors(batch: Batch) -> list[Tensor]:
    tokens = batch.tokens
    found = [tokens.values, tokens.cu_seqlens, tokens.ids, batch.labels, batch.seconds]
    return [tensor for tensor in found if tensor is not None]


def _of_tensors(batch: Batch, tensors: list[Tensor]) -> Batch:
    """The batch with other tensors, in the order of `_tensors`."""
    left = iter(tensors)
    values, cu_seqlens = next(left), next(left)
    ids = None if batch.tokens.ids is None else next(left)
    tokens = replace(batch.tokens, values=values, cu_seqlens=cu_seqlens, ids=ids)
    return Batch(tokens, next(left), None if batch.seconds is None else next(left))


def present(labels: Tensor) -> Tensor:
    """Which texts of a batch have labels: those that do not fill it up; bool, (batch,)."""
    return (labels if labels.ndim == 1 else labels[:, 0]) != ABSENT
