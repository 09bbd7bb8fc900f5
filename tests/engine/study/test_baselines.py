"""The families that no loop trains, and the registry that they stand in beside the loop's."""

import dataclasses
import importlib.util
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricated_study import no_cost, result, with_predictions
from sklearn.feature_extraction.text import TfidfTransformer
from subtested import as_subtests

from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, ModelError, RunError
from penstock.engine.study.baselines import baseline, frozen, linear, majority
from penstock.engine.study.baselines.fitting import FitTask, read_chunks
from penstock.engine.study.baselines.logistic import GRID, Logistic, choose_c, fit_logistic
from penstock.engine.study.baselines.ngrams import BUCKETS, build_vocabulary, count_ngrams, special_tokens
from penstock.engine.study.baselines.settings import BaselineSettings, options_from
from penstock.engine.study.check import check_plan
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.paired import Paired
from penstock.engine.study.report import write_report
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import StudySettings, check_families
from penstock.engine.study.sizes import parse_max_sizes, parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import TrialResult, read_results

pytestmark = pytest.mark.usefixtures("undrawn")

QUICK = ("majority", "linear", "bag")


@pytest.fixture
def study(minilm: str, stores: dict[str, tuple[str]]) -> StudySettings:
    return StudySettings(
        **stores,
        encoder=minilm,
        families=QUICK,
        sizes=parse_sizes("60,200"),
        seeds=parse_seeds("2,200:1"),
        max_sizes=parse_max_sizes(["bag=60"], QUICK),
        overrides=("bag.training.epochs=1",),
    )


def task(store: Store, name: str, rows: int = 200, **options) -> FitTask:
    settings = BaselineSettings(name, options_from(name, options), rows, 5, 0.1, 5000)
    return FitTask(settings, store, np.arange(rows), 1)


def what_was_found(results: list[TrialResult]) -> list[TrialResult]:
    """Without times, and what ran beside them."""
    times = {"train_seconds": 0, "tokens_per_second": 0, "train_cpu_seconds": None, "wall_seconds": None, "jobs": None}
    return [replace(each, **times) for each in results]


def test_each_family_from_the_command_line_to_the_report(study, tmp_path):
    results = run_study(study, tmp_path / "study", progress=False)
    names = {f"{family}-{trial}" for family in QUICK for trial in ("60-0", "60-1", "200-0")} - {"bag-200-0"}
    assert {found.trial.name for found in results} == names
    for found in results:
        assert (found.status, found.test_examples) == ("done", 100)
        assert found.evaluation["accuracy"] == found.accuracy
        assert found.train_cpu_seconds > 0
        assert found.wall_seconds > found.train_seconds
        assert found.predictions is not None
        assert found.made_from.encoder is None
    findings = write_report(tmp_path / "study")
    assert list(findings.table.families) == list(QUICK)
    assert set(findings.costs) == set(QUICK)
    for cost in findings.costs.values():
        assert cost.parameters > 0
        assert cost.bytes_on_disk > 0
        assert set(cost.latency_ms) == {1, 32}
    assert findings.costs["linear"].made_from.settings["examples"] == 200  # the largest trial's model
    page = (tmp_path / "study" / "report.md").read_text()
    assert all(FAMILIES[family].title in page for family in QUICK)


@pytest.mark.slow
def test_in_other_processes_it_is_the_same(small_encoder, study, tmp_path):
    study = replace(study, families=(*QUICK, "frozen"), encoder=small_encoder)
    first, second = (run_study(study, tmp_path / str(jobs), progress=False, jobs=jobs) for jobs in (1, 2))
    assert what_was_found(second) == what_was_found(first)


@pytest.mark.slow
def test_again_it_is_the_same(study, tmp_path):
    first = run_study(study, tmp_path / "a", progress=False)
    assert run_study(study, tmp_path / "a", progress=False) == first  # times too: nothing ran
    for name in ("linear-60-1", "majority-200-0"):
        (tmp_path / "a" / "trials" / f"{name}.json").unlink()
    assert what_was_found(run_study(study, tmp_path / "a", progress=False)) == what_was_found(first)


