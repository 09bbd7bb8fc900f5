"""Linear layers side by side, against float64 and against torch's own."""

import itertools

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from kernel_cases import BOUND, is_implemented, pairwise
from subtested import as_subtests
from torch.utils.flop_counter import FlopCounterMode

from penstock import _native
from penstock.kernels import linear, use_backend

AMX = "amx_bf16" in _native.available_isas()
BACKENDS = ["reference", "torch", *(["cpu"] if AMX else [])]
every_backend = pairwise({"backend": BACKENDS})
# tokens, in_features, and the layers' out_features; the longest is more than one visit of a result
SHAPES = [(0, 5, (3,)), (1, 1, (1,)), (2, 31, (33,)), (33, 100, (7, 1, 40)), (1031, 37, (63, 130)), (300, 520, (390,))]


def tensors(shape, dtype, with_biases=True):
    """x, the weights and the biases, and a gradient of the output."""
    tokens, width, rows = shape
    generator = torch.Generator().manual_seed(tokens)
    x, grad_out = (torch.randn(tokens, n, generator=generator).to(dtype) for n in (width, sum(rows)))
    weights = [torch.randn(n, width, generator=generator) / width**0.5 for n in rows]
    biases = [torch.randn(n, generator=generator) for n in rows] if with_biases else []
    return x, weights, biases, grad_out


def run(backend, x, weights, biases, grad_out):
    x, *parts = inputs = [each.clone().requires_grad_() for each in (x, *weights, *biases)]
    with use_backend(backend):
        out = linear(x, parts[: len(weights)], parts[len(weights) :])
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


@pairwise(
    {"backend": BACKENDS, "dtype": list(BOUND), "shape": SHAPES, "with_biases": [True, False]},
    is_implemented("linear", BACKENDS),
)
def test_values_and_gradients(backend, shape, dtype, with_biases):
    x, weights, biases, grad_out = tensors(shape, dtype, with_biases)
    found = run(backend, x, weights, biases, grad_out)
    rounded = [[each.to(dtype).double() for each in parts] for parts in (weights, biases)]
    expected = run("reference", x.double(), *rounded, grad_out.double())
    for y, r in zip(found, expected, strict=True):
        assert (y.double() - r).norm() <= BOUND[dtype] * r.norm()
    assert [y.dtype for y in found] == [dtype] * 2 + [torch.float32] * (len(found) - 2)


_NUMBERS = torch.arange(16, dtype=torch.bfloat16)


@as_subtests("bias", [_NUMBERS[:8], _NUMBERS[1:9], _NUMBERS[::2], _NUMBERS[3:4].expand(8), _NUMBERS.view(8, 2)[:, 1]])
def test_a_bias_may_lie_anyhow(bias):
    x = torch.zeros(2, 5, dtype=torch.bfloat16)
    for weights in ([torch.zeros(8, 5)], [torch.zeros(8, 5), torch.zeros(8, 5)]):
        out = linear(x, weights, [bias] * len(weights))
        assert torch.equal(out[1], torch.cat([bias] * len(weights)))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 2)])
def test_sizes_of_nothing(dtype, tokens, inputs, outputs):
    x = torch.randn(tokens, inputs).to(dtype).requires_grad_()
    weight, bias = torch.randn(outputs, inputs, requires_grad=True), torch.randn(outputs, requires_grad=True)
    out = linear(x, [weight], [bias])
    torch.testing.assert_close(out, F.linear(x, weight.to(dtype), bias.to(dtype)))
    gradients = torch.autograd.grad(out, [x, weight, bias], torch.ones_like(out))
    assert [each.shape for each in gradients] == [x.shape, weight.shape, bias.shape]
    assert torch.equal(gradients[2], torch.full((outputs,), float(tokens)))


