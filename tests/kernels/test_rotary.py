"""The rotary position embedding, against its formula in float64 and against transformers' own."""

import kernel_cases
import pytest
import torch
import torch._dynamo.testing
from kernel_cases import cpu_backends, has_code, implementations, isas, on_threads, pairwise
from subtested import as_subtests

from penstock import _native
from penstock.kernels import rotary, use_backend

BOUND = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BACKENDS = cpu_backends("rowwise")
every_backend = pairwise({"backend": BACKENDS})
IMPLEMENTATIONS = implementations("rotary", BACKENDS)
# tokens, the heads of q and of k, head_dim
SHAPES = [(0, 2, 2, 6), (1, 1, 1, 2), (1, 3, 1, 10), (5, 0, 2, 32), (33, 12, 12, 32), (70, 4, 2, 64), (257, 2, 2, 128)]
SHAPES += [(19, 2, 3, 6), (9, 2, 1, 0)]


def tensors(shape, dtype):
    """q and k, cos and sin, whose halves differ, and the gradients of what becomes of q and k."""
    tokens, q_heads, k_heads, head_dim = shape
    generator = torch.Generator().manual_seed(tokens)
    q, grad_q = (torch.randn(tokens, q_heads, head_dim, generator=generator).to(dtype) for _ in range(2))
    k, grad_k = (torch.randn(tokens, k_heads, head_dim, generator=generator).to(dtype) for _ in range(2))
    angles = 3 * torch.randn(tokens, head_dim, generator=generator)
    return (q, k), (angles.cos(), angles.sin()), (grad_q, grad_k)


def formula(q, k, cos, sin):
    def turned(x):
        x1, x2 = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-x2, x1), -1) * sin[:, None]

    return turned(q), turned(k)


def differentiated(operation, heads, angles, gradients):
    """What becomes of q and k, and their gradients."""
    inputs = [each.detach().requires_grad_() for each in heads]
    outs = operation(*inputs, *angles)
    return [*(out.detach() for out in outs), *torch.autograd.grad(outs, inputs, gradients)]


def run(backend, *arguments):
    with use_backend(backend):
        return differentiated(rotary, *arguments)


def check(backend, heads, angles, gradients):
    dtype = heads[0].dtype
    found = run(backend, heads, angles, gradients)
    expected = differentiated(formula, *([x.double() for x in group] for group in (heads, angles, gradients)))
    for y, r in zip(found, expected, strict=True):
        assert y.dtype == dtype
        assert (y.double() - r).norm() <= BOUND[dtype] * r.norm()
    assert all(y.is_contiguous() for y in found)


@pairwise(
    {"backend": BACKENDS, "dtype": list(BOUND), "shape": SHAPES},
    lambda backend, dtype, shape: (backend, dtype) in IMPLEMENTATIONS,
)
def test_values_and_gradients(backend, shape, dtype):
    check(backend, *tensors(shape, dtype))


@pairwise({"backend": BACKENDS, "dtype": [torch.float32, torch.bfloat16]})
def test_views_are_read_where_they_lie(backend, dtype):
    product = torch.randn(50, 3, 4, 10).to(dtype)
    _, angles, gradients = tensors((50, 4, 4, 10), dtype)
    q, k, _ = product.unbind(1)
    check(backend, (q, k), angles, gradients)
    check(backend, (q.flip(0), k[:, :2]), angles, (gradients[0].expand_as(q), gradients[1][:, 2:]))
    columns = q.transpose(1, 2).contiguous().transpose(1, 2)  # the last dimension is not dense
    check(backend, (columns, k), angles, [torch.ones(()).to(dtype).expand_as(q)] * 2)
    wide = torch.randn(50, 20)
    check(backend, (q, k), (wide[:, ::2], wide[:, 1::2]), gradients)


def test_equals_transformers():
    modernbert = pytest.importorskip("transformers.models.modernbert.modeling_modernbert")
    for dtype in (torch.float32, torch.bfloat16):
        heads, angles, gradients = tensors((40, 3, 3, 32), dtype)
        for angle_dtype in (torch.float32, torch.bfloat16):
            angles = [angle.to(angle_dtype) for angle in angles]

            def stock(q, k, cos, sin):
                outs = modernbert.apply_rotary_pos_emb(q[None], k[None], cos[None], sin[None], unsqueeze_dim=2)
                return tuple(out[0] for out in outs)

            found, expected = (differentiated(f, heads, angles, gradients) for f in (rotary, stock))
            for y, r in zip(found[:2], expected[:2], strict=True):  # rounded once; fused products differ in a last bit
                torch.testing.assert_close(y, r, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pairwise({"backend": ["reference", "torch"]})
def test_gradients_of_gradients(backend):
    heads, angles, _ = tensors((5, 2, 1, 6), torch.float64)
    inputs = [x.requires_grad_() for x in heads]
    angles = [angle.double() for angle in angles]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda q, k: rotary(q, k, *angles), inputs)
        assert torch.autograd.gradgradcheck(lambda q, k: rotary(q, k, *angles), inputs)


