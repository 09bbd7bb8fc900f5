"""Stores of texts alone: how they are made, and that every command which needs labels says that there are none."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import penstock
from few_texts import write_texts
from subtested import as_subtests

from penstock.engine.data import parts
from penstock.engine.data.loader import Loader
from penstock.engine.data.plan import PlanParameters
from penstock.engine.data.prepare import begin, prepare
from penstock.engine.data.sources import open_source
from penstock.engine.data.store import READERS, Store
from penstock.engine.errors import ConfigError, SourceError, StoreError
from penstock.engine.training.settings import load_settings
from penstock.engine.training.train import train

QUICK = ["model.hidden_size=4", "model.embedding_size=4", "training.max_steps=1", "training.tensorboard=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, all_probes) -> Path:
    """Texts of 60 rows, a labelled store of them, one without labels, and a run."""
    made = tmp_path_factory.mktemp("unlabelled")
    source = write_texts(made / "texts.csv", 60, 0)
    store = prepare(str(source), made / "labelled", tokenizer="train:bpe:300", progress=False, rows_per_shard=25)
    prepare(str(source), made / "raw", like=store.path, unlabelled=True, progress=False, rows_per_shard=25)
    train(load_settings(None, QUICK), store, made / "run", progress="none")
    return made


def test_the_texts_are_those_of_a_labelled_store(folder):
    labelled, raw = Store.open(folder / "labelled"), Store.open(folder / "raw", labelled=False)
    assert not raw.is_labelled
    assert (raw.label_names, raw.manifest.label_counts) == ([], [])
    assert set(raw.labels.tolist()) == {-1}
    assert all(np.array_equal(raw.tokens(row), labelled.tokens(row)) for row in range(60))
    assert raw.fingerprint != labelled.fingerprint
    assert sum(1 for _ in raw.verify(deep=True)) == 4 + len(raw.manifest.tokenizer.files)


@pytest.mark.parametrize("reader", READERS)
def test_it_can_be_read(folder, reader):
    raw = Store.open(folder / "raw", reader, labelled=False).cut_to(5).read_with(reader)
    batches = list(Loader(raw, seed=0, parameters=PlanParameters(64)).batches())
    assert sum(batch.num_tokens for batch in batches) == raw.num_tokens
    assert {label for batch in batches for label in batch.labels.tolist()} == {-1}


def test_made_in_parts_from_a_file_without_labels(folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a lovely film\n\nthe dull plot\n" * 20)
    choices = {"like": folder / "raw", "unlabelled": True, "progress": False, "rows_per_shard": 25}
    whole = prepare(str(texts), tmp_path / "whole", **choices)
    begin(str(texts), tmp_path / "parts", **choices)
    assert [parts.write_part(tmp_path / "parts", (index, 2)) for index in range(2)] == [1, 2]
    assert parts.finalize(tmp_path / "parts").fingerprint == whole.fingerprint
    assert prepare(str(texts), tmp_path / "whole", **choices).fingerprint == whole.fingerprint


@as_subtests(
    ("changes", "error", "message"),
    [
        ({"label": "label"}, ConfigError, "--label label has no effect: --unlabelled reads no labels"),
        ({"unlabelled": False}, StoreError, "raw has no labels"),
    ],
)
def test_labels_and_none_contradict_each_other(folder, tmp_path, changes, error, message):
    choices = {"like": folder / "raw", "unlabelled": True, "progress": False, **changes}
    with pytest.raises(error, match=message):
        prepare(str(folder / "texts.csv"), tmp_path / "store", **choices)
    assert not (tmp_path / "store").exists()


def test_a_source_that_was_opened_with_labels(folder, tmp_path):
    with pytest.raises(SourceError, match="was opened with its labels"):
        prepare(open_source(str(folder / "texts.csv")), tmp_path / "store", like=folder / "raw", unlabelled=True)


RUN, LABELLED = "{folder}/run", "{folder}/labelled"
NEED_LABELS = {
    "train": ["train", "--train", "{raw}", "--out", "{new}"],
    "train --eval": ["train", "--train", LABELLED, "--eval", "{raw}", "--out", "{new}"],
    "train --dry-run": ["train", "--train", "{raw}", "--out", "{new}", "--dry-run"],
    "evaluate": ["evaluate", RUN, "--data", "{raw}"],
    "compare": ["compare", RUN, RUN, "--data", "{raw}"],
    "study --train": ["study", "--train", "{raw}", "--test", LABELLED, "--families", "lstm", "--out", "{new}"],
    "study --test": ["study", "--train", LABELLED, "--test", "{raw}", "--families", "lstm", "--out", "{new}"],
    "study --plan": ["study", "--train", LABELLED, "--test", "{raw}", "--families", "lstm", "--plan", "--out", "{new}"],
    "prepare --like": ["prepare", "{folder}/texts.csv", "--like", "{raw}", "--out", "{new}"],
}


@pytest.mark.parametrize("command", NEED_LABELS)
def test_commands_that_need_labels(folder, tmp_path, command):
    raw, new = str(folder / "raw"), tmp_path / "new"
    arguments = [argument.format(folder=folder, raw=raw, new=new) for argument in NEED_LABELS[command]]
    done = penstock(*arguments)
    assert done.returncode == StoreError.exit_code, done.stderr
    assert re.fullmatch(f"penstock: {raw} has no labels, which are needed here: .*\n", done.stderr)
    assert not new.exists()


@pytest.mark.parametrize("command", ["verify", "prepare --unlabelled --like"])
def test_commands_that_do_not(folder, tmp_path, command):
    raw = folder / "raw"
    arguments = {
        "verify": ["verify", raw, "--deep"],
        "prepare --unlabelled --like": [
            *("prepare", folder / "texts.csv", "--like", raw, "--unlabelled", "--out", tmp_path / "new")
        ],
    }[command]
    done = penstock(*arguments)
    assert done.returncode == 0, done.stderr
    if command != "verify":
        assert "labels: none (--unlabelled)" in done.stdout
