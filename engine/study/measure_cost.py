"""Measures what a family's model costs, in a process of its own: what others have left in memory is not its cost.

The process is `python -m penstock.engine.study.measure_cost`: it reads a pickled request from stdin and writes JSON to
stdout.
"""

import dataclasses
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.errors import RunError
from penstock.engine.machine import Others, processor
from penstock.engine.records import parse_json, read_record
from penstock.engine.study.costs import BATCH_SIZES, Cost
from penstock.engine.study.orphans import stop_with_parent
from penstock.engine.study.subsets import subset
from penstock.engine.training.memory import peak_memory, reset_peak_memory

if TYPE_CHECKING:
    from penstock.engine.data.store import Store
    from penstock.engine.data.tokenizers import TextTokenizer
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.training.settings import Settings

SECONDS = 2.0  # of measuring for each figure, once there are enough runs
MOST_TEXTS = 4000  # from raw text to label
_WARM_UP = 3
_MIN_RUNS = {1: 100, 32: 20}  # 100 tell a 99th percentile, 20 a 95th
_FIRST_TEXTS = 64  # tell how many can be done in the time


@dataclass(frozen=True)
class Subject:
    """A model of the right size, as a measurement sees it. What its weights have learned changes no figure.

    Attributes:
        parameters, embedding_parameters: as `Cost` has them.
        save: writes all that a prediction needs besides the tokenizer into a folder.
        predict: the class, int64 (rows,), of texts laid end to end: of their tokens, int32 (tokens,), and bounds, int64
            (rows + 1,), where each text begins and ends.
        max_length, truncation: what it reads of a text.
    """

    parameters: int
    embedding_parameters: int
    save: Callable[[Path], Any]
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
    max_length: int
    truncation: str


