"""What a run reads of a text: decided in one place, the same in training, evaluation, prediction and wherever the
model is served."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from subtested import as_subtests
from tiny_encoders import POSITIONS, stock_model
from transformers import AutoTokenizer

from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.training.distil import material_for
from penstock.engine.training.reading import Reading, read_by, recipe_lines, settle_reading, share
from penstock.engine.training.recipe import most_tokens
from penstock.engine.training.settings import load_settings
from penstock.engine.training.teachers import Teacher
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun


def rows_of(count: int, words: int, pairs: bool = False) -> list:
    """Texts of up to `words` words whose label is their first and last word's."""
    texts = []
    for number in range(count):
        label = ("good", "bad", "fair")[number % 3]
        filler = ["the", "film", "was", "plot", "a"][: number % 5] * (words // 5)
        texts.append((" ".join([label, *filler[: words - 2], label]), label))
    return [((text, "and more"), label) for text, label in texts] if pairs else texts


@pytest.fixture(scope="module")
def long_store(tmp_path_factory) -> Store:
    """Texts of up to 62 tokens, of which up to 90 are kept."""
    folder = tmp_path_factory.mktemp("long") / "store"
    return prepare(rows_of(60, 60), folder, tokenizer="train:wordpiece:100", max_length=90, progress=False)


@pytest.fixture(scope="module")
def encoder(long_store, tmp_path_factory) -> str:
    """Has positions for 40 tokens."""
    folder = tmp_path_factory.mktemp("encoder")
    stock_model("bert", vocab_size=long_store.vocab_size).save_pretrained(folder)
    long_store.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def limited(long_store, tmp_path_factory):
    """Stores of the same texts, whatever their number of tokens, by limit; and one of pairs."""
    folder, made = tmp_path_factory.mktemp("limited"), {}

    def make(max_length: int, pairs: bool = False) -> Store:
        if (max_length, pairs) not in made:
            made[max_length, pairs] = prepare(
                rows_of(60, 60, pairs),
                folder / f"{max_length}-{pairs}",
                tokenizer=str(long_store.path / "tokenizer"),
                max_length=max_length,
                progress=False,
            )
        return made[max_length, pairs]

    return make


def test_what_a_kind_of_model_reads():
    assert [most_tokens(kind) for kind in ("encoder", "lstm", "bag")] == [512, 1024, None]
    assert [most_tokens("encoder", positions) for positions in (40, 512, 8192)] == [40, 512, 512]


# kind, positions, the store's limit, whether it is of pairs, stated settings; what is read, or part of the message
DECIDED = [
    ("lstm", None, 90, False, {}, "whole"),
    ("lstm", None, 2000, False, {}, 1024),
    ("bag", None, 2000, False, {}, "whole"),
    ("encoder", 512, 2000, False, {}, 512),
    ("encoder", 8192, 2000, False, {}, 512),
    ("encoder", 40, 90, False, {}, 40),
    ("encoder", 40, 30, False, {}, "whole"),
    ("encoder", 40, 40, False, {}, "whole"),
    ("lstm", None, 2000, False, {"max_length": 10}, 10),
    ("lstm", None, 2000, False, {"max_length": 1500}, 1500),
    ("lstm", None, 2000, False, {"max_length": "whole"}, "whole"),
    ("lstm", None, 2000, False, {"max_length": 2000}, "whole"),
    ("lstm", None, 2000, False, {"max_length": 5000}, "whole"),
    ("lstm", None, 2000, False, {"truncation": "tail"}, 1024),
    ("lstm", None, 90, False, {"max_length": 90, "truncation": "head"}, "whole"),
    ("bag", None, 90, False, {"max_length": 20, "truncation": "head+tail"}, 20),
    ("encoder", 40, 90, False, {"max_length": 40}, 40),
    ("encoder", 40, 90, False, {"max_length": 41}, "positions for 40 tokens: set data.max_length=40"),
    ("encoder", 40, 90, False, {"max_length": "whole"}, "positions for 40 tokens: set data.max_length=40"),
    ("encoder", 40, 90, False, {"max_length": 5000}, "positions for 40 tokens: set data.max_length=40"),
    ("encoder", 62, 90, False, {"max_length": "whole"}, "whole"),
    ("bag", None, 90, False, {"truncation": "tail"}, "data.truncation=tail has no effect"),
    ("lstm", None, 90, False, {"max_length": 90, "truncation": "tail"}, "data.truncation=tail has no effect"),
    ("lstm", None, 90, False, {"max_length": 2}, "no room for text"),
    ("lstm", None, 90, True, {}, "whole"),
    ("lstm", None, 2000, True, {}, 1024),
    ("lstm", None, 90, True, {"max_length": 20}, "prepare the store with --max-length 20"),
    ("encoder", 40, 90, True, {}, "prepare the store with --max-length 40"),
    ("encoder", 70, 90, True, {}, 70),
    ("lstm", None, 2000, True, {"truncation": "head+tail"}, "is for single texts"),
]


@as_subtests("kind, positions, limit, pairs, stated, expected", DECIDED)
def test_what_is_read_is_decided(limited, kind, positions, limit, pairs, stated, expected):
    store = limited(limit, pairs)
    values = [f"model.kind={kind}", *(["model.encoder=e"] if kind == "encoder" else [])]
    settings = load_settings(None, [*values, *(f"data.{key}={value}" for key, value in stated.items())])
    if isinstance(expected, str) and expected != "whole":
        with pytest.raises(ConfigError, match=expected.replace("+", r"\+")):
            settle_reading(settings, store, positions)
        return
    settled = settle_reading(settings, store, positions)
    assert settled.data.max_length == expected
    assert settle_reading(settled, store, positions) == settled, "once is enough"
    assert read_by(settled, store).max_length == (limit if expected == "whole" else expected)
    own = stated.get("truncation", "auto") in ("auto", store.truncation)
    assert settled.data.truncation == ("auto" if own else stated["truncation"])


QUICK = ("data.validation_fraction=0.2", "training.epochs=2")


# the cut is the store's, and knows nothing of the model: each model has one, the quickest has them all
@pytest.mark.parametrize(
    ("kind", "truncation"),
    [("lstm", "head"), ("lstm", "tail"), ("lstm", "head+tail"), ("bag", "head+tail"), ("encoder", "tail")],
)
def test_a_run_is_that_of_a_store_prepared_so(tmp_path, long_store, encoder, settings, kind, truncation):
    """Figures, predictions and tokenizer: one of whole texts with a cut, one of texts cut when they were prepared."""
    own = {
        "lstm": [],
        "bag": ["model.kind=bag", "model.embedding_size=8", "model.buckets=64"],
        "encoder": ["model.kind=encoder", f"model.encoder={encoder}"],
    }[kind]
    plain = settings if kind == "lstm" else lambda *given: load_settings(None, [*_TRAINING, *given])
    options = {"tokenizer": str(long_store.path / "tokenizer"), "max_length": 17, "truncation": truncation}
    prepared = prepare(rows_of(60, 60), tmp_path / "prepared", progress=False, **options)
    test = prepare(rows_of(20, 70), tmp_path / "test", like=long_store.path, progress=False)
    stated = [*QUICK, *own, "data.max_length=17", f"data.truncation={truncation}"]
    cut = train(plain(*stated), long_store, tmp_path / "cut", test_store=test, progress="none")
    whole = train(plain(*QUICK, *own), prepared, tmp_path / "whole", test_store=test, progress="none")
    clock = {"seconds": 0, "tokens_per_second": 0, "examples_per_second": 0, "checkpoint_seconds": 0, "time": None}
    assert replace(cut, **clock) == replace(whole, **clock)
    runs = [TrainedRun.open(tmp_path / name) for name in ("cut", "whole")]
    texts = [text for text, _ in rows_of(20, 70)]
    found = [run.predict(texts, probabilities=True).to_pydict() for run in runs]
    assert found[0] == found[1]
    evaluated = [run.evaluate_store(test).to_json() for run in runs]
    assert evaluated[0] == evaluated[1]
    assert evaluated[0]["accuracy"] == np.mean(
        [label == said for (_, label), said in zip(rows_of(20, 70), found[0]["label"], strict=True)]
    ), "a store and its raw texts are read alike"
    saved = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("cut", "whole")]
    assert [each.model_max_length for each in saved] == [17, 17]
    assert saved[0](texts, truncation=True)["input_ids"] == saved[1](texts, truncation=True)["input_ids"]


