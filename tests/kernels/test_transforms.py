"""Forward mode and torch.func, through every operation: against finite differences in float64, a loop, and backward.

`CASES` names every public function, `RAW` every registered operation: a new one fails here until it has an entry.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from subtested import as_subtests
from torch import Tensor
from torch.autograd import forward_ad

from penstock import kernels
from penstock.kernels import dropout as dropout_module
from penstock.kernels import embedding as embedding_module
from penstock.kernels.lstm import LayerWeights

SEED = torch.tensor(0x5EED_0123_4567_89AB)
BOUNDS = torch.tensor([0, 3, 3, 5, 6], dtype=torch.int32)  # lengths 3, 0, 2, 1
KEYS = torch.tensor([0, 1, 3, 7, 7], dtype=torch.int32)
IDS = torch.tensor([5, 6, 2**33 + 1, 0])
WORDS = torch.tensor([4, 1, 1, 0, 4, 2])
TOKENS = torch.tensor([0, 3, 3, 1, 2, 0], dtype=torch.int32)
RESETS = torch.tensor([False, True, False, False, True, False])


class Case(NamedTuple):
    """A function of float64 tensors and the shapes of these."""

    function: Callable[..., Any]
    shapes: list[tuple[int, ...]]


def lstm(directions: int, layers: int = 1, **options: Any) -> Case:
    """A stack with I = 3, H = 5 as a function of everything that lstm differentiates."""
    output, hidden, with_bias = options.pop("proj_size", 5), 5, options.pop("bias", True)
    shapes: list[tuple[int, ...]] = [(7 if options.get("embed") else 6, 3)]
    per_layer = 4 + (output != hidden) if with_bias else 2 + (output != hidden)
    for layer in range(layers):
        width = 3 if layer == 0 else directions * output
        kinds = [(4 * hidden, width), (4 * hidden, output), *([(4 * hidden,)] * 2 if with_bias else [])]
        kinds += [(output, hidden)] if output != hidden else []
        shapes += [shape for shape in kinds for _ in range(directions)]
    shapes += [(layers * directions, 4, output), (layers * directions, 4, hidden)]
    embed = options.pop("embed", False)

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *flat, h0, c0 = rest
        weights = []
        for layer in range(layers):
            of_layer = flat[layer * per_layer * directions : (layer + 1) * per_layer * directions]
            kinds = [of_layer[k : k + directions] for k in range(0, len(of_layer), directions)]
            kinds = kinds if with_bias else [*kinds[:2], [], [], *kinds[2:]]
            weights.append(LayerWeights(*kinds, *([[]] if len(kinds) == 4 else [])))
        table = {"embeddings": x} if embed else {}
        tokens = WORDS if embed else x
        out = kernels.lstm(tokens, BOUNDS, 3, weights, h0, c0, seed=SEED, ids=IDS, **table, **options)
        return *out[:3], *(out[3] if len(out) == 4 else [])

    return Case(function, shapes)


def attention(heads: int = 2, **options: Any) -> Case:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.varlen_attention(q, k, v, BOUNDS, KEYS, 3, 4, **options)

    return Case(function, [(6, heads, 3), (7, 1, 3), (7, 1, 3)])


def norm(prenorm: bool) -> Case:
    def function(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Any:
        options = {"dropout_p": 0.3, "cu_seqlens": BOUNDS, "ids": IDS, "seed": SEED, "prenorm": prenorm}
        return kernels.residual_norm(x, residual, weight, bias, x_bias=x_bias, **options)

    return Case(function, [(6, 5), (6, 5), (5,), (5,), (5,)])


MODULE = kernels.LSTM(3, 4, bidirectional=True, batch_first=True, dtype=torch.float64)


def module(x: Tensor, *weights: Tensor) -> Tensor:
    names = [name for name, _ in MODULE.named_parameters()]
    return torch.func.functional_call(MODULE, dict(zip(names, weights, strict=True)), (x,))[0]


CASES: dict[str, Case] = {
    "lstm": lstm(1),
    "lstm/bidirectional": lstm(2),
    "lstm/layers, dropout": lstm(2, 2, dropout=0.4, pooling="mean"),
    "lstm/zoneout, resets, cells": lstm(2, zoneout=(0.2, 0.3), resets=RESETS, return_cells=True),
    "lstm/projection": lstm(1, proj_size=2, bias=False),
    "lstm/table": lstm(1, embed=True, pooling="max"),
    "LSTM": Case(module, [(2, 3, 3), *[(16, 3), (16, 4), (16,), (16,)] * 2]),
    "lstm_cell": Case(kernels.lstm_cell, [(3, 20), (3, 5)]),
    "varlen_attention": attention(),
    "varlen_attention/causal": attention(causal=True),
    "varlen_attention/window": attention(3, window=(1, 0), softmax_scale=0.7),
    "varlen_attention/dropout": attention(dropout_p=0.3, seed=SEED, ids=IDS),
    **{
        f"segment_pool/{mode}": Case(lambda x, mode=mode: kernels.segment_pool(x, BOUNDS, mode), [(6, 4)])
        for mode in ("max", "mean", "last")
    },
    "segment_pool/last of both": Case(lambda x: kernels.segment_pool(x, BOUNDS, "last", bidirectional=True), [(6, 4)]),
    "segment_pool/attention": Case(
        lambda x, scores: kernels.segment_pool(x, BOUNDS, "attention", scores), [(6, 3), (6, 1)]
    ),
    "residual_norm": norm(False),
    "residual_norm/prenorm": norm(True),
    "bias_gelu": Case(kernels.bias_gelu, [(3, 5), (5,)]),
    "geglu": Case(kernels.geglu, [(3, 6), (6,)]),
    "rotary": Case(kernels.rotary, [(3, 2, 4), (3, 1, 4), (3, 4), (3, 4)]),
    "linear": Case(lambda x, a, b, c, d: kernels.linear(x, [a, b], [c, d]), [(3, 5), (2, 5), (4, 5), (2,), (4,)]),
    "linear/one": Case(lambda x, a: kernels.linear(x, [a]), [(3, 5), (2, 5)]),
    "embedding": Case(lambda table: embedding_module.embedding(WORDS, table), [(5, 3)]),
    "dropout": Case(lambda x: dropout_module.dropout(x, BOUNDS, 0.3, SEED, 2, IDS), [(6, 3)]),
    "dropout/sequence": Case(lambda x: dropout_module.dropout(x, BOUNDS, 0.3, SEED, 2, None, True), [(6, 3)]),
}
# angles have tangents, but ask for no gradient: rotary says so
ONCE = {"rotary": slice(0, 2)}
# their own backward raises where it is to be differentiated
NOT_TWICE = {"residual_norm", "bias_gelu"}


def outputs(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def drawn(name: str, salt: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(17 + salt)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in CASES[name].shapes]


def slope(function: Callable[..., Any], inputs: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    """The derivative along `directions`, by central differences."""
    step = 1e-6
    ahead, behind = (
        outputs(function(*(x + sign * step * d for x, d in zip(inputs, directions, strict=True)))) for sign in (1, -1)
    )
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def close(found: Any, expected: Any, atol: float = 1e-7) -> None:
    torch.testing.assert_close(outputs(found), outputs(expected), atol=atol, rtol=1e-6)


def loss(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *inputs: sum((y.square() * (1 + y)).sum() for y in outputs(function(*inputs)))


def test_every_public_function_has_a_case() -> None:
    # a bag's gradient is sparse, which these tests' arithmetic is not for (test_bag.py has it); adagrad_rows is a step
    others = ("Ragged", "use_backend", "ngram_bag", "adagrad_rows")
    functions = {name for name in kernels.__all__ if name not in others}
    assert functions <= {name.split("/")[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_tangents(name: str) -> None:
    """For all inputs together, and for each alone, with and without gradients wanted beside it."""
    function, inputs, directions = CASES[name].function, drawn(name), drawn(name, 1)
    close(torch.func.jvp(function, tuple(inputs), tuple(directions))[1], slope(function, inputs, directions))
    for place in range(len(inputs)):
        alone = [d if k == place else torch.zeros_like(d) for k, d in enumerate(directions)]
        expected = slope(function, inputs, alone)
        for recorded in (False, True):
            with forward_ad.dual_level(), torch.set_grad_enabled(recorded):
                of_gradients = range(len(inputs))[ONCE.get(name, slice(None))]
                given = [
                    x.detach().clone().requires_grad_(recorded and k in of_gradients) for k, x in enumerate(inputs)
                ]
                given[place] = forward_ad.make_dual(given[place], directions[place])
                for out, true in zip(outputs(function(*given)), expected, strict=True):
                    tangent = forward_ad.unpack_dual(out).tangent
                    close(torch.zeros_like(true) if tangent is None else tangent.detach(), true)


OF_ANY_DTYPE = [name for name in CASES if name != "LSTM"]  # which has float64 weights


@pytest.mark.slow
@as_subtests("name, dtype", itertools.product(OF_ANY_DTYPE, [torch.float32, torch.bfloat16]))
def test_tangents_in_the_dtypes_of_the_fast_kernels(name: str, dtype: torch.dtype) -> None:
    function = CASES[name].function
    inputs, directions = ([x.to(dtype) for x in drawn(name, salt)] for salt in (0, 1))
    wide = [[x.double() for x in tensors] for tensors in (inputs, directions)]
    found = outputs(torch.func.jvp(function, tuple(inputs), tuple(directions))[1])
    expected = outputs(torch.func.jvp(function, *map(tuple, wide))[1])
    with forward_ad.dual_level():
        duals = outputs(function(*map(forward_ad.make_dual, inputs, directions)))
        tangents = [forward_ad.unpack_dual(out).tangent for out in duals]
    for a, b, true in zip(found, tangents, expected, strict=True):
        assert torch.equal(a, b)
        if name != "lstm/table" and not name.startswith("segment_pool/max"):  # rounding changes who is the maximum
            assert float((a.double() - true).norm()) <= (1e-5 if dtype == torch.float32 else 0.1) * float(true.norm())


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_jacobians(name: str) -> None:
    """torch.func.grad, vjp, jacrev, jacfwd and hessian, beside backward."""
    function, inputs = CASES[name].function, drawn(name)
    places = tuple(range(len(inputs))[ONCE.get(name, slice(None))])
    given = [x.clone().requires_grad_(k in places) for k, x in enumerate(inputs)]
    expected = torch.autograd.grad(loss(function)(*given), [given[k] for k in places])
    close(torch.func.grad(loss(function), argnums=places)(*inputs), expected)

    out, pull_back = torch.func.vjp(lambda *xs: function(*xs, *inputs[len(xs) :]), *(inputs[k] for k in places))
    given_out = function(*given)
    for one, other in zip(outputs(out), outputs(given_out), strict=True):
        close(one, other.detach())
    cotangents = [torch.randn_like(y) for y in outputs(out)]
    pulled = pull_back(cotangents[0] if isinstance(out, Tensor) else tuple(cotangents))
    close(pulled, torch.autograd.grad(outputs(given_out), [given[k] for k in places], cotangents))

    place = places[-1]  # a bias, scores, c0: what is forgotten first
    forward, reverse = (t(function, argnums=place)(*inputs) for t in (torch.func.jacfwd, torch.func.jacrev))
    close(forward, reverse)
    curvature = torch.func.hessian(loss(function), argnums=place)(*inputs)
    direction = [d if k == place else torch.zeros_like(d) for k, d in enumerate(drawn(name, 2))]
    along = slope(torch.func.grad(loss(function), argnums=place), inputs, direction)
    close(curvature.flatten(-direction[place].ndim) @ direction[place].flatten(), along, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_batches_of_calls(name: str) -> None:
    """vmap, and the gradient of each of three examples by vmap(grad), with some inputs shared and with none."""
    function = CASES[name].function
    places = tuple(range(len(CASES[name].shapes))[ONCE.get(name, slice(None))])
    examples = [drawn(name, salt) for salt in (3, 4, 5)]
    stacked = [torch.stack(xs) for xs in zip(*examples, strict=True)]
    looped = [outputs(function(*xs)) for xs in examples]
    found = outputs(torch.vmap(function)(*stacked))
    close(found, [torch.stack(ys) for ys in zip(*looped, strict=True)])
    gradient = torch.func.grad(loss(function), argnums=places)
    for shared in {0, 1, len(stacked)}:  # how many inputs, from the last, are the same in every example
        rest = len(stacked) - shared
        if rest == 0:
            continue
        arguments = [*stacked[:rest], *examples[0][rest:]]
        batched = torch.vmap(gradient, in_dims=(*[0] * rest, *[None] * shared))(*arguments)
        each = [gradient(*xs[:rest], *examples[0][rest:]) for xs in examples]
        close(batched, [torch.stack(gs) for gs in zip(*each, strict=True)])
    last = (None,) * (len(stacked) - 1) + (0,)
    close(
        torch.vmap(function, in_dims=last)(*examples[0][:-1], stacked[-1]),
        [torch.stack(ys) for ys in zip(*(outputs(function(*examples[0][:-1], x)) for x in stacked[-1]), strict=True)],
    )


@pytest.mark.parametrize("name", CASES)
def test_tangents_of_gradients(name: str) -> None:
    """Forward over reverse without torch.func: dual inputs, and a dual gradient of the outputs."""
    function, inputs, directions = CASES[name].function, drawn(name), drawn(name, 1)
    places = range(len(inputs))[ONCE.get(name, slice(None))]
    directions = [d if k in places else torch.zeros_like(d) for k, d in enumerate(directions)]
    given = [x.clone().requires_grad_(k in places) for k, x in enumerate(inputs)]
    wanted = [given[k] for k in places]
    expected = slope(torch.func.grad(loss(function), argnums=tuple(places)), inputs, directions)
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x, d) if k in places else x
            for k, (x, d) in enumerate(zip(given, directions, strict=True))
        ]
        gradients = torch.autograd.grad(loss(function)(*duals), wanted)
        for gradient, true in zip(gradients, expected, strict=True):
            tangent = forward_ad.unpack_dual(gradient).tangent
            close(torch.zeros_like(true) if tangent is None else tangent, true, atol=1e-5)

    results = outputs(function(*given))
    cotangents, changes = ([torch.randn_like(y) for y in results] for _ in range(2))
    true = torch.autograd.grad(results, wanted, changes, retain_graph=True)
    with forward_ad.dual_level():
        found = torch.autograd.grad(results, wanted, list(map(forward_ad.make_dual, cotangents, changes)))
        close([forward_ad.unpack_dual(gradient).tangent for gradient in found], true)


@pytest.mark.parametrize("name", CASES)
def test_differentiates_twice_or_says_that_it_does_not(name: str) -> None:
    function, inputs = CASES[name].function, drawn(name)
    places = range(len(inputs))[ONCE.get(name, slice(None))]
    given = [x.clone().requires_grad_(k in places) for k, x in enumerate(inputs)]
    wanted = [given[k] for k in places]

    def twice() -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(loss(function)(*given), wanted, create_graph=True)
        return torch.autograd.grad(sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)), wanted)

    directions = [d for k, d in enumerate(drawn(name, 1)) if k in places]
    if name.split("/")[0] in NOT_TWICE:
        with pytest.raises(RuntimeError, match="once only"):
            twice()
        return
    along = [directions[k] if k in places else torch.zeros_like(x) for k, x in enumerate(inputs)]
    close(twice(), slope(torch.func.grad(loss(function), argnums=tuple(places)), inputs, along), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name.split("/")[0] not in NOT_TWICE])
def test_arguments_that_depend_on_one_another(name: str) -> None:
    """With create_graph=True as without, each argument has the gradient of its own place."""
    function, inputs = CASES[name].function, drawn(name)
    places = range(len(inputs))[ONCE.get(name, slice(None))]
    first = inputs[0].requires_grad_()
    chain = [first]
    for k, x in enumerate(inputs[1:], 1):
        chain.append(x + chain[-1].sum().tanh() if k in places else x)
    (expected,) = torch.autograd.grad(loss(function)(*chain), first, retain_graph=True)
    (found,) = torch.autograd.grad(loss(function)(*chain), first, create_graph=True)
    close(found.detach(), expected)


@pytest.mark.parametrize("name", CASES)
def test_several_gradients_at_a_time(name: str) -> None:
    """is_grads_batched=True, as torch.autograd.functional's vectorize=True asks for it."""
    function, inputs = CASES[name].function, drawn(name)
    places = range(len(inputs))[ONCE.get(name, slice(None))]
    given = [x.requires_grad_(k in places) for k, x in enumerate(inputs)]
    wanted = [given[k] for k in places]
    results = [y for y in outputs(function(*given)) if y.requires_grad]
    batch = [torch.randn(3, *y.shape, dtype=y.dtype) for y in results]
    found = torch.autograd.grad(results, wanted, batch, retain_graph=True, is_grads_batched=True)
    looped = [torch.autograd.grad(results, wanted, list(each), retain_graph=True) for each in zip(*batch, strict=True)]
    close(found, [torch.stack(gradients) for gradients in zip(*looped, strict=True)])


