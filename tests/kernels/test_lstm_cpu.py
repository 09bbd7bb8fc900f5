"""The C++ LSTM against the float64 reference: every instruction set that this machine has."""

import multiprocessing

import pytest
import torch
from kernel_cases import codes, has_code, isas, pairwise
from subtested import as_subtests

from penstock import _native
from penstock.kernels import use_backend
from penstock.kernels.lstm import cpu
from penstock.kernels.lstm.functional import lstm
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights, OutputGrads

ISAS, CODES = isas("lstm"), codes("lstm")
DTYPES = [torch.float32, torch.bfloat16]
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 2e-2)}  # values, gradients


pytestmark = pytest.mark.usefixtures("one_thread")  # unless a test asks for more

all_isas = pairwise({"isa": ISAS})
both_dtypes = pairwise({"dtype": DTYPES})
all_codes = pairwise({"isa, dtype": CODES})


class Problem:
    """One layer with random weights, states and gradients, as float64 values that the dtype can represent."""

    def __init__(
        self, lengths, input_size, hidden_size, directions, dtype, *, bias=True, states=True, forget=0.0, seed=0
    ):
        generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

        def draw(*shape, scale=1.0, dtype=dtype):
            return (torch.randn(shape, generator=generator) * scale).to(dtype).double()

        tokens, batch, wide = sum(lengths), len(lengths), hidden_size**-0.5
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.max_seqlen = max(lengths, default=0)
        self.x = draw(tokens, input_size)
        self.weights = LayerWeights(
            [draw(4 * hidden_size, input_size, scale=wide) for _ in range(directions)],
            [draw(4 * hidden_size, hidden_size, scale=wide) for _ in range(directions)],
            [draw(4 * hidden_size, scale=wide) for _ in range(directions)] if bias else [],
            [draw(4 * hidden_size, scale=wide) for _ in range(directions)] if bias else [],
            [],
        )
        for b in self.weights.b_ih:
            b[hidden_size : 2 * hidden_size] += forget
        self.h0 = draw(directions, batch, hidden_size) if states else None
        self.c0 = draw(directions, batch, hidden_size, dtype=torch.float32) if states else None
        self.grads = (
            draw(tokens, directions * hidden_size),
            draw(directions, batch, hidden_size),
            draw(directions, batch, hidden_size, dtype=torch.float32),
            draw(tokens, directions * hidden_size, dtype=torch.float32),
        )

    def leaves(self, dtype):
        def leaf(tensor, dtype=dtype):
            return tensor.to(dtype, copy=True).requires_grad_()

        weights = LayerWeights(*([leaf(w) for w in kind] for kind in self.weights))
        h0 = None if self.h0 is None else leaf(self.h0)
        c0 = None if self.c0 is None else leaf(self.c0, torch.promote_types(dtype, torch.float32))
        return leaf(self.x), weights, h0, c0

    def run(self, backend, dtype=None, *, cells=True):
        """Values and gradients by name."""
        dtype = dtype or self.dtype
        x, weights, h0, c0 = self.leaves(dtype)
        with use_backend(backend):
            y, h_n, c_n, *rest = lstm(x, self.cu_seqlens, self.max_seqlen, [weights], h0, c0, return_cells=cells)
        outputs = [y, h_n, c_n, *(rest[0] if cells else [])]
        torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(self.grads, outputs, strict=False)])
        values = dict(zip(["y", "h_n", "c_n", "cells"], outputs, strict=False))
        gradients = {"x": x.grad}
        for kind, tensors in weights._asdict().items():
            gradients |= {f"{kind}[{d}]": tensor.grad for d, tensor in enumerate(tensors)}
        if h0 is not None:
            gradients |= {"h0": h0.grad, "c0": c0.grad}
        return {name: value.detach() for name, value in values.items()}, gradients

    def check(self, reference="reference", **kwargs):
        expected, found = self.run(reference, torch.float64, **kwargs), self.run("cpu", **kwargs)
        for wanted, got, bound in zip(expected, found, BOUNDS[self.dtype], strict=True):
            for name, right in wanted.items():
                value = got[name].double()
                assert value.shape == right.shape
                error = (value - right).norm() / right.norm().clamp(min=1e-30)
                assert error <= bound, f"{name}: error {float(error):.1e}"


