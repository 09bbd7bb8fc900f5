"""Products in whole numbers of 8 bits: within the bound that the scales give, the same on every instruction set."""

from typing import Any

import pytest
import torch
from kernel_cases import isas, on_threads, pairwise
from subtested import as_subtests
from torch import Tensor

from penstock import _native
from penstock.kernels import LSTM, Ragged, segment_pool
from penstock.kernels.lstm import cpu, reference
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights

ISAS, DTYPES = isas("lstm"), [torch.float32, torch.bfloat16]
LENGTHS = [3, 0, 11, 1, 7]

pytestmark = pytest.mark.usefixtures("one_thread")


def module_of(hidden_size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, **options: Any) -> LSTM:
    torch.manual_seed(hidden_size)
    module = LSTM(9, hidden_size, **{"bidirectional": True, **options}).to(dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_hh" in name:  # rows of different sizes, a row of zeros
                weight.mul_(scale * torch.logspace(-1, 0.5, weight.shape[0]).to(dtype)[:, None])
                weight[0] = 0
    return module.eval()


def batch_of(lengths: list[int], dtype: torch.dtype = torch.float32) -> Ragged:
    torch.manual_seed(1)
    return Ragged.from_lengths(torch.randn(sum(lengths), 9).to(dtype), lengths)


def states_of(module: LSTM, batch: int) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    torch.manual_seed(2)
    h0, c0 = torch.rand(2, rows, batch, module.hidden_size) * 2 - 1
    return h0.to(module.weight_hh_l0.dtype), c0.to(module.weight_hh_l0.dtype)


def answers(module: LSTM, batch: Ragged, **options: Any) -> list[Tensor]:
    with torch.no_grad():
        output, states, *cells = module(batch, **options)
    return [
        output if options.get("pooling") else output.values,
        *states,
        *(layer.values for of in cells for layer in of),
    ]


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in whole numbers, float64, and their scales, (rows, 1)."""
    step = weight.abs().amax(1, keepdim=True) / 127
    exact = torch.where(step > 0, weight / step, 0.0)  # in float32, as what halves are rounded to shows
    return ((exact.abs() + 0.5).floor().clamp(max=127) * exact.sign()).double(), step.double()


def by_hand(module: LSTM, x: Tensor, hx: tuple[Tensor, Tensor], suffix: str = "") -> tuple[Tensor, Tensor]:
    """One sequence, (T, I), in one direction: (y, c_n), in float64."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(module, f"{kind}_l0{suffix}").detach() for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    of_input, input_step = quantised(w_ih)
    whole, step = quantised(w_hh)
    h, c = (state.double() for state in hx)
    largest = x.abs().amax(1, keepdim=True)
    y = []
    for token in (x * (127 / largest)).round().double() * (largest / 127).double():
        of_h = (h * 127).round() / 127
        gates = (of_input @ token) * input_step[:, 0] + b_ih.double() + b_hh.double() + (whole @ of_h) * step[:, 0]
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        y.append(h)
    return torch.stack(y), c


@pairwise(
    {"isa": ISAS, "hidden_size": [1, 7, 16, 63, 64, 100, 260], "steps": [1, 2, 9]},
)
def test_is_what_one_computes_by_hand(isa, hidden_size, steps, uninitialised_is_nan) -> None:
    module, batch = module_of(hidden_size), batch_of([steps])
    hx = states_of(module, 1)
    y, h_n, c_n = answers(module.prepare_inference(torch.int8), batch, hx=hx)
    # a step that rounds h the other way differs by 1/127 of a weight
    bound = 2e-6 if steps == 1 else 2e-3
    for direction, suffix in enumerate(["", "_reverse"]):
        x = batch.values.flip(0) if direction else batch.values
        expected, c = by_hand(module, x, (hx[0][direction, 0], hx[1][direction, 0]), suffix)
        found = y[:, direction * hidden_size : (direction + 1) * hidden_size]
        torch.testing.assert_close(found.double(), expected.flip(0) if direction else expected, atol=bound, rtol=0)
        torch.testing.assert_close(h_n[direction, 0].double(), expected[-1], atol=bound, rtol=0)
        torch.testing.assert_close(c_n[direction, 0].double(), c, atol=bound, rtol=1e-5)


def product_error(weight: Tensor, left: Tensor, unit: Any) -> Tensor:
    """The bound of |left weight^T - the same in int8|, (rows, 4H), where 1 stands for `unit` in `left`."""
    weight, left = weight.detach().double().abs(), left.double().abs()
    step = weight.amax(1) / 127
    return weight.sum(1) * unit / 2 + left.sum(1, keepdim=True) * step / 2 + weight.shape[1] * step * unit / 4


@pairwise({"isa": ISAS, "dtype": DTYPES, "hidden_size": [5, 64, 130, 1030]})
def test_error_of_a_step_is_within_the_bound_of_the_scales(isa, dtype, hidden_size) -> None:
    module, batch = module_of(hidden_size, dtype), batch_of([1] * 6, dtype)
    hx = states_of(module, 6)
    expected, h_n, c_n = answers(module, batch, hx=hx)
    found, h, c = answers(module.prepare_inference(torch.int8), batch, hx=hx)
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-8
    assert not torch.equal(found, expected)
    for direction, suffix in enumerate(["", "_reverse"]):
        of_x, of_h = (
            product_error(getattr(module, f"weight_{kind}_l0{suffix}"), left, unit)
            for kind, left, unit in (
                ("ih", batch.values, batch.values.abs().amax(1, keepdim=True).double() / 127),
                ("hh", hx[0][direction], 1 / 127),
            )
        )
        error = of_x + of_h
        i, f, g, o = error.chunk(4, 1)
        of_c = f / 4 * hx[1][direction].double().abs() + i / 4 + g
        assert ((c[direction] - c_n[direction]).double().abs() <= of_c + rounding * (1 + c_n[direction].abs())).all()
        assert ((h[direction] - h_n[direction]).double().abs() <= of_c + o / 4 + rounding).all()


@pairwise({"isa": ISAS, "dtype": DTYPES, "sizes": [(20, 1), (70, 3)], "lengths": [LENGTHS, [2] * 40, [0, 0], []]})
def test_one_answer_in_every_form(isa, dtype, sizes, lengths, uninitialised_is_nan) -> None:
    """States, pooling and cells agree with y, which a sequence has whatever the batch."""
    hidden, layers = sizes
    module, batch = module_of(hidden, dtype, num_layers=layers), batch_of(lengths, dtype)
    hx = states_of(module, len(lengths))
    module.prepare_inference(torch.int8)
    y, h_n, c_n, *cells = answers(module, batch, hx=hx, return_cells=True)
    assert y.isfinite().all()
    bounds = batch.cu_seqlens.tolist()
    for sequence, length in enumerate(lengths):
        rows = slice(bounds[sequence], bounds[sequence + 1])
        if length == 0:
            assert torch.equal(h_n[:, sequence], hx[0][:, sequence])
            assert torch.equal(c_n[:, sequence], hx[1][:, sequence])
            continue
        assert torch.equal(h_n[-2:, sequence], torch.stack([y[rows][-1, :hidden], y[rows][0, hidden:]]))
        last = torch.stack([cells[-1][rows][-1, :hidden], cells[-1][rows][0, hidden:]])
        assert torch.equal(c_n[-2:, sequence], last.to(dtype))
        states = tuple(state[:, sequence : sequence + 1] for state in hx)
        alone = answers(module, Ragged.from_lengths(batch.values[rows], [length]), hx=states)
        assert torch.equal(alone[0], y[rows])
        assert torch.equal(alone[1][:, 0], h_n[:, sequence])
    for pooling in ("max", "mean"):
        pooled, *states = answers(module, batch, hx=hx, pooling=pooling)
        torch.testing.assert_close(pooled, segment_pool(y, batch.cu_seqlens, pooling))
        assert torch.equal(states[0], h_n)


@pairwise({"isa": ISAS, "dtype": DTYPES, "threads": [2, 5]})
def test_threads(isa, dtype, threads, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "worth_threads", 0)
    for hidden_size, lengths in ((150, [5, 0, 3, 2]), (20, [3 + i % 4 for i in range(40)])):
        module, batch = module_of(hidden_size, dtype), batch_of(lengths, dtype)
        alone, together = on_threads(
            [1, threads], lambda m=module, b=batch: answers(m.prepare_inference(torch.int8), b)
        )
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pairwise({"isa": ISAS[1:], "hidden_size": [7, 130, 1030]})
def test_the_same_sums_on_every_instruction_set(isa, hidden_size, monkeypatch) -> None:
    """One step: h has not been rounded another way yet."""
    module, batch = module_of(hidden_size), batch_of([1] * 5)
    hx = states_of(module, 5)
    found = answers(module.prepare_inference(torch.int8), batch, hx=hx)
    monkeypatch.setenv("PENSTOCK_ISA", "portable")
    for mine, portable in zip(found, answers(module, batch, hx=hx), strict=True):
        torch.testing.assert_close(mine, portable, atol=1e-6, rtol=1e-6)


@pairwise({"isa": ISAS, "value": [0.01, -3.0, 1e-41, 1e30], "h": [1.0, -1.0, 0.0]})
def test_extreme_sums(isa, value, h) -> None:
    """The largest sums there are: nothing saturates or overflows on the way."""
    module = module_of(1030, bidirectional=False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(0.0)
        module.weight_hh_l0.fill_(value)
    hx = torch.full((1, 1, 1030), h), torch.full((1, 1, 1030), 0.5)
    y, _, c_n = answers(module.prepare_inference(torch.int8), batch_of([1]), hx=hx)
    gate = torch.tensor(1030 * float(torch.tensor(value)) * h, dtype=torch.float64)
    c = gate.sigmoid() * 0.5 + gate.sigmoid() * gate.tanh()
    torch.testing.assert_close(c_n.double(), c.expand_as(c_n), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(y.double(), (gate.sigmoid() * c.tanh()).expand_as(y), atol=1e-6, rtol=1e-5)


@pairwise({"isa": ISAS, "dtype": DTYPES})
def test_embeddings_and_resets(isa, dtype) -> None:
    module = module_of(24, dtype, num_layers=2).prepare_inference(torch.int8)
    table, ids = torch.randn(6, 9).to(dtype), torch.randint(6, (22,))
    batch = Ragged.from_lengths(ids, LENGTHS)
    looked_up = answers(module, batch.with_values(table[ids]))
    found = answers(module, batch, embeddings=table)
    assert all(torch.equal(a, b) for a, b in zip(found, looked_up, strict=True))
    resets = torch.zeros(22, dtype=torch.bool)
    resets[[3 + 4, 3 + 11 + 1]] = True
    found = answers(module_of(24, dtype).prepare_inference(torch.int8), batch.with_values(table[ids]), resets=resets)
    split = Ragged.from_lengths(table[ids], [3, 0, 4, 7, 1, 7])
    assert torch.equal(found[0], answers(module_of(24, dtype).prepare_inference(torch.int8), split)[0])


@pairwise({"isa": ISAS, "dtype": DTYPES})
def test_nan_of_a_sequence_stays_in_it(isa, dtype) -> None:
    module, batch = module_of(40, dtype).prepare_inference(torch.int8), batch_of([4, 6, 2], dtype)
    expected, *_ = answers(module, batch)
    batch.values[6] = torch.nan
    found, *_ = answers(module, batch)
    assert found[6:10, :40].isnan().all()
    assert found[4:7, 40:].isnan().all()
    for rows in (slice(0, 4), slice(10, 12)):
        assert torch.equal(found[rows], expected[rows])


@pairwise({"isa": ISAS, "scale": [1e-38, 1e-20, 1e20, 1e37]})
def test_inputs_of_any_size(isa, scale) -> None:
    """As x times its scale, up to rounding; next to nothing is nothing."""
    module, batch = module_of(20), batch_of(LENGTHS)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_ih" in name:
                weight.div_(max(scale, 1e-20))
    found = answers(module.prepare_inference(torch.int8), batch.with_values(batch.values * scale))[0]
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "weight_ih" in name:
                weight.mul_(max(scale, 1e-20))
    expected = answers(module, batch.with_values(batch.values * (0 if scale < 1e-30 else 1)))[0]
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


@pairwise({"isa": ISAS, "input_size": [1, 1500, 4500]})
def test_wide_inputs_are_summed_in_parts(isa, input_size) -> None:
    torch.manual_seed(0)
    module = LSTM(input_size, 12, bidirectional=True).eval()
    with torch.no_grad():
        module.weight_ih_l0.mul_(input_size**-0.5)
    x = torch.randn(7, input_size)
    y, _, c_n = answers(module.prepare_inference(torch.int8), Ragged.from_lengths(x[:1], [1]))
    expected, c = by_hand(module, x[:1], (torch.zeros(12), torch.zeros(12)))
    torch.testing.assert_close(y[:, :12].double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(c_n[0, 0].double(), c, atol=2e-6, rtol=1e-5)
    many = answers(module, Ragged.from_lengths(x, [1] * 7))[0]
    assert torch.equal(many[:1], y)


@pairwise({"isa": ISAS, "value": [torch.inf, -torch.inf, torch.nan], "dtype": DTYPES, "column": [3, 4, 8]})
def test_what_is_not_finite_comes_out_as_nan(isa, value, dtype, column) -> None:
    module, batch = module_of(20, dtype).prepare_inference(torch.int8), batch_of([1] * 4, dtype)
    expected, *_ = answers(module, batch)
    batch.values[2, column] = value
    found, *_ = answers(module, batch)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


def test_memory_is_less() -> None:
    module = module_of(512, bidirectional=False)
    whole = module.prepare_inference().prepared.packed.bytes
    in_int8 = module.prepare_inference(torch.int8).prepared.packed.bytes
    assert "prepared=int8" in repr(module)
    assert in_int8 < whole * (0.3 if "bf16" in _native.available_isas()[-1] else 0.55)


@as_subtests("state", [[1.01, 0.0], [float("nan"), 0.0], [float("-inf"), 0.0]])
def test_refuses_states_that_no_h_can_have(state: list[float]) -> None:
    module = LSTM(9, 2).eval().prepare_inference(torch.int8)
    hx = torch.tensor([[state]]), torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match=r"h0 must lie in \[-1, 1\]"):
        answers(module, batch_of([2]), hx=hx)
    answers(module, batch_of([2]), hx=(hx[0].nan_to_num().clamp(-1, 1), torch.full((1, 1, 2), 1e9)))


@as_subtests("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_weights_that_are_not_finite(value: float) -> None:
    module = module_of(7, num_layers=2)
    batch = batch_of(LENGTHS)
    prepared = module_of(7, num_layers=2).prepare_inference(torch.int8)
    for each in (module, prepared):
        with torch.no_grad():
            each.weight_hh_l1_reverse[3, 2] = value
    with pytest.raises(ValueError, match="weight_hh_l1 holds NaN or infinity"):
        module.prepare_inference(torch.int8)
    assert module.prepared is None
    with pytest.raises(ValueError, match="weight_hh_l1 holds NaN or infinity"):
        answers(prepared, batch)


def test_refuses_more_features_than_its_sums_can_count() -> None:
    module = LSTM(133_145, 1).eval()
    with pytest.raises(ValueError, match="int8 takes up to 133,144 input features, and weight_ih_l0 has 133,145"):
        module.prepare_inference(torch.int8)
    module.prepare_inference(torch.bfloat16)


def test_autocast() -> None:
    """All but the recurrent product is in autocast's dtype."""
    module, batch = module_of(30), batch_of(LENGTHS)
    module.prepare_inference(torch.int8)
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(module, batch)
    low = module_of(30).bfloat16().prepare_inference(torch.int8)
    expected = answers(low, batch.with_values(batch.values.bfloat16()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].dtype == torch.bfloat16


def test_changes_are_seen() -> None:
    module, batch = module_of(30).prepare_inference(torch.int8), batch_of(LENGTHS)
    before = answers(module, batch)
    for weight in module.parameters():
        weight.data.mul_(1.5)
    found = answers(module, batch)
    assert not torch.equal(found[0], before[0])
    assert torch.equal(found[0], answers(module.prepare_inference(torch.int8), batch)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_gradients_and_tracing_are_errors() -> None:
    module, batch = module_of(30).prepare_inference(torch.int8), batch_of(LENGTHS)
    with pytest.raises(RuntimeError, match="prepared to answer in int8, which this call cannot: it records gradients"):
        module(batch)
    x = torch.randn(4, 2, 9)
    with torch.no_grad():
        for call in (
            lambda: torch.jit.trace(module, x),
            lambda: torch.compile(module, backend="eager")(x),
            lambda: torch.func.jvp(lambda value: module(value)[0], (x,), (x,)),
        ):
            with pytest.raises(RuntimeError, match="prepared to answer in int8, which this call cannot: it is traced"):
                call()
    module.train()(batch)[0].values.sum().backward()


def test_other_layers_of_the_reference_come_near() -> None:
    """A whole stack over longer sequences, beside the float64 reference."""
    module, batch = module_of(64, scale=0.5, num_layers=3), batch_of([40, 25])
    found = answers(module.prepare_inference(torch.int8), batch)[0]
    x: Any = batch.values.double()
    for layer in range(3):
        weights = LayerWeights(
            *(
                [getattr(module, f"{kind}_l{layer}{end}").detach().double() for end in ("", "_reverse")]
                for kind in KINDS
            ),
            [],
        )
        x = reference.lstm_layer(LayerInputs(x, batch.cu_seqlens, 40, weights))[0]
    assert float((found.double() - x).norm() / x.norm()) < 0.02


KINDS = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
