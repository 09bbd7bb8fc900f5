"""Token embeddings before a layer and pooling after it, for backends that have neither built in."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels import pooling
from penstock.kernels.lstm.protocol import Implementation, InputGrads, LayerInputs, LayerOutputs, OutputGrads
from penstock.kernels.pooling.plain import Torch as TorchPooling


@dataclass
class Composed:
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
