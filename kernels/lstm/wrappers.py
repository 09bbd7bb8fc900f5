"""Backends wrapped: resets, token embeddings and pooling for those that have none of these built in."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels import pooling
from penstock.kernels.lstm.protocol import Implementation, InputGrads, LayerInputs, LayerOutputs, OutputGrads
from penstock.kernels.pooling.plain import Torch as TorchPooling


@dataclass
class SplitAtResets:
    """A backend that knows nothing of resets, serving them: each piece between two is run as a sequence of its own.

    This is exact, lets every backend serve resets at full speed, and shortens the recurrence.
    """

    backend: Implementation

    def forward(self, inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
        assert inputs.resets is not None
        segments = Segments.of(inputs.cu_seqlens, inputs.resets)
        out = self.backend.forward(segments.split(inputs), return_cells, save)
        h_n = segments.final(out.h_n, inputs.h0, inputs.batch_size)
        c_n = segments.final(out.c_n, inputs.c0, inputs.batch_size)
        return out._replace(h_n=h_n, c_n=c_n)

    def backward(
        self, grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
    ) -> InputGrads:
        assert inputs.resets is not None
        segments = Segments.of(inputs.cu_seqlens, inputs.resets)
        found = self.backend.backward(
            segments.split_grads(grads), segments.split(inputs), y, saved, need_x, need_weights
        )
        dh0 = segments.initial_grad(found.h0, grads.h_n, inputs.batch_size)
        dc0 = segments.initial_grad(found.c0, grads.c_n, inputs.batch_size)
        return found._replace(h0=dh0, c0=dc0)

    def saved_like(self, inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
        return self.backend.saved_like(inputs, return_cells)


@dataclass
class Segments:
    """The segments of a batch; sequences without tokens have none."""

    cu_seqlens: Tensor  # int32, (segments + 1,)
    sequences: Tensor  # (S,), the sequences that have tokens
    first: Tensor  # (S,), their first segments
    last: Tensor  # (S,), their last segments
    fresh: Tensor  # bool, (S,), reset at the very first token: the forward direction ignores the initial state

    @classmethod
    def of(cls, cu_seqlens: Tensor, resets: Tensor) -> "Segments":
        starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
        sequences = torch.nonzero(ends > starts).squeeze(1)
        starts, ends = starts[sequences], ends[sequences]
        fresh = resets[starts]
        begins = resets.clone()
        begins[starts] = True
        begin_rows = torch.nonzero(begins).squeeze(1).to(cu_seqlens.dtype)
        first = torch.searchsorted(begin_rows, starts)
        last = torch.searchsorted(begin_rows, ends) - 1
        return cls(torch.cat([begin_rows, cu_seqlens[-1:]]), sequences, first, last, fresh)

    @property
    def count(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def split(self, inputs: LayerInputs) -> LayerInputs:
        return inputs._replace(cu_seqlens=self.cu_seqlens, h0=self._spread(inputs.h0), c0=self._spread(inputs.c0))

    def final(self, of_segments: Tensor, initial: Tensor | None, batch: int) -> Tensor:
        """Each sequence's final state, (D, B, width), from its segments'."""
        directions, _, width = of_segments.shape
        out = of_segments.new_zeros(directions, batch, width) if initial is None else initial.clone()
        for d, ends in enumerate((self.last, self.first)[:directions]):
            out[d, self.sequences] = of_segments[d, ends]
        return out

    def split_grads(self, grads: OutputGrads) -> OutputGrads:
        return grads._replace(h_n=self._spread_grad(grads.h_n), c_n=self._spread_grad(grads.c_n))

    def initial_grad(self, of_segments: Tensor | None, final_grad: Tensor | None, batch: int) -> Tensor | None:
        """The gradient of h0 or c0, (D, B, width), from the segments'; empty sequences pass their final state's on."""
        if of_segments is None:
            return None
        directions, _, width = of_segments.shape
        out = of_segments.new_zeros(directions, batch, width) if final_grad is None else final_grad.clone()
        for d, begins in enumerate((self.first, self.last)[:directions]):
            grad = of_segments[d, begins]
            out[d, self.sequences] = torch.where(self.fresh[:, None], 0, grad) if d == 0 else grad
        return out

    def _spread(self, state: Tensor | None) -> Tensor | None:
        if state is None:
            return None
        out = state.new_zeros(state.shape[0], self.count, state.shape[2])
        for d, begins in enumerate((self.first, self.last)[: state.shape[0]]):
            initial = state[d, self.sequences]
            out[d, begins] = torch.where(self.fresh[:, None], 0, initial) if d == 0 else initial
        return out

    def _spread_grad(self, grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        out = grad.new_zeros(grad.shape[0], self.count, grad.shape[2])
        for d, ends in enumerate((self.last, self.first)[: grad.shape[0]]):
            out[d, ends] = grad[d, self.sequences]
        return out


@dataclass
class EmbedAndPool:
    """A backend that reads x token by token and returns y token by token, serving `ids` and `pool`."""

    backend: Implementation

    def forward(self, inputs: LayerInputs, return_cells: bool, save: bool) -> LayerOutputs:
        out = self.backend.forward(_plain(inputs), return_cells, save)
        if not inputs.pool:
            return out
        problem = pooling.Problem(out.y, None, inputs.cu_seqlens, inputs.pool, False)
        pooled, of_pool = TorchPooling.segment_pool(problem)
        saved = [*out.saved, out.y, of_pool] if save else []
        return out._replace(y=out.y.new_empty(0), saved=saved, pooled=pooled)

    def backward(
        self, grads: OutputGrads, inputs: LayerInputs, y: Tensor, saved: list[Tensor], need_x: bool, need_weights: bool
    ) -> InputGrads:
        if inputs.pool:
            *saved, y, of_pool = saved
            dy = None
            if grads.pooled is not None:
                given = None, None, of_pool, inputs.cu_seqlens, inputs.tokens, inputs.pool, False
                problem = pooling.Backward(grads.pooled.contiguous(), *given)
                dy = TorchPooling.segment_pool_backward(problem).values
            grads = grads._replace(y=dy, pooled=None)
        found = self.backend.backward(grads, _plain(inputs), y, saved, need_x, need_weights)
        if inputs.ids is None or found.x is None:
            return found
        dx = torch.ops.aten.embedding_dense_backward(
            found.x.to(inputs.x.dtype), inputs.ids, inputs.x.shape[0], -1, False
        )
        return found._replace(x=dx)

    def saved_like(self, inputs: LayerInputs, return_cells: bool) -> list[Tensor]:
        saved = self.backend.saved_like(_plain(inputs), return_cells)
        if inputs.pool:
            width = inputs.weights.directions * inputs.weights.output_size
            y = inputs.x.new_empty(inputs.tokens, width, dtype=inputs.dtype)
            saved += [y, pooling.empty_saved(y, inputs.batch_size, inputs.pool)]
        return saved


def _plain(inputs: LayerInputs) -> LayerInputs:
    x = inputs.x if inputs.ids is None else F.embedding(inputs.ids, inputs.x).to(inputs.dtype)
    return inputs._replace(x=x, ids=None, pool="")
