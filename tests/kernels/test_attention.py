import itertools
import sys

import pytest
import torch
from kernel_cases import bounds
from subtested import as_subtests

from penstock.kernels import philox, use_backend, varlen_attention
from penstock.kernels.attention import Problem, plain, tiles

LENGTHS_Q = [5, 0, 1, 37, 64, 103, 2, 0, 1]
LENGTHS_K = [5, 3, 1, 37, 70, 90, 0, 0, 97]
SEED = torch.tensor(0x1234_5678_9ABC_DEF0)
VARIANTS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (7, 3)},
    "left": {"window": (9, -1)},
    "dropout": {"dropout_p": 0.2, "seed": SEED},
    "all": {"dropout_p": 0.1, "seed": SEED, "causal": True, "window": (20, 5), "softmax_scale": 0.3},
}
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def tensors(lengths_q=LENGTHS_Q, lengths_k=LENGTHS_K, heads=4, kv_heads=2, head_dim=20, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (sum(lengths_q), heads), (sum(lengths_k), kv_heads), (sum(lengths_k), kv_heads), (sum(lengths_q), heads)
    *qkv, grad_out = (torch.randn(*s, head_dim, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return [x.requires_grad_() for x in qkv], grad_out


def attend(qkv, lengths_q=LENGTHS_Q, lengths_k=LENGTHS_K, **options):
    longest = max([0, *lengths_q]), max([0, *lengths_k])
    return varlen_attention(*qkv, bounds(lengths_q), bounds(lengths_k), *longest, **options)


def forward_backward(qkv, grad_out, *arguments, backend="torch", **options):
    with use_backend(backend):
        out = attend(qkv, *arguments, **options)
    return [out, *torch.autograd.grad(out, qkv, grad_out)]


def naive(q, k, v, causal=False, window=(-1, -1), softmax_scale=None, dropout_p=0.0, seed=None, example=0):
    """Attention of one sequence, entry by entry as it is defined."""
    (length_q, heads, head_dim), (length_k, kv_heads, _) = q.shape, k.shape
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    out = []
    for i, h in itertools.product(range(length_q), range(heads)):
        place, kv_head = i + length_k - length_q, h // (heads // kv_heads)
        left = 0 if window[0] < 0 else place - window[0]
        right = place if causal else length_k - 1 if window[1] < 0 else place + window[1]
        keys = [j for j in range(length_k) if left <= j <= right]
        if not keys:
            out.append(q.new_zeros(head_dim))
            continue
        weights = torch.softmax(torch.stack([q[i, h] @ k[j, kv_head] * scale for j in keys]), 0)
        if dropout_p:
            names = seed, torch.tensor([example]), torch.tensor([h])
            keep = philox.keep_weights(*names, range(i, i + 1), length_k, dropout_p)[0, 0, keys]
            weights = weights * keep * philox.scale(dropout_p)
        out.append(weights @ v[keys, kv_head])
    return torch.stack(out).view(q.shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_equals_the_definition(variant):
    lengths_q, lengths_k = [3, 1, 9, 4], [3, 2, 5, 11]
    qkv, grad_out = tensors(lengths_q, lengths_k, head_dim=3)
    found = forward_backward(qkv, grad_out, lengths_q, lengths_k, backend="reference", **VARIANTS[variant])
    parts = zip(*(x.split(n) for x, n in zip(qkv, (lengths_q, lengths_k, lengths_k), strict=True)), strict=True)
    expected = torch.cat([naive(*part, example=b, **VARIANTS[variant]) for b, part in enumerate(parts)])
    expected = [expected, *torch.autograd.grad(expected, qkv, grad_out)]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant, backend):
    lengths_q, lengths_k = [3, 0, 1, 2], [2, 1, 0, 3]
    qkv, _ = tensors(lengths_q, lengths_k, heads=2, kv_heads=1, head_dim=2)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *x: attend(x, lengths_q, lengths_k, **VARIANTS[variant]), qkv)


@pytest.mark.slow
def test_second_derivatives():
    qkv, _ = tensors([2, 0, 1], [1, 1, 3], heads=2, kv_heads=1, head_dim=2)
    assert torch.autograd.gradgradcheck(lambda *x: attend(x, [2, 0, 1], [1, 1, 3], **VARIANTS["all"]), qkv)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 32), (6, 2, 33), (1, 1, 264)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_backend_equals_reference(variant, heads, kv_heads, head_dim):
    qkv, grad_out = tensors(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    expected = forward_backward(qkv, grad_out, backend="reference", **VARIANTS[variant])
    found = forward_backward(qkv, grad_out, **VARIANTS[variant])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_error_against_float64_is_within_bounds(variant, dtype):
    qkv, grad_out = tensors(dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    expected = forward_backward(exact, grad_out.double(), backend="reference", **VARIANTS[variant])
    found = forward_backward(qkv, grad_out, **VARIANTS[variant])
    limits = [BOUNDS[dtype], *[2 * BOUNDS[dtype]] * 3]
    for y, r, limit in zip(found, expected, limits, strict=True):
        assert y.dtype == dtype
        assert (y.double() - r).norm() <= limit * r.norm()


HUGE = [2**30, 2**31 - 2, 2**31 - 1, 2**31, 2**32 + 1, 2**62, sys.maxsize, sys.maxsize + 1, 2**70]


@as_subtests(
    "backend, huge, window, causal",
    [
        (backend, huge, window, causal)
        for backend in ("cpu", "torch", "reference")
        for huge in HUGE
        for window in ((huge, huge), (-1, huge), (huge, -1), (9, huge), (huge, 3))
        for causal in (False, True)
    ],
)
def test_a_window_that_no_place_reaches_is_none(backend, huge, window, causal):
    lengths = [5, 0, 21], [7, 3, 19]
    qkv, grad_out = tensors(*lengths, dtype=torch.float32)
    found = forward_backward(qkv, grad_out, *lengths, backend=backend, window=window, causal=causal)
    unbounded = tuple(-1 if bound == huge else bound for bound in window)
    expected = forward_backward(qkv, grad_out, *lengths, backend=backend, window=unbounded, causal=causal)
    torch.testing.assert_close(found, expected)


@as_subtests("backend, bound", itertools.product(["cpu", "torch", "reference"], [2**31, 2**32 + 1, 2**70]))
def test_bounds_of_lengths_may_be_any(backend, bound):
    qkv, _ = tensors([3, 2], [4, 1], dtype=torch.float32)
    each = bounds([3, 2]), bounds([4, 1])
    with use_backend(backend):
        assert torch.equal(varlen_attention(*qkv, *each, bound, bound), varlen_attention(*qkv, *each, 3, 4))


def test_flash_attention_is_given_bounds_in_int32():
    """It would cut them to their lower half."""
    q, k = torch.zeros(5, 1, 8), torch.zeros(6, 1, 8)
    rest = bounds([3, 2]), bounds([4, 2]), 2**32 + 1, 2**40, 1.0, -1, -1, 0.0, None, None
    assert tiles._flash_arguments(Problem(q, k, k, *rest))[0][2:4] == (5, 6)


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.1, "seed": SEED}, {"causal": True}])
def test_a_long_sequence_is_split_into_blocks_of_queries(monkeypatch, options):
    monkeypatch.setitem(tiles._TILE, "cpu", 10_000)
    qkv, grad_out = tensors()
    expected = forward_backward(qkv, grad_out, backend="reference", **options)
    torch.testing.assert_close(forward_backward(qkv, grad_out, **options), expected, rtol=1e-10, atol=1e-10)


