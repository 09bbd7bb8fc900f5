"""The steps of a fused encoder on weights that stay packed between calls: `EncoderClassifier.prepare_inference`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from penstock.engine.models.steps import PostNormParts, Steps, Sublayer, biases_of, is_gelu
from penstock.engine.models.stock import is_lora
from penstock.kernels import compiled, dispatch, packing
from penstock.kernels.autocast import as_called, autocast_dtype
from penstock.kernels.packed_linear import Layer, PackedLinear, run_layers

_DTYPES = (torch.float32, torch.bfloat16)
_PLAIN = Steps()


class PackedSteps(Steps):
    """A layer's steps, each a product and what follows it in one call. Weights are packed at their first use.

    Attributes:
        dtype: what was asked for; None where products are in the dtype of the call.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self._packed: dict[tuple[int, ...], PackedLinear] = {}

    @property
    def bytes(self) -> int:
        return sum(packed.bytes for packed in self._packed.values())

    def after_attention(self, x: Tensor, residual: Tensor, parts: PostNormParts, bounds: dict[str, Any]) -> Tensor:
        if not is_gelu(parts.activation):
            return super().after_attention(x, residual, parts, bounds)
        x = as_called(x)
        inner = self._of(x, [parts.inner.weight], biases_of(parts.inner))
        layers = [self._norm(x, parts.first, residual), Layer(inner, "gelu"), self._norm(x, parts.second, 0)]
        return run_layers(x, layers)[0]

    def after_attention_prenorm(
        self, x: Tensor, residual: Tensor, first: Sublayer, mlp: Any, bounds: dict[str, Any]
    ) -> Tensor:
        if not is_gelu(mlp.act):
            return super().after_attention_prenorm(x, residual, first, mlp, bounds)
        x = as_called(x)
        inner, outer = (self._of(x, [dense.weight], biases_of(dense)) for dense in (mlp.Wi, mlp.Wo))
        layers = [self._norm(x, first, residual)._replace(prenorm=True), Layer(inner, "geglu"), Layer(outer)]
        out, hidden = run_layers(x, layers)
        return hidden + out

    def _gelu(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return self._run(x, dense, "gelu")

    def _geglu(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return self._run(x, dense, "geglu")

    def add(
        self, x: Tensor, dense: nn.Linear, residual: Tensor, norm: nn.LayerNorm, /, *_: Any, prenorm: bool = False
    ) -> Any:
        x = as_called(x)
        out, *z = run_layers(x, [self._norm(x, Sublayer(dense, norm), residual)._replace(prenorm=prenorm)])
        return (out, *z) if prenorm else out

    def _norm(self, x: Tensor, part: Sublayer, residual: Tensor | int) -> Layer:
        packed, norm = self._of(x, [part.dense.weight], biases_of(part.dense)), part.norm
        return Layer(packed, "norm", residual, norm.weight, norm.bias, norm.eps)

    def _run(self, x: Tensor, dense: nn.Linear, then: str) -> Tensor:
        x = as_called(x)
        return run_layers(x, [Layer(self._of(x, [dense.weight], biases_of(dense)), then)])[0]

    def _linear(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        x = as_called(x)
        return self._of(x, weights, biases)(x)

    def _of(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> PackedLinear:
        """The layers packed as they are now, for rows of x."""
        kind = self.dtype or x.dtype
        key = (*(weight.data_ptr() for weight in weights), weights[-1].shape[0])
        found = self._packed.get(key)
        if found is None or found.dtype != kind or not found.is_of(weights, biases):
            found = self._packed[key] = PackedLinear(weights, biases, kind)
        return found

    def __repr__(self) -> str:
        return "as called" if self.dtype is None else packing.name(self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return packing.nothing, ()


def prepare(layers: nn.ModuleList, dtype: torch.dtype | None) -> None:
    """Has the layers answer with packed weights; `EncoderClassifier.prepare_inference` says what it raises."""
    for layer in layers:
        if reason := _why_not(layer):
            raise ValueError(f"prepare_inference packs no weights here: {reason}")
        dense = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        if dtype == torch.int8:
            packing.check_quantisable(module.weight for module in dense)
    for layer in layers:
        vars(layer)["prepared"] = PackedSteps(dtype)


def forget(layers: Iterable[nn.Module]) -> None:
    """Undoes `prepare`."""
    for layer in layers:
        vars(layer).pop("prepared", None)


def prepared(layer: nn.Module) -> PackedSteps | None:
    return vars(layer).get("prepared")


def steps_of(layer: nn.Module, hidden_states: Tensor) -> Steps:
    """How a layer that is fused computes now.

    Raises:
        RuntimeError: it is prepared to answer in a dtype, which this call cannot.
    """
    steps = prepared(layer)
    if steps is None:
        return _PLAIN
    weights = list(layer.parameters()) if torch.is_grad_enabled() else []
    reason = packing.why_seen((hidden_states,), weights) or _why_not_now(layer, hidden_states)
    if reason is None:
        return steps
    if steps.dtype is not None:
        packing.refuse("encoder", steps.dtype, reason)
    return _PLAIN


def check_unprepared(layer: nn.Module) -> None:
    """Raises RuntimeError: the layer, which is not fused now, is prepared to answer in a dtype."""
    steps = prepared(layer)
    if steps is not None and steps.dtype is not None:
        reason = "something else than transformers made stands in a layer: a hook, an adapter, a class"
        packing.refuse("encoder", steps.dtype, reason)


def _why_not_now(layer: nn.Module, hidden_states: Tensor) -> str | None:
    device, dtype = hidden_states.device.type, autocast_dtype(hidden_states) or hidden_states.dtype
    if device != "cpu" or dtype not in _DTYPES:
        return f"it computes in {packing.name(dtype)} on {device}; packed weights are for float32 and bfloat16 on a CPU"
    if layer.training:
        return "a layer is in training"
    return _why_no_backend(dtype)


def _why_no_backend(dtype: torch.dtype) -> str | None:
    backend = dispatch.choose("residual_norm", device_type="cpu", dtype=dtype)
    return None if backend == "cpu" else f"the backend is {backend}"


def _why_not(layer: nn.Module) -> str | None:
    """Why this layer's weights cannot be packed."""
    if "forward" not in vars(layer):
        return "its layers are not fused"
    modules: Any = [module for module in layer.modules() if isinstance(module, nn.Linear) or is_lora(module)]
    if any(map(is_lora, modules)):
        return "it has adapters"
    weights = [tensor for module in modules for tensor in (module.weight, *biases_of(module))]
    device = weights[0].device.type
    if device != "cpu":
        return f"the cpu backend says: it runs on the CPU, the weights are on {device}"
    return compiled.available() or packing.why_not_kept(weights) or _why_no_backend(torch.float32)
