"""One bidirectional LSTM layer on a CPU: penstock against torch's nn.LSTM and, at inference, onnxruntime's.

The work of a unit is 6 x tokens x 4H x (I + H) x directions operations for training and a third of that for
inference. There ours answers with its weights packed beforehand (`prepare_inference`), as onnxruntime does; beside it
stand ours without that, and in int8. onnxruntime's idle threads spin, and so do OpenMP's: where both take
part, each contestant is timed after a pause and an untimed call that wakes its own threads.

Much of the peers' time goes to the C library returning memory and asking for it again. To see them at their best, run
also with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=1073741824 in the environment.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penstock.benchmarks.suite import DTYPES, OURS, Case, Contestant, Options, shapes_of
from penstock.kernels import LSTM, Ragged

PAUSE = 0.03  # seconds
DIRECTIONS = 2

TRAINING = [(64, 64, 128, 256), (32, 128, 300, 512), (256, 64, 300, 256)]
SMALL = [(batch, 32, hidden, hidden) for batch in (1, 2, 8) for hidden in (32, 64, 128)]
GRID = [(batch, 64, hidden, hidden) for batch in (1, 8, 32, 128) for hidden in (64, 128, 256, 512)]
INFERENCE = [(batch, 64, hidden, hidden) for batch in (1, 32) for hidden in (256, 512)]


@dataclass
class Problem:
    """The same layer and the same sequences in everybody's form."""

    lengths: Tensor
    ours: LSTM
    theirs: nn.LSTM
    x: Tensor  # (tokens, I)
    dy: Tensor  # (tokens, directions * H)

    @staticmethod
    def draw_lengths(shape: tuple[int, int, int, int], *, equal: bool) -> Tensor:
        """All T, or uniform in 8..T."""
        batch, longest = shape[:2]
        generator = torch.Generator().manual_seed(0)
        least = min(8, longest)
        return (
            torch.full((batch,), longest) if equal else torch.randint(least, longest + 1, (batch,), generator=generator)
        )

    @classmethod
    def draw(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, *, equal: bool) -> "Problem":
        _, _, input_size, hidden_size = shape
        lengths = cls.draw_lengths(shape, equal=equal)
        torch.manual_seed(0)
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


def onnx_session(problem: Problem, *, int8: bool = False) -> Callable[[], object]:
    """The layer in onnxruntime, its own operator for LSTMs, sequences of one length.

    Args:
        int8: as its `quantize_dynamic` makes it: both products in int8, x and h quantised at each step.
    """
    import onnx  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import onnxruntime as runtime  # type: ignore[import-not-found,import-untyped,unused-ignore]

    weights = dict(problem.theirs.named_parameters())
    hidden, input_size = problem.ours.hidden_size, problem.ours.input_size

    def stacked(*names: str) -> np.ndarray:
        def in_onnx_order(tensor: Tensor) -> Tensor:  # i, o, f, c
            i, f, g, o = tensor.detach().chunk(4)
            return torch.cat([i, o, f, g])

        directions = [torch.cat([in_onnx_order(weights[n + end]) for n in names]) for end in ("_l0", "_l0_reverse")]
        return torch.stack(directions).float().numpy()

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
    if int8:
        model = quantised(model)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = problem.x.detach().float().view(len(problem.lengths), -1, input_size).transpose(0, 1).contiguous().numpy()
    return lambda: session.run(None, {"X": x})


def quantised(model: Any) -> Any:
    """By onnxruntime's own tool, which works on files."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, whole)
        quantize_dynamic(whole, small, op_types_to_quantize=["LSTM"])
        return onnx.load(small)


def cases(options: Options) -> Iterator[Case]:
    for what, default, quick, equal in (
        ("train, ragged", TRAINING, TRAINING[:1], False),
        ("train, equal lengths", TRAINING + SMALL + GRID, [TRAINING[0], SMALL[4]], True),
        ("inference", INFERENCE, [INFERENCE[0], INFERENCE[2]], True),
    ):
        for shape in shapes_of("B,T,I,H", default, quick, options):
            for dtype in options.dtypes or DTYPES:
                yield case(what, shape, dtype, equal=equal)


def case(what: str, shape: dict[str, int], dtype: str, *, equal: bool) -> Case:
    sizes = (shape["B"], shape["T"], shape["I"], shape["H"])
    lengths = Problem.draw_lengths(sizes, equal=equal)
    passes = 1 if what == "inference" else 3
    work = passes * 2.0 * int(lengths.sum()) * 4 * shape["H"] * (shape["I"] + shape["H"]) * DIRECTIONS
    pause = PAUSE if passes == 1 else 0.0

    def make(peers: bool) -> dict[str, Contestant | str]:
        problem = Problem.draw(sizes, getattr(torch, dtype), equal=equal)
        if passes == 3:
            peer = "padded" if equal else "packed"
            chosen = {OURS: problem.penstock, **({f"nn.LSTM {peer}": getattr(problem, peer)} if peers else {})}
            return {name: partial(problem.train, call) for name, call in chosen.items()}
        problem.ours.eval()
        others = {name: copy.deepcopy(problem) for name in ("unpacked", "int8")}
        problem.ours.prepare_inference()
        others["int8"].ours.prepare_inference(torch.int8)
        contestants: dict[str, Contestant | str] = {OURS: inference(problem.penstock)}
        if peers:
            contestants["nn.LSTM padded"] = inference(problem.padded)
            for name, int8 in (("onnxruntime", False), ("onnxruntime int8", True)):
                try:
                    contestants[name] = onnx_session(problem, int8=int8)
                except ImportError as error:
                    contestants[name] = f"not installed: {error.name}"
        contestants |= {f"{OURS} {name}": inference(each.penstock) for name, each in others.items()}
        return contestants

    return Case(what, shape, dtype, make, work, pause=pause)


def inference(call: Callable[[], Tensor]) -> Contestant:
    def run() -> None:
        with torch.inference_mode():
            call()

    return run
