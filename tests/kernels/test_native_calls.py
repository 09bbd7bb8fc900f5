"""How the compiled functions are called: by name, everything, of the right type; on any thread, with nothing too."""

import importlib
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from kernel_cases import has_code, isas, pairwise
from subtested import as_subtests
from torch import Tensor

from penstock import _native
from penstock.kernels import (
    LSTM,
    Ragged,
    adagrad_rows,
    bias_gelu,
    compiled,
    geglu,
    linear,
    ngram_bag,
    residual_norm,
    rotary,
    use_backend,
    varlen_attention,
)
from penstock.kernels.adamw import adamw_rows, decay_rows
from penstock.kernels.dropout import dropout, keep_mask
from penstock.kernels.lstm import cpu as lstm_cpu
from penstock.kernels.packed_linear import PackedLinear

AMX = "amx_bf16" in _native.available_isas()
FUNCTIONS = [
    *("attention_forward", "attention_backward", "norm_forward", "norm_backward", "gelu_forward", "gelu_backward"),
    *("geglu_forward", "geglu_backward", "rotary", "dropout", "keep_mask", "forward", "backward", "pack"),
    *("bag_mean", "bag_gradient", "bag_update", "pack_linear", "packed_layers", "adamw_rows", "decay_rows"),
    *(["weight_gradient"] if AMX else []),
]


class Recorded:
    """The compiled module, which remembers what its functions were called with."""

    def __init__(self, module: Any, calls: dict[str, dict[str, Any]]) -> None:
        self._module, self._calls = module, calls

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if name not in FUNCTIONS:
            return function

        def call(**arguments: Any) -> Any:
            self._calls[name] = arguments
            return function(**arguments)

        return call


def use_everything() -> None:
    """Calls each function of FUNCTIONS, forward and backward, through what Python has for it."""
    cu, seed = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor(7)
    ids = torch.tensor([11, 12])
    q = torch.randn(5, 2, 4, requires_grad=True)
    varlen_attention(q, q, q, cu, cu, 3, 3, dropout_p=0.1, ids=ids, seed=seed).sum().backward()
    x = torch.randn(5, 8, requires_grad=True)
    weight, bias = torch.ones(8), torch.zeros(8)
    residual_norm(x, x, weight, bias, x_bias=bias.clone().requires_grad_()).sum().backward()
    bias_gelu(x, bias.clone().requires_grad_()).sum().backward()
    geglu(x, bias.clone().requires_grad_()).sum().backward()
    rotary(q, q, torch.ones(5, 4), torch.ones(5, 4))
    dropout(x, cu, 0.1, seed, 0, ids)
    keep_mask(cu, 5, 0.1, seed, 0, ids, 8)
    module = LSTM(8, 4, bidirectional=True)
    module(Ragged.from_lengths(x, [2, 3]))[0].values.sum().backward()
    module.eval().prepare_inference()
    PackedLinear([torch.randn(8, 8)], [bias], torch.int8).norm(x.detach(), x.detach(), weight, bias)
    table = torch.zeros(9, 4, requires_grad=True)
    ngram_bag(torch.arange(5, dtype=torch.int32), cu, table, vocabulary=5).sum().backward()
    assert table.grad is not None
    adagrad_rows(table, torch.zeros(9), table.grad, rate=0.1)
    adamw_rows(*torch.zeros(4, 9, 4), torch.arange(2), step=1, rate=0.1)
    decay_rows(torch.zeros(9, 4), torch.arange(2), torch.ones(3))
    low = x.bfloat16().detach()
    linear(low, [torch.randn(3, 8, requires_grad=True)]).sum().backward()


@pytest.fixture(scope="module")
def calls() -> dict[str, dict[str, Any]]:
    recorded: dict[str, dict[str, Any]] = {}
    with pytest.MonkeyPatch.context() as patch, use_backend(None):
        patch.delenv("PENSTOCK_ISA", raising=False)
        watched = Recorded(_native, recorded)
        for module in ("compiled", "cpu", "dropout", "attention.cpu", "bag.cpu"):
            patch.setattr(importlib.import_module(f"penstock.kernels.{module}"), "native", watched)
        patch.setattr(lstm_cpu, "native", Recorded(_native.lstm_cpu, recorded))
        use_everything()
    assert set(recorded) == set(FUNCTIONS)
    return recorded


def function_named(name: str) -> Any:
    return getattr(_native.lstm_cpu if name in ("forward", "backward", "pack") else _native, name)