LENGTHS = {
    1: [[1], [9]],
    3: [[0, 7, 1], [5, 5, 5]],
    7: [[3, 0, 61, 1, 1, 17, 2]],
    129: [[(37 * i) % 11 for i in range(129)]],
}


@pairwise({"isa": ISAS, "dtype": DTYPES, "hidden_size": [1, 7, 16, 100, 256], "batch": list(LENGTHS)}, has_code("lstm"))
def test_matches_reference(isa, dtype, hidden_size, batch):
    for case, lengths in enumerate(LENGTHS[batch]):
        directions = 1 + (batch + case + hidden_size) % 2
        input_size = [1, 5, 33, 64][(batch + hidden_size) % 4]
        Problem(lengths, input_size, hidden_size, directions, dtype, seed=case, states=case == 0).check()


@pytest.mark.parametrize(
    ("dtype", "hidden_size"), [(torch.bfloat16, 320), (torch.float32, 640), (torch.bfloat16, 1030)]
)
def test_wide_states(dtype, hidden_size):
    Problem([4, 0, 1, 3, 2, 2, 4, 1], 40, hidden_size, 1 + hidden_size % 3 % 2, dtype).check()


@all_codes
def test_wide_input_is_summed_in_parts(isa, dtype):
    Problem([3, 1, 4], 1100, 24, 2, dtype).check()


@all_codes
def test_many_tokens_are_summed_in_parts(isa, dtype):
    Problem([300, 5, 290], 19, 20, 2, dtype).check()


@both_dtypes
def test_without_biases(dtype):
    Problem([2, 5, 3], 8, 24, 2, dtype, bias=False).check()


@both_dtypes
def test_forget_gate_near_saturation(dtype):
    """Long memory: a rounded activation instead of a pre-activation would lose the forget gate's gradient."""
    Problem([150, 40], 12, 32, 2, dtype, forget=6.0, seed=1).check()


@all_codes
def test_a_memory_decays_as_its_gate_says(isa, dtype):
    """The error of a forget gate counts once for each step, over all of which nothing else enters."""
    steps = 1000
    problem = Problem([steps], 3, 20, 2, dtype)
    for tensor in (problem.x, *(each for kind in problem.weights for each in kind)):
        tensor.zero_()
    forget = torch.linspace(6, 9, 20).to(dtype).double()
    for b_ih in problem.weights.b_ih:
        b_ih[20:40] = forget
    values, _ = problem.run("cpu")
    torch.testing.assert_close(values["c_n"].double(), forget.sigmoid() ** steps * problem.c0, atol=0, rtol=2e-3)


@all_codes
def test_saturated_gates_learn_nothing(isa, dtype):
    """On both sides of 0, as the functions say it: no least slope where their arguments are bounded."""
    problem = Problem([1], 3, 32, 2, dtype)
    for tensor in (problem.x, problem.h0, problem.c0, *(each for kind in problem.weights for each in kind)):
        tensor.zero_()
    for b_ih in problem.weights.b_ih:
        b_ih[64:96] = torch.cat([torch.linspace(-40, -7, 16), torch.linspace(7, 40, 16)]).to(dtype).double()
    _, expected = problem.run("reference", torch.float64)
    _, found = problem.run("cpu")
    for name in ("b_ih[0]", "b_ih[1]"):
        torch.testing.assert_close(found[name].double()[64:96], expected[name][64:96], atol=1e-6, rtol=2e-2)


@pytest.mark.slow
def test_two_thousand_steps_of_memory():
    """With recurrent weights so small that the recurrence does not amplify rounding, whoever computes it."""
    problem = Problem([2048, 700], 5, 24, 2, torch.float32, forget=8.0, seed=2)
    for weight in problem.weights.w_hh:
        weight.copy_((weight * 0.3).float())
    problem.check(cells=False)


@pairwise({"isa": ISAS, "dtype": DTYPES, "scale": [1e4, 1e-41]}, has_code("lstm"))
def test_inputs_of_any_size(isa, dtype, scale):
    problem = Problem([6, 1, 9], 7, 20, 2, dtype)
    problem.x = (problem.x * scale).to(dtype).double()
    if scale > 1:  # gates are shut or open, and most gradients vanish
        values, gradients = problem.run("cpu")
        expected, _ = problem.run("reference", torch.float64)
        for name, value in values.items():
            torch.testing.assert_close(value.double(), expected[name], atol=2e-2, rtol=2e-2)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
    else:
        problem.check()