@every_backend
def test_one_of_the_two_may_be_frozen_or_unused(backend):
    (q, k), angles, (_, grad_k) = tensors((9, 2, 1, 6), torch.float32)
    with use_backend(backend):
        turned = rotary(q, k.requires_grad_(), *angles)
    (gradient,) = torch.autograd.grad(turned[1], [k], grad_k)
    torch.testing.assert_close(gradient, run(backend, (q, k), angles, (torch.zeros_like(q), grad_k))[3])


@pairwise(
    {
        "isa": isas("rowwise"),
        "dtype": [torch.float32, torch.bfloat16],
        "head_dim": [2, 6, 10, 32, 36, 64, 128],
        "transposed": [False, True],
    },
    has_code("rowwise"),
)
def test_every_element_is_written_and_no_other(head_dim, isa, dtype, transposed):
    """Memory around the tensors is NaN, and so are the results before."""
    tokens, heads = 37, 3

    def padded(*shape, dtype):
        whole = torch.full((torch.Size(shape).numel() + 128,), torch.nan, dtype=dtype)
        return whole, whole[64:-64].view(shape)

    def address(x, out):
        return x.data_ptr(), out.data_ptr(), heads, x.stride(0), x.stride(1)

    _, product = padded(tokens, 2, heads, head_dim, dtype=dtype)
    q, k = product.copy_(torch.randn(product.shape)).unbind(1)
    cos, sin = (padded(tokens, head_dim, dtype=torch.float32)[1].normal_() for _ in range(2))
    wholes, outs = zip(*(padded(tokens, heads, head_dim, dtype=dtype) for _ in range(2)), strict=True)
    arguments = {"bfloat16": dtype == torch.bfloat16, "rows": tokens, "head_dim": head_dim}
    arguments |= {"transposed": transposed, "cos": cos.data_ptr(), "sin": sin.data_ptr()}
    arguments |= {"q": address(q, outs[0]), "k": address(k, outs[1])}
    _native.rotary(isa=isa, threads=1, **arguments)
    assert all(whole[:64].isnan().all() and whole[-64:].isnan().all() for whole in wholes)
    for x, out in zip((q, k), outs, strict=True):
        x1, x2 = x.double().chunk(2, -1)
        s1, s2 = sin.double()[:, None].chunk(2, -1)
        expected = x.double() * cos[:, None]
        expected += torch.cat((x2 * s2, -x1 * s1) if transposed else (-x2 * s1, x1 * s2), -1)
        assert (out.double() - expected).norm() <= BOUND[dtype] * expected.norm()


def test_same_bits_whatever_the_threads():
    arguments = tensors((3001, 2, 1, 10), torch.bfloat16)
    results = on_threads((1, 2, 3), lambda: run("cpu", *arguments))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autocast_leaves_the_dtype_alone():
    heads, angles, _ = tensors((9, 2, 1, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert [x.dtype for x in rotary(*heads, *angles)] == [torch.float32] * 2


@pairwise({"backend": kernel_cases.BACKENDS, "transposed": [False, True]})
def test_passes_opcheck(backend, transposed):
    heads, angles, _ = tensors((9, 2, 1, 6), torch.float32)
    torch.library.opcheck(torch.ops.penstock.rotary.default, (*heads, *angles, transposed, backend))


def test_compiles_to_one_graph_for_every_number_of_tokens():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rotary, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (3, 50, 7):
        arguments = tensors((tokens, 4, 2, 6), torch.bfloat16)
        found, expected = (differentiated(operation, *arguments) for operation in (compiled, rotary))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counter.frame_count == 1


@as_subtests(
    "change, error, message",
    [
        ({"q": torch.zeros(5, 2, 4, dtype=torch.int64)}, TypeError, "q must be float16"),
        ({"q": torch.zeros(5, 8)}, ValueError, r"q must have shape \(tokens, heads, head_dim\), got \(5, 8\)"),
        ({"q": torch.zeros(5, 2, 3), "k": torch.zeros(5, 2, 3)}, ValueError, "head_dim must be even, got 3"),
        ({"k": torch.zeros(5, 2, 4).bfloat16()}, TypeError, "k is torch.bfloat16, q is torch.float32"),
        ({"k": torch.zeros(6, 2, 4)}, ValueError, r"k must have shape \(5, kv_heads, 4\) .* got \(6, 2, 4\)"),
        ({"k": torch.zeros(5, 2, 6)}, ValueError, r"k must have shape \(5, kv_heads, 4\) .* got \(5, 2, 6\)"),
        ({"cos": torch.zeros(1, 5, 4)}, ValueError, r"cos must have shape \(5, 4\) .* got \(1, 5, 4\)"),
        ({"sin": torch.zeros(5, 2)}, ValueError, r"sin must have shape \(5, 4\) .* got \(5, 2\)"),
        ({"sin": torch.zeros(5, 4).requires_grad_()}, ValueError, "sin requires a gradient"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    arguments = {"q": torch.zeros(5, 2, 4), "k": torch.zeros(5, 2, 4), "cos": torch.zeros(5, 4)}
    with pytest.raises(error, match=message):
        rotary(**{**arguments, "sin": torch.zeros(5, 4), **change})
