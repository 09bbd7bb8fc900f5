"""Before a kernel is designed: what cuDNN really costs on our case, and what the machine's exchanges and products cost.

Nothing of penstock is timed here. The CUDA probes are programs of their own (probes/*.cu), built by nvcc for this
machine; each prints one JSON object a line and checks its own results.
"""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from penstock.benchmarks.gpu import attention
from penstock.benchmarks.gpu.cells import in_turn
from penstock.benchmarks.gpu.context import Context, emit, reason
from penstock.benchmarks.gpu.lstm import HALVES
from penstock.benchmarks.gpu.lstm_layer import LONGEST, Layer, draw_lengths
from penstock.benchmarks.gpu.timing import kernels_of

FOLDER = Path(__file__).with_name("probes")
# program: the least compute capability that it is for
PROGRAMS = {"occupancy": 9, "cluster_exchange": 9, "grid_exchange": 8, "matmul_rate": 8}
_PROGRAM_SECONDS = 30
HIDDEN, BATCHES, MEANS = (256, 512, 1024), (32, 128, 512), (50, 150, 400)


def run(context: Context) -> None:
    building = build(context)
    cudnn(context, 0.5)
    for name, process in building.items():
        _program(context, name, process)
    for mean in MEANS:
        if context.left() < 2:
            emit(kind="attention rate", mean=mean, why="not run: the time was up")
            continue
        lengths = attention.draw_lengths(4, 24, 16) if context.smoke else attention.draw_lengths(mean, attention.TOKENS)
        heads = 2 if context.smoke else attention.HEADS
        problem = attention.Problem.draw(lengths, 0.0, heads, context.device)
        attention.measure(context, problem, mean, {}, {}, {}, context.share(2 * len(MEANS)), "attention rate")


def cudnn(context: Context, share: float) -> None:
    """nn.LSTM's microseconds a step, forward and backward, over directions x packed/padded x type x H x B."""
    hidden, batches = ((16,), (3,)) if context.smoke else (HIDDEN, BATCHES)
    cells = list(itertools.product(batches, hidden, (2, 1), ("packed", "padded")))
    seconds = share * context.left() / len(cells)
    end = context.left() * (1 - share)
    for batch, width, directions, form in cells:
        row: dict[str, Any] = {"hidden": width, "batch": batch, "directions": directions, "form": form}
        if context.left() < end:
            emit(kind="cudnn", **row, why="not run: the time was up")
            continue
        layer = Layer(draw_lengths(batch, 5 if context.smoke else LONGEST), width, width, directions, context.device)
        contestants = {name: getattr(layer, form)(dtype) for name, dtype in HALVES.items()}
        calls = {
            f"{name} {phase}": contestant.calls()[phase]
            for name, contestant in contestants.items()
            for phase in ("inference", "training")
        }
        timed = in_turn(context, "cudnn", calls, seconds)
        for figures in timed.values():
            if "ms" in figures:
                figures["us_per_step"] = 1e3 * figures["ms"] / max(layer.lengths)
        emit(kind="cudnn", **row, steps=max(layer.lengths), contestants=timed)
        if batch == batches[0] and width == hidden[0]:
            for name, contestant in contestants.items():
                try:
                    emit(kind="cudnn kernels", **row, dtype=name, kernels=kernels_of(contestant.gradients, 5))
                except RuntimeError as failure:
                    emit(kind="cudnn kernels", **row, dtype=name, why=reason(failure))


def build(context: Context) -> dict[str, "subprocess.Popen[str] | None"]:
    """Starts nvcc for every probe that fits this machine, all at a time: {name: its process, None without nvcc}."""
    capability = (9, 0) if context.smoke else torch.cuda.get_device_capability()
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    out: dict[str, subprocess.Popen[str] | None] = {}
    for name, least in PROGRAMS.items():
        if nvcc is None or context.smoke or capability[0] < least:
            out[name] = None
            continue
        command = [nvcc, *flags(capability), "-o", str(context.folder / name), str(FOLDER / f"{name}.cu")]
        out[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return out


def flags(capability: tuple[int, int]) -> list[str]:
    """Machine code for one architecture; 9.0 and newer with the instructions of that architecture alone ("a")."""
    number = f"{capability[0]}{capability[1]}" + ("a" if capability[0] >= 9 else "")
    return ["-std=c++17", "-O3", "-gencode", f"arch=compute_{number},code=sm_{number}"]


def _program(context: Context, name: str, building: "subprocess.Popen[str] | None") -> None:
    if building is None:
        emit(kind=name, why="not built: it needs nvcc and a GPU of the architecture that it is for")
        return
    output, _ = building.communicate(timeout=max(1.0, context.left()))
    if building.returncode:
        emit(kind=name, why=f"nvcc failed: {output.strip().splitlines()[-1][:300] if output.strip() else ''}")
        return
    try:
        finished = subprocess.run(
            [str(context.folder / name)], capture_output=True, text=True, timeout=min(_PROGRAM_SECONDS, context.left())
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
        report(name, printed, "it did not end within its time")
        return
    report(name, finished.stdout, finished.stderr.strip()[:300] if finished.returncode else None)


def report(name: str, printed: str, why: str | None) -> None:
    """One row for each complete line that a probe printed, and one that says why it stopped early, if it did."""
    for line in printed.splitlines():
        if line.startswith("{") and line.endswith("}"):
            row = json.loads(line)
            if row.get("errors"):
                row = {**row, "why": f"wrong result, {row['errors']} errors: no time"}
                row = {
                    key: value for key, value in row.items() if key not in ("us_per_step", "cycles_per_step", "tflops")
                }
            emit(kind=name, **row)
    if why is not None:
        emit(kind=name, why=why)