def test_who_looks_at_calls_sees_torchs_own():
    """A mode that counts, a tracer, a switch: none of them knows oneDNN's product with a bias."""
    x, (weight,), (bias,), _ = tensors((9, 8, (4,)), torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        expected = linear(x, [weight], [bias])
    assert counter.get_total_flops() == 2 * 9 * 8 * 4
    assert torch.equal(torch.jit.trace(lambda x: linear(x, [weight], [bias]), x)(x), expected)
    with torch.backends.mkldnn.flags(enabled=False), torch.autograd.profiler.profile() as calls:
        linear(x, [weight], [bias])
    assert not any("mkldnn" in event.key for event in calls.key_averages())


def test_equals_torchs_layers():
    x, weights, biases, grad_out = tensors((40, 30, (20, 10)), torch.float64)
    inputs = [each.double().requires_grad_() for each in (x, *weights, *biases)]
    x, *parts = inputs
    out = linear(x, parts[:2], parts[2:])
    expected = torch.cat([F.linear(x, weight, bias) for weight, bias in zip(parts[:2], parts[2:], strict=True)], 1)
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad_out.double()) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pairwise({"backend": [name for name in BACKENDS if name != "torch"]})  # whose product has its operands' dtype
def test_weight_gradients_are_not_rounded_on_the_way(backend):
    """An odd number of tokens that each add 1: bfloat16 has no 1031."""
    x, grad_out = torch.ones(1031, 3, dtype=torch.bfloat16), torch.ones(1031, 2, dtype=torch.bfloat16)
    gradient = run(backend, x, [torch.zeros(2, 3)], [], grad_out)[2]
    assert torch.equal(gradient, torch.full((2, 3), 1031.0))


@pytest.mark.skipif(not AMX, reason="needs AMX")
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(1, 1, 1), (40, 70, 0), (33, 40, 70), (700, 33, 1030), (515, 800, 65)]
)
def test_every_element_is_written_and_none_depends_on_the_threads(tokens, rows, columns):
    """Memory around the operands is NaN, and so is the result before."""

    def padded(n, m):
        whole = torch.full((n * m + 512,), torch.nan, dtype=torch.bfloat16)
        inside = whole[256:-256].view(n, m)
        return inside.copy_(torch.randn(n, m))

    grad_out, x = padded(tokens, rows), padded(tokens, columns)
    results = []
    for threads in (1, 2, 3, 16):
        whole, of_bias = (torch.full((size + 512,), torch.nan) for size in (rows * columns, rows))
        gradient, bias = whole[256:-256], of_bias[256:-256]
        arguments = {"tokens": tokens, "rows": rows, "columns": columns, "grad_out": grad_out.data_ptr()}
        arguments |= {"x": x.data_ptr(), "grad_weight": gradient.data_ptr(), "grad_bias": bias.data_ptr()}
        _native.weight_gradient(isa="amx_bf16", threads=threads, **arguments)
        for each in (whole, of_bias):
            assert each[:256].isnan().all()
            assert each[-256:].isnan().all()
        results.append((gradient, bias))
    expected = (grad_out.double().t() @ x.double()).flatten(), grad_out.double().sum(0)
    for found, true in zip(results[0], expected, strict=True):
        assert (found.double() - true).norm() <= 1e-6 * true.norm()
    assert all(torch.equal(*pair) for result in results[1:] for pair in zip(result, results[0], strict=True))


@every_backend
def test_tokens_that_are_not_a_number_stay_where_they_are(backend):
    x, weights, _, grad_out = tensors((70, 40, (50,)), torch.bfloat16)
    x[3, 5] = torch.nan
    gradient = run(backend, x, weights, [], grad_out)[2]
    assert gradient[:, 5].isnan().all()
    assert gradient.isnan().sum() == 50


@every_backend
def test_frozen_parts_get_no_gradient(backend):
    x, weights, biases, grad_out = tensors((9, 8, (4, 6)), torch.bfloat16)
    biases[1].requires_grad_()
    with use_backend(backend):
        out = linear(x, weights, biases)
    (gradient,) = torch.autograd.grad(out, [biases[1]], grad_out)
    torch.testing.assert_close(gradient, grad_out[:, 4:].float().sum(0), rtol=1e-2, atol=1e-2)
    assert not linear(x, weights).requires_grad


NEEDS = [needs for needs in itertools.product([True, False], repeat=3) if any(needs)]


