from pathlib import Path

import pytest
from few_texts import write_texts

from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.training.settings import load_settings


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    return {"train": write_texts(folder / "train.csv", 240, 0), "test": write_texts(folder / "test.csv", 90, 1)}


@pytest.fixture(scope="session")
def store(texts, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("stores") / "train"
    return prepare(str(texts["train"]), folder, tokenizer="train:wordpiece:150", max_length=64, progress=False)


@pytest.fixture(scope="session")
def test_store(texts, store) -> Store:
    return prepare(str(texts["test"]), store.path.with_name("test"), like=store.path, progress=False)


@pytest.fixture(scope="session")
def settings():
    """A tiny LSTM and quick training; takes overrides."""

    def make(*overrides: str):
        sizes = ["model.hidden_size=8", "model.embedding_size=8", "model.num_layers=1"]
        return load_settings(
            None,
            [
                *(sizes if "model.kind=encoder" not in overrides else []),
                "data.tokens_per_batch=256",
                "data.validation_fraction=0.1",
                "training.learning_rate=3e-2",
                "training.epochs=4",
                "training.log_every_steps=1",
                "training.tensorboard=false",
                *overrides,
            ],
        )

    return make
