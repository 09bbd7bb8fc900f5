"""The store that whole training is timed on."""

from pathlib import Path

import pytest

from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.study.settings import packaged_encoder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", type=Path, help="a store with the packaged encoder's tokenizer; else generated reviews")


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = request.config.getoption("--store")
    if path is None:
        path = tmp_path_factory.mktemp("training") / "store"
        prepare("synthetic:reviews?n=4000&seed=0", path, tokenizer=packaged_encoder(), progress=False)
    return Store.open(path)
