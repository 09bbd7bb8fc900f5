"""One row in a hundred is malformed: each is set aside with its place, and all the others are as if it had not been."""

import json
from pathlib import Path

import numpy as np
import pytest

from penstock.engine.data.prepare import prepare

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
