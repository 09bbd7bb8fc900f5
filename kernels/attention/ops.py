"""`penstock::varlen_attention` as torch sees it, and the public function."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels import checks, dispatch, philox, transforms
from penstock.kernels.attention import cpu, reference
from penstock.kernels.attention import torch as torch_backend
from penstock.kernels.attention import triton as triton_backend
from penstock.kernels.attention.protocol import Problem, lse_dtype
from penstock.kernels.autocast import autocast_dtype, without_autocast
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

dispatch.register_modules("varlen_attention", triton=triton_backend, cpu=cpu, torch=torch_backend, reference=reference)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    ids: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention within each sequence of a ragged batch: dropout(softmax(scale * q k^T)) v.

    Args:
        q: (total_q, heads, head_dim), float16, bfloat16, float32 or float64.
        k, v: (total_k, kv_heads, head_dim), same dtype; query head h reads kv head h // (heads // kv_heads).
        cu_seqlens_q, cu_seqlens_k: int32, (batch + 1,), sequence b's queries and keys; either may have none.
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths.
        dropout_p: probability of dropping an attention weight. The caller passes 0 in evaluation.
        softmax_scale: multiplies q k^T; head_dim ** -0.5 if None.
        causal: query i sees no key behind it, the last query being aligned with the last key as in FlashAttention 2.
        window: (left, right), how many keys before and after its own place a query sees; -1 is unbounded.
        ids: int64, (batch,), names the examples for dropout; their place in the batch if None.
        seed: int64 scalar, the key of dropout; drawn from torch's generator if None.
    Returns:
        (total_q, heads, head_dim), in the dtype of q; 0 for a query that sees no key. Under autocast q, k and v are
        cast to the autocast dtype (float64 excepted).
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. The values of cu_seqlens are checked on a
            CPU always, on a GPU if PENSTOCK_DEBUG is set.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    device_type = q.device.type
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window, ids, seed)
    window_left, window_right = window
    if causal:
        window_right = 0
    if philox.threshold(dropout_p) == 0:
        dropout_p, seed, ids = 0.0, None, None
    else:
        seed = philox.new_seed(q.device) if seed is None else seed
        ids = torch.arange(cu_seqlens_q.shape[0] - 1, device=q.device) if ids is None else ids
    head_dim = q.shape[2]
    backend = dispatch.choose(
        "varlen_attention", device_type=device_type, dtype=q.dtype, head_dim=head_dim, dropout=dropout_p > 0
    )
    out, _ = _operation(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        head_dim**-0.5 if softmax_scale is None else softmax_scale,
        window_left,
        window_right,
        dropout_p,
        seed,
        ids,
        backend,
    )
    return out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window: tuple[int, int],
    ids: Tensor | None,
    seed: Tensor | None,
) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {q.dtype}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise ValueError(f"{name} must have shape (tokens, heads, head_dim), got {tuple(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {x.dtype}, q is {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q is on {q.device}")
        if x.shape[2] != q.shape[2]:
            raise ValueError(f"{name} has head_dim {x.shape[2]}, q has {q.shape[2]}")
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(f"k has shape {tuple(k.shape)}, v has {tuple(v.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1] != 0:
        raise ValueError(f"q's {q.shape[1]} heads must be a multiple of the {k.shape[1]} heads of k and v")
    if q.shape[2] == 0:
        raise ValueError("q has head_dim 0")
    check_cu_seqlens_form("cu_seqlens_q", cu_seqlens_q, q.device)
    check_cu_seqlens_form("cu_seqlens_k", cu_seqlens_k, q.device)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q holds {cu_seqlens_q.shape[0] - 1} sequences, cu_seqlens_k {cu_seqlens_k.shape[0] - 1}"
        )
    checks.integer("max_seqlen_q", max_seqlen_q, 0)
    checks.integer("max_seqlen_k", max_seqlen_k, 0)
    if len(window) != 2:
        raise ValueError(f"window must be two integers of at least -1, got {window}")
    for bound in window:
        checks.integer("window", bound, -1)
    checks.seed(seed, q.device)
    checks.ids(ids, cu_seqlens_q.shape[0] - 1, q.device)


# Problem's fields in their order, then the backend
_PROBLEM = (
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, "
    "SymInt window_left, SymInt window_right, float dropout_p, Tensor? seed, Tensor? ids, str backend"
)


torch.library.define(
    "penstock::varlen_attention",
    f"(Tensor q, Tensor k, Tensor v, {_PROBLEM}) -> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "penstock::varlen_attention_backward",
    f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_PROBLEM}) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("penstock::varlen_attention", "default")
def _forward(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, backend = arguments
    problem = Problem(*fields)
    check_cu_seqlens("cu_seqlens_q", problem.cu_seqlens_q, q.shape[0], problem.max_seqlen_q)
    check_cu_seqlens("cu_seqlens_k", problem.cu_seqlens_k, k.shape[0], problem.max_seqlen_k)
    q, k, v = (_last_stride_one(x) for x in (q, k, v))
    with without_autocast(q.device.type):
        return dispatch.implementation("varlen_attention", backend).forward(q, k, v, problem)


@torch.library.register_fake("penstock::varlen_attention")
def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=lse_dtype(q.dtype))


@torch.library.impl("penstock::varlen_attention_backward", "default")
def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *fields, backend = arguments
    q, k, v = (_last_stride_one(x) for x in (q, k, v))
    with without_autocast(q.device.type):
        implementation = dispatch.implementation("varlen_attention", backend)
        return implementation.backward(grad_out.contiguous(), q, k, v, out, lse, Problem(*fields))


@torch.library.register_fake("penstock::varlen_attention_backward")
def _fake_backward(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _last_stride_one(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *numbers, seed, ids, backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, seed, ids)
    ctx.numbers, ctx.backend = numbers, backend


def _differentiate(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 14
    q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seed, ids = ctx.saved_tensors
    problem = cu_seqlens_q, cu_seqlens_k, *ctx.numbers, seed, ids
    if torch.is_grad_enabled():  # the caller wants to differentiate once more (create_graph=True)
        # views, so that a tensor that is queries and keys, or of which the keys are made, has a gradient for each place
        q, k, v = (x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (q, k, v))
        gradients = reference.differentiate(grad_out, q, k, v, Problem(*problem))
    else:
        gradients = transforms.call(
            torch.ops.penstock.varlen_attention_backward.default, grad_out, q, k, v, out, lse, *problem, ctx.backend
        )
    return *gradients, *(None,) * 11


def _plain(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments[:-1])
    for name, bounds, tokens, longest in (
        ("cu_seqlens_q", problem.cu_seqlens_q, q.shape[0], problem.max_seqlen_q),
        ("cu_seqlens_k", problem.cu_seqlens_k, k.shape[0], problem.max_seqlen_k),
    ):
        transforms.check_readable(name, bounds)
        check_cu_seqlens(name, bounds, tokens, longest)
    with without_autocast(q.device.type):
        return reference.forward(q, k, v, problem)


def _plain_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    """What `reference.backward` computes, from q, k and v alone: torch can differentiate it in all of its arguments."""
    with without_autocast(q.device.type):
        problem = Problem(*arguments[:-1])
        pull_back = torch.func.vjp(lambda q, k, v: reference.forward(q, k, v, problem)[0], q, k, v)[1]
        return pull_back(grad_out)


_operation = transforms.register("varlen_attention", _plain, _setup_context, _differentiate)
transforms.register("varlen_attention_backward", _plain_backward)
