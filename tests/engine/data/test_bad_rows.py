"""One row in a hundred is malformed: each is set aside with its place, and all the others are as if it had not been."""

import json
from pathlib import Path

import numpy as np
import pytest

from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import Reading, open_source
from penstock.engine.errors import SourceError

MALFORMED = [
    (b'{"text": "cut off', "broken JSON: Unterminated string starting at column 10"),
    (b'{"text": "no label"}', "no field 'label'"),
    (b'{"text": null, "label": 1}', "'text' is null"),
    (b'{"text": 17, "label": 1}', "'text' is a number, not a text"),
    (b'{"text": "a", "label": ""}', "'label' is empty"),
    (b'{"text": "a", "label": [1]}', "'label' is a list, not a number or a string"),
    (b'{"text": "\xff", "label": 1}', "not valid UTF-8 at byte 11"),
    (b'{"text": "\\ud800", "label": 1}', "'text' holds half a character"),
    (b"[1, 2]", "not a JSON object"),
    (b"\x00\x00", "broken JSON: Expecting value at column 1"),
]


def check_malformed_rows(folder: Path, tokenizer: str, count: int) -> None:
    """Prepares `count` lines in two files, 1% of them malformed, and only the sound ones of them."""
    random = np.random.default_rng(0)
    malformed = np.zeros(count, bool)
    malformed[random.choice(count, count // 100, replace=False)] = True
    texts = random.integers(0, 1 << 30, count)
    bad, names = [], []
    for part, lines in enumerate(np.array_split(np.arange(count), 2)):
        names.append(str(folder / f"{part}.jsonl"))
        with open(names[-1], "wb") as mixed, open(folder / f"sound{part}.jsonl", "wb") as sound:
            for number, line in enumerate(lines.tolist(), 1):
                if malformed[line]:
                    content, reason = MALFORMED[len(bad) % len(MALFORMED)]
                    bad.append((names[-1], number, reason))
                    mixed.write(content + b"\n")
                else:
                    content = b'{"text": "film %d", "label": %d}\n' % (texts[line], line % 3)
                    mixed.write(content)
                    sound.write(content)
    options = {"tokenizer": tokenizer, "progress": False}
    store = prepare(names, folder / "store", bad_rows="quarantine", **options)
    expected = prepare([str(folder / f"sound{part}.jsonl") for part in range(2)], folder / "expected", **options)

    found = [json.loads(line) for line in (folder / "store.bad-rows.jsonl").read_text().splitlines()]
    assert [(row["source"], row["line"]) for row in found] == [(source, line) for source, line, _ in bad]
    for row, (_, _, reason) in zip(found, bad, strict=True):
        assert row["reason"].startswith(reason), row
    assert store.manifest.bad_rows == count // 100
    assert [source.bad_rows for source in store.manifest.sources] == [
        sum(source == name for source, _, _ in bad) for name in names
    ]

    assert store.num_examples == expected.num_examples == count - count // 100
    assert store.manifest.content == expected.manifest.content
    assert np.array_equal(store.labels, expected.labels)
    assert np.array_equal(store.lengths, expected.lengths)
    for number in range(len(store.manifest.shards)):
        assert np.array_equal(store.map_shard(number).values, expected.map_shard(number).values)
    sound_lines = np.flatnonzero(~malformed)
    half = -(-count // 2)
    for row in (0, 1, 17, store.num_examples // 2, store.num_examples - 1):
        line = int(sound_lines[row])
        assert store.source_of(row) == (names[line >= half], line % half + 1)


def test_one_row_in_a_hundred(tmp_path, tokenizer_path):
    check_malformed_rows(tmp_path, tokenizer_path, 5_000)


@pytest.mark.slow
def test_one_row_in_a_hundred_of_many(tmp_path, tokenizer_path):
    check_malformed_rows(tmp_path, tokenizer_path, 100_000)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
@pytest.mark.parametrize(
    ("line", "closed", "reason"),
    [
        ('"a film, é,1', False, "unexpected end of data"),
        ('"a film, é,1', True, "',' expected after '\"'"),
        ('"a film, é",1,"x', True, "',' expected after '\"'"),
        ('"a film, é,1', "whole", "1 fields where the header has 2"),
    ],
)
def test_a_quote_that_is_not_closed(tmp_path, tokenizer_path, capsys, encoding, line, closed, reason):
    """It takes lines with it: what it begins with, up to where, and how many they are is said."""
    lines = ["text,label", "a,1", "b,2", line, *(f"text {number},{number % 2 + 1}" for number in range(20))]
    if closed:
        lines[10] = '"a text",1' if closed is True else 'a text,1"'
    source = tmp_path / "a.csv"
    source.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    reading = Reading(encoding=encoding if encoding == "cp1252" else None)
    last = 11 if closed else len(lines)
    store = prepare(
        str(source), tmp_path / "s", tokenizer=tokenizer_path, bad_rows="quarantine", progress=False, reading=reading
    )
    (found,) = [json.loads(line) for line in (tmp_path / "s.bad-rows.jsonl").read_text().splitlines()]
    assert found["line"] == 4
    whole = f"{reason} (the row goes on to line {last}: a quote that is not closed?)"
    assert found["reason"] == whole
    assert found["excerpt"].startswith("a film, é,1" if closed == "whole" else line)
    said = f"{source}: line 4: {whole}: {last - 3} lines are set aside as one bad row"
    assert said in capsys.readouterr().err.splitlines()
    assert store.num_examples == len(lines) - 1 - (last - 3)


def test_each_bad_row_has_its_own_beginning(tmp_path, tokenizer_path, capsys):
    source = tmp_path / "a.csv"
    faults = [f'"fault {number},1\n"x"y,2' for number in range(5)]
    source.write_text("text,label\n" + "\n".join(f"a,1\nb,2\n{fault}" for fault in faults) + "\n")
    prepare(str(source), tmp_path / "s", tokenizer=tokenizer_path, bad_rows="quarantine", progress=False)
    found = [json.loads(line) for line in (tmp_path / "s.bad-rows.jsonl").read_text().splitlines()]
    assert [row["excerpt"] for row in found] == [f'"fault {number},1' for number in range(5)]
    said = capsys.readouterr().err.splitlines()
    assert sum("2 lines are set aside as one bad row" in line for line in said) == 3
    assert "... and 2 more bad rows of several lines" in said


def test_a_header_that_is_not_closed(tmp_path):
    (tmp_path / "a.csv").write_text('"text,label\na,1\nb,2\n')
    with pytest.raises(SourceError, match=r"line 1: .* \(the row goes on to line 3: a quote that is not closed\?\)$"):
        open_source(str(tmp_path / "a.csv"))