@pytest.mark.slow
def test_a_study_of_before_goes_on_with_the_baselines(study, tmp_path):
    run_study(replace(study, families=("bag",)), tmp_path / "study", progress=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "study" / "trials").iterdir()}
    for path in (tmp_path / "study" / "trials").glob("*.json"):  # as an earlier penstock wrote it
        document = json.loads(path.read_text())
        for later in ("train_cpu_seconds", "chosen", "notes", "wall_seconds", "crc32"):
            del document[later]
        path.write_text(json.dumps(document))
    assert len(run_study(study, tmp_path / "study", progress=False)) == 8
    old = [found for found in read_results(tmp_path / "study" / "trials") if found.trial.family == "bag"]
    assert all((found.train_cpu_seconds, found.chosen, found.notes) == (None, None, ()) for found in old)
    assert all((tmp_path / "study" / "trials" / name).exists() for name in before)
    write_report(tmp_path / "study")


@pytest.mark.slow
def test_a_baseline_that_computes_otherwise_is_another(study, tmp_path, monkeypatch):
    run_study(replace(study, families=("majority", "linear")), tmp_path / "study", progress=False)
    then = linear.VERSION
    monkeypatch.setattr(linear, "VERSION", then + 1)
    with pytest.raises(RunError, match=rf"linear\.version: {then} then, {then + 1} now"):
        run_study(study, tmp_path / "study", progress=False)


@as_subtests(
    "families, override, message",
    [
        (QUICK, "linear.ngram=3", "unknown setting 'linear.ngram': .*linear.ngrams"),
        (QUICK, "majority.share=3", "unknown setting 'majority.share': it has no settings"),
        (QUICK, "linear.ngrams=0", "linear.ngrams must be between 1 and 8"),
        (QUICK, "linear.C=much", "linear.C must be a number or null"),
        (
            QUICK,
            "linear.training.epochs=3",
            "training.epochs=3 has no effect: linear is not trained by",
        ),
        (("majority", "linear"), "training.epochs=3", "training.epochs=3 has no effect: majority is not trained"),
        (("linear",), "data.nonsense=3", "data.nonsense"),
        (QUICK, "forest.C=3", "unknown setting 'forest.C'"),
    ],
)
def test_settings_without_use_are_refused(study, families, override, message):
    with pytest.raises(ConfigError, match=message):
        check_plan(replace(study, families=families, max_sizes={}, overrides=(override,)))


@pytest.mark.parametrize(
    "override", ["training.epochs=3", "data.validation_fraction=0.2", "linear.data.validation_max=9"]
)
def test_settings_that_some_family_uses_are_not(study, override):
    assert check_plan(replace(study, overrides=(override,))) == []


def test_of_a_setting_given_twice_the_last_one_counts(study):
    (note,) = check_plan(replace(study, overrides=("training.epochs=3", "training.epochs=5")))
    assert note == "note: training.epochs=5 counts, not training.epochs=3, which is given before it"


def test_a_setting_for_a_family_that_is_left_out_is_said(study):
    (note,) = check_plan(replace(study, families=("bag",), overrides=("linear.C=3",)))
    assert note == "settings for linear, which is not among --families: not used"


def test_a_setting_that_only_families_left_out_now_have_a_use_for(study, tmp_path):
    """Where the study in the folder has planned them, it is no mistake."""
    began = replace(study, families=("majority", "bag"), max_sizes={}, overrides=("training.epochs=1",))
    fewer, out = replace(began, families=("majority",)), tmp_path / "study"
    with pytest.raises(ConfigError, match=r"training\.epochs=1 has no effect: majority is not trained"):
        run_study(fewer, out, progress=False, run_trial=just_done, measure=no_cost)
    run_study(began, out, progress=False, run_trial=just_done, measure=no_cost)
    found = run_study(fewer, out, progress=False, run_trial=just_done, measure=no_cost)
    assert {result.trial.family for result in found} == {"majority"}
    assert check_plan(replace(fewer, earlier=("majority", "bag"))) == [
        "training.epochs=1: not used: only families of an earlier command have a use for it"
    ]
    with pytest.raises(ConfigError, match=r"distillation\.texts=9"):
        check_plan(replace(fewer, earlier=("majority", "bag"), overrides=("distillation.texts=9",)))


def just_done(task: TrialTask) -> TrialResult:
    return replace(result("lstm", task.trial.size, task.trial.seed), trial=task.trial)