def test_sequence_bounds_cannot_be_batched() -> None:
    for name in ("lstm", "segment_pool", "varlen_attention", "residual_norm"):
        x = torch.randn(2, 6, 2, 4)
        bounds = BOUNDS.repeat(2, 1)

        def run(x: Tensor, bounds: Tensor, name: str = name) -> Any:
            if name == "lstm":
                weights = [LayerWeights([torch.randn(8, 4)], [torch.randn(8, 2)], [], [], [])]
                return kernels.lstm(x[:, 0], bounds, 3, weights)
            if name == "segment_pool":
                return kernels.segment_pool(x[:, 0], bounds, "max")
            if name == "varlen_attention":
                return kernels.varlen_attention(x, x, x, bounds, bounds, 3, 3)
            return kernels.residual_norm(x[:, 0], x[:, 1], torch.ones(4), dropout_p=0.5, cu_seqlens=bounds)

        with pytest.raises(ValueError, match="vmap over cu_seqlens"):
            torch.vmap(run, randomness="same")(x, bounds)


def test_randomness_of_vmap() -> None:
    """As nn.Dropout under vmap: refused, the same for each example, or another."""
    ours = kernels.LSTM(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 3).expand(4, 5, 3)
    with pytest.raises(RuntimeError, match="random"):
        torch.vmap(lambda x: ours(x)[0])(x)
    same = torch.vmap(lambda x: ours(x)[0], randomness="same")(x)
    assert torch.equal(same[0], same[1])
    different = torch.vmap(lambda x: ours(x)[0], randomness="different")(x)
    assert not torch.equal(different[0], different[1])


