"""Attention over ragged batches on a CPU, in C++ (csrc/attention/cpu): no padding, dropout inside."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.attention.protocol import Problem, lse_dtype
from penstock.kernels.compiled import address, available, call, native, why_not

__all__ = ["available", "backward", "forward", "why_not"]


def _view(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _arguments(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, problem: Problem) -> dict[str, Any]:
    """What csrc/attention/cpu/attention.cpp reads; the tensors must outlive the call."""
    seed, ids = problem.seed, problem.ids
    return {
        "bfloat16": q.dtype == torch.bfloat16,
        "batch": problem.batch_size,
        "heads": q.shape[1],
        "kv_heads": k.shape[1],
        "head_dim": q.shape[2],
        "total_q": q.shape[0],
        "total_k": k.shape[0],
        "cu_seqlens_q": problem.cu_seqlens_q.data_ptr(),
        "cu_seqlens_k": problem.cu_seqlens_k.data_ptr(),
        "scale": problem.scale,
        "window_left": problem.window_left,
        "window_right": problem.window_right,
        "dropout_threshold": philox.threshold(problem.dropout_p),
        "dropout_scale": philox.scale(problem.dropout_p),
        "seed": 0 if seed is None else int(seed) & 0xFFFFFFFFFFFFFFFF,
        "ids": address(ids),
        "q": _view(q),
        "k": _view(k),
        "v": _view(v),
        "out": _view(out),
        "lse": lse.data_ptr(),
    }


def _contiguous_bounds(problem: Problem) -> Problem:
    ids = None if problem.ids is None else problem.ids.contiguous()
    return replace(
        problem,
        cu_seqlens_q=problem.cu_seqlens_q.contiguous(),
        cu_seqlens_k=problem.cu_seqlens_k.contiguous(),
        ids=ids,
    )


def forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    problem = _contiguous_bounds(problem)
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=lse_dtype(q.dtype))
    call(native.attention_forward, _arguments(q, k, v, out, lse, problem))
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _contiguous_bounds(problem)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    arguments = _arguments(q, k, v, out, lse, problem)
    arguments |= {"grad_out": _view(grad_out), "grad_q": _view(dq), "grad_k": _view(dk), "grad_v": _view(dv)}
    call(native.attention_backward, arguments)
    return dq, dk, dv
