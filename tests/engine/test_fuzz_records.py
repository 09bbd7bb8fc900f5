"""Files that penstock reads again, changed at random: one line, or read; never a traceback, never for ever.

More and for longer, from the checkout:  PENSTOCK_FUZZ_SECONDS=300 pytest tests/engine/test_fuzz_records.py
"""

import copy
import json
import os
import random
import shutil
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.data.clusters import read_cluster_file
from penstock.engine.data.job import Job, Receipt
from penstock.engine.data.manifest import Manifest
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import TextTokenizer, load_saved_tokenizer, load_tokenizer, save_tokenizer
from penstock.engine.errors import PenstockError
from penstock.engine.study.costs import read_cost
from penstock.engine.study.directory import planned_trials, read_study
from penstock.engine.study.predictions import Predictions, parse_predictions
from penstock.engine.study.trials import read_result
from penstock.engine.training.run_record import read_record, read_trained_record, saved_thresholds

OLD = Path(__file__).parent / "old_formats"
SECONDS = float(os.environ.get("PENSTOCK_FUZZ_SECONDS", "0.7"))
LONGEST = 10.0  # seconds that a single reading may take
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**32 - 1,
    2**63,
    -(10**30),
    0.5,
    17.5,
    1e308,
    float("nan"),
    float("-inf"),
]
VALUES += [
    "",
    "x",
    "../x",
    "/dev/zero",
    "\0",
    "\ud800",
    "é" * 300,
    [],
    [[]],
    {},
    {"": {}},
    [None] * 50,
    "0" * 64,
    "step-1",
]