def layer_arguments(backend: str = "reference") -> list[Any]:
    x, w_ih, w_hh, b_ih, b_hh, h0, c0 = drawn("lstm")
    return [x, BOUNDS, 3, [w_ih], [w_hh], [b_ih], [b_hh], [], h0, c0, None, None, None, None, "", False, True, backend]


def raw() -> dict[str, tuple[list[Any], list[int]]]:
    """Arguments for each operation, and the places of those that must pass a tangent on."""
    ops = torch.ops.penstock
    layer = layer_arguments()
    y, h_n, c_n, *_ = ops.lstm_layer(*layer)
    q, k, v = drawn("varlen_attention")
    problem = [BOUNDS, KEYS, 3, 4, 0.5, -1, -1, 0.0, None, None, "torch"]
    out, lse = ops.varlen_attention(q, k, v, *problem)
    values, scores = drawn("segment_pool/attention")
    pooled, saved = ops.segment_pool(values, scores[:, 0], BOUNDS, "attention", False, "torch")
    x, residual, weight, bias, x_bias = drawn("residual_norm")
    fields = [x_bias, weight, bias, 1e-5, 0.3, BOUNDS, IDS, SEED, True]
    normed, z, normal, rstd = ops.residual_norm(x, residual, *fields, True, "torch")
    g, b = drawn("bias_gelu")
    gelu, derivative = ops.bias_gelu(g, b, True, "torch")
    gates, c = drawn("lstm_cell")
    halves, wide = drawn("geglu")
    (table,) = drawn("embedding")
    lookup = ops.embedding(WORDS, table, 0)
    rate = [BOUNDS, 0.3, SEED, 2, IDS, False]
    return {
        "lstm_layer": (layer, [0, 3, 4, 5, 6, 8, 9]),
        "lstm_layer_backward": (
            [y, h_n, c_n, None, None, *layer[:15], y, [], True, True, "reference"],
            [0, 1, 2, 5, 8],
        ),
        "lstm_cell": ([gates, c, "torch"], [0, 1]),
        "lstm_cell_backward": ([c, c, gates, c, "torch"], [0, 1, 2, 3]),
        "varlen_attention": ([q, k, v, *problem], [0, 1, 2]),
        "varlen_attention_backward": ([out, q, k, v, out, lse, *problem], [0, 1, 2, 3]),
        "segment_pool": ([values, scores[:, 0], BOUNDS, "attention", False, "torch"], [0, 1]),
        "segment_pool_backward": (
            [pooled, values, scores[:, 0], saved, BOUNDS, 6, "attention", False, "torch"],
            [0, 1, 2],
        ),
        "residual_norm": ([x, residual, *fields, True, "torch"], [0, 1, 2, 3, 4]),
        "residual_norm_backward": (
            [normed, z, normal, rstd, x_bias, weight, 0.3, BOUNDS, IDS, SEED, "torch"],
            [0, 1, 2, 3, 5],
        ),
        "bias_gelu": ([g, b, True, "torch"], [0, 1]),
        "bias_gelu_backward": ([gelu, derivative, True, "torch"], [0, 1]),
        "geglu": ([halves, wide, "torch"], [0, 1]),
        "geglu_backward": ([halves[:, :3], halves, wide, "torch"], [0, 1, 2]),
        "rotary": ([*drawn("rotary"), False, "torch"], [0, 1, 2, 3]),
        "linear_backward": ([halves, gelu, True, "torch"], [0, 1]),
        "ngram_bag": ([table, TOKENS, BOUNDS, 4, 1, "reference"], [0]),
        "embedding": ([WORDS, table, 0], [1]),
        "embedding_backward": ([lookup, WORDS, 5, 0], [0]),
        "dropout": ([x, *rate], [0]),
        "keep_mask": ([BOUNDS, 6, 0.3, SEED, 2, IDS, 5, False], []),
    }