@pytest.mark.slow
def test_more_steps_than_16_bits_count():
    """Against torch's own LSTM: the reference takes minutes."""
    Problem([66_000, 3], 2, 4, 2, torch.float32, states=False).check("torch")


@all_isas
def test_empty_batches(isa):
    for lengths in ([], [0], [0, 0, 0]):
        problem = Problem(lengths, 3, 5, 2, torch.float32)
        values, gradients = problem.run("cpu", cells=False)
        assert values["y"].shape == (0, 10)
        assert torch.equal(values["h_n"], problem.h0.float())
        assert torch.equal(values["c_n"], problem.c0.float())
        assert torch.equal(gradients["h0"], problem.grads[1].float())
        assert torch.equal(gradients["c0"], problem.grads[2].float())
        assert not gradients["w_hh[0]"].any()


@pairwise({"isa": ISAS, "dtype": DTYPES, "threads": [2, 5, 8]}, has_code("lstm"))
def test_threads_share_the_work(isa, dtype, threads, monkeypatch):
    """Same bits whoever computes what: directions, rows and units are all shared out, and each sum has one order."""
    monkeypatch.setattr(cpu, "worth_threads", 0)
    problems = [
        Problem([5, 0, 3, 2], 9, 150, 2, dtype),  # few rows: units are shared
        Problem([3 + i % 4 for i in range(40)], 9, 20, 1, dtype),  # many rows: rows are shared
    ]
    for problem in problems:
        torch.set_num_threads(1)
        alone = problem.run("cpu")
        torch.set_num_threads(threads)
        together = problem.run("cpu")
        for expected, found in zip(alone, together, strict=True):
            for name, value in expected.items():
                assert torch.equal(value, found[name]), name


@both_dtypes
@pytest.mark.parametrize("hidden_size", [384, 512])  # half of some W_hh fits in a core's cache, all of it does not
def test_directions_in_turn(dtype, hidden_size, monkeypatch):
    monkeypatch.setattr(cpu, "worth_threads", 0)
    problem = Problem([3, 0, 5], 8, hidden_size, 2, dtype)
    expected, expected_gradients = problem.run("cpu")
    torch.set_num_threads(2)
    values, gradients = problem.run("cpu")
    assert all(torch.equal(value, values[name]) for name, value in expected.items())
    assert all(torch.equal(value, gradients[name]) for name, value in expected_gradients.items())


@all_codes
def test_repeats_bit_for_bit_and_sequences_keep_apart(isa, dtype):
    problem = Problem([9, 4, 0, 6, 1], 12, 40, 2, dtype)
    values, gradients = problem.run("cpu")
    again, gradients_again = problem.run("cpu")
    assert all(torch.equal(value, again[name]) for name, value in values.items())
    assert all(torch.equal(value, gradients_again[name]) for name, value in gradients.items())

    problem.x[9:13] = torch.nan  # the second sequence
    changed, gradients_changed = problem.run("cpu")
    others = torch.tensor([0, 2, 3, 4])
    for name in ("y", "cells"):
        assert changed[name][9:13].isnan().all(), name
        assert torch.equal(changed[name][13:], values[name][13:]), name
        assert torch.equal(changed[name][:9], values[name][:9]), name
    for name in ("h_n", "c_n"):
        assert torch.equal(changed[name][:, others], values[name][:, others]), name
    for name in ("h0", "c0"):
        assert torch.equal(gradients_changed[name][:, others], gradients[name][:, others]), name
    assert torch.equal(gradients_changed["x"][13:], gradients["x"][13:])


@all_codes
def test_fills_whatever_it_returns(isa, dtype, monkeypatch):
    """Outputs and workspace start as NaN; none may survive."""
    empty, pooled = torch.empty, cpu.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    monkeypatch.setattr(cpu, "empty", lambda *args: pooled(*args).fill_(torch.nan))
    for hidden_size in (5, 16, 70):
        buffers = [_native.lstm_cpu.Buffer(size) for size in (1 << 12, 1 << 16, 1 << 18, 1 << 20) for _ in range(8)]
        for buffer in buffers:
            torch.frombuffer(buffer, dtype=torch.float32).fill_(torch.nan)
        del buffers, buffer
        problem = Problem([4, 0, 13, 1], 6, hidden_size, 2, dtype)
        for results in problem.run("cpu"):
            for name, value in results.items():
                assert value.isfinite().all(), name


