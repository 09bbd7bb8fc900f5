"""The store that whole training is timed on."""

from pathlib import Path

import pytest

from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.study.settings import packaged_encoder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", type=Path, help="a store with the packaged encoder's tokenizer; else generated reviews")
    parser.addoption("--texts", type=int, default=4000, help="how many are generated")
    parser.addoption("--padded-batch", type=int, default=32, help="texts in a batch of the encoder's padded peers")


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = request.config.getoption("--store")
    if path is None:
        path = tmp_path_factory.mktemp("training") / "store"
        texts = request.config.getoption("--texts")
        prepare(f"synthetic:reviews?n={texts}&seed=0", path, tokenizer=packaged_encoder(), progress=False)
    return Store.open(path)
