"""Bias, dropout, residual and LayerNorm in one operation, against float64 and against torch's own modules."""

import functools

import kernel_cases
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from kernel_cases import BOUND, bounds, cpu_backends, is_implemented, on_threads, pairwise
from subtested import as_subtests
from torch import Tensor

from penstock.kernels import philox, residual_norm, use_backend

LENGTHS = (3, 0, 1, 40, 211, 0)
SEED = torch.tensor(-(2**61) + 99)
IDS = torch.arange(len(LENGTHS)) * 7 + 2**40
NAMES = ("x", "residual", "x_bias", "weight", "bias")
BACKENDS = cpu_backends("rowwise")
IS_IMPLEMENTED = is_implemented("residual_norm", BACKENDS, width=7)
every_backend = pairwise({"backend": BACKENDS})


@functools.cache
def tensors(width: int, dtype: torch.dtype, tokens: int = sum(LENGTHS)) -> tuple[tuple[Tensor, ...], Tensor]:
    """x, residual, x_bias, weight and bias, and a gradient of the output."""
    generator = torch.Generator().manual_seed(width)
    rows = [torch.randn(tokens, width, generator=generator).to(dtype) for _ in range(3)]
    vectors = [torch.randn(width, generator=generator) for _ in range(3)]
    rows[1] += 3  # a mean that is far from 0
    return (*rows[:2], *vectors), rows[2]


def run(backend: str, inputs: tuple[Tensor, ...], *grads: Tensor | None, without: tuple[str, ...] = (), **options):
    """The outputs, one for each of `grads`, and the gradients of what is there; an output without one is not used."""
    given = {
        name: None if name in without else x.clone().requires_grad_() for name, x in zip(NAMES, inputs, strict=True)
    }
    with use_backend(backend):
        outs = residual_norm(**given, **options)
    outs = outs if isinstance(outs, tuple) else (outs,)
    used = [out for out, grad in zip(outs, grads, strict=True) if grad is not None]
    leaves, directions = ([x for x in each if x is not None] for each in (given.values(), grads))
    return [*(out.detach() for out in outs), *torch.autograd.grad(used, leaves, directions)]


def dropout(p: float) -> dict:
    return {"dropout_p": p, "cu_seqlens": bounds(LENGTHS), "ids": IDS, "seed": SEED}


@pairwise(
    {
        "backend": BACKENDS,
        "dtype": list(BOUND),
        "width": [7, 64, 101],
        "p, without": [(0.0, ()), (0.1, ()), (0.1, ("x_bias", "bias")), (0.0, ("x_bias",))],
    },
    IS_IMPLEMENTED,
)
def test_values_and_gradients(backend, width, dtype, p, without):
    inputs, grad_out = tensors(width, dtype)
    options = dropout(p) if p else {}
    found = run(backend, inputs, grad_out, without=without, **options)
    expected = run("reference", tuple(x.double() for x in inputs), grad_out.double(), without=without, **options)
    for y, r, limit in zip(found, expected, [BOUND[dtype]] + [2 * BOUND[dtype]] * 5, strict=False):
        assert (y.double() - r).norm() <= limit * r.norm()
    assert [y.dtype for y in found] == [dtype] * 3 + [torch.float32] * (len(found) - 3)


@pairwise(
    {
        "backend": BACKENDS,
        "dtype, residual_dtype": [
            (dtype, stream) for dtype in BOUND for stream in sorted({dtype, torch.float32}, key=str)
        ],
        "width": [7, 101],
        "p, without": [(0.0, ()), (0.1, ()), (0.1, ("x_bias", "bias"))],
        "used": ["both", "out", "z"],
    },
    IS_IMPLEMENTED,
)
def test_prenorm_values_and_gradients(backend, width, dtype, residual_dtype, p, without, used, uninitialised_is_nan):
    (x, residual, *parameters), grad_out = tensors(width, dtype)
    inputs = (x, residual.to(residual_dtype) + 2**-12, *parameters)  # float32 holds what x's dtype does not
    grads = [grad_out if used != "z" else None, inputs[1].flip(0) if used != "out" else None]
    options = {"prenorm": True, "without": without, **(dropout(p) if p else {})}
    found = run(backend, inputs, *grads, **options)
    doubles = [None if grad is None else grad.double() for grad in grads]
    expected = run("reference", tuple(x.double() for x in inputs), *doubles, **options)
    limits = [BOUND[dtype], BOUND[residual_dtype]] + [2 * BOUND[dtype]] * 5
    for y, r, limit in zip(found, expected, limits, strict=False):
        assert (y.double() - r).norm() <= limit * r.norm()
    assert [y.dtype for y in found[:4]] == [dtype, residual_dtype, dtype, residual_dtype]


