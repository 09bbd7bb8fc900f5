"""One bidirectional LSTM layer on a CPU: penstock against torch's nn.LSTM and, at inference, onnxruntime's.

Each round times every contestant once, in turn, and between them what the machine's multipliers reach without touching
memory, so that a host which changes its speed changes it for all. onnxruntime's idle threads spin, and so do OpenMP's:
where both take part, each contestant is timed after a pause and an untimed call that wakes its own threads. The test's
own statistics are penstock's; `extra_info` holds every contestant's median and quartiles in milliseconds, and
what share of the peak penstock reaches, counting 6 x tokens x 4H x (I + H) x directions operations for training and a
third of that for inference.

    penstock bench kernels --peers --out lstm.json
    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/lstm
    python benchmarks/lstm/plot.py lstm.json lstm.png

Much of the peers' time goes to the C library returning memory and asking for it again. To see them at their best, run
also with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=1073741824 in the environment.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penstock import _native
from penstock.kernels import LSTM, Ragged, compiled

ROUNDS = 7
PAUSE = 0.03  # seconds
DIRECTIONS = 2

TRAINING = [(64, 64, 128, 256), (32, 128, 300, 512), (256, 64, 300, 256)]
SMALL = [(batch, 32, hidden, hidden) for batch in (1, 2, 8) for hidden in (32, 64, 128)]
GRID = [(batch, 64, hidden, hidden) for batch in (1, 8, 32, 128) for hidden in (64, 128, 256, 512)]
INFERENCE = [(batch, 64, hidden, hidden) for batch in (1, 32) for hidden in (256, 512)]


def name(shape: tuple[int, ...]) -> str:
    return "B{}-T{}-I{}-H{}".format(*shape)


@dataclass
class Problem:
    """The same layer and the same sequences in everybody's form."""

    lengths: Tensor
    ours: LSTM
    theirs: nn.LSTM
    x: Tensor  # (tokens, I)
    dy: Tensor  # (tokens, directions * H)

    @classmethod
    def draw(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, *, equal: bool) -> "Problem":
        batch, longest, input_size, hidden_size = shape
        torch.manual_seed(0)
        lengths = torch.full((batch,), longest) if equal else torch.randint(8, longest + 1, (batch,))
        theirs = nn.LSTM(input_size, hidden_size, batch_first=True, bidirectional=True).to(dtype)
        ours = LSTM(input_size, hidden_size, batch_first=True, bidirectional=True).to(dtype)
        ours.load_state_dict(theirs.state_dict())
        tokens = int(lengths.sum())
        x = torch.randn(tokens, input_size).to(dtype).requires_grad_()
        return cls(lengths, ours, theirs, x, torch.randn(tokens, DIRECTIONS * hidden_size).to(dtype))

    def penstock(self) -> Tensor:
        return self.ours(Ragged.from_lengths(self.x, self.lengths))[0].values

    def packed(self) -> Tensor:
        """nn.LSTM on a PackedSequence, made from what a collate function gives: padded sequences and lengths."""
        padded = nn.utils.rnn.pad_sequence(self.x.split(self.lengths.tolist()), batch_first=True)
        packed = nn.utils.rnn.pack_padded_sequence(padded, self.lengths, batch_first=True, enforce_sorted=False)
        return self.theirs(packed)[0].data

    def padded(self) -> Tensor:
        """nn.LSTM on sequences of one length: nothing is padding, nothing is packed."""
        return self.theirs(self.x.view(len(self.lengths), -1, self.x.shape[1]))[0].flatten(0, 1)

    def train(self, contestant: Callable[[], Tensor]) -> None:
        module = self.ours if contestant == self.penstock else self.theirs
        torch.autograd.grad(contestant(), [self.x, *module.parameters()], self.dy)

    def operations(self) -> float:
        """Operations of a forward pass."""
        tokens, input_size = self.x.shape
        hidden = self.ours.hidden_size
        return 2.0 * tokens * 4 * hidden * (input_size + hidden) * DIRECTIONS


