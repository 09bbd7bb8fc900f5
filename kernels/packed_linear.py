"""Linear layers for inference, on weights that stay packed between calls (csrc/linear/cpu/packed.h)."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from penstock.kernels import checks, compiled, packing
from penstock.kernels.compiled import address

_KINDS = (torch.float32, torch.bfloat16, torch.int8)


class PackedLinear:
    """Linear layers that read the same input, side by side: their products, with what follows them in one call.

    In int8 a row of the weights has a scale of its own, and so has a row of x at each call; sums of whole numbers are
    exact, and all else is float32 until the result is written.

    Args:
        weights: one or more, each (out_features, in_features), contiguous, on the CPU, of one floating-point dtype.
        biases: none, or one for each weight, (out_features,), contiguous, on the CPU, floating point.
        dtype: what products multiply: torch.float32, torch.bfloat16 or torch.int8.

    Raises:
        ValueError: weights or biases are others, there is nothing to multiply, the dtype is another, or in int8 a
            weight is not finite or has more than 133,144 input features.
        RuntimeError: the compiled module is missing.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype) -> None:
        if missing := compiled.available():
            raise RuntimeError(f"PackedLinear needs the compiled module: {missing}")
        if dtype not in _KINDS:
            raise ValueError(f"products are in float32, bfloat16 or int8, not {dtype}")
        if not weights or any(not weight.numel() for weight in weights):
            raise ValueError("a linear layer without inputs or outputs cannot be packed")
        _check(weights, biases)
        self.dtype, self.in_features = dtype, weights[0].shape[1]
        self.out_features = sum(weight.shape[0] for weight in weights)
        self._state = packing.state_of([*weights, *biases])
        self._kept = [tensor.untyped_storage() for tensor in (*weights, *biases)]  # an address means the same tensor
        quantised = dtype == torch.int8
        if quantised:
            packing.check_quantisable(weights)
        with torch.no_grad():
            low = torch.bfloat16 if all(weight.dtype == torch.bfloat16 for weight in weights) else torch.float32
            made_from = low if quantised else dtype
            cast = [weight.to(made_from).contiguous() for weight in weights]
            bias: list[Tensor | None] = [each.float().contiguous() for each in biases] or [None] * len(weights)
        parts = [(w.data_ptr(), address(b) or 0, w.shape[0]) for w, b in zip(cast, bias, strict=True)]
        kind = {"kind": packing.name(dtype), "bfloat16": made_from == torch.bfloat16, "in_features": self.in_features}
        self._packed = compiled.call(compiled.native.pack_linear, {**kind, "parts": parts})

    @property
    def bytes(self) -> int:
        """What the packed weights take."""
        return self._packed.bytes

    def is_of(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
        """Whether these, as they are now, were packed, for the instruction set of now."""
        return packing.state_of([*weights, *biases]) == self._state

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T + bias.

        Args:
            x: (rows, in_features), float32 or bfloat16; unless products are in int8, of their dtype.
        Returns:
            (rows, out_features), in the dtype of x.
        Raises:
            TypeError, ValueError: x is another.
        """
        return run_layers(x, [Layer(self)])[0]

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of that, as `bias_gelu` has it; in bfloat16 within 6e-5 before it is rounded."""
        return run_layers(x, [Layer(self, "gelu")])[0]

    def geglu(self, x: Tensor) -> Tensor:
        """GEGLU of that, (rows, out_features / 2), as `geglu` has it, with the GELU of `gelu`."""
        return run_layers(x, [Layer(self, "geglu")])[0]

    def norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        eps: float = 1e-5,
        prenorm: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """LayerNorm of residual + that, as `residual_norm` has it.

        Args:
            residual: (rows, out_features), in the dtype of x or float32.
        """
        found = run_layers(x, [Layer(self, "norm", residual, weight, bias, eps, prenorm)])
        return (found[0], found[1]) if prenorm else found[0]


class Layer(NamedTuple):
    """A layer of `run_layers` and what follows its product.

    Attributes:
        then: "", "gelu", "geglu" or "norm", as of `PackedLinear`'s methods.
        residual: of a norm: (rows, out_features), in the dtype of x or float32; or the number of the layer before that
            gives it.
        weight, bias, eps, prenorm: of a norm.
    """

    packed: PackedLinear
    then: str = ""
    residual: Tensor | int | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    prenorm: bool = False

    @property
    def width(self) -> int:
        """Columns of what it gives."""
        return self.packed.out_features // (2 if self.then == "geglu" else 1)


def run_layers(x: Tensor, layers: Iterable[Layer]) -> list[Tensor]:
    """Linear layers one after the other, each reading what the one before it gives: one call for all of a row's way.

    What lies between two layers stays in the cache; it is rounded to the dtype of x, as if they were called one by one.

    Args:
        x: (rows, in_features) of the first layer, float32 or bfloat16; unless products are in int8, of their dtype.
    Returns:
        What the last layer gives, in the dtype of x, and the sums z of those with prenorm.
    Raises:
        TypeError, ValueError: x, a residual or a norm's parameters are others.
    """
    layers = list(layers)
    if not layers:
        raise ValueError("there must be a layer")
    if x.ndim != 2 or x.shape[1] != layers[0].packed.in_features or x.device.type != "cpu":
        wanted = f"(rows, {layers[0].packed.in_features})"
        raise ValueError(f"x must have shape {wanted} on the CPU, got {tuple(x.shape)} on {x.device}")
    x = _dense(x)
    rows, low = x.shape[0], x.dtype == torch.bfloat16
    out = torch.empty(rows, layers[-1].width, dtype=x.dtype, device="cpu")
    kept: list[Tensor] = [x, out]  # their addresses are in use
    sums: list[Tensor] = []
    described: list[dict[str, Any]] = []
    for i, layer in enumerate(layers):
        kind = layer.packed.dtype
        if x.dtype not in ((torch.float32, torch.bfloat16) if kind == torch.int8 else (kind,)):
            raise TypeError(f"products in {kind} do not take x in {x.dtype}")
        tensors: dict[str, Tensor | None] = {"z": None, "residual": None, "norm_weight": None, "norm_bias": None}
        if layer.then == "norm":
            tensors = _of_norm(layer, (rows, layer.width), x.dtype)
        elif layer.prenorm or any(each is not None for each in (layer.residual, layer.weight, layer.bias)):
            raise ValueError(
                f"residual, weight, bias and prenorm are a norm's alone, and this layer's then is {layer.then!r}"
            )
        if tensors["z"] is not None:
            sums.append(tensors["z"])
        kept += [tensor for tensor in tensors.values() if tensor is not None]
        residual = tensors["residual"]
        described.append(
            {
                **{name: address(tensor) for name, tensor in tensors.items()},
                "packed": layer.packed._packed,
                "then": layer.then,
                "out": out.data_ptr() if i + 1 == len(layers) else None,
                "residual_of": layer.residual if isinstance(layer.residual, int) else -1,
                "bfloat16_residual": low if residual is None else residual.dtype == torch.bfloat16,
                "eps": checks.real("eps", layer.eps),
            }
        )
    arguments = {"bfloat16": low, "rows": rows, "x": x.data_ptr(), "layers": described}
    compiled.call(compiled.native.packed_layers, arguments)
    return [out, *sums]


def _of_norm(layer: Layer, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor | None]:
    residual, weight, bias = layer.residual, layer.weight, layer.bias
    if not isinstance(residual, int) and (
        residual is None or residual.shape != shape or residual.dtype not in (dtype, torch.float32)
    ):
        found = None if residual is None else f"{tuple(residual.shape)} in {residual.dtype}"
        raise ValueError(f"residual must have shape {shape}, in {dtype} or float32, got {found}")
    for each in (weight, bias):
        if each is not None and each.shape != shape[1:]:
            raise ValueError(f"a norm's parameters must have shape {shape[1:]}, got {tuple(each.shape)}")
    checks.floating("a norm's parameters", weight, bias)
    if weight is None:
        raise ValueError("a norm needs a weight")
    tensors = [each for each in (residual, weight, bias) if isinstance(each, Tensor)]
    if any(each.device.type != "cpu" for each in tensors):
        raise ValueError("residual and a norm's parameters must be on the CPU")
    of_norm = {"norm_weight": _dense(weight.float()), "norm_bias": None if bias is None else _dense(bias.float())}
    residual = _dense(residual) if isinstance(residual, Tensor) else None
    z = None
    if layer.prenorm:
        z = torch.empty(shape, dtype=dtype if residual is None else residual.dtype, device="cpu")
    return {"residual": residual, "z": z, **of_norm}


def _dense(tensor: Tensor) -> Tensor:
    """What C++ reads by its address: neither strided nor a view that negates."""
    return tensor.resolve_neg().contiguous()


def _check(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    shapes, dtypes = [tuple(weight.shape) for weight in weights], {weight.dtype for weight in weights}
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"weights must have shapes (out_features, in_features), with one in_features, got {shapes}")
    if len(dtypes) > 1 or not weights[0].is_floating_point():
        raise ValueError(f"weights must be of one floating-point dtype, got {dtypes}")
    if biases and [tuple(bias.shape) for bias in biases] != [shape[:1] for shape in shapes]:
        raise ValueError(f"biases must be none, or of shapes {[shape[:1] for shape in shapes]}")
    if not all(bias.is_floating_point() for bias in biases):
        raise ValueError("biases must be floating point")
    for each in (*weights, *biases):
        if each.device.type != "cpu" or each.layout != torch.strided or not each.is_contiguous() or each.is_neg():
            raise ValueError(f"weights and biases must be contiguous on the CPU, got {each.layout} on {each.device}")
