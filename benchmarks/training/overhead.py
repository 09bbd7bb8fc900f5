"""What the engine adds to a model's own training step, in CPU seconds, which a busy machine changes little.

The run is `penstock train`'s: its loader, its loop, its logs. Beside each of its steps a twin of the model takes the
same batch by the shortest loop that there is (forward, loss, backward, optimizer; no clipping, no figures), and what
that takes is taken off. A unit is a step; a round is `STEPS` of them, the twin's before and after the run's own in
turns.

`penstock` is all threads of the process, the loader's among them; "penstock, its thread" is the one that trains, which
is what the clock on the wall shows where the loader has a core of its own. Its peer of the same kind is "the model, its
thread". The overhead is the one over the other, minus 1.

    penstock bench overhead
    penstock bench overhead --shape 8192 --dtype float32 --threads 1
"""

import atexit
import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from penstock.benchmarks.suite import OURS, Case, Options, shapes_of
from penstock.engine.data.loader import Batch
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.models import build_model
from penstock.engine.study.settings import packaged_encoder
from penstock.engine.training.memory import keep_freed_memory
from penstock.engine.training.optimizer import build_optimizer
from penstock.engine.training.precision import autocast
from penstock.engine.training.settings import Settings, load_settings
from penstock.engine.training.step import Stepper, StepReport
from penstock.engine.training.train import train

STEPS = 10  # as many as there are to a line of metrics.jsonl
FEWEST, USUAL, MOST = 3, 8, 15  # rounds
TEXTS = 4_000
DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
MODELS = {"lstm-1-256": ["model.preset=lstm-1-256"], "MiniLM": ["model.kind=encoder"]}
ALONE, THREAD, ALONE_THREAD = "the model alone", "penstock, its thread", "the model, its thread"


class _Done(Exception):
    """All rounds are measured."""


def cases(options: Options) -> Iterator[Case]:
    for model in MODELS:
        for shape in shapes_of("TOKENS", [(4096,)], [(1024,)], options):
            for dtype in options.dtypes or ("bfloat16",):
                measured = partial(_measure, model, shape["TOKENS"], dtype, options)
                yield Case(model, shape, dtype, measured=measured)


@cache
def _store() -> Store:
    """Generated reviews with the packaged encoder's tokenizer, in a folder that stays until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-overhead-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = f"synthetic:reviews?n={TEXTS}&seed=0"
    return prepare(source, folder / "store", tokenizer=packaged_encoder(), progress=False)


def _measure(model: str, tokens: int, dtype: str, options: Options) -> dict[str, list[float]]:
    """{who: CPU seconds of a step in each round}"""
    keep_freed_memory()
    encoder = [f"model.encoder={packaged_encoder()}"] if model == "MiniLM" else []
    fixed = ["data.validation_fraction=0", "training.max_steps=1000000", f"training.precision={DTYPES[dtype]}"]
    settings = load_settings(None, [*MODELS[model], *encoder, *fixed, f"data.tokens_per_batch={tokens}"])
    rounds = options.rounds or (FEWEST if options.quick else USUAL)
    most = math.inf if options.rounds else options.seconds
    watch = _Watch(settings, _store(), dtype, rounds, most)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("penstock.engine.training.loop.Stepper", watch.stepper),
        contextlib.suppress(_Done),
    ):
        train(settings, _store(), Path(folder) / "run", progress="none", device="cpu")
    return watch.seconds


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.thread_time()


class _Watch:
    """Measures a run from inside: makes the stepper that its loop takes."""

    def __init__(self, settings: Settings, store: Store, dtype: str, rounds: int, most: float) -> None:
        self._rounds, self._deadline = rounds, time.monotonic() + most
        self._precision = DTYPES[dtype]
        self._twin: Any = build_model(
            settings.model,
            vocab_size=store.vocab_size,
            num_labels=store.num_labels,
            label_names=store.label_names,
            tokenizer=store.tokenizer(),
        ).train()
        self._optimizer = build_optimizer(self._twin, learning_rate=1e-5, weight_decay=0.01)
        self._count, self._since = 0, (0.0, 0.0)
        self._alone = [0.0, 0.0]
        self.seconds: dict[str, list[float]] = {OURS: [], ALONE: [], THREAD: [], ALONE_THREAD: []}

    def stepper(self, *args: Any, **rest: Any) -> "_Watched":
        return _Watched(self, *args, **rest)

    def take_alone(self, batches: list[Batch]) -> None:
        """The twin's step."""
        before = _clocks()
        examples = sum(len(batch) for batch in batches)
        for batch in batches:
            with autocast(self._precision, torch.device("cpu")):
                logits = self._twin(batch.tokens, **batch.types()).logits
            (F.cross_entropy(logits.float(), batch.labels, reduction="sum") / examples).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for index, (now, then) in enumerate(zip(_clocks(), before, strict=True)):
            self._alone[index] += now - then

    def counted(self) -> None:
        """After a step of the run: ends a round where it is one's last. The first round warms up."""
        self._count += 1
        if self._count % STEPS:
            return
        now = _clocks()
        if self._count > STEPS:
            for index, (ours, alone) in enumerate(((OURS, ALONE), (THREAD, ALONE_THREAD))):
                self.seconds[ours].append((now[index] - self._since[index] - self._alone[index]) / STEPS)
                self.seconds[alone].append(self._alone[index] / STEPS)
        measured = len(self.seconds[OURS])
        if measured >= self._rounds or (measured >= FEWEST and time.monotonic() > self._deadline):
            raise _Done
        self._alone, self._since = [0.0, 0.0], _clocks()


class _Watched(Stepper):
    def __init__(self, watch: _Watch, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._watch, self._number = watch, 0

    def __call__(self, batches: list[Batch], **rest: Any) -> StepReport:
        self._number += 1
        if self._number % 2:
            self._watch.take_alone(batches)
        report = super().__call__(batches, **rest)
        if not self._number % 2:
            self._watch.take_alone(batches)
        self._watch.counted()
        return report
