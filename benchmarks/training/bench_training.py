"""Whole training steps on a CPU, penstock's and those of people who write their own loop, in turns.

The unit is one real token: each contestant's seconds for it are in `extra_info`. encoder/finetune.py has the encoder's
contestants and more of them.

    penstock bench training
    penstock bench encoder
    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/training --store STORE
"""

import statistics
from collections.abc import Callable

import numpy as np
import pytest

from penstock.benchmarks.encoder import finetune
from penstock.benchmarks.pytest_rows import rounds as rounds_of
from penstock.benchmarks.training import against_plain
from penstock.engine.training.memory import keep_freed_memory

ROUNDS, SECONDS, BATCH_SIZE = 5, 3.0, 64
BATCHES, TOKENS_PER_BATCH = 2, 4096  # of the encoder

Contestant = Callable[[], float]  # trains for a while and returns the seconds that a token took


def compare(request, benchmark, contestants: dict[str, Contestant]) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}

    def timed(name: str) -> None:
        times[name].append(contestants[name]())

    def others() -> None:
        for name in list(contestants)[1:]:
            timed(name)

    rounds = rounds_of(request.config, ROUNDS)
    benchmark.pedantic(lambda: timed("penstock"), setup=others, rounds=rounds, warmup_rounds=1)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    benchmark.extra_info.update(
        seconds_per_token={
            name: {"median": medians[name], "least": min(values[1:]), "most": max(values[1:])}
            for name, values in times.items()
        },
        unit="a real token",
        rounds={name: values[1:] for name, values in times.items()},
        ratio={name: medians[name] / medians["penstock"] for name in list(contestants)[1:]},
    )


@pytest.mark.parametrize("peers", [False, True], ids=["alone", "peers"])
def test_lstm(request, benchmark, store, peers):
    rows = np.arange(store.num_examples)
    tokens_per_batch = BATCH_SIZE * round(store.num_tokens / store.num_examples)
    runs = {"penstock": against_plain.Ours(store.path, rows, tokens_per_batch, "bf16").train}
    if peers:
        for name, packed in (("plain, padded", False), ("plain, packed", True)):
            runs[name] = against_plain.plain(store.path, rows, BATCH_SIZE, "bf16", packed)
    compare(
        request, benchmark, {name: lambda run=run: 1 / run(SECONDS)["tokens_per_second"] for name, run in runs.items()}
    )


@pytest.mark.parametrize("peers", [False, True], ids=["alone", "peers"])
def test_encoder(request, benchmark, store, peers):
    keep_freed_memory()
    size = request.config.getoption("--padded-batch")
    batches = finetune.choose_rows(store, size, BATCHES)
    rows = np.concatenate(batches)
    tokens = int(store.lengths[rows].sum())

    def stock(attention: str):
        return finetune.stock_model(finetune.packaged_encoder(), attention, 0.1, store.num_labels)

    passes = {"penstock": finetune.penstock(stock("eager"), store, np.sort(rows), TOKENS_PER_BATCH)}
    if peers:
        for attention in ("eager", "sdpa"):
            passes[f"padded loop, {attention}"] = finetune.loop(stock(attention), store, batches, bf16=True)
        passes["Trainer, grouped"] = finetune.trainer(stock("sdpa"), store, rows, size, grouped=True)
    compare(request, benchmark, {name: lambda train=train: train() / tokens for name, train in passes.items()})
