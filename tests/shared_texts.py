"""Stores of which the training rows hold texts of the test rows."""

import json
from pathlib import Path

from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.store import Store

SHARED = range(60, 66)  # the training rows that hold the first test texts, under other labels


def stores_that_share_texts(folder: Path, tokenizer: str, rows: int, tests: int) -> tuple[Store, Store]:
    """Training and test store in `folder`, the first of generated reviews of `rows` rows and those of SHARED."""
    train, test = list(generate_reviews(rows, seed=0)), list(generate_reviews(tests, seed=1))
    taken = [(text, stars % 5 + 1) for text, stars in test[: len(SHARED)]]
    for name, own in (("train", [*train[: SHARED.start], *taken, *train[SHARED.start :]]), ("test", test)):
        lines = [json.dumps({"text": text, "label": stars}) for text, stars in own]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    first = prepare(str(folder / "train.jsonl"), folder / "train", tokenizer=tokenizer, progress=False)
    return first, prepare(str(folder / "test.jsonl"), folder / "test", like=first.path, progress=False)
