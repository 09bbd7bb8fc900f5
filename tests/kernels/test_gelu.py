"""Bias and GELU in one operation, alone and as a gate, against float64 and against torch's own."""

import kernel_cases
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from kernel_cases import BOUND, cpu_backends, has_code, is_implemented, isas, on_threads, pairwise
from subtested import as_subtests

from penstock import _native
from penstock.kernels import bias_gelu, geglu, use_backend

BACKENDS = cpu_backends("rowwise")
every_backend = pairwise({"backend": BACKENDS})


def tensors(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x, grad_out = (3 * torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x, torch.randn(shape[1], generator=generator), grad_out


def run(backend, x, bias, grad_out, operation=bias_gelu):
    inputs = [each.clone().requires_grad_() for each in (x, bias) if each is not None]
    with use_backend(backend):
        out = operation(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


operations = pytest.mark.parametrize("operation", [bias_gelu, geglu])


is_gate_implemented = is_implemented("geglu", BACKENDS)


def is_served(backend, dtype, shape, with_bias, operation):
    has_halves = operation is bias_gelu or shape[1] % 2 == 0
    return has_halves and is_gate_implemented(backend, dtype)


@pairwise(
    {
        "backend": BACKENDS,
        "dtype": list(BOUND),
        "shape": [(0, 6), (1, 2), (3, 14), (1031, 74), (3, 7)],
        "operation": [bias_gelu, geglu],
        "with_bias": [True, False],
    },
    is_served,
)
def test_values_and_gradients(backend, shape, dtype, with_bias, operation):
    x, bias, grad_out = tensors(shape, dtype)
    grad_out = grad_out[:, : shape[1] // 2] if operation is geglu else grad_out
    bias = bias if with_bias else None
    found = run(backend, x, bias, grad_out, operation)
    expected = run("reference", x.double(), None if bias is None else bias.double(), grad_out.double(), operation)
    for y, r, limit in zip(found, expected, [BOUND[dtype]] + [2 * BOUND[dtype]] * 2, strict=False):
        assert (y.double() - r).norm() <= limit * r.norm()
    assert [y.dtype for y in found] == [dtype, dtype, torch.float32][: len(found)]


def test_equals_torchs_gelu():
    x, bias, grad_out = (each.double() for each in tensors((40, 30), torch.float64))
    inputs = [x.requires_grad_(), bias.requires_grad_()]
    out, expected = bias_gelu(*inputs), F.gelu(x + bias)
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad_out) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_gate_equals_torchs_gelu():
    x, bias, grad_out = (each.double() for each in tensors((40, 30), torch.float64))
    inputs = [x.requires_grad_(), bias.requires_grad_()]
    gate, value = (x + bias).chunk(2, 1)
    out, expected = geglu(*inputs), F.gelu(gate) * value
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad_out[:, :15]) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pairwise(
    {
        "isa": isas("rowwise"),
        "dtype": [torch.float32, torch.bfloat16],
        "rows, width": [(1, 1), (5, 7), (37, 16), (20, 35), (3, 64)],
    },
    has_code("rowwise"),
)
def test_the_gate_writes_every_element_and_no_other(rows, width, isa, dtype):
    """Memory around the tensors is NaN, and so are the results before."""
    torch.manual_seed(width)  # a value near GELU's zero has few digits

    def padded(*shape, dtype):
        whole = torch.full((torch.Size(shape).numel() + 128,), torch.nan, dtype=dtype)
        return whole, whole[64:-64].view(shape)

    x, grad_out = (padded(rows, n, dtype=dtype)[1].normal_() for n in (2 * width, width))
    bias = padded(2 * width, dtype=torch.float32)[1].normal_()
    pieces = _native.row_pieces(rows)
    results = [(rows, width, dtype), (rows, 2 * width, dtype), (pieces, 2 * width, torch.float32)]
    wholes, (out, grad_x, sums) = zip(*(padded(n, m, dtype=kind) for n, m, kind in results), strict=True)
    arguments = {"isa": isa, "threads": 1, "bfloat16": dtype == torch.bfloat16, "rows": rows, "width": width}
    arguments |= {"x": x.data_ptr()}
    _native.geglu_forward(**arguments, bias=bias.data_ptr(), out=out.data_ptr())
    results = {"grad_out": grad_out, "grad_x": grad_x, "sums": sums}
    addresses = {name: tensor.data_ptr() for name, tensor in results.items()}
    _native.geglu_backward(**arguments, bias=bias.data_ptr(), **addresses)
    assert all(whole[:64].isnan().all() and whole[-64:].isnan().all() for whole in wholes)
    expected = run("reference", x.double(), bias.double(), grad_out.double(), geglu)
    for y, r in zip((out, grad_x, sums.sum(0)), expected, strict=True):
        assert (y.double() - r).norm() <= 2 * BOUND[dtype] * r.norm()


@every_backend
def test_every_argument(backend):
    """Every bfloat16 between -20 and 20, and what lies beyond."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16).float()
    x = x[x.abs() < 1e30].reshape(1, -1).requires_grad_()
    with use_backend(backend):
        out = bias_gelu(x)
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(y.sum(), v)[0].double() for y, v in ((out, x), (expected, wide))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    with use_backend(backend):
        assert bias_gelu(torch.tensor([[float("nan"), 1.0]]))[0].isnan().tolist() == [True, False]


@operations
def test_same_bits_whatever_the_threads(operation):
    x, bias, grad_out = tensors((3001, 40), torch.bfloat16)
    grad_out = grad_out[:, :20] if operation is geglu else grad_out
    results = on_threads((1, 2, 3), lambda: run("cpu", x, bias, grad_out, operation))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pairwise({"backend": kernel_cases.BACKENDS})
def test_keeps_nothing_for_backward_without_gradients(backend):
    x, bias, _ = tensors((5, 6), torch.float32)
    out, derivative = torch.ops.penstock.bias_gelu(x, bias, False, backend)
    assert out.shape == x.shape
    assert derivative.numel() == 0


@operations
def test_autocast_casts_the_rows_and_not_the_bias(operation):
    x, bias, _ = tensors((5, 6), torch.float32)
    bias.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = operation(x, bias)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert bias.grad.dtype == torch.float32


def test_a_second_derivative_of_bias_gelu_is_refused():
    """Its backward has the derivative, not what that was taken of."""
    x, _, _ = tensors((5, 6), torch.float32)
    with pytest.raises(RuntimeError, match="once only"):
        bias_gelu(x.requires_grad_()).sum().backward(create_graph=True)


@pytest.mark.parametrize("with_bias", [True, False])
def test_second_derivatives_of_geglu(with_bias):
    x, bias, _ = tensors((5, 6), torch.float64)
    inputs = [tensor.double().requires_grad_() for tensor in ([x, bias] if with_bias else [x])]
    assert torch.autograd.gradgradcheck(geglu, inputs)


@pairwise({"backend": kernel_cases.BACKENDS})
def test_opcheck(backend):
    x, bias, _ = tensors((9, 10), torch.float32)
    arguments = (x.requires_grad_(), bias.requires_grad_(), True, backend)
    torch.library.opcheck(torch.ops.penstock.bias_gelu.default, arguments)


@pairwise({"backend": kernel_cases.BACKENDS, "with_bias": [True, False]})
def test_opcheck_of_the_gate(backend, with_bias):
    x, bias, grad_out = tensors((9, 10), torch.float32)
    arguments = x, bias if with_bias else None, backend
    torch.library.opcheck(torch.ops.penstock.geglu.default, arguments)
    torch.library.opcheck(torch.ops.penstock.geglu_backward.default, (grad_out[:, :5], *arguments))


@operations
def test_compiles_whole_and_once_for_all_shapes(operation):
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(operation, backend=compilations, fullgraph=True, dynamic=True)
    for rows in (8, 10, 21):
        x, bias, _ = tensors((rows, 24), torch.float32)
        out = compiled(x, bias.requires_grad_())
        assert torch.equal(out, operation(x, bias))
        out.sum().backward()
    assert compilations.frame_count <= 2


@as_subtests(
    "x, bias, error, message",
    [
        (torch.zeros(5), None, ValueError, "x must have shape"),
        (torch.zeros(5, 2, dtype=torch.int32), None, TypeError, "x must be"),
        (torch.zeros(5, 2), torch.zeros(3), ValueError, "bias must have shape"),
    ],
)
@operations
def test_bad_arguments_are_named(x, bias, error, message, operation):
    with pytest.raises(error, match=message):
        operation(x, bias)


def test_a_gate_without_its_value_is_refused():
    with pytest.raises(ValueError, match="x must have an even width, two halves, got 5"):
        geglu(torch.zeros(2, 5))
