"""Planning an epoch of ten million rows, seeking in it, opening a store, the memory of an epoch; and the peers.

    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/data --rows 10000000 --keep /scratch/bench

Every figure is of a process of its own, its libraries loaded: see measured.py. `megabytes` is by how much the
process's peak grew.
"""

import statistics

import pytest

from penstock.benchmarks.pytest_rows import rounds as rounds_of
from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters

PLAN_ROWS = 10_000_000


@pytest.fixture
def compare_fresh(request, benchmark, with_peers, fresh):
    """As `compare`, in new processes; a contestant is the name of a function in measured.py and its arguments."""

    def run(contestants: dict[str, tuple], rounds: int, **info) -> None:
        chosen = contestants if with_peers else dict(list(contestants.items())[:1])
        found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}

        rounds = rounds_of(request.config, rounds)

        def all_of_them() -> None:
            for name, (function, *arguments) in chosen.items():
                found[name].append(fresh("measured", function, *arguments))

        benchmark.pedantic(all_of_them, rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)
        kept = {name: values[1:] if rounds > 1 else values for name, values in found.items()}
        seconds = {name: [value["seconds"] for value in values] for name, values in kept.items()}
        ours = statistics.median(seconds["penstock"])
        benchmark.extra_info.update(
            {
                "seconds": {
                    name: {"median": statistics.median(s), "least": min(s), "most": max(s), "rounds": rounds}
                    for name, s in seconds.items()
                },
                "megabytes": {name: max(value["megabytes"] for value in values) for name, values in kept.items()},
                "ratio": {name: statistics.median(s) / ours for name, s in seconds.items() if name != "penstock"},
                "rounds": seconds,
                **info,
            }
        )

    return run


def test_plan(compare_fresh):
    contestants = {
        "penstock": ("plan_penstock", PLAN_ROWS, "pack"),
        "penstock, bucketed": ("plan_penstock", PLAN_ROWS, "bucket"),
        "batch_by_size in numpy": ("plan_batch_by_size", PLAN_ROWS),
        "LengthGroupedSampler": ("plan_length_grouped", PLAN_ROWS),
    }
    compare_fresh(contestants, rounds=2, rows=PLAN_ROWS)


def test_open(compare_fresh, with_peers, store, request):
    contestants = {
        "penstock": ("open_penstock", str(store.path), "mmap"),
        "penstock, pread": ("open_penstock", str(store.path), "pread"),
    }
    if with_peers:
        contestants["datasets.load_from_disk"] = ("open_load_from_disk", request.getfixturevalue("hub_folder"))
        folder = request.getfixturevalue("streaming_folder")
        if folder is not None:
            contestants["MosaicML streaming"] = ("open_streaming", folder)
    compare_fresh(contestants, rounds=3, rows=store.num_examples, shards=len(store.manifest.shards))


def test_seek_in_a_planned_epoch(benchmark, store):
    """To the middle and the first batch there; no peer keeps a plan to seek in."""
    loader = Loader(store, seed=0, parameters=PlanParameters(16_384))
    middle = len(loader) // 2

    def run() -> None:
        loader.seek(0, middle)
        assert next(iter(loader)).index == middle

    benchmark.pedantic(run, rounds=20, warmup_rounds=1)
    benchmark.extra_info.update(rows=store.num_examples, steps=len(loader))


def test_seek_in_a_fresh_process(compare_fresh, with_peers, store, request):
    """Open, go to the middle of an epoch, get the first batch there."""
    contestants = {"penstock": ("seek_penstock", str(store.path))}
    if with_peers:
        hub_folder = request.getfixturevalue("hub_folder")
        for name, function, module in (
            ("StatefulDataLoader", "seek_stateful_data_loader", "torchdata"),
            ("Trainer's skip", "seek_trainer", "accelerate"),
        ):
            try:
                __import__(module)
            except ImportError:
                continue
            contestants[name] = (function, hub_folder)
        folder = request.getfixturevalue("streaming_folder")
        if folder is not None:
            contestants["MosaicML streaming"] = ("seek_streaming", folder)
    compare_fresh(contestants, rounds=2, rows=store.num_examples)


def test_memory_of_an_epoch(benchmark, with_peers, store, fresh):
    """What its own memory grows by for a million rows."""
    found = {}

    def run() -> None:
        found["penstock"] = fresh("measured", "memory_penstock", str(store.path))
        if with_peers:
            count = min(store.num_examples, 100_000)
            found["DataLoader, 4 workers, a list"] = fresh("measured", "memory_data_loader", count)

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(found)
