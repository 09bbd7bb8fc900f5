"""The rotary position embedding on a CPU, in C++ (csrc/rowwise/cpu)."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels.compiled import available, call, native, why_not

__all__ = ["available", "rotate", "why_not"]


def _heads(x: Tensor, out: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), out.data_ptr(), x.shape[1], x.stride(0), x.stride(1)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    arguments: dict[str, Any] = {
        "bfloat16": q.dtype == torch.bfloat16,
        "rows": cos.shape[0],
        "head_dim": cos.shape[1],
        "transposed": transposed,
        "cos": cos.data_ptr(),
        "sin": sin.data_ptr(),
        "q": _heads(q, q_out),
        "k": _heads(k, k_out),
    }
    call(native.rotary, arguments)
    return q_out, k_out