@every_backend
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_prenorm_leaves_the_norm_as_it_is(backend, p):
    inputs, grad_out = tensors(48, torch.float32)
    options = dropout(p) if p else {}
    out, z, *gradients = run(backend, inputs, grad_out, None, prenorm=True, **options)
    for a, b in zip([out, *gradients], run(backend, inputs, grad_out, **options), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(F.layer_norm(z, (48,), *inputs[3:]), out)


def test_equals_torchs_modules():
    inputs, grad_out = tensors(96, torch.float64)
    inputs = tuple(x.double().requires_grad_() for x in inputs)
    x, residual, x_bias, weight, bias = inputs
    out = residual_norm(x, residual, weight, bias, x_bias=x_bias, eps=1e-3)
    expected = F.layer_norm(residual + x + x_bias, (96,), weight, bias, 1e-3)
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad_out) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("prenorm", [False, True])
def test_reference_gradients_are_those_of_its_formula(prenorm):
    inputs, _ = tensors(5, torch.float64, tokens=4)
    inputs = tuple(x.double() for x in inputs)
    cu_seqlens, ids = bounds((3, 0, 1)), torch.tensor([5, 6, 7])

    def operation(*given):
        x, residual, x_bias, weight, bias = given
        options = {"dropout_p": 0.4, "cu_seqlens": cu_seqlens, "ids": ids, "seed": SEED}
        with use_backend("reference"):
            return residual_norm(x, residual, weight, bias, x_bias=x_bias, prenorm=prenorm, **options)

    assert torch.autograd.gradcheck(operation, [x.clone().requires_grad_() for x in inputs])


@every_backend
def test_dropout_follows_the_rule(backend):
    width, p = 70, 0.3
    x, zero = torch.ones(sum(LENGTHS), width, requires_grad=True), torch.zeros(sum(LENGTHS), width)
    weight = torch.ones(width)
    with use_backend(backend):
        out = residual_norm(x, zero, weight, **dropout(p))
        _, z = residual_norm(x, zero, weight, prenorm=True, **dropout(p))
    # an element that is kept lies above the row's mean, one that is dropped below it
    kept = torch.cat(
        [philox.keep_mask(SEED, IDS[b].expand(n), torch.arange(n), 0, width, p) for b, n in enumerate(LENGTHS) if n > 0]
    )
    assert torch.equal(out > 0, kept)
    assert torch.equal(z, kept * philox.scale(p))
    gradient = torch.autograd.grad(out, x, torch.randn(x.shape))[0]
    assert torch.equal(gradient != 0, kept)


@every_backend
def test_dropout_follows_the_example_not_the_batch(backend):
    inputs, _ = tensors(33, torch.float32)
    x, residual, x_bias, weight, bias = inputs
    start, end = bounds(LENGTHS).tolist()[3:5]
    with use_backend(backend):
        together = residual_norm(x, residual, weight, bias, x_bias=x_bias, **dropout(0.2))
        options = {**dropout(0.2), "cu_seqlens": bounds((end - start,)), "ids": IDS[3:4]}
        alone = residual_norm(x[start:end], residual[start:end], weight, bias, x_bias=x_bias, **options)
        other = residual_norm(x, residual, weight, bias, **{**dropout(0.2), "seed": SEED + 1})
    assert torch.equal(alone, together[start:end])
    assert not torch.allclose(other, together)


