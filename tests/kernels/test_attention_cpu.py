"""The C++ attention for CPUs against the float64 reference, on every instruction set that this machine has."""

from functools import cache

import pytest
import torch
from kernel_cases import bounds, codes, has_code, isas, on_threads, pairwise
from torch import Tensor

from penstock.kernels import use_backend, varlen_attention

LENGTHS = (0, 1, 2, 17, 61, 64, 65, 127, 0, 5)
LONG = (3, 1031, 4)  # more than one block of keys and more than one item of queries
BOUND = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 2e-2)}  # values, gradients
SEED, SHIFT = 1234567890123456789, 10_000_000_019


ISAS, CODES = isas("attention"), codes("attention")
all_codes = pairwise({"isa, dtype": CODES})


def make_inputs(lengths_q, lengths_k, heads, kv_heads, head_dim, dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths_q), heads), (sum(lengths_k), kv_heads), (sum(lengths_k), kv_heads), (sum(lengths_q), heads)]
    return [torch.randn(*shape, head_dim, generator=generator).to(dtype) for shape in shapes]


def attend(backend, q, k, v, grad_out, lengths_q, lengths_k, ids=None, **options) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    cu_seqlens = bounds(lengths_q), bounds(lengths_k)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    ids = torch.arange(len(lengths_q)) * SHIFT if ids is None else ids
    seed = torch.tensor(SEED)
    with use_backend(backend):
        out = varlen_attention(*inputs, *cu_seqlens, max(lengths_q), max(lengths_k), ids=ids, seed=seed, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


@cache
def expected_results(lengths_q, lengths_k, heads, kv_heads, head_dim, dtype, options) -> list[Tensor]:
    """The reference's, which all instruction sets share."""
    inputs = make_inputs(lengths_q, lengths_k, heads, kv_heads, head_dim, dtype)
    return attend("reference", *(x.double() for x in inputs), lengths_q, lengths_k, **dict(options))


def check(lengths_q, lengths_k, heads, kv_heads, head_dim, dtype, **options) -> None:
    inputs = make_inputs(lengths_q, lengths_k, heads, kv_heads, head_dim, dtype)
    actual = attend("cpu", *inputs, lengths_q, lengths_k, **options)
    expected = expected_results(lengths_q, lengths_k, heads, kv_heads, head_dim, dtype, tuple(options.items()))
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert errors[0] < BOUND[dtype][0], errors
    assert max(errors[1:]) < BOUND[dtype][1], errors


@pairwise(
    {"isa": ISAS, "dtype": list(BOUND), "head_dim": [16, 32, 37, 64, 80, 256], "dropout_p": [0.0, 0.1]},
    has_code("attention"),
)
def test_matches_reference(isa, dtype, head_dim, dropout_p):
    check(LENGTHS, LENGTHS, 2, 2, head_dim, dtype, dropout_p=dropout_p)


@pairwise({"isa": ISAS, "dtype": list(BOUND), "head_dim": [1, 31, 33, 96]}, has_code("attention"))
def test_lengths_around_whole_registers(isa, dtype, head_dim):
    lengths = (15, 16, 17, 31, 32, 33, 47, 63, 129, 257)
    check(lengths, lengths, 2, 1, head_dim, dtype, dropout_p=0.1)


@pairwise(
    {
        "isa": ISAS,
        "dtype": list(BOUND),
        "causal, window": [(True, (-1, -1)), (False, (7, 70)), (True, (33, 0)), (False, (1, 0)), (False, (-1, 3))],
        "lengths_q, lengths_k": [(LENGTHS, LENGTHS), ((5, 1, 0, 200, 3), (130, 67, 9, 70, 0))],
    },
    has_code("attention"),
)
def test_windows_and_bounds(isa, dtype, lengths_q, lengths_k, causal, window):
    check(lengths_q, lengths_k, 4, 2, 32, dtype, dropout_p=0.1, causal=causal, window=window)


@pairwise({"isa": ISAS, "dtype": list(BOUND), "window": [(-1, -1), (600, 20)]}, has_code("attention"))
def test_long_sequences(isa, dtype, window):
    check(LONG, LONG, 2, 1, 16, dtype, dropout_p=0.1, window=window)


@all_codes
def test_first_tokens_strong_dropout_and_scale(isa, dtype):
    lengths_k = (1, 64, 65, 513, 0)
    check((1,) * len(lengths_k), lengths_k, 3, 3, 32, dtype, dropout_p=0.1)
    for dropout_p in (0.5, 1.0):
        check((70, 9), (70, 9), 2, 2, 32, dtype, dropout_p=dropout_p)
    check((70, 9), (70, 9), 2, 2, 32, dtype, softmax_scale=-0.3)


@pairwise({"isa": ISAS})
def test_dropout_follows_the_rule(isa):
    """With uniform weights and one-hot values the output shows the mask itself."""
    from penstock.kernels import philox

    length, heads, head_dim, p = 190, 3, 192, 0.3
    q = torch.zeros(length, heads, head_dim)
    v = torch.eye(length, head_dim)[:, None].expand(-1, heads, -1).contiguous()
    ids = torch.tensor([2**40 + 12345])
    out = attend("cpu", q, q, v, q, [length], [length], ids=ids, dropout_p=p)[0]
    for head in range(heads):
        keep = philox.keep_weights(torch.tensor(SEED), ids, torch.tensor([head]), range(length), length, p)[0]
        assert torch.equal(out[:, head, :length] != 0, keep)


@all_codes
def test_views_of_one_buffer(isa, dtype):
    tokens, heads, head_dim = sum(LENGTHS), 2, 32
    fused = torch.randn(tokens, 3, heads, head_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    grad_out = torch.randn(tokens, heads, head_dim).to(dtype)
    views = attend("cpu", *fused.unbind(1), grad_out, LENGTHS, LENGTHS, dropout_p=0.1)
    copies = attend("cpu", *(x.contiguous() for x in fused.unbind(1)), grad_out, LENGTHS, LENGTHS, dropout_p=0.1)
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


@all_codes
def test_every_element_is_written(isa, dtype, uninitialised_is_nan):
    lengths_q, lengths_k = (0, 5, 40, 3), (7, 0, 90, 3)
    inputs = make_inputs(lengths_q, lengths_k, 2, 1, 37, dtype)
    results = attend("cpu", *inputs, lengths_q, lengths_k, dropout_p=0.1, causal=True)
    assert all(x.isfinite().all() for x in results)
    assert results[0][:5].count_nonzero() == 0, "queries that see no key give 0"
    assert results[2][:7].count_nonzero() == 0, "keys that no query sees have no gradient"


@all_codes
def test_scores_of_minus_infinity(isa, dtype):
    """Weights of 0, as torch has it: for a query that scores no other, and for a block of keys before others."""
    q, k, v, _ = make_inputs(LONG, LONG, 2, 1, 32, dtype)
    q[..., 0], k[..., 0] = 1, 1
    q[:2, :, 0] = float("-inf")
    k[3:900, :, 0] = float("-inf")
    cu_seqlens, longest = bounds(LONG), max(LONG)
    with use_backend("reference"):
        expected = varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, cu_seqlens, longest, longest)
    with use_backend("cpu"):
        actual = varlen_attention(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    assert expected.isfinite().all()
    assert actual[:2].count_nonzero() == 0
    assert relative_error(actual, expected) < BOUND[dtype][0]


@all_codes
@pytest.mark.parametrize("infinite", ["keys", "values"])
def test_what_fills_a_block_up_has_no_gradient(isa, dtype, infinite):
    """Queries of zeros beside the last ones: 0 times a key or a value of infinity is NaN."""
    for length in (11, 16, 17, 33, 40, 48, 100, 129):
        q, k, v, grad_out = make_inputs((length,), (length,), 2, 1, 32, dtype)
        if infinite == "keys":
            q[..., 0], k[length // 2 :, :, 0] = 1, float("-inf")
        else:
            v[length // 2, :, 3], grad_out[..., 3] = float("inf"), 1
        results = {}
        for backend, kind in (("cpu", dtype), ("reference", torch.float64)):
            inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
            with use_backend(backend):
                out = varlen_attention(*inputs, *[bounds((length,))] * 2, length, length)
            results[backend] = torch.autograd.grad(out, inputs, grad_out.to(kind))
        for found, expected in zip(results["cpu"], results["reference"], strict=True):
            assert torch.equal(found.isnan(), expected.isnan())


@all_codes
@pytest.mark.parametrize("factor", [4e4, 1e15])
def test_weights_of_large_scores_are_one_at_most(isa, dtype, factor):
    """The largest score is rounded, its difference to itself is not where both are one instruction."""
    q, k, v, grad_out = make_inputs((40,), (40,), 1, 1, 32, dtype)
    out, *gradients = attend("cpu", q * factor, k * factor, v, grad_out, (40,), (40,))
    assert all(each.isfinite().all() for each in (out, *gradients))
    # the largest score takes all: out is rows of v
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double())
    torch.testing.assert_close(out.double(), v.double()[scores.argmax(-1), torch.arange(1)[:, None]].transpose(0, 1))


@all_codes
def test_same_bits_for_any_number_of_threads(isa, dtype):
    lengths = (300, 17, 1, 0, 64, 90, 33)
    inputs = make_inputs(lengths, lengths, 3, 3, 32, dtype)
    results = on_threads((1, 2, 2, 3), lambda: attend("cpu", *inputs, lengths, lengths, dropout_p=0.1))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@all_codes
def test_sequences_are_independent(isa, dtype):
    lengths = (33, 70, 12)
    inputs = make_inputs(lengths, lengths, 2, 2, 32, dtype)
    before = attend("cpu", *inputs, lengths, lengths, dropout_p=0.1)
    for x in inputs:
        x[33:103] = float("nan")
    after = attend("cpu", *inputs, lengths, lengths, dropout_p=0.1)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:33], b[:33])
        assert torch.equal(a[103:], b[103:])
        assert b[33:103].isnan().all()


@pairwise({"isa": ISAS, "dtype": list(BOUND), "head_dim": [32, 37]}, has_code("attention"))
def test_surrounding_memory_may_hold_nan(isa, dtype, head_dim):
    lengths, heads = (33, 17, 70), 2
    inputs = make_inputs(lengths, lengths, heads, heads, head_dim, dtype)
    views = []
    for x in inputs:
        around = torch.full((x.shape[0] + 64, heads + 2, head_dim + 32), float("nan"), dtype=dtype)
        views.append(around[32:-32, 1:-1, 16:-16])
        views[-1].copy_(x)
    alone = attend("cpu", *inputs, lengths, lengths, dropout_p=0.1)
    amid = attend("cpu", *views, lengths, lengths, dropout_p=0.1)
    assert all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(alone, amid, strict=True))


@all_codes
def test_one_sequence_alone_gives_the_same_bits(isa, dtype):
    lengths = (33, 70, 12)
    inputs = make_inputs(lengths, lengths, 2, 2, 32, dtype)
    together = attend("cpu", *inputs, lengths, lengths, dropout_p=0.1, ids=torch.tensor([5, 6, 7]))
    alone = attend("cpu", *(x[33:103] for x in inputs), [70], [70], dropout_p=0.1, ids=torch.tensor([6]))
    assert all(torch.equal(a[33:103], b) for a, b in zip(together, alone, strict=True))


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("PENSTOCK_ISA", "mmx")
    inputs = make_inputs((3,), (3,), 1, 1, 32, torch.float32)
    with pytest.raises(ValueError, match="no instruction set 'mmx' here, there is portable"):
        attend("cpu", *inputs, (3,), (3,))


def test_serves_only_what_it_can():
    inputs = make_inputs((3,), (3,), 1, 1, 32, torch.float64)
    with pytest.raises(RuntimeError, match="bfloat16 and float32"):
        attend("cpu", *inputs, (3,), (3,))
