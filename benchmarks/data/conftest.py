"""A store of any size without a tokenizer: random tokens, real lengths."""

from pathlib import Path

import numpy as np
import pytest

from penstock.engine.data.job import Job, Receipt, ShardRows, finish_job, start_job, write_shard
from penstock.engine.data.manifest import SourceEntry, TokenizerEntry
from penstock.engine.data.store import Store


def realistic_lengths(count: int) -> np.ndarray:
    """Review-like: log-normal, 3 to 512 tokens, 74 in the mean."""
    return np.random.default_rng(0).lognormal(4.0, 0.8, count).clip(3, 512).astype(np.int32)


def write_store(folder: Path, rows: int) -> Store:
    folder.mkdir()
    job = Job(
        preparation="benchmark",
        max_length=512,
        truncation="head",
        dtype="uint16",
        vocab_size=30_000,
        label_names=["0", "1"],
        label_counts=[rows - rows // 2, rows // 2],
        content="random",
        rows_per_shard=131_072,
        sources=[SourceEntry("random", "text", "label", "row", rows, 0)],
        tokenizer=TokenizerEntry("none", "none", "none", {}),
    )
    start_job(folder, job, shared=False)
    lengths, random = realistic_lengths(rows), np.random.default_rng(1)
    for shard in range(job.num_shards):
        count = job.rows_of(shard)
        positions = np.arange(count, dtype=np.int64) + shard * job.rows_per_shard
        part = lengths[positions]
        values = random.integers(0, 30_000, int(part.sum()), np.uint16)
        labels = (positions % 2).astype(np.int32)
        write_shard(folder, job, shard, ShardRows([values], part, labels, labels * 0, positions + 1, 0, 0))
    receipts = [Receipt.read(folder, shard) for shard in range(job.num_shards)]
    finish_job(folder, job, [receipt for receipt in receipts if receipt is not None])
    return Store.open(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=int, default=1_000_000, help="rows of the store that is benchmarked")


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rows")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, rows: int) -> Store:
    return write_store(tmp_path_factory.mktemp("benchmark") / "store", rows)


@pytest.fixture(scope="session")
def hub_dataset(store: Store, tmp_path_factory: pytest.TempPathFactory):
    """The first 100,000 rows as a saved data set of the datasets library."""
    datasets = pytest.importorskip("datasets")
    count = min(store.num_examples, 100_000)
    tables = [store.map_shard(number).batch for number in range(len(store.manifest.shards))]
    import pyarrow as pa

    table = pa.Table.from_batches([table.replace_schema_metadata(None) for table in tables]).slice(0, count)
    folder = tmp_path_factory.mktemp("hub") / "saved"
    datasets.Dataset(table.rename_columns(["input_ids", "label", "source", "source_row"])).select_columns(
        ["input_ids", "label"]
    ).save_to_disk(folder)
    return datasets.load_from_disk(folder)


@pytest.fixture(scope="session")
def ten_million_lengths() -> np.ndarray:
    return realistic_lengths(10_000_000)