def test_without_scikit_learn_a_line_says_so(study, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    with pytest.raises(ConfigError, match="the family linear needs scikit-learn, which is not installed: pip install"):
        check_plan(study)
    check_plan(replace(study, families=("majority", "bag")))


def test_families_keep_their_order():
    assert check_families(["encoder", "linear", "majority"]) == ("majority", "linear", "encoder")


def test_the_majority_is_of_the_training_rows(stores):
    store = Store.open(stores["train"][0])
    rows = np.flatnonzero(store.labels == 2)[:9]
    rows = np.sort(np.append(rows, np.flatnonzero(store.labels == 0)[:3]))
    model = majority.fit(replace(task(store, "majority"), rows=rows))
    ((part, scores),) = model.predict(store, np.arange(30))
    assert list(part) == list(range(30))
    assert (scores == np.array([0.25, 0, 0.75, 0, 0], np.float32)).all()


def test_a_family_without_luck_does_not_narrow_the_others_intervals(tmp_path):
    """Its accuracy is the same for every seed, which says nothing of how much others vary."""

    def kept(families):
        made = []
        for family in families:
            for size in (100, 200, 400):
                for seed in range(3):
                    base = result("lstm" if family == "majority" else family, size, seed)
                    trial = replace(base.trial, family=family)
                    own = with_predictions(tmp_path, replace(base, trial=trial), accuracy=base.accuracy)
                    if family == "majority":
                        entry = with_predictions(tmp_path, replace(base, trial=replace(trial, seed=0)), accuracy=0.6)
                        own = replace(entry, trial=trial)
                    made.append(own)
        return Paired.of(tmp_path, made)

    without, beside = kept(["lstm", "encoder"]), kept(["lstm", "encoder", "majority"])
    for key, drawn in without.accuracies.items():
        assert beside.accuracies[key].interval == pytest.approx(drawn.interval, abs=0.004)
    assert {beside.accuracies["majority", size].mean for size in (100, 200, 400)}
    low, high = beside.accuracies["majority", 200].interval
    assert 0.02 < high - low < 0.09  # of 1,000 rows, and nothing besides
    assert set(beside.gaps) == {(family, size) for family in ("lstm", "majority") for size in (100, 200, 400)}


def _grams(text: list[int], silent: set[int], longest: int) -> Counter:
    runs = (text[begin : begin + size] for size in range(1, longest + 1) for begin in range(len(text) - size + 1))
    return Counter(tuple(run) for run in runs if not silent & set(run))


def _number(gram: tuple[int, ...], silent: np.ndarray) -> int:
    """The feature that a text of this n-gram alone has and its shorter n-grams have not."""
    text, bounds = np.array(gram, np.int32), np.array([0, len(gram)])
    own = set(count_ngrams(text, bounds, silent, len(gram)).ngrams.tolist())
    (number,) = own - (
        set(count_ngrams(text, bounds, silent, len(gram) - 1).ngrams.tolist()) if len(gram) > 1 else set()
    )
    return number


@as_subtests("longest, lengths", itertools.product([1, 2, 3], [[5], [0, 4, 0, 1, 0], [2, 2, 2], [0], [300, 1, 40]]))
def test_ngrams_are_counted_text_by_text(longest, lengths):
    random = np.random.default_rng(len(lengths))
    flat, bounds = random.integers(0, 12, sum(lengths), dtype=np.int32), np.cumsum([0, *lengths])
    silent = np.isin(np.arange(12), [3, 7])
    found = count_ngrams(flat, bounds, silent, longest)
    numbers: dict[tuple[int, ...], int] = {}
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        grams = _grams(flat[begin:end].tolist(), {3, 7}, longest)
        numbers |= {gram: _number(gram, silent) for gram in grams if gram not in numbers}
        part = slice(found.bounds[row], found.bounds[row + 1])
        own = dict(zip(found.ngrams[part].tolist(), found.counts[part].tolist(), strict=True))
        assert own == {numbers[gram]: times for gram, times in grams.items()}
    assert len(set(numbers.values())) == len(numbers)  # few n-grams, many buckets
    assert all((number < 12) == (len(gram) == 1) and number < 12 + BUCKETS for gram, number in numbers.items())


def test_tfidf_is_scikit_learns(stores):
    store = Store.open(stores["train"][0])
    silent = special_tokens(store)
    tokenizer = store.tokenizer()
    assert set(np.flatnonzero(silent)) == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    chunks = [count_ngrams(v, b, silent, 2) for _, v, b in read_chunks(store, np.arange(50), tokens=500)]
    assert len(chunks) > 3
    vocabulary, found = build_vocabulary(chunks, silent, 2, 2, 10**9)
    assert found == len(vocabulary.idf) > 100
    dense = np.zeros((50, len(vocabulary.idf)))
    row = 0
    for chunk in chunks:
        for begin, end in itertools.pairwise(chunk.bounds):
            places = vocabulary.places[chunk.ngrams[begin:end]]
            dense[row, places[places >= 0]] = chunk.counts[begin:end][places >= 0]
            row += 1
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(dense)
    made = np.concatenate([vocabulary.tfidf(chunk).toarray() for chunk in chunks])
    assert made == pytest.approx(expected.toarray(), abs=1e-6)


def test_how_a_store_is_cut_into_chunks_changes_nothing(stores):
    store = Store.open(stores["train"][0])
    rows = np.array([3, 4, 50, 17, 299])
    for tokens in (1, 60, 10**6):
        read = list(read_chunks(store, rows, tokens))
        assert np.concatenate([part for part, _, _ in read]).tolist() == rows.tolist()
        texts = [values[a:b] for _, values, bounds in read for a, b in itertools.pairwise(bounds)]
        assert all(np.array_equal(text, store.tokens(int(row))) for text, row in zip(texts, rows, strict=True))
    assert list(read_chunks(store, rows[:0])) == []


@pytest.mark.slow
def test_the_linear_model_is_scikit_learns_on_all_rows(stores):
    from sklearn.linear_model import LogisticRegression

    store = Store.open(stores["train"][0])
    model = linear.fit(task(store, "linear"))
    assert set(model.chosen) == {"linear.C"}
    assert model.chosen["linear.C"] in GRID
    assert model.validation_examples == 20
    counts = [model.vocabulary.counts(values, bounds) for _, values, bounds in read_chunks(store, np.arange(200))]
    features = model.vocabulary.tfidf(counts[0])
    there = LogisticRegression(C=model.chosen["linear.C"], tol=1e-3, max_iter=300).fit(features, store.labels[:200])
    assert model.model.probabilities(features) == pytest.approx(there.predict_proba(features), abs=1e-3)
    given = linear.fit(task(store, "linear", C=model.chosen["linear.C"]))
    assert np.array_equal(given.model.weights, model.model.weights)
    assert given.chosen == {}
    kept = linear.fit(task(store, "linear", refit=False))
    assert not np.array_equal(kept.vocabulary.idf, model.vocabulary.idf)
    untrained = linear.untrained(task(store, "linear"))
    assert untrained.parameters == model.parameters


def test_what_linear_had_to_leave_out_is_said(stores, monkeypatch):
    store = Store.open(stores["train"][0])
    monkeypatch.setattr(linear, "_MAX_TOKENS", 2000)
    monkeypatch.setattr(linear, "_MAX_WEIGHTS", 500)
    model = linear.fit(task(store, "linear", C=1))
    assert len(model.vocabulary.idf) == 100
    rows, features = model.notes
    assert rows.startswith("trained on ")
    assert "of 200 rows" in rows
    assert features.startswith("the 100 most frequent of ")


def test_many_classes_have_a_limit_of_rows(stores, monkeypatch):
    store = Store.open(stores["train"][0])
    monkeypatch.setattr(linear, "_MAX_SCORES", 5 * 80)
    model = linear.fit(task(store, "linear"))
    assert model.notes[0] == "trained on 80 of 200 rows: its limit of memory and time is 80 rows in 5 classes"


def test_without_validation_rows_c_has_to_be_given(stores):
    store = Store.open(stores["train"][0])
    with_none = task(store, "linear")
    with_none = replace(with_none, settings=replace(with_none.settings, validation_fraction=0.0))
    with pytest.raises(ConfigError, match=r"leaves no rows to choose linear\.C by: set linear\.C"):
        linear.fit(with_none)


def test_the_end_of_the_range_is_noted():
    labels = np.array([0, 1])
    sure = {c: Logistic(np.array([[c]], np.float32), np.zeros(1, np.float32), labels, 2) for c in GRID}
    features, truth = np.array([[-1.0], [1.0]], np.float32) / 1e4, labels
    assert "linear.C=4096 is at the end" in choose_c(sure.items(), features, truth, "linear.C").note
    worse = {c: replace(model, weights=-model.weights) for c, model in sure.items()}
    lowest = choose_c(worse.items(), features, truth, "linear.C")
    assert (lowest.c, bool(lowest.note)) == (GRID[0], True)
    first = {c: sure[c] if c <= 1 else worse[c] for c in GRID}
    assert (choose_c(first.items(), features, truth, "linear.C").c, 1) == (1, 1)
    assert choose_c(first.items(), features, truth, "linear.C").note == ""


def test_c_by_accuracy_or_by_loss():
    """One is right three times and sure of the fourth, which is wrong; the other is never right and never sure."""
    labels, truth = np.array([0, 1]), np.ones(4, np.int64)
    unsure = Logistic(np.array([[0.1]], np.float32), np.full(1, -0.2, np.float32), labels, 2)
    sure = Logistic(np.array([[10.0]], np.float32), np.zeros(1, np.float32), labels, 2)
    models, features = {1.0: unsure, 4.0: sure}, np.array([[1.0], [1.0], [1.0], [-1.0]], np.float32)
    found = choose_c(models.items(), features, truth, "linear.C")
    assert (found.c, found.accuracy) == (4.0, 0.75)
    found = choose_c(models.items(), features, truth, "linear.C", by_loss=True)
    assert (found.c, found.accuracy) == (1.0, 0.0)


def test_more_rows_than_are_searched_are_tried_with_smaller_c_while_accuracy_rises(stores, monkeypatch):
    store, asked = Store.open(stores["train"][0]), []
    choose = linear.choose_c

    def choose_and_tell(models, *given, **how):
        tried = []
        choice = choose((tried.append(value) or (value, model) for value, model in models), *given, **how)
        asked.append((how.get("by_loss", False), tried, choice))
        return choice

    monkeypatch.setattr(linear, "choose_c", choose_and_tell)
    linear.fit(task(store, "linear"))
    assert [by_loss for by_loss, _, _ in asked] == [False]
    asked.clear()
    monkeypatch.setattr(linear, "_SEARCH_ROWS", 100)
    few = task(store, "linear")
    few = replace(few, settings=replace(few.settings, validation_fraction=0.04))
    found = linear.fit(few)
    (by_loss, _, sample), (by_loss_of_all, tried, choice) = asked
    assert (by_loss, by_loss_of_all) == (True, False)
    assert tried == [sample.c / 4**step for step in range(len(tried))]
    assert len(tried) > 1 or sample.c == GRID[0]
    assert choice.c in tried[-2:]
    assert found.chosen == {"linear.C": choice.c}
    assert found.model is choice.model  # whose rows are all but the validation's
    assert found.validation_accuracy == choice.accuracy
    given = linear.fit(task(store, "linear", C=choice.c))
    again = replace(few, settings=replace(few.settings, options=replace(few.settings.options, refit=True)))
    assert np.array_equal(linear.fit(again).model.weights, given.model.weights)
    asked.clear()
    found = linear.fit(task(store, "linear"))  # a tenth of the rows is worth it
    given = linear.fit(task(store, "linear", C=asked[1][2].c))
    assert np.array_equal(found.model.weights, given.model.weights)


@as_subtests("labels, num_labels", [([0, 0, 0], 3), ([2, 0, 2], 4), ([1, 3, 0], 4), ([1, 0, 1], 2)])
def test_classes_that_no_training_row_has_get_nothing(labels, num_labels):
    features = np.eye(3, dtype=np.float32)
    ((_, model),) = fit_logistic(features, np.array(labels), num_labels, [1e4], 1)
    scores = model.probabilities(features)
    assert scores.shape == (3, num_labels)
    assert scores.argmax(1).tolist() == labels
    assert scores.sum(1) == pytest.approx(1)
    assert not scores[:, [n for n in range(num_labels) if n not in labels]].any()
    untrained = Logistic.untrained(3, np.array(labels), num_labels)
    assert untrained.parameters == model.parameters


def test_the_registry_says_what_trains_each_family():
    for name, family in FAMILIES.items():
        assert name == family.name
        assert (family.kind is None) == (family.baseline is not None)
        if family.baseline is not None:
            options = options_from(family.baseline, {})
            assert dataclasses.is_dataclass(options)
            assert baseline(family.baseline).VERSION >= 1


@pytest.mark.slow
def test_the_frozen_encoder_refuses_pairs_before_anything_is_trained(minilm, study, tmp_path):
    lines = [f"{number} one,{number} two,{number % 2}" for number in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,label", *lines]) + "\n")
    source = (str(tmp_path / "pairs.csv"),)
    pairs = replace(study, train=source, test=source, text="a,b", families=("majority", "frozen"), overrides=())
    pairs = replace(pairs, sizes=parse_sizes("20"), seeds=parse_seeds("1"), max_sizes={})

    def never(*_):
        raise AssertionError("measured or trained")

    with pytest.raises(ConfigError, match="the family frozen reads single texts: leave it out with --families"):
        run_study(pairs, tmp_path / "study", progress=False, run_trial=never, measure=never)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.needs_encoder])
