"""A damaged store is refused when it is opened or verified, and never takes the process with it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import READERS, Store
from penstock.engine.errors import StoreError

DATA_FILES = ["index.arrow", *(f"shard-0000{i}.arrow" for i in range(4))]


@pytest.fixture
def copy(tmp_path, store):
    shutil.copytree(store.path, tmp_path / "copy")
    return tmp_path / "copy"


def read_all(path, reader="mmap") -> int:
    loader = Loader(Store.open(path, reader), seed=0, parameters=PlanParameters(64))
    return sum(batch.num_tokens for batch in loader.batches())


def edit_manifest(path, **changes) -> None:
    content = json.loads((path / "manifest.json").read_text())
    del content["crc32"]  # as whoever changes it on purpose
    (path / "manifest.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("reader", READERS)
def test_readers_agree(store, reader):
    opened = Store.open(store.path, reader=reader)
    assert opened.lengths.tolist() == store.lengths.tolist()
    assert opened.labels.tolist() == store.labels.tolist()
    assert [opened.tokens(i).tolist() for i in range(103)] == [store.tokens(i).tolist() for i in range(103)]
    assert opened.fingerprint == store.fingerprint
    assert read_all(store.path, reader) == store.num_tokens


def test_views_are_not_copies(store):
    assert not store.lengths.flags.owndata
    assert not store.labels.flags.writeable


def test_pickle(store):
    assert pickle.loads(pickle.dumps(store)).fingerprint == store.fingerprint


def test_no_such_row(store):
    with pytest.raises(IndexError):
        store.tokens(103)


def test_verify_names_every_file(store):
    names = list(store.verify())
    assert names[-5:] == DATA_FILES
    assert "tokenizer/tokenizer.json" in names


def test_not_a_store(tmp_path, copy):
    with pytest.raises(StoreError, match="no such store"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no manifest.json; prepare it first"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="a store is a folder"):
        Store.open(copy / "manifest.json")
    (copy / "manifest.json").unlink()
    with pytest.raises(StoreError, match="not a store"):
        Store.open(copy)
    with pytest.raises(ValueError, match="mmap, pread"):
        Store.open(copy, reader="s3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "not the manifest"),
        ('{"format": "other"}', "not the manifest"),
        ('{"format": "penstock-store", "version": 99}', "format 99"),
        ('{"format": "penstock-store", "version": 1}', "damaged"),
    ],
)
def test_strange_manifests(copy, content, message):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        Store.open(copy)


def test_changed_manifest(copy):
    edit_manifest(copy, label_names=["a", "b", "c"])
    with pytest.raises(StoreError, match="fingerprint does not fit"):
        Store.open(copy)


@pytest.mark.parametrize("name", DATA_FILES)
def test_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: missing"):
        Store.open(copy)


@pytest.mark.parametrize("name", DATA_FILES)
@pytest.mark.parametrize("change", [-1, -300, 1])
def test_other_size_is_named(copy, name, change):
    size = (copy / name).stat().st_size
    with open(copy / name, "r+b") as file:
        file.truncate(size + change)
    with pytest.raises(StoreError, match=f"{name}: damaged: {size + change} bytes"):
        Store.open(copy)
    (copy / name).write_bytes(b"")
    with pytest.raises(StoreError, match=f"{name}: damaged: 0 bytes"):
        Store.open(copy)


def test_swapped_shards_are_named(copy):
    a, b = copy / "shard-00000.arrow", copy / "shard-00001.arrow"
    sizes = a.stat().st_size, b.stat().st_size
    os.rename(a, copy / "x")
    os.rename(b, a)
    os.rename(copy / "x", b)
    for path, size in zip((a, b), sizes, strict=True):
        with open(path, "r+b") as file:
            file.truncate(size)
    with pytest.raises(StoreError, match=r"shard-0000\d.arrow: (belongs to another store|damaged)"):
        Store.open(copy)


def test_foreign_shard_is_named(copy, tmp_path, tokenizer_path, reviews_file):
    """The other shard has the same size, types and counts, but was made from other labels."""
    rows = [json.loads(line) for line in Path(reviews_file).read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "label": (row["label"] + 1) % 3}) + "\n" for row in rows))
    prepare(str(other), tmp_path / "other", tokenizer=tokenizer_path, rows_per_shard=30, progress=False)
    shutil.copy(tmp_path / "other" / "shard-00002.arrow", copy / "shard-00002.arrow")
    with pytest.raises(StoreError, match=r"shard-00002.arrow: belongs to another store"):
        Store.open(copy)


@pytest.mark.slow
def test_every_flipped_byte_is_caught(store, copy):
    """At open, while reading, or by verify; and never with a crash or a wrong id."""
    name = "shard-00001.arrow"
    original = (copy / name).read_bytes()
    at_open = 0
    for at in range(0, len(original), 11):
        data = bytearray(original)
        data[at] ^= 0x81
        (copy / name).write_bytes(data)
        with pytest.raises(StoreError, match=name):
            list(Store.open(copy).verify())
        try:
            opened = Store.open(copy)
        except StoreError:
            at_open += 1
            continue
        for row in range(30, 60):
            with suppress(StoreError):
                assert opened.tokens(row).max() < opened.vocab_size
    assert at_open > 5


@pytest.mark.parametrize("reader", READERS)
def test_damaged_offsets_stay_in_bounds(store, copy, reader):
    offsets = store.map_shard(1).offsets_at
    for value in (-1, -(2**62), 2**62, 10**6):
        with open(copy / "shard-00001.arrow", "r+b") as file:
            file.seek(offsets + 8 * 5)
            file.write(np.int64(value).tobytes())
        with pytest.raises(StoreError, match=r"shard-00001.arrow: is damaged"):
            read_all(copy, reader)


@pytest.mark.parametrize("reader", READERS)
def test_lengths_that_disagree(store, copy, reader):
    shard = store.map_shard(1)
    with open(copy / "shard-00001.arrow", "r+b") as file:
        file.seek(shard.offsets_at + 8 * 5)
        file.write((shard.offsets[5:6] + 1).tobytes())
    with pytest.raises(StoreError, match="damaged"):
        Store.open(copy, reader).tokens(34)


@pytest.mark.parametrize("reader", READERS)
def test_token_outside_the_vocabulary(store, copy, reader):
    shard = store.map_shard(1)
    with open(copy / "shard-00001.arrow", "r+b") as file:
        file.seek(shard.values_at + 2 * 9)
        file.write(np.uint16(store.vocab_size).tobytes())
    with pytest.raises(StoreError, match=f"token {store.vocab_size} in a vocabulary of {store.vocab_size}"):
        read_all(copy, reader)


def test_tokenizer_damage(copy):
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"version"', '"Version"'))
    with pytest.raises(StoreError, match=r"tokenizer.json: damaged"):
        list(Store.open(copy).verify())


def test_library_that_tokenizes_otherwise(store, monkeypatch):
    from penstock.engine.data.tokenizers import TextTokenizer

    monkeypatch.setattr(TextTokenizer, "probes", lambda self: "others")
    list(store.verify())
    with pytest.raises(StoreError, match="gives other tokens"):
        list(store.verify(deep=True))


SHRINK = """
import os, sys
from penstock.engine.data.store import Store
from penstock.engine.errors import StoreError
store = Store.open(sys.argv[1], reader=sys.argv[2])
os.truncate(sys.argv[1] + "/shard-00001.arrow", 0)
try:
    store.tokens(35)
except StoreError as error:
    print(error)
"""


def test_pread_survives_a_file_that_shrinks(copy):
    result = subprocess.run([sys.executable, "-c", SHRINK, str(copy), "pread"], capture_output=True, text=True)
    assert "shard-00001.arrow: is shorter than it was when the store was opened" in result.stdout
    assert result.returncode == 0


def test_other_tools_read_the_shards(store):
    import pyarrow as pa

    with pa.memory_map(str(store.path / "shard-00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["tokens", "label", "source", "source_row"]
    assert table["tokens"][3].as_py() == store.tokens(3).tolist()
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset(table)
    assert data[3]["tokens"] == store.tokens(3).tolist()
