"""Linear layers for inference, on weights that stay packed between calls (csrc/linear/cpu/packed.h): `PackedLinear`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import compiled, packing
from penstock.kernels.compiled import address

_KINDS = (torch.float32, torch.bfloat16, torch.int8)


class PackedLinear:
    """Linear layers that read the same input, side by side: their products, with what follows them in one call.

    In int8 a row of the weights has a scale of its own, and so has a row of x at each call; sums of whole numbers are
    exact, and all else is float32 until the result is written.

    Args:
        weights: one or more, each (out_features, in_features), contiguous, on the CPU, of one floating-point dtype.
        biases: none, or one for each weight, (out_features,).
        dtype: what products multiply: torch.float32, torch.bfloat16 or torch.int8.

    Raises:
        ValueError: there is nothing to multiply, the dtype is another, or a weight is not finite in int8.
        RuntimeError: the compiled module is missing.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype) -> None:
        if missing := compiled.available():
            raise RuntimeError(f"PackedLinear needs the compiled module: {missing}")
        if dtype not in _KINDS:
            raise ValueError(f"products are in float32, bfloat16 or int8, not {dtype}")
        if not weights or any(not weight.numel() for weight in weights):
            raise ValueError("a linear layer without inputs or outputs cannot be packed")
        self.dtype, self.in_features = dtype, weights[0].shape[1]
        self.out_features = sum(weight.shape[0] for weight in weights)
        self._state = packing.state_of([*weights, *biases])
        self._kept = [tensor.untyped_storage() for tensor in (*weights, *biases)]  # an address means the same tensor
        quantised = dtype == torch.int8
        if quantised:
            packing.check_finite(weights)
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
        out_shape = (x.shape[0], self.out_features)
        if residual.shape != out_shape or residual.dtype not in (x.dtype, torch.float32):
            raise ValueError(
                f"residual must have shape {out_shape}, in {x.dtype} or float32, got {tuple(residual.shape)} in "
                f"{residual.dtype}"
            )
        for each in (weight, bias):
            if each is not None and each.shape != (self.out_features,):
                raise ValueError(f"a norm's parameters must have shape ({self.out_features},), got {tuple(each.shape)}")
        residual, weight = residual.contiguous(), weight.float().contiguous()
        bias = None if bias is None else bias.float().contiguous()
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
        x, out = x.contiguous(), torch.empty(x.shape[0], width, dtype=x.dtype)
        residual = tensors.get("residual")
        low_residual = residual is not None and residual.dtype == torch.bfloat16
        arguments: dict[str, Any] = {"packed": self._packed, "bfloat16": x.dtype == torch.bfloat16, "then": then}
        arguments |= {"rows": x.shape[0], "x": x.data_ptr(), "out": out.data_ptr(), "eps": eps}
        arguments |= {"bfloat16_residual": low_residual}
        for each in ("residual", "z", "norm_weight", "norm_bias"):
            arguments[each] = address(tensors.get(each))
        compiled.call(compiled.native.packed_linear, arguments)
        return out