REGISTERED = sorted(
    name.removeprefix("penstock::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("penstock::")
)


def test_every_operation_has_arguments_here() -> None:
    assert sorted(raw()) == REGISTERED


@pytest.mark.parametrize("name", REGISTERED)
def test_operations_pass_tangents_on(name: str) -> None:
    """Called by itself, each operation gives a tangent for the tangent of each of its differentiable arguments."""
    operation = getattr(torch.ops.penstock, name).default
    for key in ("Autograd", "FuncTorchDynamicLayerFrontMode"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"penstock::{name}", key), key
    arguments, places = raw()[name]

    def run(x: Tensor, place: int) -> list[Tensor]:
        given = [[x] if k == place and isinstance(a, list) else x if k == place else a for k, a in enumerate(arguments)]
        found = operation(*given)
        found = [found] if isinstance(found, Tensor) else found
        return [y for each in found for y in (each if isinstance(each, list) else [each])]

    for place in places:
        x = arguments[place][0] if isinstance(arguments[place], list) else arguments[place]
        direction = torch.randn_like(x)
        with forward_ad.dual_level():
            results = run(forward_ad.make_dual(x, direction), place)
            duals = [forward_ad.unpack_dual(y).tangent for y in results]
        assert any(dual is not None and float(dual.abs().max()) > 0 for dual in duals), place
        _, tangents = torch.func.jvp(lambda x, place=place: tuple(run(x, place)), (x,), (direction,))
        for dual, tangent in zip(duals, tangents, strict=True):
            close(torch.zeros_like(tangent) if dual is None else dual, tangent)


def test_mask_of_many_seeds() -> None:
    seeds = torch.tensor([1, 2, 2**62])
    found = torch.vmap(lambda seed: dropout_module.keep_mask(BOUNDS, 6, 0.3, seed, 2, IDS, 5))(seeds)
    assert torch.equal(found, torch.stack([dropout_module.keep_mask(BOUNDS, 6, 0.3, s, 2, IDS, 5) for s in seeds]))


@pytest.mark.parametrize("name", ["geglu", "linear", "rotary"])
def test_compiled_transforms(name: str) -> None:
    function, inputs = CASES[name].function, drawn(name)
    gradient = torch.func.grad(loss(function))
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    close(compiled(*inputs), gradient(*inputs))


@pytest.mark.parametrize("name", ["lstm", "varlen_attention", "segment_pool/mean", "residual_norm"])
def test_transforms_that_read_bounds_are_not_compiled(name: str) -> None:
    function, inputs = CASES[name].function, drawn(name)
    gradient = torch.func.grad(loss(function))
    with pytest.raises(torch._dynamo.exc.UserError, match=r"torch\.func reads cu_seqlens"):
        torch.compile(gradient, backend="eager", fullgraph=True)(*inputs)
    uncompiled = torch.compiler.disable(gradient)
    close(torch.compile(lambda *xs: 2 * uncompiled(*xs), backend="eager")(*inputs), 2 * gradient(*inputs))
