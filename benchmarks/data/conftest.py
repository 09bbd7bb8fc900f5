"""A store of any size without a tokenizer: random tokens, real lengths."""

import numpy as np
import pytest

from penstock.benchmarks.random_store import write_store
from penstock.engine.data.store import Store


def realistic_lengths(count: int) -> np.ndarray:
    """Review-like: log-normal, 3 to 512 tokens, 74 in the mean."""
    return np.random.default_rng(0).lognormal(4.0, 0.8, count).clip(3, 512).astype(np.int32)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=int, default=1_000_000, help="rows of the store that is benchmarked")


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rows")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, rows: int) -> Store:
    return write_store(tmp_path_factory.mktemp("benchmark") / "store", realistic_lengths(rows))


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
