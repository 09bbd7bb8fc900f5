"""Every file of a store x what can have happened to it x what is done with the store: the damage is named, in one line,
or it changes nothing."""

import itertools
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from subtested import as_subtests
from transformers import AutoTokenizer

from penstock.engine.data.loader import Loader
from penstock.engine.data.manifest import FileEntry, Manifest
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import READERS, Store
from penstock.engine.errors import PenstockError, StoreError
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun

KINDS = ("single", "lists", "pairs")
TINY = ("model.hidden_size=2", "model.embedding_size=2", "training.max_steps=1", "data.tokens_per_batch=64")


def rows(kind: str) -> list[dict]:
    words = ["the", "film", "was", "not", "very", "good", "but", "its", "end", "made", "me", "laugh"]
    found = []
    for i in range(24):
        text = " ".join(words[(i * 5 + j) % len(words)] for j in range(1 + i % 7))
        label: Any = [["a", "b"], ["b"], ["c", "a"], ["c"]][i % 4] if kind == "lists" else "abc"[i % 3]
        found.append({"text": text, "second": text[::-1], "label": label})
    return found


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("damage")
    for kind in KINDS:
        source = folder / f"{kind}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
        prepare(
            str(source),
            folder / kind,
            tokenizer="train:wordpiece:100" if kind != "pairs" else str(_with_types(folder)),
            text="text,second" if kind == "pairs" else "text",
            max_length=32,
            rows_per_shard=12,
            progress=False,
        )
    return {kind: folder / kind for kind in KINDS}


def _with_types(folder: Path) -> Path:
    """The tokenizer of single texts, which gives its model token types."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    AutoTokenizer.from_pretrained(folder / "single" / "tokenizer", model_input_names=inputs).save_pretrained(
        folder / "tokenizer"
    )
    return folder / "tokenizer"


@pytest.fixture(scope="session")
def run(originals, tmp_path_factory) -> TrainedRun:
    out = tmp_path_factory.mktemp("run") / "run"
    train(load_settings(None, TINY), Store.open(originals["single"]), out, progress="none")
    return TrainedRun.open(out)


@pytest.fixture
def copy(originals, tmp_path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(originals[kind], tmp_path / "copy"))

    return make


def contents(path: Path, reader: str = "mmap") -> list:
    store = Store.open(path, reader)  # type: ignore[arg-type]
    loader = Loader(store, seed=0, parameters=PlanParameters(64), shuffle=False)
    return [
        (b.tokens.values.tolist(), b.labels.tolist(), None if b.seconds is None else b.seconds.tolist())
        for b in loader.batches()
    ]


def steps_of(path: Path, out: Path) -> Any:
    shutil.rmtree(out, ignore_errors=True)
    result = train(load_settings(None, TINY), Store.open(path), out, progress="none")
    weights = zlib.crc32((out / "best" / "model.safetensors").read_bytes())
    return weights, result.validation and result.validation.loss


def outcome(action: Callable[[], Any]) -> Any:
    """What it gives, or the one line that it fails with; anything else is the test's failure."""
    try:
        return action()
    except PenstockError as named:
        found = named
    assert "\n" not in str(found)
    assert found.exit_code > 1
    return found


def moments(path: Path, run: TrainedRun | None, out: Path) -> dict[str, Callable[[], Any]]:
    return {
        "open": lambda: Store.open(path).fingerprint,
        "verify": lambda: list(Store.open(path).verify()),
        "verify --deep": lambda: list(Store.open(path).verify(deep=True)),
        "read": lambda: contents(path),
        "read by pread": lambda: contents(path, "pread"),
        "tokenizer": lambda: Store.open(path).tokenizer().get_vocab(),
        "train": lambda: steps_of(path, out),
        **({"evaluate": lambda: run.evaluate_store(str(path)).metrics} if run is not None else {}),
    }


def replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def damages(content: bytes, other: bytes) -> Iterator[tuple[str, Callable[[Path], None]]]:
    draw = random.Random(len(content))
    for _ in range(5):
        at, bit = draw.randrange(len(content)), draw.randrange(8)
        flipped = bytearray(content)
        flipped[at] ^= 1 << bit
        yield f"bit {bit} of byte {at}", write(bytes(flipped))
    for size in (0, 1, len(content) // 2, len(content) - 1):
        yield f"{size} bytes", write(content[:size])
    yield "bytes behind it", write(content + b"\0" * 9)
    yield "zeros", write(b"\0" * len(content))
    yield "noise", write(draw.randbytes(len(content)))
    yield "of another store", write(other)
    yield "absent", lambda path: None
    yield "a folder", lambda path: path.mkdir()
    yield "a pipe", lambda path: os.mkfifo(path)
    yield "a dangling link", lambda path: path.symlink_to("nothing")
    yield "a link to itself", lambda path: path.symlink_to(path.name)
    yield "a link to a device", lambda path: path.symlink_to("/dev/zero")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_file(kind, originals, copy, run, tmp_path):
    original, other = originals[kind], originals["lists" if kind == "single" else "single"]
    usable = run if kind == "single" else None
    sound = {name: outcome(do) for name, do in moments(original, usable, tmp_path / "out").items()}
    assert not any(isinstance(found, PenstockError) for found in sound.values()), sound
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    assert len(files) >= 6 if kind == "single" else 7
    for file in files:
        content = (original / file).read_bytes()
        foreign = (other / file).read_bytes() if (other / file).is_file() else b"other"
        for what, damage in damages(content, foreign):
            path = copy(kind)
            replace(path / file, damage)
            found = {name: outcome(do) for name, do in moments(path, usable, tmp_path / "out").items()}
            case = f"{file}, {what}"
            unchanged = (path / file).is_file() and not (path / file).is_symlink()
            unchanged = unchanged and (path / file).read_bytes() == content
            if not unchanged and file.name != "manifest.json":
                assert isinstance(found["verify"], StoreError), case
                assert str(file) in str(found["verify"]), (case, found["verify"])
            for name in ("train", "evaluate", "tokenizer"):
                # a manifest that still reads the same is another writing of the same
                if name in found and not isinstance(found[name], PenstockError):
                    assert found[name] == sound[name], (case, name)


def sign(content: dict) -> dict:
    """With the fingerprint that fits and no checksum, as whoever changes a manifest on purpose would write it."""
    content.pop("crc32", None)

    def entry(value: Any) -> Any:
        return FileEntry(**value) if isinstance(value, dict) else value

    with suppress(Exception):
        fields = {**{"is_pair": False, "seconds": None}, **content}
        fields |= {"index": entry(content["index"]), "shards": [entry(shard) for shard in content["shards"]]}
        fields |= {name: entry(fields[name]) for name in ("label_index", "seconds")}
        fields["tokenizer"] = SimpleNamespace(**content["tokenizer"])
        content["fingerprint"] = Manifest.fingerprint.fget(SimpleNamespace(**fields))  # type: ignore[attr-defined]
    return content


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, one in value.items():
            yield from leaves(one, (*path, name))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from leaves(one, (*path, index))


VALUES = (-1, 0, 1, 1 << 16, 1 << 31, 1 << 63, -(10**12), 10**30, 1.5, float("nan"), float("inf"), 1e308, True, None)
VALUES += ("", "x", "../outside.arrow", "/etc/passwd", "a/b", "\ud800", "\0", "x" * 5000, [], {}, [[]], {"name": 1})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_a_manifest(kind, originals, copy, tmp_path):
    """Signed again: only what it says is wrong. What is taken makes the same batches."""
    original = json.loads((originals[kind] / "manifest.json").read_text())
    sound, path, taken = contents(originals[kind]), copy(kind), set()
    for place in leaves(original):
        for value in (*VALUES, KeyError):
            content = json.loads(json.dumps(original))
            holder = content
            for step in place[:-1]:
                holder = holder[step]
            if value is KeyError:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            (path / "manifest.json").write_text(json.dumps(sign(content)))
            found = outcome(lambda: contents(path))
            if not isinstance(found, PenstockError):
                taken.add(place[0])
                assert found == sound, (place, value)
    assert taken


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "penstock-store"',
        "[" * 100_000,
        "9" * 10_000,
        '{"a": 1, "a": 2}',
        "\ufeff{}",
        "NaN",
        '"x"',
        "null",
        '{"format": "penstock-store", "format": "penstock-store"}',
        '{"format": "penstock-store", "version": 1e999}',
    ],
)
def test_manifests_that_are_none(copy, text):
    path = copy("single")
    (path / "manifest.json").write_text(text)
    assert isinstance(outcome(lambda: Store.open(path)), StoreError)


def column_at(path: Path, column: int, buffer: int) -> tuple[int, int]:
    """Where a column's buffer begins in its file, and how long it is."""
    with pa.memory_map(str(path)) as source:
        file = source.read_buffer(path.stat().st_size)
        found = pa.ipc.open_file(pa.BufferReader(file)).get_batch(0).column(column).buffers()[buffer]
        return found.address - file.address, found.size


def patch(store: Path, file: str, column: int, buffer: int, at: int, number: np.generic) -> None:
    """Changes one number of an Arrow file and signs file and manifest again."""
    begin, _ = column_at(store / file, column, buffer)
    content = bytearray((store / file).read_bytes())
    place = begin + at * number.itemsize
    content[place : place + number.itemsize] = number.tobytes()
    (store / file).write_bytes(content)
    manifest = json.loads((store / "manifest.json").read_text())
    for entry in [*manifest["shards"], *(manifest.get(name) for name in ("index", "label_index", "seconds"))]:
        if entry and entry["name"] == file:
            entry["crc32"] = zlib.crc32(content)
    (store / "manifest.json").write_text(json.dumps(sign(manifest)))