def test_large_scores_do_not_overflow():
    qkv, grad_out = tensors(dtype=torch.float32)
    with torch.no_grad():
        qkv[0] *= 1000
    assert all(x.isfinite().all() for x in forward_backward(qkv, grad_out))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1]])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_degenerate_batches(lengths, backend):
    qkv, grad_out = tensors(lengths, lengths)
    found = forward_backward(qkv, grad_out, lengths, lengths, backend=backend)
    assert [x.shape for x in found[1:]] == [x.shape for x in qkv]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_is_bitwise_independent_of_the_others_values(variant):
    qkv, grad_out = tensors(dtype=torch.float32)
    before = forward_backward(qkv, grad_out, **VARIANTS[variant])
    poisoned, sequence = [x.detach().clone() for x in qkv], 4
    for x, lengths in zip(poisoned, (LENGTHS_Q, LENGTHS_K, LENGTHS_K), strict=True):
        x.split(lengths)[sequence].fill_(float("nan"))
    after = forward_backward([x.requires_grad_() for x in poisoned], grad_out, **VARIANTS[variant])
    for a, b, lengths in zip(before, after, (LENGTHS_Q, LENGTHS_Q, LENGTHS_K, LENGTHS_K), strict=True):
        for index, (x, y) in enumerate(zip(a.split(lengths), b.split(lengths), strict=True)):
            assert torch.equal(x, y) if index != sequence else y.isnan().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bits_twice(variant):
    qkv, grad_out = tensors(dtype=torch.bfloat16)
    runs = [forward_backward(qkv, grad_out, **VARIANTS[variant]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def dropped_weights(lengths, ids, backend):
    """The attention weights themselves: values are unit vectors. Per sequence (query, head, key)."""
    q = torch.zeros(sum(lengths), 2, max(lengths), dtype=torch.float64)
    v = torch.cat([torch.eye(n, max(lengths), dtype=torch.float64) for n in lengths])[:, None].expand(-1, 2, -1)
    with use_backend(backend):
        out = attend((q, q, v), lengths, lengths, dropout_p=0.3, seed=SEED, ids=ids)
    return [x[..., :n] for x, n in zip(out.split(lengths), lengths, strict=True)]


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_dropout_depends_on_the_example_and_not_on_its_batch(backend):
    ids = torch.tensor([7, 2**40 + 3, 11])
    batch = dropped_weights([13, 40, 5], ids, backend)
    alone = dropped_weights([40], ids[1:2], backend)
    torch.testing.assert_close(batch[1], alone[0])
    keep = philox.keep_weights(SEED, ids[1].expand(2), torch.arange(2), range(40), 40, 0.3)
    assert torch.equal(batch[1] != 0, keep.transpose(0, 1))
    assert not torch.equal(dropped_weights([13, 40, 5], torch.arange(3), backend)[0] != 0, batch[0] != 0)


def test_dropout_keeps_the_mean_and_draws_from_torchs_generator():
    lengths = [400]
    q = torch.zeros(400, 1, 4)
    torch.manual_seed(3)
    first, second = (attend((q, q, torch.ones(400, 1, 4)), lengths, lengths, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first, second)
    assert abs(first.mean().item() - 1) < 0.01
    torch.manual_seed(3)
    assert torch.equal(attend((q, q, torch.ones(400, 1, 4)), lengths, lengths, dropout_p=0.5), first)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_dropping_everything_gives_zero(backend):
    qkv, grad_out = tensors()
    assert all(not x.any() for x in forward_backward(qkv, grad_out, backend=backend, dropout_p=1.0))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_logsumexp(backend):
    qkv, _ = tensors([2, 3], [4, 0])
    problem = Problem(*qkv, bounds([2, 3]), bounds([4, 0]), 3, 4, 0.5, -1, -1, 0.0, None, None)
    implementation = {"torch": tiles, "reference": plain}[backend]
    with torch.no_grad():
        _, lse = implementation.varlen_attention(problem)
    scores = torch.einsum("ihd,jhd->hij", qkv[0][:2], qkv[1].repeat_interleave(2, 1)) * 0.5
    torch.testing.assert_close(lse[:, :2], scores.logsumexp(-1))
    assert lse.shape == (4, 5)
    assert lse[:, 2:].isposinf().all()


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_opcheck(backend, dropout_p):
    qkv, _ = tensors([5, 0, 9], [5, 2, 8], dtype=torch.float32)
    # rows of a fused projection: strided, as a model passes them
    qkv[1] = torch.randn(15, 4, 20).unflatten(1, (2, 2))[:, 0].requires_grad_()
    dropout = (dropout_p, SEED, torch.arange(3)) if dropout_p else (0.0, None, None)
    arguments = (*qkv, bounds([5, 0, 9]), bounds([5, 2, 8]), 9, 8, 0.2, -1, 3, *dropout, backend)
    torch.library.opcheck(torch.ops.penstock.varlen_attention.default, arguments)


def test_compiles_whole_and_once_for_all_batches():
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=compilations, fullgraph=True)
    def call(q, k, v, cu_seqlens, max_seqlen, ids):
        return varlen_attention(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p=0.1, seed=SEED, ids=ids
        )

    with use_backend("torch"):
        for lengths in ([3, 5], [7, 1, 2], [4, 4, 4, 9], [2, 20]):
            qkv, grad_out = tensors(lengths, lengths)
            ids = torch.arange(len(lengths)) + 5
            out = call(*qkv, bounds(lengths), max(lengths), ids)
            found = [out, *torch.autograd.grad(out, qkv, grad_out)]
            expected = forward_backward(qkv, grad_out, lengths, lengths, dropout_p=0.1, seed=SEED, ids=ids)
            torch.testing.assert_close(found, expected)
    assert compilations.frame_count <= 2


def test_autocast():
    qkv, _ = tensors(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(qkv)
        assert attend([x.detach().double() for x in qkv]).dtype == torch.float64
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attend([x.detach().bfloat16() for x in qkv]))
    assert qkv[0].grad.dtype == torch.float32


@as_subtests(
    "change, error, message",
    [
        ({"q": torch.zeros(5, 4, 8, dtype=torch.int32)}, TypeError, "q must be"),
        ({"q": torch.zeros(5, 32)}, ValueError, "q must have shape"),
        ({"q": torch.zeros(5, 4, 0), "k": torch.zeros(6, 2, 0), "v": torch.zeros(6, 2, 0)}, ValueError, "head_dim"),
        ({"k": torch.zeros(6, 2, 8, dtype=torch.float16)}, TypeError, "k is"),
        ({"k": torch.zeros(6, 2, 8, device="meta")}, ValueError, "k is on meta"),
        ({"v": torch.zeros(6, 2, 16)}, ValueError, "v has head_dim 16"),
        ({"v": torch.zeros(5, 2, 8)}, ValueError, "k has shape"),
        ({"k": torch.zeros(6, 3, 8), "v": torch.zeros(6, 3, 8)}, ValueError, "4 heads must be a multiple of the 3"),
        ({"cu_seqlens_q": torch.tensor([0, 2, 5])}, TypeError, "cu_seqlens_q must be int32"),
        ({"cu_seqlens_q": bounds([2, 3])[None]}, ValueError, "cu_seqlens_q must have shape"),
        ({"cu_seqlens_k": bounds([6])}, ValueError, "cu_seqlens_q holds 2 sequences, cu_seqlens_k 1"),
        ({"cu_seqlens_q": bounds([2, 2])}, ValueError, "cu_seqlens_q must run from 0"),
        ({"cu_seqlens_k": bounds([7, -1])}, ValueError, "cu_seqlens_k must not decrease"),
        ({"max_seqlen_q": 2}, ValueError, "max_seqlen is 2, but cu_seqlens_q"),
        ({"max_seqlen_k": -1}, ValueError, "max_seqlen_k"),
        ({"window": (-2, 0)}, ValueError, "window"),
        ({"window": (0, -2)}, ValueError, "window"),
        ({"window": (0,)}, ValueError, "window must be two integers"),
        ({"window": (0, 0, 0)}, ValueError, "window must be two integers"),
        ({"dropout_p": 1.5}, ValueError, "dropout p"),
        ({"dropout_p": 0.5, "ids": torch.zeros(3, dtype=torch.int64)}, ValueError, "ids"),
        ({"dropout_p": 0.5, "seed": torch.zeros(2)}, ValueError, "seed"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "q": torch.zeros(5, 4, 8),
        "k": torch.zeros(6, 2, 8),
        "v": torch.zeros(6, 2, 8),
        "cu_seqlens_q": bounds([2, 3]),
        "cu_seqlens_k": bounds([3, 3]),
        "max_seqlen_q": 3,
        "max_seqlen_k": 3,
        **change,
    }
    with pytest.raises(error, match=message):
        varlen_attention(**arguments)