@as_subtests("needs, dtype, layers", itertools.product(NEEDS, [torch.float32, torch.bfloat16], [1, 2]))
def test_what_no_gradient_needs_may_change(needs, dtype, layers):
    """x serves the weights' gradient alone, the weights that of x: as torch has it, they are not kept for others."""
    x, weights, biases, grad_out = tensors((9, 8, (4, 6)[:layers]), torch.float32)
    grad_out = grad_out.to(dtype)
    parts = [[x.to(dtype)], [w.to(dtype) for w in weights], biases]
    inputs = [part.requires_grad_(need) for tensors_, need in zip(parts, needs, strict=True) for part in tensors_]
    wanted = [each for each in inputs if each.requires_grad]
    expected = torch.autograd.grad(linear(inputs[0], parts[1], biases), wanted, grad_out)
    changed = [part for part, serves in ((parts[0], needs[1]), (parts[1], needs[0])) if not serves]
    out = linear(inputs[0], parts[1], biases)
    with torch.no_grad():
        for each in (each for part in changed for each in part):
            each.zero_()
    for mine, true in zip(torch.autograd.grad(out, wanted, grad_out), expected, strict=True):
        assert torch.equal(mine, true)


def test_an_output_may_change_before_a_frozen_layer_is_differentiated():
    x, (weight,), _, _ = tensors((9, 8, (8,)), torch.float32)
    results = []
    for layer in (lambda x: linear(x, [weight]), lambda x: F.linear(x, weight)):
        start = x.clone().requires_grad_()
        hidden = layer(start)
        out = layer(hidden)
        hidden.relu_()
        results.append(torch.autograd.grad((out * hidden).sum(), start)[0])
    torch.testing.assert_close(*results)


def test_autocast_casts_once():
    x, weights, biases, _ = tensors((9, 8, (4, 6)), torch.float32)
    weights[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weights, biases)
        assert linear(x.double(), weights, biases).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert weights[0].grad.dtype == torch.float32


@every_backend
def test_passes_opcheck(backend):
    x, _, _, grad_out = tensors((9, 8, (4,)), torch.bfloat16)
    torch.library.opcheck(torch.ops.penstock.linear_backward, (grad_out, x, True, backend))


@pytest.mark.slow
def test_compiles_to_one_graph_for_every_number_of_tokens():
    _, weights, biases, _ = tensors((1, 8, (4, 6)), torch.float32)
    weights[0].requires_grad_()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: linear(x, weights, biases), backend=counter, fullgraph=True, dynamic=True)
    for tokens in (3, 50, 7):
        x = torch.randn(tokens, 8, dtype=torch.bfloat16)
        (found,) = torch.autograd.grad(compiled(x).sum(), [weights[0]])
        (expected,) = torch.autograd.grad(linear(x, weights, biases).sum(), [weights[0]])
        assert torch.equal(found, expected)
    assert counter.frame_count == 1


W, NOT_FLOATING = torch.zeros(2, 4), [torch.int64, torch.uint8, torch.bool, torch.complex64]


@as_subtests(
    "change, error, message",
    [
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "x must be float16"),
        ({"x": torch.zeros(3, 2, 4)}, ValueError, r"x must have shape \(tokens, in_features\), got \(3, 2, 4\)"),
        ({"weights": []}, ValueError, "got 0 and 1"),
        ({"weights": [torch.zeros(2, 5)]}, ValueError, r"a weight must have shape \(out_features, 4\).* got \(2, 5\)"),
        *[({"weights": [W.to(dtype)]}, TypeError, "a weight must be floating point") for dtype in NOT_FLOATING],
        *[({"biases": [W[:, 0].to(dtype)]}, TypeError, "a bias must be floating point") for dtype in NOT_FLOATING],
        ({"biases": [torch.zeros(3)]}, ValueError, r"a bias must have shape \(2,\).* got \(3,\)"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    arguments = {"x": torch.zeros(3, 4), "weights": [torch.zeros(2, 4)], "biases": [torch.zeros(2)]}
    with pytest.raises(error, match=message):
        linear(**arguments | change)


@pytest.mark.parametrize("sizes", [(2,), (2, 3)])
def test_differentiates_twice(sizes):
    x, weights, biases, _ = tensors((3, 4, sizes), torch.float64)
    inputs = [tensor.double().requires_grad_() for tensor in (x, *weights, *biases)]
    count = len(sizes)
    assert torch.autograd.gradgradcheck(lambda x, *rest: linear(x, rest[:count], rest[count:]), inputs)
    tied = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: linear(w @ w, [w, w]), [tied])
