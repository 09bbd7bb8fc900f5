"""Token embeddings looked up inside the LSTM and pooling inside it, against both done apart."""

import lstm_cases as cases
import pytest
import torch
import torch.nn.functional as F
from kernel_cases import has_code, isas, pairwise
from subtested import as_subtests
from torch import Tensor

from penstock import _native
from penstock.kernels import LSTM, Ragged, segment_pool, use_backend
from penstock.kernels.lstm import cpu, ops
from penstock.kernels.lstm.protocol import LayerInputs

BACKENDS = ["reference", *cases.BACKENDS]
VOCABULARY = 11
LENGTHS = [5, 0, 1, 17, 3]


def model(**options: object) -> tuple[LSTM, Tensor, Ragged]:
    torch.manual_seed(0)
    module = LSTM(6, 20, bidirectional=True, **options)
    table = torch.randn(VOCABULARY, 6, requires_grad=True)
    ids = torch.randint(VOCABULARY - 1, (sum(LENGTHS),), dtype=torch.int32)  # the last row is never read
    return module, table, Ragged.from_lengths(ids, LENGTHS)


def gradients(loss: Tensor, module: LSTM, table: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [table, *module.parameters()]))


def is_served(backend: str, options: dict, **_: object) -> bool:
    return cases.serves(backend, torch.float32, options)


@pairwise(
    {
        "backend": BACKENDS,
        "pooling": [None, "max", "mean"],
        "autocast": [False, True],
        "options": [{}, {"num_layers": 2, "dropout": 0.3}, {"num_layers": 2, "dropout": 0.3, "zoneout": 0.1}],
    },
    is_served,
)
def test_same_as_apart(backend: str, autocast: bool, pooling: str | None, options: dict) -> None:
    module, table, batch = model(**options)
    seed = torch.tensor(7)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, (h_n, c_n) = module(batch, seed=seed, embeddings=table, pooling=pooling)
    embedded = batch.with_values(F.embedding(batch.values, table))
    with use_backend("reference"):
        apart, (h_apart, c_apart) = module(embedded, seed=seed)
        expected = segment_pool(apart.values, batch.cu_seqlens, pooling) if pooling else apart.values
    found = y if pooling else y.values
    assert found.dtype == (torch.bfloat16 if autocast else torch.float32)
    bound = 2e-2 if autocast else 1e-5
    weights = torch.randn_like(expected)
    for a, b in ((found, expected), (h_n, h_apart), (c_n, c_apart)):
        assert cases.error(a, b) < bound
    losses = (
        (found.float() * weights).sum() + h_n.float().square().sum() + c_n.float().sum(),
        (expected * weights).sum() + h_apart.square().sum() + c_apart.sum(),
    )
    # where two tokens are nearly the maximum, bf16 may give the gradient to the other one
    bound = 0.2 if autocast and pooling == "max" else 2 * bound
    for a, b in zip(*(gradients(loss, module, table) for loss in losses), strict=True):
        assert a.dtype == torch.float32
        assert cases.error(a, b) < bound


@pairwise(
    {
        "isa": isas("lstm"),
        "dtype": [torch.float32, torch.bfloat16],
        "hidden_size": [1, 7, 16, 70],
        "pool": ["", "max", "mean"],
    },
    has_code("lstm"),
)
def test_every_instruction_set(isa: str, dtype: torch.dtype, hidden_size: int, pool: str) -> None:
    lengths = [3, 0, 33, 1, 1, 17, 2]
    for sizes, vocabulary in (((5, hidden_size, 2), 13), ((33, hidden_size, 1), 300)):
        inputs = cases.layer(lengths, *sizes, vocabulary=vocabulary, pool=pool, dtype=dtype)
        if pool == "max":
            check_maximum(inputs, dtype)
        else:
            cases.check("cpu", inputs, dtype)


def check_maximum(inputs: LayerInputs, dtype: torch.dtype) -> None:
    """Against the truth at the tokens that the backend chose: of two that round alike either may be the maximum."""
    grads = [*cases.cotangents(inputs)[:3], None]
    outputs, gradients = cases.run("cpu", inputs, dtype, grads)
    chosen = torch.ops.penstock.lstm_layer(*_flat(cases.recorded(inputs, dtype)), False, True, "cpu")[4][3].long()
    dy = grads[0].new_zeros(inputs.tokens, outputs[0].shape[1])
    filled = inputs.cu_seqlens.diff() > 0
    dy.scatter_(0, chosen[filled], grads[0][filled])
    (y, *states), true_gradients = cases.truth(inputs._replace(pool=""), [dy, *grads[1:]])
    maximum = segment_pool(y, inputs.cu_seqlens, "max")
    of_outputs, of_gradients = cases.BOUNDS[dtype]
    assert (maximum - y.gather(0, chosen))[filled].max() <= of_outputs
    assert max(cases.errors(outputs, [maximum, *states[:2]])) <= of_outputs
    assert max(cases.errors(gradients, true_gradients)) <= of_gradients


