"""Linear layers on packed weights: against float64, in int8 against the exact sums of the whole numbers."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import BOUND, isas, on_threads, pairwise
from subtested import as_subtests
from torch import Tensor

from penstock import _native
from penstock.kernels import compiled, packing
from penstock.kernels.packed_linear import Layer as Step
from penstock.kernels.packed_linear import PackedLinear, run_layers

ISAS, DTYPES = isas("linear"), [torch.float32, torch.bfloat16]
# rows, in_features, and the layers' out_features; the last are of several blocks of rows and visits of a sum
SHAPES = [
    *[(0, 5, (3,)), (1, 1, (1,)), (1, 16, (64,)), (2, 31, (33,)), (13, 64, (16, 16)), (33, 100, (7, 1, 40))],
    *[(49, 37, (63, 130)), (100, 130, (48,)), (7, 1100, (20,)), (3, 4500, (6,)), (97, 384, (390,))],
]
THEN = ["", "gelu", "geglu", "norm", "prenorm"]
EPS = 1e-5

pytestmark = pytest.mark.usefixtures("one_thread")


class Layer:
    """A linear layer's tensors, what follows it, and that in float64 or by packed weights."""

    def __init__(
        self, shape: Any, then: str = "", dtype: torch.dtype = torch.float32, with_biases: bool = True
    ) -> None:
        rows, width, outs = shape
        if then == "geglu" and sum(outs) % 2:
            outs = (*outs, 1)
        self.then, self.out_features = then, sum(outs)
        torch.manual_seed(rows + width)
        self.weights = [torch.randn(n, width) / width**0.5 for n in outs]
        for weight in self.weights:  # rows of different sizes, a row of zeros
            weight.mul_(torch.logspace(-1, 0.5, weight.shape[0])[:, None])
            weight[-1, : width // 2] = 0
        self.biases = [torch.randn(n) for n in outs] if with_biases else []
        self.x = torch.randn(rows, width).mul_(torch.logspace(-2, 1, rows)[:, None]).to(dtype)
        self.residual = torch.randn(rows, self.out_features).to(dtype)
        self.norm_weight, self.norm_bias = torch.randn(2, self.out_features)

    def packed(self, dtype: torch.dtype) -> PackedLinear:
        return PackedLinear(self.weights, self.biases, dtype)

    def run(self, packed: PackedLinear, x: Tensor | None = None, residual: Tensor | None = None) -> list[Tensor]:
        x, residual = self.x if x is None else x, self.residual if residual is None else residual
        if "norm" in self.then:
            prenorm = self.then == "prenorm"
            found = packed.norm(x, residual, self.norm_weight, self.norm_bias, eps=EPS, prenorm=prenorm)
            return list(found) if prenorm else [found]
        return [getattr(packed, self.then)(x) if self.then else packed(x)]

    def after(self, product: Tensor) -> list[Tensor]:
        """What follows, float64, of the product without its bias."""
        if self.biases:
            product = product + torch.cat(self.biases).double()
        if self.then == "gelu":
            return [F.gelu(product)]
        if self.then == "geglu":
            gate, value = product.chunk(2, -1)
            return [F.gelu(gate) * value]
        if "norm" in self.then:
            z = self.residual.double() + product
            shape, parameters = (self.out_features,), (self.norm_weight.double(), self.norm_bias.double())
            return [F.layer_norm(z, shape, *parameters, EPS), *([z] if self.then == "prenorm" else [])]
        return [product]


def whole_numbers(rows: Tensor, scale_first: bool) -> tuple[Tensor, Tensor]:
    """Rows in whole numbers and their scales, (rows, 1), float64. Rounded in float32, as what is near a half shows."""
    largest = rows.float().abs().amax(1, keepdim=True)
    if scale_first:  # x: nearest, halves to even
        return (rows.float() * (127 / largest)).round().double(), (largest / 127).double()
    step = largest / 127
    exact = torch.where(step > 0, rows / step, 0.0)
    return ((exact.abs() + 0.5).floor().clamp(max=127) * exact.sign()).double(), step.double()


def exact_product(x: Tensor, weights: list[Tensor]) -> Tensor:
    """That of the whole numbers, times their scales: float64 has these integers exactly."""
    of_x, unit = whole_numbers(x, True)
    of_w, step = whole_numbers(torch.cat(weights), False)
    return of_x @ of_w.t() * unit * step.t()


@pairwise({"isa": ISAS, "dtype": DTYPES, "shape": SHAPES, "then": THEN, "with_biases": [True, False]})
def test_int8_is_the_exact_sum_of_whole_numbers(isa, shape, dtype, then, with_biases, uninitialised_is_nan) -> None:
    layer = Layer(shape, then, dtype, with_biases)
    expected = layer.after(exact_product(layer.x, layer.weights))
    for mine, true in zip(layer.run(layer.packed(torch.int8)), expected, strict=True):
        assert mine.dtype == dtype
        # of float32 a few roundings beside the largest term; of a norm as many times what it divides by
        atol = (2e-6 if dtype == torch.float32 else 2.0**-8) * max(1.0, float(true.abs().max() if true.numel() else 0))
        torch.testing.assert_close(mine.double(), true, atol=atol, rtol=0 if dtype == torch.float32 else 2.0**-8)


@pairwise({"isa": ISAS, "dtype": DTYPES, "shape": SHAPES})
def test_int8_is_within_the_bound_of_its_scales(isa, shape, dtype) -> None:
    """|w x - its product in whole numbers| <= |x| / 254 sum |w| + |w| / 254 sum |x|, and the product of the errors."""
    layer = Layer(shape, "", dtype, False)
    (found,) = layer.run(layer.packed(torch.int8))
    x, w = layer.x.double().abs(), torch.cat(layer.weights).double().abs()
    exact = layer.x.double() @ torch.cat(layer.weights).double().t()
    unit, step = x.amax(1, keepdim=True) / 127, w.amax(1)[None] / 127
    bound = unit / 2 * w.sum(1) + x.sum(1, keepdim=True) * step / 2 + x.shape[1] * unit * step / 4
    bound = bound * (1 + 1e-5) + (1e-6 if dtype == torch.float32 else 2.0**-8) * exact.abs() + bound * 2.0**-8
    assert ((found.double() - exact).abs() <= bound).all()
    if exact.numel() > 100:
        assert not torch.allclose(found.double(), exact, rtol=1e-4, atol=0)


@pairwise({"isa": ISAS, "dtype": DTYPES, "shape": SHAPES, "then": THEN, "with_biases": [True, False]})
def test_values(isa, shape, dtype, then, with_biases, uninitialised_is_nan) -> None:
    """Products in float32 and bfloat16."""
    layer = Layer(shape, then, dtype, with_biases)
    weights = torch.cat(layer.weights).to(dtype).double()
    for mine, true in zip(layer.run(layer.packed(dtype)), layer.after(layer.x.double() @ weights.t()), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == true.shape
        assert (mine.double() - true).norm() <= BOUND[dtype] * true.norm()


@pairwise({"isa": ISAS, "kind": [*DTYPES, torch.int8], "prenorm": [True, False]})
def test_a_residual_stream_in_float32(isa, kind, prenorm) -> None:
    dtype = torch.float32 if kind == torch.float32 else torch.bfloat16
    layer = Layer((30, 40, (50,)), "prenorm" if prenorm else "norm", dtype)
    residual = torch.randn(30, 50)
    packed = layer.packed(kind)
    found = layer.run(packed, residual=residual)
    layer.then, layer.residual = layer.then, residual
    plain = packed(layer.x).double() - torch.cat(layer.biases).double()
    expected = layer.after(plain)
    assert [each.dtype for each in found] == [dtype, torch.float32][: len(found)]
    for mine, true in zip(found, expected, strict=True):
        assert (mine.double() - true).norm() <= BOUND[dtype] * true.norm()


# rows, widths (outside, inside); the last are of several pieces of a block, with weights beyond 1.5 MB in float32
CHAINS = [(0, 5, 7), (1, 1, 1), (7, 33, 70), (50, 64, 130), (203, 70, 300), (230, 384, 600)]


@pairwise(
    {"isa": ISAS, "kind": [*DTYPES, torch.int8], "low": [True, False], "chain": CHAINS, "then": ["gelu", "geglu"]}
)
@pytest.mark.parametrize("prenorm", [False, True])
def test_layers_in_one_call_are_layers_one_by_one(isa, kind, low, chain, then, prenorm, uninitialised_is_nan) -> None:
    """The same bits, on any number of threads: norm, activation, norm with what the first gave as its residual."""
    rows, outer, inner = chain
    dtype = kind if kind != torch.int8 else torch.bfloat16 if low else torch.float32
    shapes = [(outer, outer), (inner * (2 if then == "geglu" else 1), outer), (outer, inner), (5, outer)]
    first, up, down, last = (
        PackedLinear([torch.randn(n, size) / size**0.5], [torch.randn(n)], kind) for n, size in shapes
    )
    x, residual = torch.randn(2, rows, outer).to(dtype)
    weights, biases = torch.randn(2, 2, outer)
    layers = [
        Step(first, "norm", residual, weights[0], biases[0], EPS, prenorm),
        Step(up, then),
        Step(down, "norm", 0, weights[1], biases[1], EPS, prenorm),
        Step(last),
    ]
    found, *others = on_threads([1, 2, 5], lambda: run_layers(x, layers))
    hidden, *sums = run_layers(x, layers[:1])
    wide = getattr(up, then)(hidden)
    normal, *more = run_layers(wide, [layers[2]._replace(residual=hidden)])
    expected = [last(normal), *sums, *more]
    for each in (found, *others):
        assert len(each) == (3 if prenorm else 1)
        assert all(torch.equal(a, b) for a, b in zip(each, expected, strict=True))


@as_subtests("isa", ISAS)
def test_gelu_in_bfloat16_is_within_6e_5(isa, monkeypatch) -> None:
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    sizes = torch.cat([torch.linspace(0, 13, 4000), torch.logspace(-30, 30, 400), torch.tensor([torch.inf])])
    values = torch.cat([sizes, -sizes]).bfloat16().unique()
    found = PackedLinear([values[:, None]], [], torch.bfloat16).gelu(torch.ones(1, 1, dtype=torch.bfloat16))[0]
    exact = F.gelu(values.double())
    finite = values.isfinite()
    error = (found.double() - exact)[finite].abs()
    assert (error <= 6e-5 + exact[finite].abs() * (2.0**-8 + 1e-5)).all()
    assert found[-1] == torch.inf
    nothing = torch.full((1, 1), torch.nan, dtype=torch.bfloat16)
    assert PackedLinear([values[:, None]], [], torch.bfloat16).gelu(nothing).isnan().all()


def inside(tensor: Tensor) -> Tensor:
    """The same in the middle of memory that is NaN."""
    whole = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype)
    return whole[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


@pairwise(
    {"isa": ISAS, "kind": [*DTYPES, torch.int8], "shape": [s for s in SHAPES if s[0]], "then": ["", "gelu", "norm"]}
)
def test_memory_around_the_tensors_is_left_alone(isa, kind, shape, then) -> None:
    dtype = torch.float32 if kind == torch.float32 else torch.bfloat16
    layer = Layer(shape, then, dtype)
    expected = layer.run(layer.packed(kind))[0]
    layer.weights, layer.biases = [inside(w) for w in layer.weights], [inside(b) for b in layer.biases]
    x, residual, weight, bias = map(inside, (layer.x, layer.residual, layer.norm_weight, layer.norm_bias))
    out = inside(torch.full_like(expected, torch.nan))
    low = dtype == torch.bfloat16
    described = {"packed": layer.packed(kind)._packed, "then": then, "out": out.data_ptr(), "z": None, "eps": EPS}
    of_norm = {"residual": residual, "norm_weight": weight, "norm_bias": bias}
    described |= {name: each.data_ptr() if then == "norm" else None for name, each in of_norm.items()}
    described |= {"residual_of": -1, "bfloat16_residual": low}
    arguments = {"bfloat16": low, "rows": x.shape[0], "x": x.data_ptr(), "layers": [described]}
    compiled.call(_native.packed_layers, arguments)
    assert torch.equal(out, expected)
    whole = out._base
    assert whole is not None
    assert whole[:256].isnan().all()
    assert whole[-256:].isnan().all()


@pairwise({"isa": ISAS, "kind": [*DTYPES, torch.int8], "then": THEN, "rows": [25, 150]})
def test_a_row_depends_on_itself_alone(isa, kind, then, rows) -> None:
    """Not on the rows around it nor on the threads; NaN and infinity stay where they are."""
    dtype = torch.float32 if kind == torch.float32 else torch.bfloat16
    layer = Layer((rows, 70, (90,)), then, dtype)
    packed = layer.packed(kind)
    found, *others = on_threads([1, 2, 3, 7], lambda: layer.run(packed))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    for row in (0, 13, rows - 1):
        alone = layer.run(packed, layer.x[row : row + 1], layer.residual[row : row + 1])
        assert all(torch.equal(a[row], b[0]) for a, b in zip(found, alone, strict=True))
    layer.x[5, 3], layer.x[8, 4], layer.x[17, 60] = torch.nan, torch.nan, torch.inf
    for before, after in zip(found, layer.run(packed), strict=True):
        assert after[5].isnan().all()
        assert after[8].isnan().all()
        assert not after[17].isfinite().any() or kind != torch.int8
        others = [row for row in range(rows) if row not in (5, 8, 17)]
        assert torch.equal(after[others], before[others])


@pairwise({"isa": ISAS[1:], "shape": SHAPES})
def test_the_same_sums_on_every_instruction_set(isa, shape, monkeypatch) -> None:
    layer = Layer(shape)
    (found,) = layer.run(layer.packed(torch.int8))
    monkeypatch.setenv("PENSTOCK_ISA", "portable")
    torch.testing.assert_close(found, layer.run(layer.packed(torch.int8))[0], atol=1e-6, rtol=1e-6)


@pairwise({"isa": ISAS, "value": [0.01, -3.0, 1e-41, 1e30], "x": [1.0, -1.0, 0.0, 1e-35, 1e4]})
def test_extreme_sums(isa, value, x) -> None:
    """The largest sums there are: nothing saturates or overflows on the way."""
    packed = PackedLinear([torch.full((17, 4500), value)], [], torch.int8)
    found = packed(torch.full((2, 4500), x))
    expected = 4500 * float(torch.tensor(value)) * (0.0 if abs(x) < 1e-30 else x)
    torch.testing.assert_close(found.double(), torch.full((2, 17), expected).double(), rtol=1e-5, atol=1e-30)


def test_weights_in_bfloat16_are_quantised_as_they_are() -> None:
    layer = Layer((9, 40, (30,)))
    low = [weight.bfloat16() for weight in layer.weights]
    found = PackedLinear(low, layer.biases, torch.int8)(layer.x)
    assert torch.equal(found, PackedLinear([weight.float() for weight in low], layer.biases, torch.int8)(layer.x))


def test_memory_is_less() -> None:
    layer = Layer((1, 512, (512,)))
    sizes = {kind: layer.packed(kind).bytes for kind in (*DTYPES, torch.int8)}
    assert sizes[torch.float32] >= 4 * 512 * 512
    assert sizes[torch.int8] < sizes[torch.float32] * (0.3 if "bf16" in _native.available_isas()[-1] else 0.55)


def test_changes_are_seen(monkeypatch) -> None:
    layer = Layer((2, 20, (30, 10)))
    packed = layer.packed(torch.int8)
    given = layer.weights, layer.biases
    assert packed.is_of(*given)
    assert not packed.is_of([weight.clone() for weight in layer.weights], layer.biases)
    layer.biases[1].add_(1)
    assert not packed.is_of(*given)
    packed = layer.packed(torch.int8)
    layer.weights[0].data.mul_(2)
    assert not packed.is_of(*given)
    packed = layer.packed(torch.int8)
    monkeypatch.setenv("PENSTOCK_ISA", "portable")
    assert not packed.is_of(*given)
    if len(ISAS) > 1:
        with pytest.raises(ValueError, match="packed weights have another instruction set"):
            packed(layer.x)


@as_subtests("features", [packing.MOST_INT8_FEATURES, packing.MOST_INT8_FEATURES + 1])
def test_int8_takes_as_many_features_as_its_sums_can_count(features) -> None:
    """At the bound the sum is exact: 127 * 127 * 133,144 is 2^31 less 14,072."""
    x, weight = torch.full((1, features), -1.0), torch.ones(1, features)
    if features == packing.MOST_INT8_FEATURES:
        assert PackedLinear([weight], [], torch.int8)(x).item() == pytest.approx(-features, rel=1e-6)
    else:
        with pytest.raises(ValueError, match="int8 takes up to 133,144 input features, and one has 133,145"):
            PackedLinear([weight], [], torch.int8)
    assert PackedLinear([weight], [], torch.float32)(x).item() == -features


X, W = torch.zeros(3, 4), torch.zeros(2, 4)
INT8, BF16 = (PackedLinear([W], [], kind) for kind in (torch.int8, torch.bfloat16))
# {what is wrong: (weights, biases, what the message says)}
WRONG = {
    "flat": ([W.flatten()], [], r"weights must have shapes"),
    "a number": ([W.sum()], [], r"weights must have shapes"),
    "three dimensions": ([W[None]], [], r"weights must have shapes"),
    "other in_features": ([W, torch.zeros(2, 5)], [], r"weights must have shapes"),
    "other dtypes": ([W, W.bfloat16()], [], "one floating-point dtype"),
    **{f"{dtype}": ([W.to(dtype)], [], "one floating-point dtype") for dtype in (torch.int8, torch.int64, torch.bool)},
    "complex": ([W.to(torch.complex64)], [], "one floating-point dtype"),
    "meta": ([W.to("meta")], [], "contiguous on the CPU, got .* on meta"),
    "expanded": ([torch.zeros(1, 4).expand(2, 4)], [], "contiguous on the CPU"),
    "transposed": ([torch.zeros(4, 2).t()], [], "contiguous on the CPU"),
    "negated": ([torch._neg_view(W)], [], "contiguous on the CPU"),
    "sparse": ([torch.ones(2, 4).to_sparse()], [], "contiguous on the CPU"),
    "a bias too few": ([W, W], [W[:, 0].clone()], "biases must be none, or of shapes"),
    "a bias too long": ([W], [torch.zeros(3)], "biases must be none, or of shapes"),
    "a bias of two dimensions": ([W], [torch.zeros(2, 1)], "biases must be none, or of shapes"),
    "a bias of integers": ([W], [torch.zeros(2, dtype=torch.int32)], "biases must be floating point"),
    "a bias on meta": ([W], [torch.zeros(2, device="meta")], "contiguous on the CPU"),
    "an expanded bias": ([W], [torch.zeros(1).expand(2)], "contiguous on the CPU"),
}


@as_subtests("what, kind", itertools.product(WRONG, [torch.float32, torch.bfloat16, torch.int8]))
def test_weights_are_what_is_documented(what, kind) -> None:
    weights, biases, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        PackedLinear(weights, biases, kind)


@as_subtests(
    "call, error, message",
    [
        (lambda: PackedLinear([], [], torch.int8), ValueError, "without inputs or outputs"),
        (lambda: PackedLinear([torch.zeros(0, 4)], [], torch.int8), ValueError, "without inputs or outputs"),
        (lambda: PackedLinear([W], [], torch.float16), ValueError, "products are in float32, bfloat16 or int8"),
        (lambda: PackedLinear([W * torch.nan], [], torch.int8), ValueError, "int8 takes finite weights"),
        (lambda: PackedLinear([W + torch.inf], [], torch.int8), ValueError, "int8 takes finite weights"),
        (lambda: INT8(X.half()), TypeError, "products in torch.int8 do not take x in torch.float16"),
        (lambda: BF16(X), TypeError, "products in torch.bfloat16 do not take x in torch.float32"),
        (lambda: INT8(torch.zeros(3, 5)), ValueError, r"x must have shape \(rows, 4\) on the CPU, got \(3, 5\)"),
        (lambda: INT8(torch.zeros(4)), ValueError, r"got \(4,\)"),
        (lambda: PackedLinear([W[:1]], [], torch.int8).geglu(X), ValueError, "two halves"),
        (lambda: INT8.norm(X, torch.zeros(3, 3), W[0, :2], None), ValueError, r"residual must have shape \(3, 2\)"),
        (lambda: INT8.norm(X, torch.zeros(3, 2).half(), W[0, :2], None), ValueError, "or float32, got"),
        (lambda: INT8.norm(X, torch.zeros(3, 2), W[0], None), ValueError, r"parameters must have shape \(2,\)"),
        (lambda: INT8.norm(X, X[:, :2], W[0, :2].long(), None), TypeError, "parameters must be floating point"),
        (lambda: INT8.norm(X, X[:, :2].to("meta"), W[0, :2], None), ValueError, "must be on the CPU"),
        (lambda: INT8.norm(X, X[:, :2], W[0, :2], W[0, :2].to("meta")), ValueError, "must be on the CPU"),
        (lambda: INT8.norm(X, X[:, :2], W[0, :2], None, eps="0"), TypeError, "eps must be a number"),
        (lambda: INT8.norm(X, None, W[0, :2], None), ValueError, "residual must have shape .*, got None"),
        (lambda: INT8.norm(X, torch.zeros(3, 2), None, None), ValueError, "a norm needs a weight"),
        (lambda: run_layers(X, []), ValueError, "there must be a layer"),
        (lambda: run_layers(X, [Step(INT8, "gleu")]), ValueError, "then must be empty, gelu, geglu or norm, got gleu"),
        (lambda: run_layers(X, [Step(INT8), Step(INT8)]), ValueError, "another number of features than the one before"),
        (lambda: run_layers(X, [Step(INT8), Step(BF16)]), TypeError, "products in torch.bfloat16 do not take x in"),
        (lambda: run_layers(X, [Step(INT8, "norm", 0, W[0, :2])]), ValueError, "a norm needs residual, or residual_of"),
        (lambda: run_layers(X, [Step(INT8, "norm", -1, W[0, :2])]), ValueError, "a norm needs residual, or"),
        *(
            (
                lambda then=then, of_norm=of_norm: run_layers(X, [Step(INT8, then, **of_norm)]),
                ValueError,
                "norm's alone",
            )
            for then in ("", "gelu", "geglu")
            for of_norm in (
                {"residual": X[:, :2]},
                {"residual": 0},
                {"weight": X[0]},
                {"bias": X[0]},
                {"prenorm": True},
            )
        ),
    ],
)
def test_wrong_arguments_are_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