_TRAINING = (
    "data.tokens_per_batch=256",
    "training.learning_rate=1e-2",
    "training.tensorboard=false",
    "training.log_every_steps=1",
)


def test_what_was_read_is_said_and_recorded(tmp_path, long_store, settings, capsys):
    train(settings(*QUICK, "data.max_length=20"), long_store, tmp_path / "run", progress="plain")
    stored = long_store.lengths
    reading = Reading.of(long_store.cut_to(20))
    assert (reading.texts, reading.longer) == (60, int((stored > 20).sum()))
    assert reading.left_out == int((stored - np.minimum(stored, 20)).sum())
    line = (
        f"reads texts cut at 20 tokens (head): {reading.longer / 60:.0%} of texts are longer, "
        f"{reading.left_out / stored.sum():.0%} of tokens left out"
    )
    assert line in capsys.readouterr().err.splitlines()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["reads"] == reading.to_json()
    assert (record["data"]["max_length"], record["data"]["truncation"]) == (20, "head")
    assert record["identity"]["data.max_length"] == 20
    assert record["identity"]["training data"] == long_store.fingerprint


# (a store's limit and truncation, what the run reads, whether texts that were cut lack some of that)
CUT_BEFORE = [
    (90, "head", ["data.max_length=20"], False),
    (62, "tail", ["data.max_length=20"], False),  # its longest texts have 62 tokens: none was cut
    (20, "head", ["data.max_length=20"], False),
    (20, "head", [], True),
    (19, "head", ["data.max_length=20"], True),
    (20, "tail", ["data.max_length=20"], True),
    (20, "head", ["data.max_length=20", "data.truncation=tail"], True),
    (60, "head+tail", ["data.max_length=10"], False),  # more than its first ten tokens are there
    (30, "head+tail", ["data.max_length=20"], True),
]


