"""Weights of an `LSTM` that stay packed between calls: what `LSTM.prepare_inference` keeps.

The C++ kernels read weights from panels, and making these takes longer than a small batch. They are kept where no
gradient is recorded, and at every call the weights are compared with what was packed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penstock.kernels import compiled, dispatch, packing
from penstock.kernels.autocast import autocast_dtype, cast
from penstock.kernels.lstm import cpu
from penstock.kernels.lstm.protocol import LayerWeights

if TYPE_CHECKING:
    from penstock.kernels.lstm.module import LSTM


@dataclass(frozen=True)
class PackedLayers:
    """All layers' weights, packed, and what they were packed from.

    Attributes:
        layers: of each layer what `cpu.pack` returned.
        weights: in the weights' place: tensors of their shapes, without their values, in the dtype of the call.
        computed: the same in the dtype that the layers compute in.
        quantised: whether products are in int8.
        made_from: `_state` of the weights.
        kept: their memory, which nobody else can be given while it is kept.
    """

    layers: list[Any]
    weights: list[LayerWeights]
    computed: list[LayerWeights]
    quantised: bool
    made_from: tuple[Any, ...]
    kept: list[torch.UntypedStorage]

    @property
    def dtype(self) -> torch.dtype:
        return self.computed[0].w_ih[0].dtype

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


class Prepared:
    """A module's state between `prepare_inference` and what undoes it.

    Attributes:
        dtype: what was asked for; None where layers compute in the dtype of the call.
        packed: the weights as a call used them last.
    """

    def __init__(self, module: "LSTM", dtype: torch.dtype | None) -> None:
        """Packs the weights. Raises ValueError with the reason where that cannot be."""
        self.dtype = dtype
        weights = module._layers(None)
        call_dtype = _call_dtype(weights[0].w_ih[0])
        reason = _why_not(module, weights, _computed_in(dtype, call_dtype))
        if reason:
            raise ValueError(f"prepare_inference packs no weights here: {reason}")
        self.packed = _pack(weights, call_dtype, dtype)

    def for_call(self, module: "LSTM", *tensors: Tensor | None) -> PackedLayers | None:
        """The weights as they are now, packed, or None where the call must see the weights themselves.

        Args:
            tensors: what the layers read besides their weights.

        Raises:
            RuntimeError: the call must, but a dtype was asked for that it would not compute in.
            ValueError: weights to be packed in int8 are not finite.
        """
        weights = module._layers(None)
        call_dtype = _call_dtype(weights[0].w_ih[0])
        reason = packing.why_seen(tensors, weights) or _why_not(module, weights, _computed_in(self.dtype, call_dtype))
        if reason:
            if self.dtype is None:
                return None
            packing.refuse("LSTM", self.dtype, reason)
        packed = self.packed  # another thread, that computes in another dtype, may replace it
        if packed.made_from != _state(weights, call_dtype):
            packed = self.packed = _pack(weights, call_dtype, self.dtype)
        return packed

    def __repr__(self) -> str:
        return packing.name(self.dtype or self.packed.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return packing.nothing, ()


def _why_not(module: "LSTM", weights: list[LayerWeights], dtype: torch.dtype) -> str | None:
    """Why this module's weights cannot be packed, to compute in a dtype."""
    each = _tensors(weights)
    if reason := packing.why_not_kept(each):
        return reason
    facts = {
        "device_type": each[0].device.type,
        "dtype": dtype,
        "input_size": module.input_size,
        "hidden_size": module.hidden_size,
        "proj_size": module.proj_size,
        "needs": ("zoneout",) * any(module.zoneout),
    }
    reason = compiled.available() or cpu.why_not(**facts)
    if reason:
        return f"the cpu backend says: {reason}"
    backend = dispatch.choose("lstm", **facts)
    return None if backend == "cpu" else f"the backend is {backend}"


def _tensors(weights: list[LayerWeights]) -> list[Tensor]:
    return [tensor for layer in weights for kind in layer for tensor in kind]


def _call_dtype(weight: Tensor) -> torch.dtype:
    """What a call computes in by itself."""
    return autocast_dtype(weight) or weight.dtype


def _computed_in(dtype: torch.dtype | None, call_dtype: torch.dtype) -> torch.dtype:
    """The dtype of all but products in int8."""
    return torch.bfloat16 if dtype == torch.bfloat16 else call_dtype


def _state(weights: list[LayerWeights], call_dtype: torch.dtype) -> tuple[Any, ...]:
    """What differs once the packed weights are of no more use."""
    return call_dtype, packing.state_of(_tensors(weights))


def _pack(weights: list[LayerWeights], call_dtype: torch.dtype, dtype: torch.dtype | None) -> PackedLayers:
    quantised, dtype = dtype == torch.int8, _computed_in(dtype, call_dtype)
    made_from = _state(weights, call_dtype)
    layers = []
    for number, layer in enumerate(weights):
        for kind, each in (("ih", layer.w_ih), ("hh", layer.w_hh)) if quantised else ():
            packing.check_quantisable(each, f"weight_{kind}_l{number}")
        with torch.no_grad():
            layer = LayerWeights(*([cast(weight, dtype) for weight in kind] for kind in layer))
        layers.append(cpu.pack(layer, quantised))
    kept = [weight.untyped_storage() for weight in _tensors(weights)]
    return PackedLayers(layers, _shaped(weights, call_dtype), _shaped(weights, dtype), quantised, made_from, kept)


def _shaped(weights: list[LayerWeights], dtype: torch.dtype) -> list[LayerWeights]:
    value = torch.zeros((), dtype=dtype, device="cpu")
    return [LayerWeights(*([value.expand(weight.shape) for weight in kind] for kind in layer)) for layer in weights]