@all_isas
@pytest.mark.parametrize("bounds", [[0, 5, 3, 9], [-7, 4, 2**31 - 1, 12], [3, 3, 6, 6], [12, 0, 0, 0]])
def test_malformed_bounds_stay_within_the_tokens(isa, bounds):
    """Called past the checks of `lstm`: sequences are cut to the tokens there are, and what belongs to none is zero."""
    problem = Problem([4, 5, 3], 6, 10, 2, torch.float32, states=False)
    x, weights, _, _ = problem.leaves(torch.float32)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    inputs = LayerInputs(x.detach(), cu_seqlens, 12, LayerWeights(*([w.detach() for w in kind] for kind in weights)))
    out = cpu.forward(inputs, False, True)
    grads = cpu.backward(OutputGrads(torch.ones_like(out.y), None, None, None), inputs, out.y, out.saved, True, True)
    assert out.y.isfinite().all()
    assert grads.x.isfinite().all()
    start = min(max(bounds[0], 0), 12)
    assert not out.y[:start].any()
    assert not grads.x[:start].any()


def test_inference_keeps_nothing():
    problem = Problem([7, 3], 8, 16, 2, torch.float32)
    values, _ = problem.run("cpu", cells=False)
    x, weights, h0, c0 = problem.leaves(torch.float32)
    with torch.no_grad(), use_backend("cpu"):
        y, h_n, c_n = lstm(x, problem.cu_seqlens, 7, [weights], h0, c0)
    assert torch.equal(y, values["y"])
    assert torch.equal(h_n, values["h_n"])
    assert torch.equal(c_n, values["c_n"])


def test_saved_memory_is_bounded():
    hidden, directions, tokens = 64, 2, 20
    problem = Problem([tokens], 8, hidden, directions, torch.bfloat16, states=False)
    x, weights, _, _ = problem.leaves(torch.bfloat16)
    out = cpu.forward(LayerInputs(x, problem.cu_seqlens, tokens, weights), False, True)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in [out.y, *out.saved])
    assert kept <= 16 * hidden * tokens * directions


def test_workspace_is_kept_bounded_and_released():
    native = _native.lstm_cpu
    native.release_workspace()
    buffer = native.Buffer(3 << 20)
    address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
    del buffer
    assert native.workspace_use()["kept"] == 4 << 20
    again = native.Buffer(4 << 20)
    assert torch.frombuffer(again, dtype=torch.uint8).data_ptr() == address
    del again
    limit = native.workspace_use()["limit"]
    native.set_workspace_limit(1 << 20)
    assert native.workspace_use()["kept"] == 0
    native.set_workspace_limit(limit)
    native.release_workspace()


def test_serves_a_forked_child(monkeypatch):
    monkeypatch.setattr(cpu, "worth_threads", 0)
    torch.set_num_threads(2)
    problem = Problem([3, 2], 4, 8, 2, torch.float32)
    expected, _ = problem.run("cpu")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(problem.run("cpu")[0]["y"].tolist()))
    child.start()
    found = queue.get()
    child.join()
    assert torch.equal(torch.tensor(found), expected["y"])


@as_subtests(
    "facts, reason",
    [
        ({"device_type": "cuda"}, "tensors are on cuda"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
        ({"proj_size": 4}, "projection"),
        ({"needs": ("zoneout",)}, "zoneout"),
    ],
)
def test_says_what_it_cannot_serve(facts, reason):
    served = {"device_type": "cpu", "dtype": torch.float32, "input_size": 64, "hidden_size": 64, "proj_size": 0}
    assert cpu.why_not(**served, needs=()) is None
    assert reason in cpu.why_not(**{**served, "needs": (), **facts})


def test_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv("PENSTOCK_ISA", "mmx")
    with pytest.raises(ValueError, match="no instruction set 'mmx' here, there is portable"):
        Problem([2], 3, 4, 1, torch.float32).run("cpu")
