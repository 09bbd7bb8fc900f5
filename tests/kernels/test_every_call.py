"""What every call keeps to: no default of torch's, and no lie about a tensor's memory, changes a result."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kernel_cases import bounds
from subtested import as_subtests
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._device import _device_constructors

from penstock import kernels
from penstock.kernels import (
    LSTM,
    Ragged,
    adagrad_rows,
    bias_gelu,
    geglu,
    linear,
    lstm_cell,
    ngram_bag,
    residual_norm,
    rotary,
    segment_pool,
    use_backend,
    varlen_attention,
)
from penstock.kernels.dropout import dropout, keep_mask
from penstock.kernels.embedding import embedding
from penstock.kernels.packed_linear import PackedLinear

CU, SEED, IDS = bounds([2, 0, 3]), torch.tensor(5), torch.tensor([7, 1, 9])
DROP = {"dropout_p": 0.5, "seed": SEED, "ids": IDS}
WORDS, STEPS, OFFSETS = torch.tensor([0, 3, 1, 3, 2]), torch.tensor([2, 2, 1]), torch.tensor([0, 2, 5])


class Call(NamedTuple):
    """`function` of tensors, those that can be differentiated, which gives one tensor or several."""

    function: Callable[..., Any]
    tensors: Sequence[Tensor]
    backends: Sequence[str] = ("cpu", "torch", "reference")

    def results(self, backend: str, tensors: Sequence[Tensor] | None = None) -> list[Tensor]:
        """What it gives, and the gradients of its tensors."""
        inputs = [t.detach().requires_grad_() for t in (self.tensors if tensors is None else tensors)]
        with use_backend(backend if backend != "any" else None):
            found = self.function(*inputs)
        made = [found] if isinstance(found, Tensor) else list(found)
        recorded = [each for each in made if each.requires_grad]
        wanted = [each.square() for each in recorded]  # gradients of their own
        gradients = torch.autograd.grad([x.sum() for x in wanted], inputs, allow_unused=True) if recorded else []
        return [each.detach() for each in (*made, *(g for g in gradients if g is not None))]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float32)


def _module(**options: Any) -> LSTM:
    torch.manual_seed(0)
    return LSTM(4, 3, **options)


def _lstm(module: LSTM, **options: Any) -> Callable[..., list[Tensor]]:
    def run(x: Tensor) -> list[Tensor]:
        given = {**options, "embeddings": x} if "embeddings" in options else options
        inputs = Ragged.from_lengths(WORDS if "embeddings" in options else x, [2, 0, 3], IDS)
        y, states, *_ = module(inputs, seed=SEED, **given)
        return [y.values if isinstance(y, Ragged) else y, *states]

    return run


def _packed_sequence(x: Tensor) -> list[Tensor]:
    y, states = MODULE(PackedSequence(x, STEPS))
    return [y.data, *states]


def _nested(x: Tensor) -> Tensor:
    y, _ = MODULE(torch.nested.nested_tensor_from_jagged(x, OFFSETS))
    return y.values()


def _prepared(dtype: torch.dtype | None) -> Callable[[Tensor], list[Tensor]]:
    module = _module(bidirectional=True).eval()

    def run(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return _lstm(module.prepare_inference(dtype))(x)

    return run


def _packed_linear(dtype: torch.dtype) -> Callable[..., list[Tensor]]:
    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        packed = PackedLinear([WIDE], [], dtype)
        x, residual = (x, residual) if dtype != torch.bfloat16 else (x.bfloat16(), residual.bfloat16())
        return [packed(x), packed.gelu(x), packed.geglu(x), *packed.norm(x, residual, weight, bias, prenorm=True)]

    return run


def _step(values: Tensor) -> list[Tensor]:
    table, sums = torch.zeros(6, 4, dtype=torch.float32, device="cpu"), torch.ones(6, dtype=torch.float32, device="cpu")
    rows = torch.tensor([[0, 2, 5]], dtype=torch.int64, device="cpu")
    options = {"dtype": values.dtype, "device": values.device}
    adagrad_rows(table, sums, torch.sparse_coo_tensor(rows, values.detach(), (6, 4), **options), rate=0.1)
    return [table, sums]


MODULE, WIDE, ROWS = _module(batch_first=True, bidirectional=True), randn(6, 4), randn(5, 4)
QKV = randn(5, 2, 4), randn(5, 1, 4), randn(5, 1, 4)
PARAMETERS = randn(4), randn(4) + 1, randn(4) - 1
ANY, PLAIN = ("any",), ("torch", "reference")
CALLS: dict[str, Call] = {
    "residual_norm": Call(
        lambda x, z, b, w, c: residual_norm(x, z, w, c, x_bias=b, prenorm=True, cu_seqlens=CU, **DROP),
        [ROWS, randn(5, 4) + 1, *PARAMETERS],
    ),
    "bias_gelu": Call(bias_gelu, [ROWS, PARAMETERS[0]]),
    "geglu": Call(geglu, [ROWS, PARAMETERS[0]]),
    "linear": Call(
        lambda x, w, v, b, c: linear(x, [w, v], [b, c]), [ROWS, WIDE, WIDE + 1, WIDE[:, 0], WIDE[:, 1]], PLAIN
    ),
    "rotary": Call(lambda q, k: rotary(q, k, ROWS, ROWS + 1), QKV[:2]),
    "attention": Call(lambda q, k, v: varlen_attention(q, k, v, CU, CU, 3, 3, causal=True), QKV),
    "attention, dropout": Call(lambda q, k, v: varlen_attention(q, k, v, CU, CU, 3, 3, **DROP), QKV),
    **{
        f"segment_pool, {mode}": Call(lambda x, m=mode: segment_pool(x, CU, m), [ROWS], PLAIN)
        for mode in ("max", "mean", "last")
    },
    "segment_pool, attention": Call(lambda x, s: segment_pool(x, CU, "attention", s), [ROWS, ROWS[:, 0]], PLAIN),
    "ngram_bag": Call(
        lambda t: ngram_bag(WORDS.int(), CU, t, vocabulary=4).square(), [randn(7, 3)], ("cpu", "reference")
    ),
    "adagrad_rows": Call(_step, [randn(3, 4)], ("cpu", "reference")),
    "dropout": Call(lambda x: dropout(x, CU, 0.5, SEED, 0, IDS), [ROWS], ANY),
    "keep_mask": Call(lambda x: x * keep_mask(CU, 5, 0.5, SEED, 0, None, 4), [ROWS], ANY),
    "embedding": Call(lambda t: embedding(WORDS, t, 1), [WIDE], ANY),
    "lstm_cell": Call(lstm_cell, [randn(3, 16), randn(3, 4)], PLAIN),
    "LSTM": Call(_lstm(_module(num_layers=2, bidirectional=True, dropout=0.5)), [ROWS]),
    "LSTM, zoneout": Call(_lstm(_module(zoneout=0.5, weight_dropout=0.5)), [ROWS], PLAIN),
    "LSTM, words and pooling": Call(_lstm(_module(), embeddings=None, pooling="max"), [WIDE]),
    "LSTM, resets": Call(_lstm(_module(), resets=WORDS == 3), [ROWS]),
    "LSTM, padded": Call(lambda x: MODULE(x[None])[0], [ROWS]),
    "LSTM, PackedSequence": Call(_packed_sequence, [ROWS]),
    "LSTM, nested": Call(_nested, [ROWS]),
    **{f"LSTM, prepared, {dtype}": Call(_prepared(dtype), [ROWS], ANY) for dtype in (None, torch.bfloat16, torch.int8)},
    **{
        f"PackedLinear, {dtype}": Call(_packed_linear(dtype), [ROWS, randn(5, 6), randn(6), randn(6) + 1], ANY)
        for dtype in (torch.float32, torch.bfloat16, torch.int8)
    },
}
EVERY = [(name, backend) for name, call in CALLS.items() for backend in call.backends]

KERNELS = Path(kernels.__file__).parent
FACTORIES = {function.__name__ for function in _device_constructors()}


def unnamed(source: str) -> list[str]:
    """Calls of torch's factories that leave dtype or device to torch, as "line: name". A ** is a dict of this file."""
    tree, found = ast.parse(source), []
    dicts: dict[str, set[Any]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                keys = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
                dicts.setdefault(ast.unparse(target), set()).update(keys)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if ast.unparse(node.func.value) == "torch" and node.func.attr in FACTORIES:
            named: set[Any] = {keyword.arg for keyword in node.keywords}
            for keyword in node.keywords:
                named |= dicts.get(ast.unparse(keyword.value), set()) if keyword.arg is None else set()
            if not named >= {"dtype", "device"} and not (node.func.attr == "as_tensor" and "device" in named):
                found.append(f"{node.lineno}: {node.func.attr}")
    return found


@as_subtests("file", sorted(KERNELS.rglob("*.py")))
def test_every_factory_names_dtype_and_device(file: Path) -> None:
    assert unnamed(file.read_text()) == []


def test_the_scan_sees_what_is_left_to_torch() -> None:
    assert {"empty", "zeros", "arange", "tensor", "full", "sparse_coo_tensor"} <= FACTORIES
    assert unnamed(
        "a = {'dtype': x}\nb = {**a, 'dtype': x, 'device': y}\ntorch.empty(3)\ntorch.arange(3, dtype=x)\n"
        "torch.zeros(3, device=y)\ntorch.full((), 1, **a)\ntorch.tensor(1, **b)\ntorch.empty_like(x)\nx.new_zeros(3)\n"
        "torch.ones(3, dtype=x, device=y)"
    ) == ["3: empty", "4: arange", "5: zeros", "6: full"]


DEFAULTS = [torch.bfloat16, torch.float64, "meta", "meta for all"]


def set_default(default: Any) -> None:
    """`torch.set_default_dtype`, or a default device, by a context or for good."""
    if isinstance(default, torch.dtype):
        torch.set_default_dtype(default)
    elif default == "meta for all":
        torch.set_default_device("meta")


@as_subtests("name, backend, default", [(*e, d) for e in EVERY for d in DEFAULTS])
def test_no_default_of_torchs_changes_a_result(name: str, backend: str, default: Any) -> None:
    call = CALLS[name]
    expected = call.results(backend)
    try:
        set_default(default)
        if default == "meta":
            with torch.device("meta"):
                found = call.results(backend)
        else:
            found = call.results(backend)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for mine, true in zip(found, expected, strict=True):
        assert mine.dtype == true.dtype
        assert mine.layout == true.layout
        mine, true = (each.to_dense() if each.is_sparse else each for each in (mine, true))
        assert torch.equal(mine, true)


@as_subtests("dtype", [None, torch.bfloat16, torch.int8])
def test_weights_are_packed_where_they_lie(dtype: torch.dtype | None) -> None:
    module = _module().eval()
    with torch.no_grad():
        expected = module.prepare_inference(dtype)(ROWS)[0]
    with torch.device("meta"):
        module.prepare_inference(dtype)
    with torch.no_grad():
        assert torch.equal(module(ROWS)[0], expected)


@as_subtests("name, backend", EVERY)
def test_views_that_negate_are_read_as_they_are(name: str, backend: str) -> None:
    call = CALLS[name]
    expected = call.results(backend)
    for place, tensor in enumerate(call.tensors):
        given = [*call.tensors]
        given[place] = torch._neg_view(-tensor)
        for mine, true in zip(call.results(backend, given), expected, strict=True):
            mine, true = (each.to_dense() if each.is_sparse else each for each in (mine, true))
            torch.testing.assert_close(mine, true)
