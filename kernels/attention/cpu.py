"""Attention over ragged batches on a CPU, in C++ (csrc/attention/cpu): no padding, dropout inside."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.attention import Backward, Gradients, Problem, Results
from penstock.kernels.compiled import address, call, native


def varlen_attention(problem: Problem) -> Results:
    made = problem.empty()
    call(native.attention_forward, _arguments(problem, *made))
    return made


def varlen_attention_backward(problem: Backward) -> Gradients:
    made = problem.empty()
    arguments = _arguments(problem, problem.out, problem.lse)
    arguments |= {"grad_out": _view(problem.grad_out)}
    arguments |= {"grad_q": _view(made.q), "grad_k": _view(made.k), "grad_v": _view(made.v)}
    call(native.attention_backward, arguments)
    return made


def _arguments(problem: Problem | Backward, out: Tensor, lse: Tensor) -> dict[str, Any]:
    """What csrc/attention/cpu/attention.cpp reads; the tensors must outlive the call."""
    q, k, v, seed = problem.q, problem.k, problem.v, problem.seed
    return {
        "bfloat16": q.dtype == torch.bfloat16,
        "batch": problem.cu_seqlens_q.shape[0] - 1,
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
        "ids": address(problem.ids),
        "q": _view(q),
        "k": _view(k),
        "v": _view(v),
        "out": _view(out),
        "lse": lse.data_ptr(),
    }


def _view(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)
