"""What a model costs to keep and to ask: parameters, bytes on the disk, latency."""

import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.errors import RunError
from penstock.engine.files import write_json
from penstock.engine.records import read_json, read_record
from penstock.engine.study.fingerprints import MadeFrom

if TYPE_CHECKING:
    import torch

    from penstock.engine.data.store import Store
    from penstock.engine.training.settings import Settings

BATCH_SIZES = (1, 32)
_WARM_UP = 3
_MIN_RUNS = 20
_SECONDS = 2.0  # of measuring for each batch size, once there are enough runs


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        parameters: of the whole model; embedding_parameters: of its token embeddings alone.
        bytes_on_disk: of the saved weights.
        latency_ms: {batch size: median milliseconds of one forward pass over that many test texts, already tokenized}.
        runs: {batch size: forward passes measured}.
        device, threads: what it ran on.
        made_from: fingerprints of the stores, the model's settings and the encoder; None from an earlier penstock.
    """

    family: str
    parameters: int
    embedding_parameters: int
    bytes_on_disk: int
    latency_ms: dict[int, float]
    runs: dict[int, int]
    device: str
    threads: int
    made_from: MadeFrom | None = None


def measure_cost(family: str, settings: "Settings", train: "Store", test: "Store") -> Cost:
    """Builds the family's model (latency does not depend on what the weights have learned) and measures it."""
    import torch

    from penstock.engine.models import build_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = build_model(
        settings.model,
        vocab_size=train.vocab_size,
        num_labels=len(train.label_names),
        label_names=train.label_names,
        tokenizer=train.tokenizer(),
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    model = model.to(device).eval()
    measured = {batch: _latency(model, test, batch, device) for batch in BATCH_SIZES}
    return Cost(
        family=family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=model.get_input_embeddings().weight.numel(),
        bytes_on_disk=size,
        latency_ms={batch: median for batch, (median, _) in measured.items()},
        runs={batch: runs for batch, (_, runs) in measured.items()},
        device=device_name(),
        threads=torch.get_num_threads(),
    )


def _latency(model: Any, store: "Store", batch_size: int, device: "torch.device") -> tuple[float, int]:
    """(median milliseconds, runs) over batches of randomly drawn texts, the same for every model."""
    import torch

    from penstock.kernels import Ragged

    random = np.random.default_rng(0)

    def draw() -> Ragged:
        rows = random.integers(store.num_examples, size=batch_size)
        texts = [torch.as_tensor(store.tokens(int(row))) for row in rows]
        return Ragged.from_lengths(torch.cat(texts), [len(text) for text in texts]).to(device)

    def run(batch: Ragged) -> None:
        model(batch).logits.cpu()

    with torch.inference_mode():
        return median_milliseconds(run, draw)


def median_milliseconds(run: Callable[[Any], None], draw: Callable[[], Any]) -> tuple[float, int]:
    """(median milliseconds of `run(draw())`, runs): warmed up, at least _MIN_RUNS times and for about _SECONDS."""
    for _ in range(_WARM_UP):
        run(draw())
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _MIN_RUNS or time.perf_counter() < end:
        inputs = draw()
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3, len(times)


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_cost(path: Path, cost: Cost) -> None:
    write_json(path, dataclasses.asdict(cost))


def read_cost(path: Path) -> Cost:
    """
    Raises:
        RunError: the file does not hold a cost.
    """
    try:
        return read_record(Cost, read_json(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a measurement of costs ({error}); remove it to measure again") from None