def test_stores_with_another_tokenizer_than_the_encoders_are_refused_before_anything_is_trained(
    minilm, tiny, study, tmp_path, family
):
    """Token ids of a small vocabulary are rows of the encoder's embeddings too: those of other tokens."""
    stores = {"train": tiny["train"], "test": tiny["test"]}
    other = replace(study, **stores, encoder=minilm, families=("majority", family), max_sizes={}, overrides=())

    def never(*_):
        raise AssertionError("measured or trained")

    with pytest.raises(ModelError, match=r"prepared with another tokenizer than encoder .*--tokenizer") as error:
        run_study(other, tmp_path / "study", progress=False, run_trial=never, measure=never)
    assert "\n" not in str(error.value)


@pytest.fixture
def small_encoder(minilm: str, tmp_path) -> str:
    """A random BERT with 24 positions and MiniLM's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=30522, max_position_embeddings=24, num_labels=5, **sizes)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "encoder")
    for path in Path(minilm).glob("*token*"):
        (tmp_path / "encoder" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "encoder" / "vocab.txt").write_bytes((Path(minilm) / "vocab.txt").read_bytes())
    return str(tmp_path / "encoder")


@pytest.mark.slow
def test_the_frozen_encoder_encodes_each_text_once(small_encoder, study, tmp_path, monkeypatch):
    encoded: list[int] = []
    encode = frozen.Encoder._encode_rows
    monkeypatch.setattr(
        frozen.Encoder, "_encode_rows", lambda self, store, rows: encoded.extend(rows) or encode(self, store, rows)
    )
    settings = replace(study, families=("frozen",), max_sizes={}, encoder=small_encoder, overrides=())
    first = run_study(settings, tmp_path / "a", progress=False)
    assert [found.status for found in first] == ["done"] * 3
    assert len(encoded) < 60 + 60 + 200 + 100  # the sizes nest, and the test rows are the same
    assert all(found.made_from.encoder for found in first)
    assert first[0].made_from.settings["data.max_length"] == 24  # its positions
    assert first[2].train_cpu_seconds > 0
    encoded.clear()
    (tmp_path / "a" / "trials" / "frozen-200-0.json").unlink()
    again = run_study(settings, tmp_path / "a", progress=False)
    assert encoded == []
    assert what_was_found(again) == what_was_found(first)
    findings = write_report(tmp_path / "a")
    assert findings.costs["frozen"].embedding_parameters == 30522 * 32
    part = next((tmp_path / "a" / "encoded").rglob("*.safetensors"))
    content = bytearray(part.read_bytes())
    content[-5] ^= 255
    part.write_bytes(content)
    (tmp_path / "a" / "trials" / "frozen-200-0.json").unlink()
    with pytest.raises(RunError, match=f"{part.name}: damaged"):
        run_study(settings, tmp_path / "a", progress=False)


def test_the_frozen_encoder_gives_the_mean_of_its_last_hidden_states(small_encoder, stores):
    import torch
    import transformers

    store = Store.open(stores["train"][0]).cut_to(24)  # its positions
    encoder = frozen.Encoder(small_encoder)
    ((_, values, bounds),) = read_chunks(store, np.arange(9))
    texts = [values[a:b] for a, b in itertools.pairwise(bounds)]
    made = encoder.encode(values, np.append(bounds, bounds[-1]))
    assert not made[9].any()  # a text without tokens
    stock = transformers.BertModel.from_pretrained(small_encoder).eval()
    for text, own in zip(texts, made, strict=False):
        with torch.no_grad():
            hidden = stock(torch.from_numpy(text.astype(np.int64))[None]).last_hidden_state[0]
        assert own == pytest.approx(hidden.mean(0).numpy(), abs=2e-2)  # bfloat16 where the processor has it
