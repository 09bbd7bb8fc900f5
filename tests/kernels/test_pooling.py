import itertools

import pytest
import torch
import torch._dynamo.testing
from kernel_cases import bounds, pairwise
from subtested import as_subtests

from penstock.kernels import segment_pool, use_backend
from penstock.kernels.pooling import MODES, Problem, plain

LENGTHS = [3, 0, 1, 17, 0, 1, 131, 2, 0]
BACKENDS = ["torch", "reference"]


def batch(lengths=LENGTHS, features=6, dtype=torch.float32, seed=0, mode="attention"):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), features, generator=generator, dtype=torch.float64).to(dtype)
    scores = torch.randn(sum(lengths), generator=generator, dtype=torch.float64).to(dtype)
    return values.requires_grad_(), (scores * 3).detach().requires_grad_() if mode == "attention" else None


def naive(values, lengths, mode, scores):
    """Pooling as one would write it down: padded where torch.nn has no ragged form."""
    out, start = [], 0
    for length in lengths:
        x = values[start : start + length]
        if length == 0:
            out.append(torch.zeros(values.shape[1], dtype=values.dtype))
        elif mode == "max":
            out.append(x.max(0).values)
        elif mode == "mean":
            out.append(x.sum(0) / length)
        elif mode == "last":
            out.append(torch.cat([x[-1, : x.shape[1] // 2], x[0, x.shape[1] // 2 :]]))
        else:
            weights = torch.exp(scores[start : start + length])
            out.append((weights[:, None] * x).sum(0) / weights.sum())
        start += length
    return torch.stack(out)


def reference(values, cu_seqlens, mode, scores=None):
    return plain.segment_pool(Problem(values, scores, cu_seqlens, mode, False)).out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_equal_the_definition(mode, backend):
    values, scores = batch(dtype=torch.float64, mode=mode)
    with use_backend(backend):
        out = segment_pool(values, bounds(LENGTHS), mode, scores, bidirectional=mode == "last")
    expected = naive(values, LENGTHS, mode, scores)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    inputs = [x for x in (values, scores) if x is not None]
    direction = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, inputs, direction)
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, direction), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode, backend):
    values, scores = batch([2, 0, 5, 1], features=4, dtype=torch.float64, mode=mode)
    inputs = [values] if scores is None else [values, scores]

    def call(values, scores=None):
        return segment_pool(values, bounds([2, 0, 5, 1]), mode, scores, bidirectional=mode == "last")

    with use_backend(backend):
        assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("mode", MODES)
def test_reference_is_twice_differentiable(mode):
    values, scores = batch([2, 0, 5, 1], features=4, dtype=torch.float64, mode=mode)
    inputs = [values] if scores is None else [values, scores]
    assert torch.autograd.gradgradcheck(
        lambda values, scores=None: reference(values, bounds([2, 0, 5, 1]), mode, scores), inputs
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("mode", MODES)
def test_error_against_float64_is_within_bounds(mode, dtype, bound):
    lengths = [1, 4099, 0, 300]
    values, scores = batch(lengths, features=32, dtype=dtype, mode=mode)
    exact = [None if x is None else x.detach().double().requires_grad_() for x in (values, scores)]
    out = segment_pool(values, bounds(lengths), mode, scores)
    expected = reference(exact[0], bounds(lengths), mode, exact[1])
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(out, [x for x in (values, scores) if x is not None], direction)
    wanted = torch.autograd.grad(expected, [x for x in exact if x is not None], direction.double())
    assert out.dtype == dtype
    for y, r, limit in [(out, expected, bound), *((y, r, 2 * bound) for y, r in zip(found, wanted, strict=True))]:
        assert (y.double() - r).norm() <= limit * r.norm()


@as_subtests("backend, dtype", itertools.product(BACKENDS, [torch.float64, torch.float32, torch.bfloat16]))
def test_max_of_what_is_not_finite_is_torchs_own(backend, dtype):
    """Each order of three of these, in sequences side by side."""
    largest = torch.finfo(dtype).max
    texts = list(itertools.product([torch.nan, torch.inf, -torch.inf, largest, -largest, 0.0], repeat=3))
    values = torch.tensor(texts, dtype=dtype).flatten()[:, None].requires_grad_()
    with use_backend(backend):
        out = segment_pool(values, bounds([3] * len(texts)), "max")
    expected, place = values.detach().view(-1, 3).max(1, keepdim=True)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(nan=1), expected.nan_to_num(nan=1))
    out.sum().backward()
    assert torch.equal(values.grad.view(-1, 3), torch.zeros(len(texts), 3, dtype=dtype).scatter(1, place, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_takes_the_first_of_equals_and_keeps_nan(backend):
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([[1.0, 5.0], [7.0, 5.0], [7.0, 2.0], [3.0, nan], [4.0, inf], [2.0, 1.0], [nan, 0.0]])
    values.requires_grad_()
    with use_backend(backend):
        out = segment_pool(values, bounds([3, 2, 2]), "max")
    torch.testing.assert_close(out, torch.tensor([[7.0, 5.0], [4.0, nan], [nan, 1.0]]), equal_nan=True)
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1], [1, 0], [0, 0], [0, 1], [1, 0], [0, 1], [1, 0]]))