@every_backend
def test_everything_may_be_dropped(backend):
    inputs, grad_out = tensors(20, torch.float32)
    out, d_x, *_ = run(backend, inputs, grad_out, **dropout(1.0))
    torch.testing.assert_close(out, F.layer_norm(inputs[1], (20,), inputs[3], inputs[4]))
    assert not d_x.any()


@every_backend
def test_rows_are_independent(backend):
    inputs, grad_out = tensors(48, torch.float32)
    poisoned = (inputs[0].clone(), *inputs[1:])
    poisoned[0][7] = float("nan")
    before, after = (run(backend, x, grad_out, **dropout(0.1)) for x in (inputs, poisoned))
    rows = torch.arange(sum(LENGTHS)) != 7
    for a, b in zip(before[:3], after[:3], strict=True):
        assert torch.equal(a[rows], b[rows])
        assert b[7].isnan().any()


def test_same_bits_whatever_the_threads():
    inputs, grad_out = tensors(64, torch.bfloat16, tokens=3001)
    options = {**dropout(0.1), "cu_seqlens": bounds((3000, 1)), "ids": IDS[:2]}

    def both():
        return run("cpu", inputs, grad_out, **options) + run("cpu", inputs, *[grad_out] * 2, prenorm=True)

    results = on_threads((1, 2, 3), both)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pairwise({"backend": BACKENDS, "lengths": [(), (0,), (0, 0), (1,)]})
def test_degenerate_batches(backend, lengths):
    inputs, grad_out = tensors(9, torch.float32, tokens=sum(lengths))
    options = {"dropout_p": 0.5, "cu_seqlens": bounds(lengths), "seed": SEED}
    out, *gradients = run(backend, inputs, grad_out, **options)
    assert out.shape == (sum(lengths), 9)
    assert all(gradient.isfinite().all() for gradient in gradients)
    _, z, *gradients = run(backend, inputs, grad_out, grad_out, prenorm=True, **options)
    assert z.shape == out.shape
    assert all(gradient.isfinite().all() for gradient in gradients)


@pairwise({"backend": kernel_cases.BACKENDS})
def test_views_are_read_as_they_are(backend):
    inputs, grad_out = tensors(30, torch.float32)
    strided = (*(x.t().contiguous().t() for x in inputs[:2]), *inputs[2:])
    grads = [grad_out, grad_out.flip(0)]
    strided_grads = [grad.t().contiguous().t() for grad in grads]
    found = [run(backend, strided, *strided_grads, prenorm=True), run(backend, inputs, *grads, prenorm=True)]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pairwise({"backend": kernel_cases.BACKENDS})
def test_keeps_nothing_for_backward_without_gradients(backend):
    (x, residual, x_bias, weight, bias), _ = tensors(12, torch.float32)
    arguments = (x_bias, weight, bias, 1e-5, 0.0, None, None, None, False)
    out, *saved = torch.ops.penstock.residual_norm(x, residual, *arguments, False, backend)
    assert out.shape == x.shape
    assert not any(tensor.numel() for tensor in saved)


def test_autocast_casts_the_rows_and_not_the_parameters():
    (x, residual, x_bias, weight, bias), _ = tensors(16, torch.float32)
    x = x.bfloat16().requires_grad_()
    weight = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = residual_norm(x, residual, weight, bias, x_bias=x_bias)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)


def test_autocast_leaves_the_residual_stream_in_float32():
    (x, residual, _, weight, _), _ = tensors(16, torch.float32)
    for stream, dtype in ((residual, torch.float32), (residual.half(), torch.bfloat16)):
        leaves = [each.clone().requires_grad_() for each in (x, stream)]
        with torch.autocast("cpu", torch.bfloat16):
            out, z = residual_norm(*leaves, weight, prenorm=True)
        assert (out.dtype, z.dtype) == (torch.bfloat16, dtype)
        (out.sum() + z.sum()).backward()
        assert [leaf.grad.dtype for leaf in leaves] == [leaf.dtype for leaf in leaves]