INT32, INT64 = np.iinfo(np.int32), np.iinfo(np.int64)
NUMBERS = {
    "label": ("single", "index.arrow", 1, 1, [np.int64(v) for v in (-100, -1, 3, 10**12, INT64.min, INT64.max)]),
    "length": ("single", "index.arrow", 0, 1, [np.int32(v) for v in (-1, 0, 33, INT32.min, INT32.max)]),
    "lists' standing label": ("lists", "index.arrow", 1, 1, [np.int64(v) for v in (-100, 3, 10**12)]),
    "offset of a list": ("lists", "labels.arrow", 0, 1, [np.int64(v) for v in (-1, 10**12, 40, INT64.min)]),
    "label of a list": ("lists", "labels.arrow", 0, 3, [np.int32(v) for v in (-1, 3, INT32.max, INT32.min)]),
    "second text": ("pairs", "seconds.arrow", 0, 1, [np.int32(v) for v in (-1, 33, INT32.max, INT32.min)]),
}
IN_SHARDS = {
    "token": ("single", 0, 3, [np.uint16(v) for v in (100, 65535)]),
    "offset": ("single", 0, 1, [np.int64(v) for v in (-1, 10**12, INT64.min, INT64.max, 0)]),
    "its label": ("single", 1, 1, [np.int32(v) for v in (-1, 7)]),
    "its list": ("lists", 4, 3, [np.int32(v) for v in (-1, 7)]),
    "its second": ("pairs", 4, 1, [np.int32(v) for v in (-1, 99)]),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_the_index(what, copy, run, tmp_path):
    """Named by `verify`, and before the first step of a training."""
    kind, file, column, buffer, values = NUMBERS[what]
    for value in values:
        for at in (0, 3):
            path = copy(kind)
            patch(path, file, column, buffer, at, value)
            for name, do in moments(path, run if kind == "single" else None, tmp_path / "out").items():
                found = outcome(do)
                if name not in ("open", "tokenizer"):
                    assert isinstance(found, StoreError), (what, value, at, name)
                    assert file in str(found), (name, found)


@pytest.mark.parametrize("what", IN_SHARDS)
def test_numbers_of_the_shards(what, copy, originals, run, tmp_path):
    """Named by `verify --deep`; what is read of them is named, or as before."""
    kind, column, buffer, values = IN_SHARDS[what]
    sound = contents(originals[kind])
    for value in values:
        path = copy(kind)
        patch(path, "shard-00001.arrow", column, buffer, 3, value)
        found = {name: outcome(do) for name, do in moments(path, None, tmp_path / "out").items()}
        assert isinstance(found["verify --deep"], StoreError), (what, value)
        for reader in ("read", "read by pread"):
            if not isinstance(found[reader], StoreError):
                assert found[reader] == sound, (what, value, reader)


def test_nothing_is_read_from_outside(copy, tmp_path):
    path = copy("single")
    os.rename(path / "shard-00001.arrow", tmp_path / "outside.arrow")
    content = json.loads((path / "manifest.json").read_text())
    for name in ("../outside.arrow", str(tmp_path / "outside.arrow"), "./shard-00000.arrow", "shard-00000.arrow"):
        content["shards"][1]["name"] = name
        (path / "manifest.json").write_text(json.dumps(sign(content)))
        for reader in READERS:
            with pytest.raises(StoreError, match=r"shards\[1\].name is .* not 'shard-00001.arrow'"):
                Store.open(path, reader)


@pytest.mark.parametrize("name", ["config.json", "../x.json", "model.safetensors", "a/b.json", ".x.json", "own.py"])
def test_a_tokenizer_brings_no_other_files(copy, name):
    """They are copied beside a model's files, and some would take their place."""
    path = copy("single")
    content = json.loads((path / "manifest.json").read_text())
    content["tokenizer"]["files"][name] = 0
    (path / "manifest.json").write_text(json.dumps(sign(content)))
    with pytest.raises(StoreError, match="which is no file of a tokenizer"):
        Store.open(path)
    path = copy("single")
    if "/" not in name and not name.startswith("."):
        (path / "tokenizer" / name).write_text("{}")
        with pytest.raises(StoreError, match=f"{name}: not of the store"):
            Store.open(path).tokenizer()


@as_subtests("kind, greatest", itertools.product(["model", "added"], [1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]))
def test_ids_beyond_any_vocabulary(tmp_path, kind, greatest):
    """The library would go through all the numbers up to there."""
    from penstock.engine.data.tokenizers import load_tokenizer
    from penstock.engine.errors import TokenizerError

    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": greatest, "content": "b", **special}] if kind == "added" else []
    model = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, **({"b": greatest} if kind == "model" else {})}}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    content = {"version": "1.0", **empty, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "model": model}))
    if kind == "model":
        with pytest.raises(TokenizerError, match=f"'b' has the id {greatest:,}"):
            load_tokenizer(str(tmp_path / "tokenizer.json"))
    else:  # the library numbers those itself
        with suppress(TokenizerError):
            assert max(load_tokenizer(str(tmp_path / "tokenizer.json")).get_vocab().values()) < 10