def places(value: Any, found: list | None = None) -> list[tuple[Any, Any]]:
    """(holder, key) of everything in a JSON value."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        found.append((value, key))
        places(one, found)
    return found


def mutate(draw: random.Random, original: bytes) -> bytes:
    """Mostly its structure, sometimes its bytes."""
    content = bytearray(original)
    if draw.random() < 0.25:
        for _ in range(draw.randrange(1, 6)):
            at = draw.randrange(len(content) + 1)
            kind = draw.randrange(4)
            if kind == 0 and content:
                content[at % len(content)] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del content[at : at + draw.randrange(1, 40)]
            elif kind == 2:
                content[at:at] = draw.choice(
                    [b'"', b"{", b"[", b"}", b",", b"9" * 60, b"\\ud800", b"\0", b"\xff", b"NaN"]
                )
            else:
                content[at:at] = content[at // 2 : at // 2 + draw.randrange(60)]
        return bytes(content)
    value = json.loads(original)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        known = places(value)
        if not known:
            break
        holder, key = draw.choice(known)
        kind = draw.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder["".join(draw.choices(string.ascii_lowercase, k=3))] = holder.pop(key)
        elif kind == 2:
            other, theirs = draw.choice(known)
            taken = other.get(theirs) if isinstance(other, dict) else next(iter(other[theirs:]), None)
            holder[key] = json.loads(json.dumps(taken))
        elif kind == 3 and isinstance(holder[key], int | float):
            holder[key] = draw.choice(
                [-holder[key], holder[key] + 1, holder[key] * 10**9, holder[key] / 3, holder[key] - 1]
            )
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def outcome(read: Callable[[], Any]) -> Any:
    """What it gives, or the error, whose message is one line."""
    try:
        return read()
    except PenstockError as error:
        found = error
    assert "\n" not in str(found)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return Path(shutil.copytree(OLD, tmp_path_factory.mktemp("fuzz") / "old", symlinks=True))


def use_store(folder: Path) -> None:
    store = Store.open(folder / "train")
    _ = repr(store), store.lengths, store.labels, store.fingerprint
    store.source_of(0)


def use_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder / "train" / "tokenizer"))
    encoder = TextTokenizer(tokenizer, 16)
    encoder.encode(["a film", "", "x" * 100])
    save_tokenizer(tokenizer, 16, "head")


def use_run(folder: Path) -> None:
    read_record(folder / "run")
    record = read_trained_record(folder / "run")
    _ = record["data"]["label_names"], record["identity"].get("training data")


# The file, and what reads it.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "manifest": ("train/manifest.json", use_store),
    "tokenizer": ("train/tokenizer/tokenizer.json", use_tokenizer),
    "tokenizer's settings": ("train/tokenizer/tokenizer_config.json", use_tokenizer),
    "run": ("run/run.json", use_run),
    "model's configuration": ("run/best/config.json", lambda folder: saved_thresholds(folder / "run", 3)),
    "trial": ("study/cells/lstm-30-0.json", lambda folder: read_result(folder / "study/cells/lstm-30-0.json")),
    "cost": ("study/costs/lstm.json", lambda folder: read_cost(folder / "study/costs/lstm.json")),
    "study": ("study/study.json", lambda folder: planned_trials(read_study(folder / "study"))),
}


def mutations(original: bytes, seed: int) -> Iterator[bytes]:
    """For as long as there is time, and a hundred at least."""
    draw, end, count = random.Random(seed), time.monotonic() + SECONDS, 0
    while time.monotonic() < end or count < 100:
        yield mutate(draw, original)
        count += 1


@pytest.mark.parametrize("name", READERS)
def test_a_file_changed_at_random(name, folder):
    file, use = READERS[name]
    path = folder / file
    original = path.read_bytes()
    use(folder)
    refused = 0
    try:
        for content in mutations(original, seed=len(name) + int(SECONDS)):
            path.write_bytes(content)
            began = time.monotonic()
            try:
                refused += isinstance(outcome(lambda: use(folder)), PenstockError)
            except BaseException:
                print(content.decode(errors="replace"))
                raise
            assert time.monotonic() - began < LONGEST, content
    finally:
        path.write_bytes(original)
    assert refused > 30


JOB = {
    "preparation": "x",
    "max_length": 16,
    "truncation": "head",
    "dtype": "uint16",
    "vocab_size": 90,
    "label_names": ["a", "b"],
    "label_counts": [1, 2],
    "content": "x",
    "source_contents": ["x"],
    "rows_per_shard": 10,
    "sources": [{"name": "a.csv", "text": "text", "label": "label", "unit": "line", "rows": 3, "bad_rows": 0}],
    "tokenizer": {"origin": "x", "fingerprint": "x", "probes": "x", "files": {"tokenizer.json": 1}},
}
SHARD = {"name": "shard-00000.arrow", "bytes": 9, "crc32": 1, "rows": 3, "tokens": 7}
RECEIPT = {"preparation": "x", "file": SHARD, "truncated_texts": 0, "empty_texts": 0}


@pytest.mark.slow
def test_a_preparation_changed_at_random(tmp_path):
    for content in mutations(json.dumps(JOB).encode(), seed=1):
        (tmp_path / "preparing.json").write_bytes(content)
        job = outcome(lambda: Job.read(tmp_path))
        assert isinstance(job, PenstockError) or job.num_shards >= 0
    for content in mutations(json.dumps(RECEIPT).encode(), seed=2):
        (tmp_path / "shard-00000.json").write_bytes(content)
        receipt = Receipt.read(tmp_path, 0)
        assert receipt is None or receipt.file.name == "shard-00000.arrow"


def changed_bytes(original: bytes, seed: int) -> Iterator[bytes]:
    draw, end, count = random.Random(seed), time.monotonic() + SECONDS, 0
    while time.monotonic() < end or count < 100:
        content = bytearray(original)
        for _ in range(draw.choice([1, 1, 3])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        yield bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        count += 1


@pytest.mark.slow
def test_parquet_files_changed_at_random(tmp_path):
    import numpy as np
    import torch

    from penstock.engine.study.predictions import PredictionsRecorder

    recorder = PredictionsRecorder(np.arange(50), 3)
    recorder.add(torch.arange(50), torch.arange(50) % 3, torch.eye(3)[torch.arange(50) % 3])
    path = tmp_path / "lstm-30-0.parquet"
    recorder.write(path, test="x", max_test=None, test_rows=50, label_names=["a", "b", "c"])
    for content in changed_bytes(path.read_bytes(), seed=3):
        found = outcome(lambda content=content: parse_predictions(path, content))
        if isinstance(found, Predictions):
            assert max(found.labels.max(), found.truth.max()) < len(found.label_names)


@pytest.mark.slow
def test_cluster_files_changed_at_random(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "test.clusters.parquet"
    metadata = {"penstock.clusters": "1", "penstock.column": "film", "penstock.store": "x"}
    table = pa.table({"cluster": pa.array(range(40), pa.int32())}).replace_schema_metadata(metadata)
    pq.write_table(table, path, write_page_checksum=True)
    for content in changed_bytes(path.read_bytes(), seed=4):
        path.write_bytes(content)
        found = outcome(lambda: read_cluster_file(path, "x"))
        if not isinstance(found, PenstockError):
            assert found.keys.dtype.kind == "i"
            assert found.keys.min() >= 0


def test_the_sound_ones_are_read(folder):
    for _, use in READERS.values():
        use(folder)
    assert Manifest.read(folder / "train").num_examples == 60
    assert load_saved_tokenizer(folder / "train" / "tokenizer") is not None