def measure_cost(
    family: str, settings: "Settings | BaselineSettings", train: "Store", test: "Store", seconds: float = SECONDS
) -> Cost:
    """
    Args:
        settings: of a trial of the family. train, test: the stores; texts of `test` are predicted.
        seconds: of measuring for each figure.

    Raises:
        RunError: the process that measures ended with an error.
    """
    import torch

    request = pickle.dumps((family, settings, train, test, seconds, torch.get_num_threads()))
    done = subprocess.run([sys.executable, "-P", "-m", __name__], input=request, capture_output=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        how = f"it was killed by signal {-done.returncode}" if done.returncode < 0 else lines[-1] if lines else "?"
        raise RunError(f"the costs of {family} cannot be measured: {how}")
    return read_record(Cost, parse_json(done.stdout.decode().strip().splitlines()[-1]))


def subject_of(settings: "Settings | BaselineSettings", train: "Store") -> Subject:
    """The model that the settings describe, for the classes and the vocabulary of the store; a baseline's, which grows
    with its training examples, for as many as they say."""
    from penstock.engine.study.baselines.settings import BaselineSettings

    return _baseline(settings, train) if isinstance(settings, BaselineSettings) else _of_the_loop(settings, train)


def _baseline(settings: "BaselineSettings", train: "Store") -> Subject:
    import torch

    from penstock.engine.study.baselines import baseline
    from penstock.engine.study.baselines.fitting import FitTask
    from penstock.engine.training.reading import read_by

    train = read_by(settings, train)
    rows = subset(train.labels, settings.examples, settings.seed)
    model = baseline(settings.name).untrained(FitTask(settings, train, rows, torch.get_num_threads()))
    return Subject(
        parameters=model.parameters,
        embedding_parameters=model.embedding_parameters,
        save=model.save,
        predict=lambda values, bounds: model.probabilities(values, bounds).argmax(-1),
        max_length=train.max_length,
        truncation=train.truncation,
    )


def _of_the_loop(settings: "Settings", train: "Store") -> Subject:
    import torch

    from penstock.engine.models import build_model
    from penstock.engine.training.precision import autocast, resolve_precision
    from penstock.engine.training.reading import read_by
    from penstock.kernels import Ragged

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = build_model(
        settings.model,
        vocab_size=train.vocab_size,
        num_labels=len(train.label_names),
        label_names=train.label_names,
        tokenizer=train.tokenizer(),
    )
    model, train = model.to(device).eval(), read_by(settings, train)
    precision = resolve_precision(settings.training.precision, device)

    def predict(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        batch = Ragged.from_lengths(torch.from_numpy(values), np.diff(bounds).tolist()).to(device)
        with torch.inference_mode(), autocast(precision, device):
            return model(batch).logits.argmax(-1).cpu().numpy()

    return Subject(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=model.get_input_embeddings().weight.numel(),
        save=model.save_pretrained,
        predict=predict,
        max_length=train.max_length,
        truncation=train.truncation,
    )


def measure(family: str, subject: Subject, test: "Store", seconds: float = SECONDS) -> Cost:
    """Measures in this process.

    Texts are those of the test store's rows, decoded from their tokens, the same ones for every family; cut as the
    model reads them.
    """
    import torch

    from penstock.engine.data.tokenizers import TextTokenizer

    others = Others()
    tokenizer = test.tokenizer()
    encoder = TextTokenizer(tokenizer, subject.max_length, subject.truncation)
    rows = np.random.default_rng(0).permutation(test.num_examples)[:MOST_TEXTS]
    texts = [str(tokenizer.decode(test.tokens(int(row)).tolist(), skip_special_tokens=True)) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        subject.save(Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    reset_peak_memory()
    times = {batch: _latencies(subject, encoder, texts, batch, seconds) for batch in BATCH_SIZES}
    speed, count = _end_to_end(subject, encoder, texts, seconds)
    return Cost(
        family=family,
        parameters=subject.parameters,
        embedding_parameters=subject.embedding_parameters,
        bytes_on_disk=size,
        latency_ms={batch: float(np.median(own)) for batch, own in times.items()},
        latency_p95_ms={batch: _percentile(own, 95) for batch, own in times.items() if len(own) >= 20},
        latency_p99_ms={batch: _percentile(own, 99) for batch, own in times.items() if len(own) >= 100},
        runs={batch: len(own) for batch, own in times.items()},
        device=device_name(),
        threads=torch.get_num_threads(),
        texts_per_second=speed,
        texts=count,
        memory_bytes=peak_memory(),
        others=others.cores(),
    )


def _latencies(
    subject: Subject, encoder: "TextTokenizer", texts: list[str], batch_size: int, seconds: float
) -> np.ndarray:
    """float64 (runs,), milliseconds, of batches of randomly drawn texts, the same for every model."""
    encoded = encoder.encode(texts)
    ends = np.cumsum(encoded.lengths, dtype=np.int64)
    random = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        chosen = random.integers(len(texts), size=batch_size)
        pieces = [encoded.values[ends[row] - encoded.lengths[row] : ends[row]] for row in chosen]
        return np.concatenate(pieces).astype(np.int32), np.cumsum([0, *map(len, pieces)], dtype=np.int64)

    return milliseconds(lambda drawn: subject.predict(*drawn), draw, _MIN_RUNS[batch_size], seconds)


def milliseconds(
    run: Callable[[Any], Any], draw: Callable[[], Any], min_runs: int = 20, seconds: float = SECONDS
) -> np.ndarray:
    """float64 (runs,): how long `run(draw())` takes, warmed up, at least `min_runs` times and for about `seconds`."""
    for _ in range(_WARM_UP):
        run(draw())
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < min_runs or time.perf_counter() < end:
        inputs = draw()
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return np.array(times) * 1e3


def _end_to_end(subject: Subject, encoder: "TextTokenizer", texts: list[str], seconds: float) -> tuple[float, int]:
    """(texts a second from raw text to label, texts), read as `penstock predict` reads them: tokenized ahead of the
    model, in batches of similar length."""
    from penstock.engine.data.sources.memory import MemorySource
    from penstock.engine.training.texts import windows

    def run(chosen: list[str]) -> float:
        start, done = time.perf_counter(), 0
        for window in windows([MemorySource(chosen, name="texts", is_pair=False)], encoder):
            for batch in window.batches(8192):
                tokens = batch.tokens
                subject.predict(tokens.values.numpy(), tokens.cu_seqlens.numpy().astype(np.int64))
                done += len(batch)
        assert done == len(chosen)
        return time.perf_counter() - start

    first = texts[:_FIRST_TEXTS]
    run(first)  # warms up
    affordable = int(len(first) * 2 * seconds / run(first))
    chosen = texts[: min(max(affordable, len(first)), len(texts))]
    return len(chosen) / run(chosen), len(chosen)


def _percentile(values: np.ndarray, share: float) -> float:
    return float(np.percentile(values, share))


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def _main() -> None:
    from penstock.engine.training.memory import keep_freed_memory

    stop_with_parent()  # whoever asked is gone: nobody waits for an answer
    family, settings, train, test, seconds, threads = pickle.load(sys.stdin.buffer)
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    cost = measure(family, subject_of(settings, train), test, seconds)
    print(json.dumps(dataclasses.asdict(cost)))


if __name__ == "__main__":
    _main()
