"""The CUDA LSTM without a GPU: the kernels' own source on an emulated machine, and compilation by nvcc."""

import ctypes
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulated_cuda
import lstm_cases as cases
import pytest
import torch
from emulated_cuda import EmulatedCuda
from kernel_cases import pairwise
from subtested import as_subtests

from penstock.kernels import dispatch
from penstock.kernels.lstm import cuda, ops
from penstock.kernels.lstm.protocol import LayerInputs, OutputGrads


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return emulated_cuda.build()


@pytest.fixture(scope="session")
def tiers() -> ctypes.CDLL:
    return emulated_cuda.build(tiers=True)


@pytest.fixture
def emulate(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EmulatedCuda]:
    """Lets the cuda backend run on the CPU's tensors, by kernels of one shape."""

    def use(
        blocks: int, parts: int, lanes: int, cluster: bool, library: ctypes.CDLL = library, **options: Any
    ) -> EmulatedCuda:
        native = EmulatedCuda(library, blocks, parts, lanes, cluster, **options)
        monkeypatch.setattr(cuda, "native", native)
        return native

    return use


def layer(lengths: list[int], hidden: int, **options: Any) -> LayerInputs:
    return cases.layer(lengths, 5, hidden, dtype=torch.bfloat16, **options)


# H, blocks, parts of K, lanes, cluster
SMALL = [
    (64, 4, 1, 8, True),
    (64, 4, 1, 16, True),
    (64, 4, 1, 32, True),
    (128, 4, 2, 8, True),  # fewer tiles than parts own cells
    (128, 4, 2, 32, True),
    (64, 4, 1, 16, False),
    (128, 8, 4, 8, False),
    (128, 8, 4, 32, False),
]


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_values_and_gradients(emulate: Callable, shape: tuple) -> None:
    native = emulate(*shape[1:])
    cases.check("cuda", layer([3, 0, 5, 1, 9, 2, 2, 7, 1, 0], shape[0]), torch.bfloat16)
    assert native.launches == ["forward", "backward"]


@pytest.mark.parametrize(
    "options",
    [{"bias": False, "states": False}, {"directions": 1}, {"resets": True}, {"directions": 1, "states": False}],
    ids=str,
)
@pytest.mark.parametrize("shape", [(64, 4, 1, 8, True), (128, 8, 4, 8, False)], ids=str)
def test_options(emulate: Callable, shape: tuple, options: dict[str, Any]) -> None:
    emulate(*shape[1:])
    cases.check("cuda", layer([7, 3, 0, 13], shape[0], **options), torch.bfloat16)


MIXED = [6, 3, 0, 7, 1, 1, 4, 0, 2]
FUSED = [{}, {"vocabulary": 7, "pool": "max"}, {"vocabulary": 7, "pool": "mean"}]


@pytest.mark.parametrize(
    ("shape", "vocabulary"),  # more and fewer rows than the 24 tokens
    [
        *(((64, 4, 1, 8, True), vocabulary) for vocabulary in (11, 23, 25, 300)),
        ((128, 8, 4, 32, False), 11),
        ((128, 8, 4, 32, False), 300),
    ],
    ids=str,
)
def test_embeddings(emulate: Callable, shape: tuple, vocabulary: int) -> None:
    native = emulate(*shape[1:], tiles=2, groups=3)
    cases.check("cuda", layer(MIXED, shape[0], vocabulary=vocabulary), torch.bfloat16)
    assert native.launches == ["forward", "backward"]


@pairwise({"shape": SMALL, "pool": ["max", "mean"], "vocabulary": [0, 13, 300]})
def test_pooling(emulate: Callable, shape: tuple, pool: str, vocabulary: int) -> None:
    emulate(*shape[1:], tiles=2, groups=3)
    cases.check("cuda", layer(MIXED, shape[0], vocabulary=vocabulary, pool=pool), torch.bfloat16)