def test_draws_its_seed_from_torchs_generator():
    (x, residual, _, weight, _), _ = tensors(16, torch.float32)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(residual_norm(x, residual, weight, dropout_p=0.5, cu_seqlens=bounds(LENGTHS)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_second_derivative_is_refused():
    (x, residual, _, weight, _), _ = tensors(16, torch.float32)
    out = residual_norm(x.clone().requires_grad_(), residual, weight)
    with pytest.raises(RuntimeError, match="once only"):
        out.sum().backward(create_graph=True)


@pairwise(
    {
        "backend": kernel_cases.BACKENDS,
        "p": [0.0, 0.25],
        "prenorm": [False, True],
        "x_dtype": [torch.float32, torch.bfloat16],
    }
)
def test_opcheck(backend, p, prenorm, x_dtype):
    (x, residual, x_bias, weight, bias), _ = tensors(10, x_dtype)
    residual = residual.float() if prenorm else residual
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    drop = (p, bounds(LENGTHS), IDS, SEED) if p else (0.0, None, None, None)
    arguments = (x, residual, x_bias, weight, bias, 1e-5, *drop, prenorm, True, backend)
    torch.library.opcheck(torch.ops.penstock.residual_norm.default, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("prenorm", [False, True])
def test_compiles_whole_and_once_for_all_batches(prenorm):
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(residual_norm, backend=compilations, fullgraph=True, dynamic=True)
    (_, _, x_bias, weight, bias), _ = tensors(24, torch.float32)
    weight.requires_grad_()
    for lengths in ((3, 5), (7, 1, 2), (4, 4, 4, 9)):
        x, residual = torch.randn(2, sum(lengths), 24)
        options = {"x_bias": x_bias, "dropout_p": 0.5, "cu_seqlens": bounds(lengths), "seed": SEED, "prenorm": prenorm}
        out = compiled(x, residual, weight, bias, **options)
        torch.testing.assert_close(out, residual_norm(x, residual, weight, bias, **options))
        sum(each.sum() for each in (out if prenorm else (out,))).backward()
    assert compilations.frame_count <= 2


@as_subtests(
    "change, error, message",
    [
        ({"x": torch.zeros(5)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, "x must be"),
        ({"residual": torch.zeros(5, 3)}, ValueError, "residual has shape"),
        ({"residual": torch.zeros(5, 2).double()}, TypeError, "residual is"),
        ({"residual": torch.zeros(5, 2).double(), "prenorm": True}, TypeError, "residual is"),
        ({"residual": torch.zeros(5, 2).half(), "prenorm": True}, TypeError, "residual is"),
        ({"x": torch.zeros(5, 2).half()}, TypeError, "residual is"),
        ({"weight": torch.zeros(3)}, ValueError, "weight must have shape"),
        ({"bias": torch.zeros(1)}, ValueError, "bias must have shape"),
        ({"x_bias": torch.zeros(2, 2)}, ValueError, "x_bias must have shape"),
        ({"dropout_p": 0.5}, ValueError, "needs cu_seqlens"),
        ({"dropout_p": 1.5}, ValueError, "dropout p"),
        ({"dropout_p": 0.5, "cu_seqlens": bounds((4,))}, ValueError, "cu_seqlens must run from 0 to"),
        ({"dropout_p": 0.5, "cu_seqlens": torch.tensor([0, 5])}, TypeError, "cu_seqlens must be int32"),
        ({"dropout_p": 0.5, "cu_seqlens": bounds((5,)), "ids": torch.zeros(2).long()}, ValueError, "ids must be"),
        ({"dropout_p": 0.5, "cu_seqlens": bounds((5,)), "seed": torch.zeros(2)}, ValueError, "seed must be"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"x": torch.zeros(5, 2), "residual": torch.zeros(5, 2), "weight": torch.ones(2), **change}
    with pytest.raises(error, match=message):
        residual_norm(**arguments)
