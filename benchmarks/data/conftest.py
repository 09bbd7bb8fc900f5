"""A store of random tokens with real lengths, the same rows in the form of each peer, and comparisons."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.benchmarks.pytest_rows import rounds as rounds_of
from penstock.benchmarks.random_store import write_store
from penstock.engine.data.store import Store

READ_AHEAD = 3.0  # seconds; streaming's threads are at it for about one
STREAMING_ROWS = 1_000_000  # its writer takes a minute for as many
VERSIONS = ("datasets", "torch", "torchdata", "transformers", "accelerate", "mosaicml-streaming", "numpy", "pyarrow")


def realistic_lengths(count: int) -> np.ndarray:
    """Review-like: log-normal, 3 to 512 tokens, 74 in the mean."""
    return np.random.default_rng(0).lognormal(4.0, 0.8, count).clip(3, 512).astype(np.int32)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=int, default=1_000_000, help="rows of the store that is benchmarked")
    parser.addoption("--read-ahead", type=float, default=READ_AHEAD, help="seconds to wait for others' threads")
    parser.addoption("--keep", type=Path, help="a folder to keep the generated data in, for the next run")


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rows")


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rows: int) -> Path:
    kept = request.config.getoption("--keep")
    return tmp_path_factory.mktemp("benchmark") if kept is None else kept / str(rows)


@pytest.fixture(scope="session")
def store(folder: Path, rows: int) -> Store:
    if not (folder / "store" / "manifest.json").exists():
        write_store(folder / "store", realistic_lengths(rows))
    return Store.open(folder / "store")


def _tables(store: Store, rows: int) -> pa.Table:
    batches = [store.map_shard(number).batch for number in range(len(store.manifest.shards))]
    table = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches]).slice(0, rows)
    return table.select(["tokens", "label"]).rename_columns(["input_ids", "label"])


@pytest.fixture(scope="session")
def hub_folder(store: Store, folder: Path) -> str:
    """The same rows as a saved data set of the datasets library."""
    datasets = pytest.importorskip("datasets")
    if not (folder / "hub" / "state.json").exists():
        datasets.Dataset(_tables(store, store.num_examples)).save_to_disk(folder / "hub")
    return str(folder / "hub")


@pytest.fixture(scope="session")
def streaming_folder(store: Store, folder: Path) -> str | None:
    """The first rows as shards of MosaicML's streaming; None where it is not installed."""
    try:
        from streaming import MDSWriter
    except ImportError:
        return None
    count = min(store.num_examples, STREAMING_ROWS)
    if not (folder / "streaming" / "index.json").exists():
        columns = {"tokens": "ndarray:uint16", "label": "int8"}
        with MDSWriter(out=str(folder / "streaming"), columns=columns, size_limit=1 << 27) as writer:
            for batch in _tables(store, count).to_batches(max_chunksize=10_000):
                tokens = batch["input_ids"]
                values, offsets = np.asarray(tokens.values), np.asarray(tokens.offsets).tolist()
                for label, begin, end in zip(batch["label"].to_pylist(), offsets[:-1], offsets[1:], strict=True):
                    writer.write({"tokens": values[begin:end], "label": label})
    return str(folder / "streaming")


@pytest.fixture(scope="session")
def ten_million_lengths() -> np.ndarray:
    return realistic_lengths(10_000_000)


@pytest.fixture(params=["alone", "peers"])
def with_peers(request: pytest.FixtureRequest) -> bool:
    return request.param == "peers"


Contestant = Callable[[], float]


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark, with_peers: bool) -> Callable[..., dict[str, Any]]:
    """Rounds in which each contestant runs once, in turn, the first of them being penstock.

    A contestant does some work and returns how much (rows, tokens); what is reported is the seconds that one unit
    takes, and the ratio of each peer's median to penstock's. With `warm` each waits until the threads of
    the one before it have read ahead as far as they will, and works once untimed before it is timed.
    """

    def run(contestants: dict[str, Contestant], rounds: int, *, warm: bool = False, **info: Any) -> dict[str, Any]:
        chosen = contestants if with_peers else dict(list(contestants.items())[:1])
        times: dict[str, list[float]] = {name: [] for name in chosen}

        def wake(name: str) -> None:
            if warm:
                time.sleep(request.config.getoption("--read-ahead"))
                chosen[name]()

        def timed(name: str) -> None:
            begin = time.perf_counter()
            amount = chosen[name]()
            times[name].append((time.perf_counter() - begin) / amount)

        def others() -> None:
            for name in list(chosen)[1:]:
                wake(name)
                timed(name)
            wake("penstock")

        count = rounds_of(request.config, rounds)
        benchmark.pedantic(lambda: timed("penstock"), setup=others, rounds=count, warmup_rounds=1)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        results = {
            name: {"median": medians[name], "least": min(values[1:]), "most": max(values[1:]), "rounds": count}
            for name, values in times.items()
        }
        ratios = {name: medians[name] / medians["penstock"] for name in list(chosen)[1:]}
        found = {"seconds_per_unit": results, "ratio": ratios, "versions": versions(), **info}
        found["rounds"] = {name: values[1:] for name, values in times.items()}
        benchmark.extra_info.update(found)
        return found

    return run


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@pytest.fixture(scope="session")
def fresh() -> Callable[..., dict[str, Any]]:
    """Runs a function of a module beside this file in a process of its own, which prints what it returns as JSON.

    It is called with the arguments, once its imports are done.
    """

    def run(module: str, function: str, *arguments: Any) -> dict[str, Any]:
        code = (
            f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import {module}\nprint(json.dumps({module}.{function}(*json.loads(sys.argv[1]))))"
        )
        command = [sys.executable, "-c", code, json.dumps(arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
