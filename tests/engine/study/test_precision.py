"""What "auto" means on a machine is part of what a trial was made from: one table shows one precision."""

import dataclasses
import json
import shutil

import pytest
from tiny_encoders import BERT

from penstock.engine.data.prepare import prepare
from penstock.engine.errors import RunError
from penstock.engine.study.fingerprints import changed_precision, made_from
from penstock.engine.study.run_trial import run_trial
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.trials import read_result

SHORT = ("training.max_steps=2", "training.tensorboard=false", "data.tokens_per_batch=200")
TINY = (*(f"{family}.{key}" for family in ("lstm", "encoder", "bag") for key in SHORT), "lstm.model.hidden_size=4")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("sources")
    made = {"progress": False, "max_length": 32}
    train = prepare("synthetic:reviews?n=60&seed=0", folder / "train", tokenizer="train:wordpiece:200", **made)
    prepare("synthetic:reviews?n=30&seed=1", folder / "test", like=train.path, progress=False)
    config = transformers.BertConfig(**{**BERT, "vocab_size": train.vocab_size, "pad_token_id": 0})
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "encoder")
    shutil.copytree(train.path / "tokenizer", folder / "encoder", dirs_exist_ok=True)
    return folder


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one where "auto" is another precision."""
    from penstock.engine.training import precision as module

    plain = module.resolve_precision

    def resolves(to):
        def resolve(asked, device):
            return to if asked == "auto" else plain(asked, device)

        for place in ("precision", "begin", "evaluate", "token_budget"):
            monkeypatch.setattr(f"penstock.engine.training.{place}.resolve_precision", resolve)

    return resolves


def study_of(folder, *families, **changes):
    return StudySettings(
        train=(str(folder / "train"),),
        test=(str(folder / "test"),),
        encoder=str(folder / "encoder"),
        sizes=parse_sizes("20"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=families,
        overrides=TINY,
        **changes,
    )


def start(study, out, **options):
    from penstock.engine.study.costs import Cost

    cost = lambda family, *_: Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)  # noqa: E731
    return run_study(study, out, progress=False, measure=cost, **options)


@pytest.mark.parametrize("family", ["lstm", "frozen", "encoder"])
def test_a_study_goes_on_in_one_precision(sources, tmp_path, machine, family):
    """More sizes on a machine with another precision: named. On the first one they are added."""
    study, out = study_of(sources, family), tmp_path / "study"
    machine("fp32")
    start(study, out)
    file = out / "trials" / f"{family}-20-0.json"
    assert read_result(file).made_from.precision == "fp32"
    more = dataclasses.replace(study, sizes=parse_sizes("20,30"))
    machine("bf16")
    with pytest.raises(RunError, match=r"the precision that this machine computes in: fp32 then, bf16 now") as error:
        start(more, out)
    assert str(file) in str(error.value)
    machine("fp32")
    assert len(start(more, out)) == 2


@pytest.mark.parametrize("family", ["majority", "linear", "bag"])
def test_a_model_without_a_choice_goes_on_anywhere(sources, tmp_path, machine, family):
    study, out = study_of(sources, family), tmp_path / "study"
    machine("fp32")
    start(study, out)
    machine("bf16")
    results = start(dataclasses.replace(study, sizes=parse_sizes("20,30")), out)
    assert {result.made_from.precision for result in results} == {"fp32" if family == "bag" else None}


def test_a_stated_precision_is_the_same_everywhere(sources, tmp_path, machine):
    study = study_of(sources, "lstm")
    study = dataclasses.replace(study, overrides=(*TINY, "training.precision=fp32"))
    machine("fp32")
    start(study, tmp_path / "study")
    machine("bf16")
    start(dataclasses.replace(study, sizes=parse_sizes("20,30")), tmp_path / "study")


def test_a_trial_in_progress_is_named_too(sources, tmp_path, machine):
    study, out = study_of(sources, "lstm"), tmp_path / "study"

    def stopped(task):
        run_trial(dataclasses.replace(task, keep_run=True))
        raise RunError("stopped here")

    machine("fp32")
    with pytest.raises(RunError, match="stopped here"):
        start(study, out, run_trial=stopped)
    assert json.loads((out / "runs" / "lstm-20-0" / "run.json").read_text())["precision"] == "fp32"
    machine("bf16")
    with pytest.raises(RunError, match=r"runs/lstm-20-0 was made from something else.*fp32 then, bf16 now"):
        start(study, out)


def test_older_trials_do_not_say_it(sources, tmp_path, machine):
    study, out = study_of(sources, "lstm"), tmp_path / "study"
    machine("fp32")
    start(study, out)
    file = out / "trials" / "lstm-20-0.json"
    record = json.loads(file.read_text())
    del record["made_from"]["precision"], record["crc32"]
    file.write_text(json.dumps(record))
    machine("bf16")
    (result,) = start(study, out)
    assert result.made_from.precision is None


def test_the_frozen_encoders_vectors_are_of_one_precision(sources, tmp_path, machine):
    """Those kept in one precision are not taken for those of another, even where the trials were removed."""
    study, out = study_of(sources, "frozen"), tmp_path / "study"
    machine("fp32")
    start(study, out)
    before = sorted(folder.name for folder in (out / "encoded").iterdir())
    for file in (out / "trials").iterdir():
        file.unlink()
    machine("bf16")
    start(study, out)
    added = sorted({folder.name for folder in (out / "encoded").iterdir()} - set(before))
    assert [name.replace("bf16", "fp32") for name in added] == before


def test_the_test_rows_are_read_in_the_runs_precision(sources, tmp_path, machine, monkeypatch):
    """A trial whose training was finished elsewhere, and whose evaluation was not."""
    from penstock.engine.study import run_trial as module
    from penstock.engine.training import evaluate

    study, tasks = study_of(sources, "lstm"), []

    def collect(task):
        tasks.append(task)
        raise RunError("collected")

    machine("fp32")
    with pytest.raises(RunError, match="collected"):
        start(study, tmp_path / "study", run_trial=collect)
    (task,) = tasks
    run_trial(dataclasses.replace(task, keep_run=True))
    machine("bf16")
    seen = []
    plain = evaluate.judged
    monkeypatch.setattr(
        evaluate,
        "judged",
        lambda model, batches, precision: (seen.append(precision), plain(model, batches, precision))[1],
    )
    found = module.run_trial(dataclasses.replace(task, made_from=None, keep_run=True))
    assert found.status == "done"
    assert seen == ["fp32"]


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        ("bf16", "fp32", True),
        ("bf16", "bf16", False),
        (None, "bf16", False),
        ("bf16", None, False),
        (None, None, False),
    ],
)
def test_what_is_compared(then, now, named):
    assert (changed_precision(then, now) is not None) == named


def test_a_baseline_without_an_encoder_has_none():
    from penstock.engine.study.baselines.settings import BaselineSettings, options_from

    settings = BaselineSettings("linear", options_from("linear", {}), 10, 0, 0.1, 10)
    assert made_from(settings, "a", "b", None).precision is None
