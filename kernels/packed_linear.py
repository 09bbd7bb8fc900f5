"""Linear layers for inference, on weights that stay packed between calls (csrc/linear/cpu/packed.h): `PackedLinear`."""

from collections.abc import Sequence
from typing import Any

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
        return self._run("", x, self.out_features)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of that, as `bias_gelu` has it."""
        return self._run("gelu", x, self.out_features)

    def geglu(self, x: Tensor) -> Tensor:
        """GEGLU of that, (rows, out_features / 2), as `geglu` has it."""
        return self._run("geglu", x, self.out_features // 2)

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
        eps = checks.real("eps", eps)
        out_shape = (x.shape[0], self.out_features)
        if residual.shape != out_shape or residual.dtype not in (x.dtype, torch.float32):
            raise ValueError(
                f"residual must have shape {out_shape}, in {x.dtype} or float32, got {tuple(residual.shape)} in "
                f"{residual.dtype}"
            )
        for each in (weight, bias):
            if each is not None and each.shape != (self.out_features,):
                raise ValueError(f"a norm's parameters must have shape ({self.out_features},), got {tuple(each.shape)}")
        checks.floating("a norm's parameters", weight, bias)
        if any(each is not None and each.device.type != "cpu" for each in (residual, weight, bias)):
            raise ValueError("residual and a norm's parameters must be on the CPU")
        residual, weight = _dense(residual), _dense(weight.float())
        bias = None if bias is None else _dense(bias.float())
        z = torch.empty_like(residual) if prenorm else None
        out = self._run(
            "norm", x, self.out_features, residual=residual, z=z, norm_weight=weight, norm_bias=bias, eps=eps
        )
        return out if z is None else (out, z)

    def _run(self, then: str, x: Tensor, width: int, *, eps: float = 0.0, **tensors: Tensor | None) -> Tensor:
        if x.dtype not in ((torch.float32, torch.bfloat16) if self.dtype == torch.int8 else (self.dtype,)):
            raise TypeError(f"products in {self.dtype} do not take x in {x.dtype}")
        if x.ndim != 2 or x.shape[1] != self.in_features or x.device.type != "cpu":
            raise ValueError(
                f"x must have shape (rows, {self.in_features}) on the CPU, got {tuple(x.shape)} on {x.device}"
            )
        x, out = _dense(x), torch.empty(x.shape[0], width, dtype=x.dtype, device="cpu")
        residual = tensors.get("residual")
        low_residual = residual is not None and residual.dtype == torch.bfloat16
        arguments: dict[str, Any] = {"packed": self._packed, "bfloat16": x.dtype == torch.bfloat16, "then": then}
        arguments |= {"rows": x.shape[0], "x": x.data_ptr(), "out": out.data_ptr(), "eps": eps}
        arguments |= {"bfloat16_residual": low_residual}
        for each in ("residual", "z", "norm_weight", "norm_bias"):
            arguments[each] = address(tensors.get(each))
        compiled.call(compiled.native.packed_linear, arguments)
        return out


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
