"""The truth about attention over ragged batches: plain torch, one sequence after the other."""

import torch
from torch import Tensor

from penstock.kernels import philox
from penstock.kernels.attention import Backward, Gradients, Problem, Results
from penstock.kernels.precision import accumulate_dtype


def visible(length_q: int, length_k: int, problem: Problem | Backward, device: torch.device) -> Tensor:
    """Which keys each query of one sequence sees; bool, (length_q, length_k)."""
    query = torch.arange(length_q, dtype=torch.int64, device=device)[:, None] + (length_k - length_q)
    key = torch.arange(length_k, dtype=torch.int64, device=device)[None, :]
    seen = torch.ones(length_q, length_k, dtype=torch.bool, device=device)
    if problem.window_left >= 0:
        seen &= key >= query - problem.window_left
    if problem.window_right >= 0:
        seen &= key <= query + problem.window_right
    return seen


def dropout_factor(
    example: int, heads: int, length_q: int, length_k: int, problem: Problem | Backward, like: Tensor
) -> Tensor:
    """What multiplies the attention weights of one sequence: 0 or the inverse keep probability; (heads, q, k)."""
    assert problem.seed is not None
    assert problem.ids is not None
    of_heads = torch.arange(heads, dtype=torch.int64, device=like.device)
    example_id = problem.ids[example].expand(heads)
    keep = philox.keep_weights(problem.seed, example_id, of_heads, range(length_q), length_k, problem.dropout_p)
    return keep.to(like.dtype) * philox.scale(problem.dropout_p)


def _sequences(problem: Problem | Backward) -> list[tuple[int, slice, slice]]:
    bounds_q, bounds_k = problem.cu_seqlens_q.tolist(), problem.cu_seqlens_k.tolist()
    return [
        (b, slice(bounds_q[b], bounds_q[b + 1]), slice(bounds_k[b], bounds_k[b + 1])) for b in range(len(bounds_q) - 1)
    ]


def _scores(q: Tensor, k: Tensor, problem: Problem | Backward) -> Tensor:
    """(heads, q, k), -inf where the key is not visible."""
    seen = visible(q.shape[0], k.shape[0], problem, q.device)
    return (torch.einsum("ihd,jhd->hij", q, k) * problem.scale).masked_fill(~seen, float("-inf"))


def _lse(scores: Tensor) -> Tensor:
    lse = scores.logsumexp(-1)
    return lse.masked_fill(lse == float("-inf"), float("inf"))


def varlen_attention(problem: Problem) -> Results:
    """Differentiable any number of times when it is called outside the operation."""
    q, k, v = problem.q, problem.k, problem.v
    heads, dtype = q.shape[1], accumulate_dtype(q.dtype)
    group = heads // k.shape[1]
    outs, lses = [q.new_zeros(0, *q.shape[1:], dtype=dtype)], [q.new_zeros(heads, 0, dtype=dtype)]
    for b, rows_q, rows_k in _sequences(problem):
        q_b = q[rows_q].to(dtype)
        k_b, v_b = (x[rows_k].to(dtype).repeat_interleave(group, 1) for x in (k, v))
        scores = _scores(q_b, k_b, problem)
        lse = _lse(scores.detach())
        unseen = torch.isposinf(lse)
        # finite scores in rows without keys: no NaN in the softmax nor in its gradients
        weights = scores.masked_fill(unseen[..., None], 0.0).softmax(-1).masked_fill(unseen[..., None], 0.0)
        if problem.dropout_p > 0:
            weights = weights * dropout_factor(b, heads, q_b.shape[0], k_b.shape[0], problem, weights)
        outs.append(torch.einsum("hij,jhd->ihd", weights, v_b))
        lses.append(lse)
    return Results(torch.cat(outs).to(q.dtype), torch.cat(lses, 1))


def varlen_attention_backward(problem: Backward) -> Gradients:
    """The derivative written out, as the operation's implementation runs below autograd."""
    grad_out, q, k, v, out, lse = problem[:6]
    heads, dtype = q.shape[1], accumulate_dtype(q.dtype)
    kv_heads, group = k.shape[1], heads // k.shape[1]
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    for b, rows_q, rows_k in _sequences(problem):
        q_b, do_b, out_b = (x[rows_q].to(dtype) for x in (q, grad_out, out))
        k_b, v_b = (x[rows_k].to(dtype).repeat_interleave(group, 1) for x in (k, v))
        weights = torch.exp(_scores(q_b, k_b, problem) - lse[:, rows_q, None])
        d_weights = torch.einsum("ihd,jhd->hij", do_b, v_b)
        dropped = weights
        if problem.dropout_p > 0:
            factor = dropout_factor(b, heads, q_b.shape[0], k_b.shape[0], problem, weights)
            dropped, d_weights = weights * factor, d_weights * factor
        delta = (do_b * out_b).sum(-1).t()[..., None]
        d_scores = weights * (d_weights - delta) * problem.scale
        dq[rows_q] = torch.einsum("hij,jhd->ihd", d_scores, k_b)
        dk[rows_k] = torch.einsum("hij,ihd->jhd", d_scores, q_b).unflatten(1, (kv_heads, group)).sum(2)
        dv[rows_k] = torch.einsum("hij,ihd->jhd", dropped, do_b).unflatten(1, (kv_heads, group)).sum(2)
    return Gradients(dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype))
