import csv
import random
from pathlib import Path

import pytest
from subtested import as_subtests
from typer.testing import CliRunner

from penstock.engine import cli
from penstock.engine.data.overlap import Overlap, find_overlap, shared_rows
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import StoreError


def write_csv(path: Path, rows: list[tuple[str, str]]) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def stores(folder: Path, train: list[tuple[str, str]], test: list[tuple[str, str]], **options) -> tuple[Store, Store]:
    choices = {"tokenizer": "train:wordpiece:200", "progress": False, "rows_per_shard": 7, **options}
    made = prepare(write_csv(folder / "train.csv", train), folder / "train", **choices)
    like = {"like": made.path, "progress": False, "rows_per_shard": 5}
    return made, prepare(write_csv(folder / "test.csv", test), folder / "test", **like)


@pytest.mark.slow
@as_subtests("seed", range(4))
def test_the_overlap_is_what_a_dictionary_finds(tmp_path: Path, seed: int):
    random_ = random.Random(seed)

    def draw(rows: int) -> list[tuple[str, str]]:
        texts = [
            " ".join(random_.choices(["red", "green", "blue", "amber"], k=random_.randint(0, 3))) for _ in range(rows)
        ]
        return [(text, random_.choice("ab")) for text in texts] + [("closing words", "a"), ("closing words", "b")]

    train, test = stores(tmp_path, draw(60), draw(30))
    seen: dict[tuple[int, ...], set[int]] = {}
    for row in range(train.num_examples):
        seen.setdefault(tuple(train.tokens(row)), set()).add(int(train.labels[row]))
    shared = [row for row in range(test.num_examples) if tuple(test.tokens(row)) in seen]
    other = [row for row in shared if int(test.labels[row]) not in seen[tuple(test.tokens(row))]]
    assert find_overlap(train, test) == Overlap(test.num_examples, len(shared), len(other))
    assert len(shared) > 0


def test_nothing_shared_and_everything(tmp_path: Path):
    train, test = stores(tmp_path, [("red", "a"), ("green", "b")] * 9, [("blue", "a"), ("blue red", "b")])
    assert str(find_overlap(train, test)) == "none of the 2 test rows agrees in all tokens kept with a training row"
    assert find_overlap(train, train) == Overlap(18, 18, 0)


def test_texts_that_were_cut_agree_in_what_was_kept(tmp_path: Path):
    train, test = stores(tmp_path, [("red green blue", "a"), ("blue", "b")], [("red green amber", "b")], max_length=4)
    assert find_overlap(train, test) == Overlap(1, 1, 1)


def test_stores_of_other_tokenizers_cannot_be_compared(tmp_path: Path):
    train, _ = stores(tmp_path, [("red", "a"), ("green", "b")], [("red", "a")])
    (tmp_path / "other").mkdir()
    other, _ = stores(tmp_path / "other", [("blue", "a"), ("amber", "b")], [("blue", "a")], tokenizer="train:bpe:300")
    with pytest.raises(StoreError, match="different tokenizers"):
        find_overlap(train, other)


def test_prepare_like_says_it(tmp_path: Path):
    train, _ = stores(tmp_path, [("red", "a"), ("green", "b")], [("red", "a")])
    source = write_csv(tmp_path / "more.csv", [("red", "b"), ("blue", "a"), ("green", "b")])
    arguments = ["prepare", source, "--out", str(tmp_path / "more"), "--like", str(train.path)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        f"overlap with {train.path}: 2 of 3 test rows (66.7%) agree in all tokens kept with a training row, "
        "1 under another label"
    )


CUTS = [
    ((64, "head"), (5, "head")),
    ((5, "head"), (64, "head")),
    ((64, "tail"), (5, "tail")),
    ((5, "head"), (64, "tail")),
]


@as_subtests("ours, theirs", CUTS)
def test_stores_that_keep_different_lengths_are_compared_by_the_shorter(tmp_path: Path, ours, theirs):
    rows = [("red green blue red green blue red", "a"), ("blue", "b"), ("red green", "a")]
    train, _ = stores(tmp_path, rows, rows, max_length=ours[0], truncation=ours[1])
    again = {"tokenizer": str(train.path / "tokenizer"), "max_length": theirs[0], "truncation": theirs[1]}
    other = prepare(write_csv(tmp_path / "other.csv", rows), tmp_path / "other", progress=False, **again)
    for one, two in ((train, other), (other, train)):
        assert find_overlap(one, two) == Overlap(3, 3, 0)
        assert shared_rows(one, two).tolist() == [0, 1, 2]


UNLIKE = [
    ({"max_length": 5}, {"max_length": 5, "truncation": "tail"}),
    ({"max_length": 6, "truncation": "tail"}, {"max_length": 5, "truncation": "head"}),
    ({"text": "text,label", "max_length": 5}, {"text": "text,label", "max_length": 64}),
    ({}, {"text": "text,label"}),
]


@as_subtests("ours, theirs", UNLIKE)
def test_overlap_that_cannot_be_seen_is_an_error(tmp_path: Path, ours, theirs):
    """Rather than none."""
    source = write_csv(tmp_path / "a.csv", [("red green blue red green blue red", "a"), ("blue", "b")])
    first = prepare(source, tmp_path / "one", tokenizer="train:wordpiece:200", unlabelled=True, progress=False, **ours)
    tokenizer = str(first.path / "tokenizer")
    other = prepare(source, tmp_path / "two", tokenizer=tokenizer, unlabelled=True, progress=False, **theirs)
    for one, two in ((first, other), (other, first)):
        with pytest.raises(StoreError, match="prepare one --like the other"):
            shared_rows(one, two)