@pytest.mark.parametrize(
    "options",
    [{"bias": False, "states": False}, {"directions": 1}, {"resets": True}, {"directions": 1, "states": False}],
    ids=str,
)
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_options_with_embeddings_and_pooling(emulate: Callable, pool: str, options: dict[str, Any]) -> None:
    emulate(4, 1, 8, True)
    cases.check("cuda", layer([7, 3, 0, 13], 64, vocabulary=9, pool=pool, **options), torch.bfloat16)


@pytest.mark.parametrize("lengths", [[0, 0, 3], [1], [57, 1, 0, 7], [1] * 23, [0, 0], [], [31, 2, 29]], ids=str)
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_fused_is_what_torch_does_apart(emulate: Callable, lengths: list[int], pool: str) -> None:
    """A maximum is bit for bit that of y, with its gradient; so is a projection from a table that of each token."""
    emulate(4, 1, 8, True, tiles=2)
    inputs = layer(lengths, 64, vocabulary=max(sum(lengths), 1), pool=pool)
    grads = [*cases.cotangents(inputs)[:3], None]
    found = cases.run("cuda", inputs, torch.bfloat16, grads)
    with pytest.MonkeyPatch.context() as apart:
        apart.setattr(cuda, "FUSES", False)  # by Composed
        expected = cases.run("cuda", inputs, torch.bfloat16, grads)
    exact = pool == "max"
    for a, b in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(a, b, atol=0 if exact else 2**-8, rtol=0 if exact else 2**-8)
    assert all(error <= cases.BOUNDS[torch.bfloat16][1] for error in cases.errors(found[1], expected[1]))
    # the weights' gradients come from the same gate gradients; those of table and W_ih are summed in another order
    of_w_hh = slice(3, 5)
    for a, b in zip(found[1][of_w_hh], expected[1][of_w_hh], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("groups", [1, 4])
def test_equal_maxima_and_nan(emulate: Callable, groups: int) -> None:
    """The first of equal maxima has the gradient, and a NaN is the maximum, in both directions."""
    emulate(4, 1, 8, True, tiles=2, groups=groups)
    inputs = cases.recorded(layer([6, 4, 0, 5], 64, vocabulary=4, pool="max", states=False), torch.bfloat16)
    for weight in (*inputs.weights.w_hh, *inputs.weights.w_ih):
        weight.detach().zero_()  # every token has the same state but for the cell's memory
    for bias in inputs.weights.b_ih:
        bias.detach()[64:128] = -1e4  # which is cut
    with torch.no_grad():
        out = cuda.forward(inputs, False, True)
        assert (out.saved[3] == torch.tensor([[0], [6], [0], [10]])).all()

        inputs.x[2] = torch.nan
        inputs.ids[:] = torch.tensor([0, 1, 2, 1, 2, 0, 1, 1, 1, 1, 0, 1, 3, 3, 3])
        out = cuda.forward(inputs, False, True)
    assert out.pooled is not None
    assert out.pooled[0].isnan().all()
    assert out.pooled[1:].isfinite().all()
    assert not out.pooled[2].any()
    assert (out.saved[3][0, :64] == 2).all()  # forward, the first NaN in the text
    assert (out.saved[3][0, 64:] == 0).all()  # in reverse tokens 4 to 0 are NaN, the first of them in the text is 0


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("bounds", [[0, 5, 3, 9], [-7, 4, 2**31 - 1, 12], [12, 0, 0, 0]], ids=str)
def test_malformed_bounds_with_embeddings_and_pooling(
    emulate: Callable, monkeypatch: pytest.MonkeyPatch, bounds: list[int], pool: str
) -> None:
    emulate(4, 1, 8, True)
    inputs = cases.recorded(layer([4, 5, 3], 64, vocabulary=7, pool=pool), torch.bfloat16)
    inputs = inputs._replace(cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    guards = emulated_cuda.guard(monkeypatch)
    with torch.no_grad():
        out = cuda.forward(inputs, False, True)
        assert out.pooled is not None
        grads = OutputGrads(None, None, None, None, torch.ones_like(out.pooled))
        cuda.backward(grads, inputs, out.y, out.saved, True, True)
    assert len(guards) > 4
    for guard in guards:
        assert (guard == emulated_cuda.GUARD).all()


def test_inference_stores_nothing_by_token(emulate: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(4, 1, 8, True)
    inputs = cases.recorded(layer([40, 0, 31], 64, vocabulary=5, pool="max"), torch.bfloat16)
    with torch.no_grad():
        trained = cuda.forward(inputs, False, True)
        shapes: list[torch.Size] = []
        emulated_cuda.watch(monkeypatch, shapes)
        out = cuda.forward(inputs, False, False)
    assert shapes
    assert all(71 not in shape for shape in shapes)
    assert out.saved == []
    assert out.pooled is not None
    assert trained.pooled is not None
    assert torch.equal(out.pooled, trained.pooled)


def test_id_beyond_the_table(emulate: Callable) -> None:
    emulate(4, 1, 8, True)
    for vocabulary in (3, 300):
        for wrong in (-1, vocabulary):
            inputs = cases.recorded(layer([4, 5], 64, vocabulary=vocabulary), torch.bfloat16)
            inputs.ids[4] = wrong
            with torch.no_grad(), pytest.raises((IndexError, RuntimeError), match=r"range|not a row"):
                cuda.forward(inputs, False, False)


def test_table_in_float32(emulate: Callable) -> None:
    emulate(4, 1, 8, True)
    for vocabulary in (3, 300):
        inputs = layer([4, 5, 3], 64, vocabulary=vocabulary, pool="mean")
        copy = cases.recorded(inputs, torch.bfloat16)._replace(x=inputs.x.float().requires_grad_())
        grads = [*cases.cotangents(inputs)[:3], None]
        outputs = ops.lstm_layer(copy, False, True, "cuda")
        found = torch.autograd.grad(
            outputs[:3], cases.floats(copy), [g.to(out.dtype) for g, out in zip(grads[:3], outputs, strict=False)]
        )
        true_outputs, true = cases.truth(inputs, grads)
        assert outputs[0].dtype == torch.bfloat16
        assert found[0].dtype == torch.float32
        assert cases.error(outputs[0], true_outputs[0]) <= cases.BOUNDS[torch.bfloat16][0]
        assert all(error <= cases.BOUNDS[torch.bfloat16][1] for error in cases.errors(list(found), true))


@pytest.mark.parametrize("lengths", [[0, 0, 3], [1], [41, 1, 0, 7], [1] * 23, [4] * 8], ids=str)
def test_lengths(emulate: Callable, lengths: list[int]) -> None:
    emulate(4, 1, 8, True)
    cases.check("cuda", layer(lengths, 64), torch.bfloat16)


@pairwise(
    {
        "shape": [(64, 4, 1, 8, True), (128, 8, 4, 8, False)],
        "tiles, groups": [(1, 2), (2, 4), (3, 1), (2, 3)],
    }
)
def test_many_sequences_share_the_lanes(emulate: Callable, shape: tuple, tiles: int, groups: int) -> None:
    """Sequences laid end to end in the lanes; groups of blocks that run several tiles, of both directions, in turn."""
    emulate(*shape[1:], tiles=tiles, groups=groups)
    lengths = [(7 * i) % 8 for i in range(45)]
    cases.check("cuda", layer(lengths, shape[0]), torch.bfloat16)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_outputs(emulate: Callable, wanted: tuple[int, ...]) -> None:
    emulate(4, 1, 8, True)
    inputs = layer([4, 0, 9], 64)
    grads: list = [grad if place in wanted else None for place, grad in enumerate(cases.cotangents(inputs))]
    _, found = cases.run("cuda", inputs, torch.bfloat16, grads)
    _, true = cases.truth(inputs, grads)
    assert all(error <= cases.BOUNDS[torch.bfloat16][1] for error in cases.errors(found, true))  # NaN too fails


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    list(zip([(64, 4, 1, 16, True), (128, 4, 2, 8, True), (128, 8, 4, 32, False)], FUSED, strict=True)),
    ids=str,
)
def test_any_order_of_threads_gives_the_same_bits(emulate: Callable, shape: tuple, options: dict[str, Any]) -> None:
    inputs = layer([9, 4, 0, 7, 2] * 4, shape[0], **options)
    grads = [*cases.cotangents(inputs)[:3], None]
    results = []
    for seed in range(3):
        emulate(*shape[1:], tiles=2, groups=3, seed=seed)
        results.append(cases.run("cuda", inputs, torch.bfloat16, grads))
    for outputs, gradients in results[1:]:
        for first, again in zip([*results[0][0], *results[0][1]], [*outputs, *gradients], strict=True):
            assert torch.equal(first, again)


@pytest.mark.parametrize("cluster", [True, False])
def test_nothing_leaks_between_sequences(emulate: Callable, cluster: bool) -> None:
    emulate(4, 1, 8, cluster)
    # 32 inputs: on a processor with AMX torch's own product of odd widths takes a NaN from the row that follows.
    inputs = cases.layer([9, 4, 0, 6, 1] * 3, 32, 64, dtype=torch.bfloat16)
    changed = inputs._replace(x=inputs.x.clone())
    changed.x[9:13] = float("nan")
    grads = [*cases.cotangents(inputs)[:3], None]
    (y, *_), (dx, *_) = cases.run("cuda", inputs, torch.bfloat16, grads)
    (y_changed, *_), (dx_changed, *_) = cases.run("cuda", changed, torch.bfloat16, grads)
    assert y_changed[9:13].isnan().all()
    for rows in (slice(0, 9), slice(13, None)):
        assert torch.equal(y[rows], y_changed[rows])
        assert torch.equal(dx[rows], dx_changed[rows])


@pytest.mark.parametrize("options", FUSED, ids=str)
def test_fills_whatever_it_returns(emulate: Callable, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    emulate(4, 1, 8, True)
    inputs = layer([4, 0, 13, 1], 64, **options)
    emulated_cuda.poison(monkeypatch)
    outputs, gradients = cases.run("cuda", inputs, torch.bfloat16, [*cases.cotangents(inputs)[:3], None])
    assert all(tensor.isfinite().all() for tensor in [*outputs, *gradients])


@pytest.mark.parametrize("bounds", [[0, 5, 3, 9], [-7, 4, 2**31 - 1, 12], [3, 3, 6, 6], [12, 0, 0, 0]], ids=str)
def test_malformed_bounds_stay_within_the_tokens(
    emulate: Callable, monkeypatch: pytest.MonkeyPatch, bounds: list[int]
) -> None:
    emulate(4, 1, 8, True)
    inputs = cases.recorded(layer([4, 5, 3], 64), torch.bfloat16)
    inputs = inputs._replace(cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    guards = emulated_cuda.guard(monkeypatch)
    with torch.no_grad():
        out = cuda.forward(inputs, False, True)
        grads = OutputGrads(torch.ones_like(out.y), None, None, None)
        cuda.backward(grads, inputs, out.y, out.saved, True, True)
    assert len(guards) > 4
    for guard in guards:
        assert (guard == emulated_cuda.GUARD).all()


@pytest.mark.parametrize("pool", ["", "max", "mean"])
@pytest.mark.parametrize("vocabulary", [0, 5, 300])
def test_saves_what_it_says(emulate: Callable, pool: str, vocabulary: int) -> None:
    emulate(4, 1, 8, True)
    inputs = cases.recorded(layer([4, 3], 64, vocabulary=vocabulary, pool=pool), torch.bfloat16)
    with torch.no_grad():
        saved = cuda.forward(inputs, False, True).saved
        assert cuda.forward(inputs, False, False).saved == []
    for found, said in zip(saved, cuda.saved_like(inputs, False), strict=True):
        assert (found.shape, found.dtype) == (said.shape, said.dtype)


def test_forget_gate_near_saturation(emulate: Callable) -> None:
    """A rounded activation, or a bias that drowns the rest in bfloat16, would lose the forget gate's gradient."""
    emulate(4, 1, 8, True)
    inputs = layer([50, 20], 64, directions=1)
    for bias in inputs.weights.b_ih:
        bias[64:128] += 6
        bias.copy_(bias.bfloat16())
    cases.check("cuda", inputs, torch.bfloat16)


# ---- the schedule

random_lengths = random.Random(0)
BATCHES = [
    [5],
    [0, 0, 0],
    [3, 0, 1, 1, 200, 7],
    [random_lengths.randint(32, 256) for _ in range(512)],
    [random_lengths.randint(0, 3) for _ in range(97)],
]


def lanes_of(library: ctypes.CDLL, lengths: list[int], lanes: int, from_first_row: bool) -> list[list[int]]:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ranked = torch.empty(len(lengths), 4, dtype=torch.int32)
    rows = torch.empty(sum(lengths) + 1, dtype=torch.int32)
    at = ctypes.c_void_p
    library.rank_sequences(at(cu_seqlens.data_ptr()), len(lengths), sum(lengths), at(ranked.data_ptr()))
    found = []
    for lane in range(lanes):
        count = library.lane_rows(
            at(ranked.data_ptr()), len(lengths), lane, lanes, from_first_row, len(rows), at(rows.data_ptr())
        )
        found.append(rows[:count].tolist())
    return found


@pairwise({"lengths": BATCHES, "lanes": [8, 40], "from_first_row": [True, False]})
def test_lanes_run_every_token_once(library: ctypes.CDLL, lengths: list[int], lanes: int, from_first_row: bool) -> None:
    found = lanes_of(library, lengths, lanes, from_first_row)
    assert sorted(row for lane in found for row in lane) == list(range(sum(lengths)))
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    for lane in found:
        at = 0  # whole sequences, end to end
        while at < len(lane):
            start = max(s for s in starts if s <= lane[at])
            length = min(s for s in starts if s > lane[at]) - start
            expected = range(start, start + length)
            assert lane[at : at + length] == (list(expected) if from_first_row else list(reversed(expected)))
            at += length


def test_lanes_end_close_together(library: ctypes.CDLL) -> None:
    lengths = BATCHES[3]
    totals = [len(lane) for lane in lanes_of(library, lengths, 64, True)]
    assert max(totals) <= 1.02 * sum(lengths) / 64


@as_subtests(
    "batch, tokens, longest, groups, expected",
    [
        (32, 32 * 144, 256, (33, 33, 33), (8, 4)),  # few sequences: narrow tiles, a lane each
        (128, 128 * 144, 256, (33, 33, 33), (8, 16)),
        (512, 512 * 144, 256, (33, 33, 33), (16, 16)),  # lanes hold two sequences and end with the longest
        (2048, 2048 * 144, 256, (33, 33, 33), (32, 16)),  # throughput: wide
        (512, 512 * 144, 256, (33, 0, 0), (8, 16)),  # what cannot run is not chosen
        (512, 512 * 144, 256, (0, 1, 1), (32, 1)),
        (1, 9, 9, (33, 33, 33), (8, 1)),
        (0, 0, 0, (33, 33, 33), (8, 1)),
    ],
)
def test_split_into_lanes(
    library: ctypes.CDLL, batch: int, tokens: int, longest: int, groups: tuple, expected: tuple
) -> None:
    found = (ctypes.c_int * 2)()
    wide = ctypes.c_int64
    library.split_into_lanes(
        wide(batch), wide(tokens), wide(longest), 2, (ctypes.c_int * 3)(*groups),
        ctypes.c_double(400), ctypes.c_double(280), found,
    )  # fmt: skip
    assert tuple(found) == expected


# ---- as a backend


def test_is_never_the_default() -> None:
    reasons = {(operation, name): reason for operation, name, reason in dispatch.status()}
    assert reasons["lstm", "cuda"]
    facts = {"dtype": torch.bfloat16, "input_size": 256, "hidden_size": 256, "proj_size": 0, "needs": ()}
    for device in ("cpu", "cuda"):
        assert dispatch.choose("lstm", device_type=device, **facts) != "cuda"


@as_subtests(
    "facts, reason",
    [
        ({"device_type": "cpu"}, "tensors are on cpu"),
        ({"dtype": torch.float32}, "dtype is torch.float32, not bfloat16"),
        ({"hidden_size": 300}, "the hidden size is 300, not 128, 256, 384, 512, 768, 1024"),
        ({"proj_size": 4}, "projection"),
        ({"needs": ("zoneout",)}, "zoneout"),
        ({"needs": ("cells",)}, "cell states"),
    ],
)
def test_says_what_it_cannot_serve(facts: dict[str, Any], reason: str) -> None:
    served = {"device_type": "cuda", "dtype": torch.bfloat16, "hidden_size": 256, "proj_size": 0, "needs": ()}
    assert reason in str(cuda.why_not(**{**served, **facts}))


# ---- the tiers themselves: large for an emulated machine

TIERS = [
    (128, 4, 1, 8, True),
    (256, 4, 1, 8, True),
    (384, 8, 1, 8, True),  # a third of W_hh in shared memory
    (512, 16, 2, 16, True),
    (512, 8, 1, 8, True),  # half of W_hh in shared memory
    (256, 4, 1, 8, False),
    (384, 12, 2, 8, False),
    (768, 48, 3, 8, False),
    (1024, 64, 4, 8, False),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", FUSED, ids=str)
@pytest.mark.parametrize("shape", TIERS, ids=str)
def test_tiers(emulate: Callable, tiers: ctypes.CDLL, shape: tuple, options: dict[str, Any]) -> None:
    emulate(*shape[1:], library=tiers)
    cases.check("cuda", layer([3, 0, 5, 1, 2, 4, 1, 3, 1], shape[0], **options), torch.bfloat16)


# ---- compilation

NVCC = shutil.which("nvcc")
CUDA_SOURCES = emulated_cuda.SOURCES
MOST_REGISTERS = 255
MOST_SHARED_BYTES = {"80": 163 * 1024, "90a": 227 * 1024}
COMPILED = [
    *((path.stem, "90a") for path in sorted(CUDA_SOURCES.glob("cluster_*.cu"))),
    *((path.stem, arch) for path in sorted(CUDA_SOURCES.glob("grid_*.cu")) for arch in ("80", "90a")),
]


def disassembler() -> Path | None:
    found = shutil.which("cuobjdump")
    if found:
        return Path(found)
    for place in sys.path:  # Triton's package carries one
        path = Path(place) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.is_file():
            return path
    return None


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize(("name", "arch"), COMPILED)
def test_compiles_within_budget(tiers: ctypes.CDLL, tmp_path: Path, name: str, arch: str) -> None:
    cubin = tmp_path / "kernels.cubin"
    done = subprocess.run(
        [
            str(NVCC), "-std=c++20", f"-I{CUDA_SOURCES.parents[1]}", f"-gencode=arch=compute_{arch},code=sm_{arch}",
            "-Xptxas=-v", "-cubin", str(CUDA_SOURCES / f"{name}.cu"), "-o", str(cubin),
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "warning" not in done.stderr
    kernels = re.findall(
        r"Function properties for \S*lstm_(forward|backward)\S*ShapeILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELb(\d)E.*?\n"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers",
        done.stderr,
    )
    assert len(kernels) >= 3
    for which, hidden, blocks, parts, lanes, cluster, stores, loads, registers in kernels:
        native = EmulatedCuda(tiers, int(blocks), int(parts), int(lanes), cluster == "1")
        shared_bytes = native.needs(int(hidden))[1][which == "backward"]
        assert shared_bytes <= MOST_SHARED_BYTES["90a"]
        if shared_bytes > MOST_SHARED_BYTES[arch]:
            continue  # never launched there
        assert int(registers) <= MOST_REGISTERS
        assert (int(stores), int(loads)) == (0, 0), f"{which} of {lanes} lanes spills"
    tool = disassembler()
    if tool is None:
        pytest.skip("there is no cuobjdump to look at the instructions")
    assembly = subprocess.run([tool, "-sass", cubin], check=True, capture_output=True, text=True).stdout
    wanted = ["HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDGSTS", "MOVM.16.MT88"]
    wanted += ["UCGABAR_ARV", "SYNCS.PHASECHK", "STAS.128"] if "cluster" in name else ["STG.E.64.STRONG.GPU"]
    for instruction in wanted:
        assert instruction in assembly, instruction