@as_subtests("function", FUNCTIONS)
def test_every_name_is_needed_and_no_other(function: str, calls: dict[str, dict[str, Any]]) -> None:
    arguments = calls[function]
    for name in arguments:
        rest = {other: value for other, value in arguments.items() if other != name}
        with pytest.raises(TypeError, match=f"{function}.*'{name}'"):
            function_named(function)(**rest)
        misspelt = name[:-1] + name[-1] * 2
        with pytest.raises(TypeError, match=f"{function}.*'{name}'"):
            function_named(function)(**rest, **{misspelt: arguments[name]})
    for layer in arguments.get("layers", []):
        for name in layer:
            rest = {other: value for other, value in layer.items() if other != name}
            for wrong in (rest, {**layer, name[:-1] + name[-1] * 2: layer[name]}):
                with pytest.raises(TypeError, match=f"{function}: a layer"):
                    function_named(function)(**arguments | {"layers": [wrong]})
    for extra in ("bais", "sum", "Rows", ""):
        with pytest.raises(TypeError, match=f"{function}.*unexpected argument '{extra}'"):
            function_named(function)(**arguments, **{extra: 0})
    with pytest.raises(TypeError):
        function_named(function)(arguments)
    with pytest.raises(TypeError):
        function_named(function)()


def wrong_types(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [0, None, "True"]
    if isinstance(value, int):
        return [str(value), 1.5, True, 2**70, (value,)]
    if isinstance(value, float):
        return [str(value), None, True]
    if isinstance(value, str):
        return [0, None, b"x"]
    if isinstance(value, tuple):
        return [value[:-1], (*value, 0), 0, tuple(map(str, value))]
    if isinstance(value, list):
        return [0, ["x"], [(1,)]]
    return ["x", 1.5, True]  # None


@as_subtests("function", FUNCTIONS)
def test_types_are_checked(function: str, calls: dict[str, dict[str, Any]]) -> None:
    arguments = calls[function]
    for name, value in arguments.items():
        for wrong in wrong_types(value):
            with pytest.raises(TypeError, match=f"{function}.*'{name}' must be"):
                function_named(function)(**{**arguments, name: wrong})


def on_a_fresh_thread(work: Callable[[], Any]) -> Any:
    """Its scratch memory holds nothing yet."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    (result,) = results
    return result


ISAS, DTYPES = isas("attention"), [torch.float32, torch.bfloat16]


@pairwise(
    {
        "isa": ISAS,
        "dtype": DTYPES,
        "queries, keys": [([3], [0]), ([0], [3]), ([0], [0]), ([3, 0], [0, 20]), ([40], [0])],
    },
    has_code("attention"),
)
@pytest.mark.usefixtures("one_thread")
def test_attention_with_nothing_to_attend_to(queries, keys, dtype, isa) -> None:
    cu_q, cu_k = (torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32) for lengths in (queries, keys))
    q = torch.randn(sum(queries), 2, 8, dtype=dtype, requires_grad=True)
    k = torch.randn(sum(keys), 2, 8, dtype=dtype, requires_grad=True)

    def forward() -> Tensor:
        with use_backend("cpu"):
            return varlen_attention(q, k, k, cu_q, cu_k, 40, 40)

    for out in (forward(), on_a_fresh_thread(forward)):
        grad_q, grad_k = on_a_fresh_thread(lambda out=out: torch.autograd.grad(out.sum(), [q, k]))
        for each in (out, grad_q, grad_k):
            assert torch.equal(each, torch.zeros_like(each))


SEEING_LITTLE = [(600, 3, (-1, 0)), (600, 40, (2, 0)), (20, 600, (0, 0)), (700, 600, (0, 3)), (1100, 20, (5, 5))]


@pairwise(
    {"isa": ISAS, "dtype": DTYPES, "queries, keys, window": SEEING_LITTLE, "dropout_p": [0.0, 0.3]},
    has_code("attention"),
)
@pytest.mark.usefixtures("one_thread")
def test_many_queries_that_see_no_key(queries, keys, window, dropout_p, dtype, isa) -> None:
    """More of them than are computed together: no key is left to a whole piece of work."""
    bounds = [torch.tensor([0, length], dtype=torch.int32) for length in (queries, keys)]
    torch.manual_seed(0)
    q, k, v, grad_out = (torch.randn(n, 1, 16).to(dtype) for n in (queries, keys, keys, queries))

    def run(backend: str, kind: torch.dtype) -> list[Tensor]:
        inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
        with use_backend(backend):
            options = {"window": window, "dropout_p": dropout_p, "seed": torch.tensor(3)}
            out = varlen_attention(*inputs, *bounds, queries, keys, **options)
        return [out, *torch.autograd.grad(out, inputs, grad_out.to(kind))]

    for mine, true in zip(on_a_fresh_thread(lambda: run("cpu", dtype)), run("reference", torch.float64), strict=True):
        scale = max(true.norm(), grad_out.double().norm())  # of a query that sees one key the gradient is 0
        assert (mine.double() - true).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * scale


@pytest.mark.parametrize(("tokens", "columns", "rows"), [s for s in product((0, 3), repeat=3) if 0 in s])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("one_thread")
def test_linear_with_nothing(tokens, columns, rows, dtype) -> None:
    x = torch.randn(tokens, columns, dtype=dtype, requires_grad=True)
    weight = torch.randn(rows, columns, requires_grad=True)
    out = linear(x, [weight])
    assert out.shape == (tokens, rows)
    gradients = on_a_fresh_thread(lambda: torch.autograd.grad(out.sum(), [x, weight]))
    expected = torch.autograd.grad((x @ weight.to(dtype).t()).sum(), [x, weight])
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.usefixtures("one_thread")
def test_rows_with_nothing() -> None:
    empty = torch.zeros(0, 8, requires_grad=True)
    weight, heads = torch.ones(8), torch.zeros(0, 2, 4)

    def work() -> list[Tensor]:
        with use_backend("cpu"):
            outs = [residual_norm(empty, empty, weight, weight), bias_gelu(empty), geglu(empty)]
            outs += rotary(heads, heads, torch.zeros(0, 4), torch.zeros(0, 4))
        outs.append(dropout(empty, torch.zeros(1, dtype=torch.int32), 0.5, torch.tensor(1), 0))
        sum(out.sum() for out in outs).backward()
        return outs

    assert all(out.shape[0] == 0 for out in on_a_fresh_thread(work))


def test_the_instruction_set_is_read_at_each_call(calls, monkeypatch) -> None:
    """One rule for every operation: none remembers what the variable was."""
    seen: set[str] = set()
    for isa in _native.available_isas():
        monkeypatch.setenv("PENSTOCK_ISA", isa)
        assert compiled.isa() == isa
        recorded: dict[str, dict[str, Any]] = {}
        monkeypatch.setattr(lstm_cpu, "native", Recorded(_native.lstm_cpu, recorded))
        LSTM(3, 4)(Ragged.from_lengths(torch.randn(2, 3), [2]))
        seen.add(recorded["forward"]["isa"])
    assert seen == set(_native.available_isas())


@pytest.mark.usefixtures("one_thread")
def test_what_multiplies_bfloat16_leaves_float32_as_it_was(monkeypatch) -> None:
    """Bit for bit: so the tests of values leave these pairs out (kernel_cases.codes)."""
    torch.manual_seed(0)
    module, cu, seed = LSTM(9, 21, bidirectional=True), torch.tensor([0, 20, 37], dtype=torch.int32), torch.tensor(7)
    x, q = torch.randn(37, 9, requires_grad=True), torch.randn(37, 2, 33, requires_grad=True)
    wide = torch.randn(37, 42, requires_grad=True)
    angles = torch.randn(2, 37, 10)

    def results() -> list[Tensor]:
        with use_backend("cpu"):
            outs = [
                module(Ragged.from_lengths(x, [20, 17]))[0].values,
                varlen_attention(q, q, q, cu, cu, 20, 20, dropout_p=0.1, seed=seed, causal=True),
                residual_norm(wide, wide * 2, wide[0], wide[1], dropout_p=0.1, cu_seqlens=cu, seed=seed),
                *(bias_gelu(wide), geglu(wide)),
                *rotary(q[:, :, :10], q[:, :, 20:30], *angles),
            ]
        outs.append(dropout(wide, cu, 0.1, seed, 0))
        return [*outs, *torch.autograd.grad([out.square().sum() for out in outs], [x, q, wide, *module.parameters()])]

    found = {}
    for isa in _native.available_isas():
        monkeypatch.setenv("PENSTOCK_ISA", isa)
        found[isa] = results()
    for isa in ("avx512_bf16", "amx_bf16"):
        if isa in found:
            assert all(torch.equal(a, b) for a, b in zip(found[isa], found["avx512"], strict=True)), isa


def test_an_unknown_instruction_set_is_an_error_everywhere(monkeypatch) -> None:
    monkeypatch.setenv("PENSTOCK_ISA", "mmx")
    x = torch.randn(2, 3)
    uses = [
        lambda: LSTM(3, 4)(Ragged.from_lengths(x, [2])),
        lambda: bias_gelu(x),
        lambda: linear(x.bfloat16().requires_grad_(), [torch.randn(3, 3)]),
        lambda: dropout(x, torch.tensor([0, 2], dtype=torch.int32), 0.5, torch.tensor(1), 0),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="no instruction set 'mmx' here, there is portable"):
            use()


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_attention_on_the_meta_device(dropout_p: float) -> None:
    q = torch.empty(5, 2, 8, device="meta", requires_grad=True)
    bounds = torch.empty(3, device="meta", dtype=torch.int32)
    out = varlen_attention(q, q, q, bounds, bounds, 4, 4, dropout_p=dropout_p)
    assert out.is_meta
    assert out.shape == q.shape
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.shape == q.shape