@pairwise({"mode": list(MODES), "lengths": [[], [0], [0, 0], [1]], "backend": BACKENDS})
def test_degenerate_batches(lengths, mode, backend):
    values, scores = batch(lengths, mode=mode)
    with use_backend(backend):
        out = segment_pool(values, bounds(lengths), mode, scores)
    assert out.shape == (len(lengths), 6)
    out.sum().backward()
    assert values.grad.shape == values.shape


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_is_bitwise_independent_of_the_others_values(mode):
    values, scores = batch(mode=mode)
    cu_seqlens = bounds(LENGTHS)
    before = segment_pool(values, cu_seqlens, mode, scores)
    start, end = int(cu_seqlens[6]), int(cu_seqlens[7])
    poisoned = values.detach().clone()
    poisoned[start:end] = float("nan")
    after = segment_pool(poisoned, cu_seqlens, mode, scores)
    others = [b for b in range(len(LENGTHS)) if b != 6]
    assert torch.equal(before[others], after[others])
    assert after[6].isnan().all()


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_twice(mode):
    values, scores = batch(mode=mode)
    runs = []
    for _ in range(2):
        out = segment_pool(values, bounds(LENGTHS), mode, scores)
        runs.append((out, *torch.autograd.grad(out.square().sum(), [x for x in (values, scores) if x is not None])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_scores_may_be_a_column_of_another_dtype():
    values, scores = batch(dtype=torch.float32)
    column = scores.detach()[:, None].to(torch.bfloat16).requires_grad_()
    out = segment_pool(values, bounds(LENGTHS), "attention", column)
    expected = reference(values, bounds(LENGTHS), "attention", column[:, 0])
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert column.grad.dtype == torch.bfloat16
    assert column.grad.shape == column.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode, backend):
    values, scores = batch(mode=mode)
    arguments = (values, scores, bounds(LENGTHS), mode, mode == "last", backend)
    torch.library.opcheck(torch.ops.penstock.segment_pool.default, arguments)


@pytest.mark.slow
def test_compiles_whole_and_once_for_all_batches():
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=compilations, fullgraph=True)
    def call(values, scores, cu_seqlens):
        modes = [segment_pool(values, cu_seqlens, mode) for mode in ("max", "mean", "last")]
        return torch.cat([*modes, segment_pool(values, cu_seqlens, "attention", scores)], 1)

    for lengths in ([3, 5], [7, 1, 2], [4, 4, 4, 9], [2, 20]):
        values, scores = batch(lengths)
        out = call(values, scores, bounds(lengths))
        out.square().sum().backward()
        expected = reference(values, bounds(lengths), "attention", scores)
        torch.testing.assert_close(out[:, -6:], expected)
    assert compilations.frame_count <= 2


@as_subtests(
    "change, error, message",
    [
        ({"mode": "median"}, ValueError, "mode"),
        ({"values": torch.zeros(5)}, ValueError, "values"),
        ({"values": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, "values"),
        ({"cu_seqlens": torch.tensor([0, 5])}, TypeError, "cu_seqlens"),
        ({"cu_seqlens": bounds([4])}, ValueError, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 5], dtype=torch.int32)}, ValueError, "cu_seqlens"),
        ({"cu_seqlens": bounds([5])[:0]}, ValueError, "cu_seqlens"),
        ({"mode": "attention"}, ValueError, "scores"),
        ({"scores": torch.zeros(5)}, ValueError, "scores"),
        ({"mode": "attention", "scores": torch.zeros(4)}, ValueError, "scores"),
        ({"mode": "attention", "scores": torch.zeros(5, dtype=torch.int32)}, TypeError, "scores"),
        ({"values": torch.zeros(5, 3), "mode": "last", "bidirectional": True}, ValueError, "values"),
        *(
            (
                {"mode": mode, "bidirectional": True, **scores},
                ValueError,
                f"for mode 'last' alone, the mode is '{mode}'",
            )
            for mode, scores in (("max", {}), ("mean", {}), ("attention", {"scores": torch.zeros(5)}))
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"values": torch.zeros(5, 2), "cu_seqlens": bounds([2, 3]), "mode": "mean", **change}
    with pytest.raises(error, match=message):
        segment_pool(**arguments)