@pairwise({"isa": isas("lstm")})
def test_equal_maxima_and_nan(isa: str) -> None:
    """The first of equal maxima has the gradient, and a NaN is the maximum, in both directions."""
    inputs = cases.recorded(cases.layer([6, 4], 3, 5, vocabulary=4, pool="max", states=False), torch.float32)
    for weight in (*inputs.weights.w_hh, *inputs.weights.w_ih):
        weight.detach().zero_()  # every token has the same state but for the cell's memory
    for bias in inputs.weights.b_ih:
        bias.detach()[5:10] = -1e4  # which is cut
    pooled, *_ = ops.lstm_layer(inputs, False, True, "cpu")
    expected, *_ = ops.lstm_layer(inputs, False, True, "reference")
    torch.testing.assert_close(pooled, expected)
    saved = torch.ops.penstock.lstm_layer(*_flat(inputs), False, True, "cpu")[4]
    assert (saved[3] == torch.tensor([[0], [6]])).all()

    inputs.x.detach()[2] = torch.nan
    inputs.ids[:] = torch.tensor([0, 1, 2, 1, 2, 0, 1, 1, 1, 1])
    pooled, *_, saved, _ = torch.ops.penstock.lstm_layer(*_flat(inputs), False, True, "cpu")
    pooled, where = torch.ops.penstock.lstm_layer(*_flat(inputs), False, True, "cpu")[5], saved[3]
    assert pooled[0].isnan().all()
    assert not pooled[1].isnan().any()
    assert (where[0, :5] == 2).all()  # forward, the first NaN in the text
    assert (where[0, 5:] == 0).all()  # in reverse all from token 4 on are NaN, the first of them in the text is 0


def _flat(inputs: LayerInputs) -> tuple:
    x, cu_seqlens, max_seqlen, weights, *rest = inputs
    return (x, cu_seqlens, max_seqlen, *weights, *rest)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_any_number_of_threads(dtype: torch.dtype, threads: int, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "worth_threads", 0)
    inputs = cases.layer([9, 30, 0, 4, 22], 7, 40, vocabulary=12, pool="max")
    grads = [*cases.cotangents(inputs)[:3], None]
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append(cases.run("cpu", inputs, dtype, grads))
    torch.set_num_threads(before)
    for alone, together in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_inference_stores_no_outputs() -> None:
    module, table, batch = model()
    tokens = Ragged.from_lengths(torch.randint(10, (60_000,), dtype=torch.int32), [30_000, 30_000])
    _native.lstm_cpu.release_workspace()
    with torch.inference_mode(), use_backend("cpu"):
        pooled, _ = module(tokens, embeddings=table, pooling="mean")
    # neither gates nor outputs by token: what was kept for the next call is weights and states
    assert _native.lstm_cpu.workspace_use()["kept"] < 60_000 * 40 * 4
    y, _ = module(tokens, embeddings=table)
    torch.testing.assert_close(pooled, segment_pool(y.values, tokens.cu_seqlens, "mean"), atol=1e-5, rtol=1e-4)
    expected = module(batch, embeddings=table, pooling="max")[0]
    with torch.no_grad():
        assert torch.equal(module(batch, embeddings=table, pooling="max")[0], expected)


def test_frozen_embeddings_and_no_tokens() -> None:
    module, table, batch = model()
    module(batch, embeddings=table.detach(), pooling="max")[0].sum().backward()
    assert float(module.weight_ih_l0.grad.norm()) > 0
    module.zero_grad()
    nothing = Ragged.from_lengths(batch.values[:0], [0, 0])
    pooled = module(nothing, embeddings=table, pooling="max")[0]
    assert torch.equal(pooled, torch.zeros(2, 40))
    pooled.sum().backward()
    assert not table.grad.any()
    assert not module.weight_ih_l0.grad.any()


def test_double_backward() -> None:
    module, table, batch = model()
    module, table = module.double(), table.detach().double().requires_grad_()

    def pooled(table: Tensor) -> Tensor:
        return module(batch, embeddings=table, pooling="mean")[0]

    assert torch.autograd.gradcheck(pooled, table, fast_mode=True)
    assert torch.autograd.gradgradcheck(pooled, table, fast_mode=True)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    module, table, batch = model()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in (LENGTHS, [2, 9]):
        batch = Ragged.from_lengths(torch.randint(VOCABULARY, (sum(lengths),), dtype=torch.int32), lengths)
        for options in ({"pooling": "max"}, {"pooling": None}):
            results = []
            for run in (module, compiled):
                y = run(batch, embeddings=table, **options)[0]
                y = y if options["pooling"] else y.values
                results.append([y, *gradients(y.square().sum(), module, table)])
            for expected, found in zip(*results, strict=True):
                torch.testing.assert_close(found, expected)


def test_ids_beyond_the_table() -> None:
    module, table, batch = model()
    for wrong in (VOCABULARY, -1, 2**31 + 1, 2**32 + 1, -(2**32) + 1):
        ids = batch.values.long()
        ids[4] = wrong
        for backend in cases.BACKENDS:
            with use_backend(backend), pytest.raises(IndexError):
                module(batch.with_values(ids), embeddings=table)


ERRORS = [
    (lambda m, t, b: m(torch.randn(3, 2, 6), embeddings=t), TypeError, "Ragged"),
    (lambda m, t, b: m(torch.randn(3, 2, 6), pooling="max"), TypeError, "Ragged"),
    (lambda m, t, b: m(b, embeddings=t, pooling="median"), ValueError, "pooling"),
    (lambda m, t, b: m(b, embeddings=t[:, :5]), ValueError, "embeddings"),
    (lambda m, t, b: m(b, embeddings=t[0]), ValueError, "embeddings"),
    (lambda m, t, b: m(b, embeddings=t.half()), TypeError, r"embeddings must be torch\.float32, got"),
    (lambda m, t, b: m(b.with_values(b.values.float()), embeddings=t), TypeError, "x must be int32 or int64"),
    (lambda m, t, b: m(b.with_values(b.values[:, None]), embeddings=t), ValueError, "x must be"),
]


@as_subtests("call, error, name", ERRORS)
def test_errors_name_the_argument(call, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name) as caught:
        call(*model())
    assert "\n" not in str(caught.value)