@pytest.fixture(scope="module")
def prepared(long_store, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("prepared"), {}

    def make(max_length: int, truncation: str) -> Store:
        if (max_length, truncation) not in made:
            made[max_length, truncation] = prepare(
                rows_of(60, 60),
                folder / f"{max_length}-{truncation}",
                tokenizer=str(long_store.path / "tokenizer"),
                max_length=max_length,
                truncation=truncation,
                progress=False,
            )
        return made[max_length, truncation]

    return make


@as_subtests("limit, truncation, reads, lacking", CUT_BEFORE)
def test_texts_that_were_cut_to_less_than_a_run_reads_are_said(
    tmp_path, long_store, prepared, settings, capsys, limit, truncation, reads, lacking
):
    """Beside a training, in an evaluation and by a teacher."""
    store, run = prepared(limit, truncation), tmp_path / f"run-{limit}-{truncation}-{len(reads)}"
    cut = store.manifest.truncated_texts
    said = (
        f"warning: {store.path}: {cut} of its 60 texts were cut to {limit} tokens ({truncation}) when it was prepared; "
        "the run reads "
    )
    begun = settings(*QUICK, *reads, "training.max_steps=1")
    train(begun, long_store, run, test_store=store, progress="plain")
    assert (said in capsys.readouterr().err) == lacking
    TrainedRun.open(run).evaluate_store(store)
    assert (said in capsys.readouterr().err) == lacking
    heard: list[str] = []
    material_for(begun, [replace(Teacher.open(run), test=None)], store, None, None, heard.append)
    assert [line.startswith(said) for line in heard] == [True] * lacking


def test_texts_cut_as_the_training_data_are_read_as_that(tmp_path, prepared, settings, capsys):
    store = prepared(20, "head")
    train(settings(*QUICK, "data.max_length=10", "data.truncation=tail"), store, tmp_path / "run", test_store=store)
    TrainedRun.open(tmp_path / "run").evaluate_store(store)
    assert "which these no longer have" not in capsys.readouterr().err


def test_an_encoder_reads_what_it_has_positions_for(tmp_path, long_store, encoder):
    given = [*_TRAINING, *QUICK, "model.kind=encoder", f"model.encoder={encoder}", "training.max_steps=2"]
    train(load_settings(None, given), long_store, tmp_path / "run", progress="none")
    run = TrainedRun.open(tmp_path / "run")
    assert run.data["max_length"] == POSITIONS
    assert run.predict([text for text, _ in rows_of(10, 200)]).num_rows == 10
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == POSITIONS


# what a run began with, what it is resumed with, and what it is refused for
RESUMED = [
    ([], [], None),
    (["data.max_length=20"], [], None),
    (["data.max_length=20"], ["data.max_length=20"], None),
    (["data.max_length=20"], ["data.max_length=20", "data.truncation=head"], None),
    (["data.max_length=20", "data.truncation=tail"], ["data.truncation=tail"], None),
    ([], ["data.max_length=whole"], None),
    ([], ["data.max_length=90"], None),
    ([], ["data.max_length=1000"], None),
    (["data.max_length=90"], ["data.max_length=1000"], None),
    (["data.max_length=20"], ["data.max_length=21"], "data.max_length is 20 there and 21 here"),
    (["data.max_length=20"], ["data.max_length=whole"], "data.max_length is 20 there"),
    (["data.max_length=20"], ["data.max_length=1000"], "data.max_length is 20 there and 1000 here"),
    ([], ["data.max_length=20"], "data.max_length is 'whole' there and 20 here"),
    (["data.max_length=20"], ["data.truncation=tail"], "data.truncation is 'auto' there and 'tail' here"),
    (
        ["data.max_length=20", "data.truncation=tail"],
        ["data.truncation=head"],
        "data.truncation is 'tail' there and 'head' here",
    ),
]


@pytest.mark.slow
@as_subtests("begun, asked, refused", RESUMED)
def test_a_run_is_resumed_with_the_cut_that_it_began_with(tmp_path, long_store, settings, begun, asked, refused):
    steps = ["data.validation_fraction=0", "training.max_steps=1", "data.tokens_per_batch=4000"]
    train(settings(*steps, *begun), long_store, tmp_path / "run", progress="none")
    steps[1] = "training.max_steps=2"
    if refused is None:
        assert train(settings(*steps, *asked), long_store, tmp_path / "run", progress="none").steps == 2
    else:
        with pytest.raises(RunError, match=refused):
            train(settings(*steps, *asked), long_store, tmp_path / "run", progress="none")


def test_a_run_that_came_to_no_checkpoint_begins_again_as_it_was(tmp_path, limited, settings):
    """Its settings are in its config.yaml: "whole" stays so, whatever the recipe says."""
    from penstock.engine.training.settings import load_saved_settings

    store = limited(2000)
    train(settings(*QUICK, "data.max_length=whole"), store, tmp_path / "run", progress="none")
    saved = load_saved_settings(tmp_path / "run" / "config.yaml")
    assert saved.data.max_length == "whole"
    assert settle_reading(saved, store).data.max_length == "whole"
    path = Path(tmp_path / "run" / "config.yaml")
    old = [line for line in path.read_text().splitlines() if "max_length" not in line and "truncation" not in line]
    path.write_text("\n".join(old))
    assert load_saved_settings(path) == saved, "an earlier penstock's run reads all"


def test_a_store_that_is_cut_already_is_not_trained_on(tmp_path, long_store, settings):
    with pytest.raises(ConfigError, match="give the whole one"):
        train(settings(), long_store.cut_to(12), tmp_path / "run", progress="none")


def test_a_stores_lines_say_what_the_recipes_leave_out(tmp_path, long_store):
    rows = [("the " * 3, "a"), ("the " * 600, "b"), ("the " * 1100, "a"), ("film", "b")]
    options = {"tokenizer": str(long_store.path / "tokenizer"), "progress": False}
    store = prepare(rows, tmp_path / "store", **options)
    lengths = store.lengths.tolist()
    left = sum(max(0, length - 512) for length in lengths)
    assert recipe_lines(store) == [
        "by its recipe, encoder reads 512 tokens of a text (data.max_length): 50% of texts are longer, "
        f"{left / sum(lengths):.0%} of tokens left out",
        "by its recipe, lstm reads 1,024 tokens of a text (data.max_length): 25% of texts are longer, "
        f"{(max(lengths) - 1024) / sum(lengths):.0%} of tokens left out",
    ]
    assert recipe_lines(long_store) == []


def test_shares_claim_neither_none_nor_all():
    assert [share(*of) for of in [(0, 5), (1, 1000), (999, 1000), (5, 5), (1, 2), (0, 0)]] == [
        "0%", "under 1%", "over 99%", "100%", "50%", "0%"
    ]  # fmt: skip
