"""Our cutting and special tokens against the library's own; learned tokenizers are reproducible."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from subtested import as_subtests
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from penstock.engine.data.prepare import prepare
from penstock.engine.data.tokenizer_training import parse_train_spec, train_tokenizer
from penstock.engine.data.tokenizers import TextTokenizer, load_tokenizer, probe_texts
from penstock.engine.errors import TokenizerError

TEXTS = ["", "one", "The film was good. " * 3, "été 電影 🎬 \u0301", "x " * 200, "word " * 6 + "end"]


def split(encoded) -> list[list[int]]:
    ends = np.cumsum(encoded.lengths)
    return [encoded.values[end - length : end].tolist() for end, length in zip(ends, encoded.lengths, strict=True)]


@pytest.mark.slow
@as_subtests("max_length", [3, 8, 9, 4096])
def test_head_equals_the_library(minilm, max_length):
    tokenizer = load_tokenizer(minilm)
    ours = TextTokenizer(tokenizer, max_length).encode(TEXTS)
    theirs = tokenizer(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    whole = tokenizer(TEXTS, truncation=False)["input_ids"]
    assert split(ours) == theirs
    assert ours.truncated == sum(len(ids) > max_length for ids in whole)


def test_head_and_tail(minilm):
    tokenizer = load_tokenizer(minilm)
    whole = tokenizer(TEXTS)["input_ids"]
    ours = split(TextTokenizer(tokenizer, 10, "head+tail").encode(TEXTS))
    for ids, cut in zip(whole, ours, strict=True):
        body = ids[1:-1]
        expected = ids if len(ids) <= 10 else [ids[0], *body[:2], *body[-6:], ids[-1]]
        assert cut == expected


def test_a_long_text_is_cut(minilm):
    encoded = TextTokenizer(load_tokenizer(minilm), 16).encode(["word " * 20_000, "short"])
    assert encoded.lengths.tolist() == [16, 3]
    assert encoded.truncated == 1


def make(single: str | None) -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "[X]": 2, "[Y]": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if single is not None:
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[X]", 2), ("[Y]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@as_subtests(
    "single, ids",
    [(None, [0, 1]), ("[X] $A", [2, 0, 1]), ("$A [Y]", [0, 1, 3]), ("[X] [Y] $A [Y]", [2, 3, 0, 1, 3])],
)
def test_own_templates_are_kept(single, ids):
    encoded = TextTokenizer(make(single), 8).encode(["a b", ""])
    assert split(encoded)[0] == ids
    assert len(split(encoded)[1]) == len(ids) - 2


def test_no_room_for_text():
    with pytest.raises(TokenizerError, match="max_length 2 leaves no room"):
        TextTokenizer(make("[X] $A [Y]"), 2)


@pytest.mark.parametrize("name", ["train:bpe:400", "train:wordpiece:400"])
def test_learned_tokenizer(name, tmp_path):
    spec = parse_train_spec(name)
    texts = ["The film was good, it was Ünïque.", "a film about films"] * 40
    learned = train_tokenizer(spec, lambda: [texts[:7], texts[7:]])
    again = train_tokenizer(spec, lambda: [texts])
    assert learned.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert len(learned) <= 400
    assert learned.pad_token_id is not None
    learned.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert split(TextTokenizer(loaded, 16).encode(texts)) == split(TextTokenizer(learned, 16).encode(texts))
    ids = loaded("a film 電影")["input_ids"]
    assert ids[0] == loaded.cls_token_id
    assert ids[-1] == loaded.sep_token_id
    assert loaded.decode(ids, skip_special_tokens=True) == ("a film 電影" if "bpe" in name else "a film")


LEARN = """
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.tokenizer_training import parse_train_spec, train_tokenizer
import hashlib
texts = [text for text, _ in generate_reviews(300, 0)]
digests = []
for name in ("train:bpe:700", "train:wordpiece:700"):
    learned = train_tokenizer(parse_train_spec(name), lambda: [texts]).backend_tokenizer.to_str()
    digests.append(hashlib.sha256(learned.encode()).hexdigest())
"""


@pytest.mark.slow
def test_learning_is_the_same_in_every_process():
    """Whatever its threads and the seed of its hash tables."""
    here: dict = {}
    exec(LEARN, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{LEARN}\nprint(*digests)"],
        env={**os.environ, "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == here["digests"]


@pytest.mark.slow
def test_fingerprint_does_not_depend_on_use(minilm):
    tokenizer = load_tokenizer(minilm)
    before = TextTokenizer(tokenizer, 16).fingerprint()
    tokenizer(TEXTS, padding=True, truncation=True, max_length=5)
    assert TextTokenizer(tokenizer, 16).fingerprint() == before
    assert TextTokenizer(make("[X] $A"), 16).fingerprint() != TextTokenizer(make("$A [X]"), 16).fingerprint()


def test_probes_differ_between_tokenizers(minilm):
    assert len(set(probe_texts())) == 1000
    assert TextTokenizer(load_tokenizer(minilm), 16).probes() != TextTokenizer(make("[X] $A"), 16).probes()


@as_subtests(
    "name, message",
    [
        ("train:bpe", "expected train:bpe:N"),
        ("train:unigram:100", "expected train:bpe:N"),
        ("train:bpe:many", "expected train:bpe:N"),
        ("train:bpe:100", "261 tokens at least"),
    ],
)
def test_wrong_train_spec(name, message):
    with pytest.raises(TokenizerError, match=message):
        parse_train_spec(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-organisation/no-such-model", "hub"),
        ("/no/such/folder", "no such folder"),
        ("{tmp}", "no tokenizer can"),
    ],
)
def test_unknown_tokenizer(tmp_path, name, message):
    name = name.replace("{tmp}", str(tmp_path))
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_gives_its_tokenizer(tmp_path, tokenizer_path):
    texts = [("a film", "1"), ("the end", "2")]
    store = prepare(texts, tmp_path / "store", tokenizer=tokenizer_path, progress=False)
    other = prepare(texts, tmp_path / "other", tokenizer=str(store.path), progress=False)
    assert other.manifest.tokenizer.fingerprint == store.manifest.tokenizer.fingerprint


@pytest.mark.parametrize("name", ["empty", "vocabulary", "damaged", "store"])
def test_a_folder_without_a_tokenizer_is_named_whole(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    if name == "vocabulary":
        (folder / "config.json").write_text("{}")
    elif name == "damaged":
        (folder / "tokenizer.json").write_text("{")
    elif name == "store":
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"no tokenizer can be loaded from it: .*[^:]$"):
        load_tokenizer(str(folder))