def onnx_session(problem: Problem) -> Callable[[], object]:
    """The layer in onnxruntime, its own operator for LSTMs, sequences of one length."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    weights = dict(problem.theirs.named_parameters())
    hidden, input_size = problem.ours.hidden_size, problem.ours.input_size

    def stacked(*names: str) -> np.ndarray:
        def in_onnx_order(tensor: Tensor) -> Tensor:  # i, o, f, c
            i, f, g, o = tensor.detach().chunk(4)
            return torch.cat([i, o, f, g])

        directions = [torch.cat([in_onnx_order(weights[n + end]) for n in names]) for end in ("_l0", "_l0_reverse")]
        return torch.stack(directions).numpy()

    arrays = {
        "W": stacked("weight_ih"),
        "R": stacked("weight_hh"),
        "B": stacked("bias_ih", "bias_hh"),
    }
    node = onnx.helper.make_node("LSTM", ["X", *arrays], ["Y"], hidden_size=hidden, direction="bidirectional")
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [value("X", shape=["steps", "batch", input_size])],
        [value("Y", shape=["steps", 2, "batch", hidden])],
        [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = problem.x.detach().view(len(problem.lengths), -1, input_size).transpose(0, 1).contiguous().numpy()
    return lambda: session.run(None, {"X": x})


def peak(dtype: torch.dtype) -> float:
    """Operations per second that all threads together reach on registers alone."""
    start = time.perf_counter()
    operations = _native.lstm_cpu.multiply_in_registers(
        compiled.isa(), str(dtype).removeprefix("torch."), torch.get_num_threads(), 200_000
    )
    return operations / (time.perf_counter() - start)


def summary(times: list[float]) -> dict[str, float]:
    low, middle, high = (1e3 * t for t in statistics.quantiles(times, n=4))
    return {"median_ms": middle, "lower_quartile": low, "upper_quartile": high}


def compare(
    benchmark, problem: Problem, contestants: dict[str, Callable[[], object]], passes: int, rounds: int = ROUNDS
) -> None:
    """`contestants` starts with penstock; a forward pass is one of a training step's three passes."""
    times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    peaks: list[float] = []

    def timed(contestant: str) -> None:
        start = time.perf_counter()
        contestants[contestant]()
        times[contestant].append(time.perf_counter() - start)

    def wake(contestant: str) -> None:
        if "onnxruntime" in contestants:
            time.sleep(PAUSE)
            contestants[contestant]()

    def others() -> None:
        for contestant in list(contestants)[1:]:
            wake(contestant)
            timed(contestant)
        wake("penstock")
        peaks.append(peak(problem.x.dtype))
        wake("penstock")

    benchmark.pedantic(lambda: timed("penstock"), setup=others, rounds=rounds, warmup_rounds=2)
    results = {contestant: summary(values[2:]) for contestant, values in times.items()}
    ours = results["penstock"]["median_ms"]
    achieved = passes * problem.operations() / (ours * 1e-3)
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
        "tokens": problem.x.shape[0],
        "peak_gflops": statistics.median(peaks) / 1e9,
        "share_of_peak": achieved / statistics.median(peaks),
        "contestants": results,
        "speedup": {peer: results[peer]["median_ms"] / ours for peer in results if peer != "penstock"},
    }


def train(
    benchmark, shape: tuple[int, int, int, int], dtype: torch.dtype, peer: str, *, equal: bool, rounds: int = ROUNDS
) -> None:
    problem = Problem.draw(shape, dtype, equal=equal)
    chosen = ["penstock", *([peer] if peer else [])]
    contestants = {each: partial(problem.train, getattr(problem, each)) for each in chosen}
    compare(benchmark, problem, contestants, 3, rounds)


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@dtypes
@pytest.mark.parametrize("shape", TRAINING, ids=name)
@pytest.mark.parametrize("peer", ["", "packed"], ids=["alone", "peers"])
def test_train_ragged(benchmark, shape, dtype, peer):
    train(benchmark, shape, dtype, peer, equal=False)


@dtypes
@pytest.mark.parametrize("shape", TRAINING, ids=name)
@pytest.mark.parametrize("peer", ["padded"], ids=["peers"])
def test_train_equal_lengths(benchmark, shape, dtype, peer):
    train(benchmark, shape, dtype, peer, equal=True)


@dtypes
@pytest.mark.parametrize("shape", SMALL, ids=name)
@pytest.mark.parametrize("peer", ["padded"], ids=["peers"])
def test_train_small(benchmark, shape, dtype, peer):
    train(benchmark, shape, dtype, peer, equal=True)


@dtypes
@pytest.mark.parametrize("shape", GRID, ids=name)
@pytest.mark.parametrize("peer", ["padded"], ids=["peers"])
def test_train_grid(benchmark, shape, dtype, peer):
    """What plot.py draws."""
    train(benchmark, shape, dtype, peer, equal=True, rounds=3 if shape[0] == 128 else ROUNDS)


@dtypes
@pytest.mark.parametrize("shape", INFERENCE, ids=name)
@pytest.mark.parametrize("peers", [True], ids=["peers"])
def test_inference(benchmark, shape, dtype, peers):
    problem = Problem.draw(shape, dtype, equal=True)
    contestants: dict[str, Callable[[], object]] = {"penstock": problem.penstock, "padded": problem.padded}
    if dtype == torch.float32:
        contestants["onnxruntime"] = onnx_session(problem)
    with torch.inference_mode():
        compare(benchmark, problem, contestants, passes=1)
