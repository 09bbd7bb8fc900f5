import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store

SENTENCE = "the film was not very good but its end made me laugh and cry over all of it again"
WORDS = SENTENCE.split()


def make_texts(count: int) -> list[str]:
    """Different texts of 0 to 40 words."""
    return [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(i * 13 % 41)) for i in range(count)]


def write_jsonl(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small byte-level BPE tokenizer, by path."""
    from penstock.engine.data.tokenizer_training import parse_train_spec, train_tokenizer

    spec = parse_train_spec("train:bpe:300")
    assert spec is not None
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(spec, lambda: [make_texts(50)]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """103 rows with three labels."""
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(make_texts(103))]
    return write_jsonl(tmp_path_factory.mktemp("reviews") / "reviews.jsonl", rows)


@pytest.fixture
def make_store(tmp_path: Path, tokenizer_path: str, reviews_file: str) -> Callable[..., Store]:
    """Prepares the reviews, four shards of them, into a new folder."""
    count = 0

    def make(**options) -> Store:
        nonlocal count
        count += 1
        options = {"tokenizer": tokenizer_path, "rows_per_shard": 30, "progress": False, **options}
        return prepare(reviews_file, tmp_path / f"store{count}", **options)

    return make


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: str, reviews_file: str) -> Store:
    """The same, to be read only."""
    out = tmp_path_factory.mktemp("stores") / "store"
    return prepare(reviews_file, out, tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
