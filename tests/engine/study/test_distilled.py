"""The families that are distilled: the teacher of each trial is the encoder's of the same subset and seed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricated_study import no_cost, result
from shared_texts import SHARED, stores_that_share_texts
from stopping import stop_at
from subtested import as_subtests

from penstock.engine.data import logits as logits_module
from penstock.engine.data.logits import digest_of_rows
from penstock.engine.data.overlap import shared_rows
from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.study.budget import State, choose_next
from penstock.engine.study.estimate import Estimates, Loads, Speed
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.opened import opened
from penstock.engine.study.planning import plan_study
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.report import write_report
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import StudySettings, subset_seed
from penstock.engine.study.sizes import parse_max_sizes, parse_seeds, parse_sizes
from penstock.engine.study.study import run_study
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import Taught, Trial, TrialResult
from penstock.engine.study.workers import Queue
from penstock.engine.training.reading import read_by
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.step import Stepper

FAMILIES = ("lstm-distilled", "encoder")
QUICK = (
    *("lstm-distilled.model.hidden_size=8", "lstm-distilled.model.embedding_size=8", "training.tensorboard=false"),
    *("training.max_steps=6", "training.precision=fp32"),
)


@pytest.fixture
def settings(tiny) -> StudySettings:
    return StudySettings(
        **tiny,
        sizes=parse_sizes("30,60"),
        seeds=parse_seeds("1"),
        families=FAMILIES,
        max_sizes={},
        overrides=QUICK,
    )


@pytest.fixture(scope="module", autouse=True)
def _small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_module, "ROWS_PER_PART", 64)
        yield


def run(settings: StudySettings, out: Path, **options) -> dict[str, TrialResult]:
    results = run_study(settings, out, progress=False, measure=no_cost, **options)
    return {made.trial.name: made for made in results}


def timeless(made: TrialResult) -> TrialResult:
    """What does not depend on how long it took."""
    taught = None if made.taught is None else replace(made.taught, **dict.fromkeys(TIMES, 0.0), teacher_jobs=None)
    no_times = {
        "jobs": None,
        "train_seconds": 0.0,
        "tokens_per_second": 0.0,
        "wall_seconds": None,
        "train_cpu_seconds": None,
    }
    return replace(made, **no_times, taught=taught)


TIMES = ("again_seconds", "teacher_seconds", "teacher_cpu_seconds", "reading_seconds", "reading_cpu_seconds")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> tuple[StudySettings, Path, dict[str, TrialResult]]:
    study = StudySettings(
        **tiny, sizes=parse_sizes("30,60"), seeds=parse_seeds("1"), families=FAMILIES, max_sizes={}, overrides=QUICK
    )
    out = tmp_path_factory.mktemp("finished") / "study"
    return study, out, run(study, out)


def test_a_student_learns_from_the_encoder_of_its_subset(finished):
    settings, out, made = finished
    assert sorted(made) == ["encoder-30-0", "encoder-60-0", "lstm-distilled-30-0", "lstm-distilled-60-0"]
    for size in (30, 60):
        student, teacher = made[f"lstm-distilled-{size}-0"], made[f"encoder-{size}-0"]
        taught = student.taught
        assert taught.texts == 400 - size - taught.left_out
        assert (student.train_examples, student.validation_examples) == (size, 0)
        assert taught.teacher_seconds == teacher.train_seconds
        assert taught.teacher_jobs == teacher.jobs
        assert taught.teacher_cpu_seconds == teacher.train_cpu_seconds
        assert taught.reading_seconds > 0
        assert student.all_seconds == student.train_seconds + teacher.train_seconds + taught.reading_seconds
        assert student.all_cpu_seconds > student.train_cpu_seconds + teacher.train_cpu_seconds
        assert teacher.all_seconds == teacher.train_seconds
        assert student.made_from.teacher
        assert student.made_from.encoder is None
    assert made["lstm-distilled-30-0"].made_from.teacher != made["lstm-distilled-60-0"].made_from.teacher
    assert not any((out / "runs").iterdir()), "the models of teachers are kept for their students, and no longer"
    assert {name: timeless(one) for name, one in run(settings, out).items()} == {
        name: timeless(one) for name, one in made.items()
    }


@pytest.mark.slow
def test_test_texts_are_never_learned_from(tmp_path, tiny, settings):
    """Six of the test rows stand among the training rows, at other places and under other labels."""
    train, test = stores_that_share_texts(tmp_path, str(Path(tiny["encoder"])), rows=120, tests=20)
    found = shared_rows(train, test)
    assert set(SHARED) <= set(found.tolist())
    study = replace(settings, train=(str(train.path),), test=(str(test.path),), sizes=parse_sizes("30"), max_test=5)
    made = run(study, tmp_path / "study", keep_runs=True)["lstm-distilled-30-0"]
    chosen = subset(train.labels, 30, subset_seed(0, 0))
    learned = np.union1d(chosen, np.setdiff1d(np.arange(126), found))
    assert made.taught.left_out == len(np.setdiff1d(found, chosen)) > 0
    (record,) = map(json.loads, map(Path.read_text, (tmp_path / "study" / "runs").glob("*.logits/*/logits.json")))
    assert (record["rows"], record["rows_digest"]) == (len(learned), digest_of_rows(learned))
    identity = json.loads((tmp_path / "study" / "runs" / "lstm-distilled-30-0" / "run.json").read_text())["identity"]
    both = [int(identity[f"{kind} rows"].split()[0]) for kind in ("training", "validation")]
    assert sum(both) == len(learned)


@pytest.mark.slow
def test_labels_of_the_rest_change_nothing(tmp_path, tiny, settings, finished):
    """Where only labels outside of the subset differ, the student is the same to the bit."""
    _, _, made = finished
    train = Store.open(tiny["train"][0])
    rows = list(generate_reviews(400, seed=0))
    chosen = set(subset(train.labels, 30, subset_seed(0, 0)).tolist())
    rest = [row for row in range(400) if row not in chosen]
    # labels change places within the rest in pairs far apart, so that the classes' counts, and the subset, stay
    first = next(row for row in rest if rows[row][1] == 1)
    other = next(row for row in rest if rows[row][1] == 5)
    rows[first], rows[other] = (rows[first][0], 5), (rows[other][0], 1)
    lines = [json.dumps({"text": text, "label": stars}) for text, stars in rows]
    (tmp_path / "swapped.jsonl").write_text("\n".join(lines) + "\n")
    swapped = prepare(str(tmp_path / "swapped.jsonl"), tmp_path / "swapped", like=train.path, progress=False)
    if set(subset(swapped.labels, 30, subset_seed(0, 0)).tolist()) != chosen:
        pytest.skip("the swap moved the subset")
    study = replace(settings, train=(str(swapped.path),), sizes=parse_sizes("30"))
    again = run(study, tmp_path / "study")
    for name in ("encoder-30-0", "lstm-distilled-30-0"):
        assert (again[name].accuracy, again[name].loss) == (made[name].accuracy, made[name].loss)


@pytest.mark.slow
def test_a_teacher_that_was_not_kept_is_trained_again(tmp_path, settings, finished):
    _, _, made = finished
    run(replace(settings, families=("encoder",)), tmp_path / "study")
    assert not any((tmp_path / "study" / "runs").iterdir())
    again = run(settings, tmp_path / "study")
    assert {name: timeless(one) for name, one in again.items()} == {name: timeless(one) for name, one in made.items()}
    assert again["lstm-distilled-30-0"].taught.teacher_seconds == again["encoder-30-0"].train_seconds
    assert not any((tmp_path / "study" / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["reading", "training"])
def test_an_interrupted_student_goes_on(moment, tmp_path, settings, finished, monkeypatch):
    _, _, made = finished
    study, out = replace(settings, sizes=parse_sizes("30")), tmp_path / "study"
    run(replace(study, families=("encoder",)), out, keep_runs=True)
    with pytest.MonkeyPatch.context() as patch:
        if moment == "reading":
            write, parts = logits_module._write, []

            def stops(*arguments) -> None:
                parts.append(arguments[2])
                if len(parts) == 4:
                    raise KeyboardInterrupt
                write(*arguments)

            patch.setattr(logits_module, "_write", stops)
        else:
            stop_at(patch, 3)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            run(study, out)
    assert len(list((out / "runs" / "encoder-30-0.logits").glob("*/part-*.arrow"))) == (3 if moment == "reading" else 7)
    steps = []
    take = Stepper.__call__

    def noted(self, *rest, step, **named):
        steps.append(step)
        return take(self, *rest, step=step, **named)

    monkeypatch.setattr(Stepper, "__call__", noted)
    again = run(study, out)
    assert steps == ([1, 2, 3, 4, 5, 6] if moment == "reading" else [5, 6])
    assert timeless(again["lstm-distilled-30-0"]) == timeless(made["lstm-distilled-30-0"])


# -- students that share a teacher -------------------------------------------------------------------------------------

STUDENTS = ("lstm-distilled", "lstm-pretrained-distilled")


@pytest.fixture
def shared(settings) -> StudySettings:
    """A study of both students; one begins with a pretraining."""
    alike = [value.replace("lstm-distilled", STUDENTS[1]) for value in QUICK if value.startswith("lstm-distilled")]
    return replace(
        settings,
        sizes=parse_sizes("30"),
        families=(*STUDENTS, "encoder"),
        overrides=(*QUICK, *alike, "pretraining.candidates=50"),
        pretrain_tokens=9_000,
    )


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_students_of_one_teacher_share_its_reading(jobs, tmp_path, shared, finished):
    _, _, alone = finished
    made = run(shared, tmp_path / "study", jobs=jobs)
    plain, both = (made[f"{name}-30-0"] for name in STUDENTS)
    assert (plain.status, both.status) == ("done", "done")
    assert timeless(plain) == timeless(alone["lstm-distilled-30-0"])
    assert replace(both.taught, again_seconds=0.0) == replace(plain.taught, again_seconds=0.0), "read once, for both"
    assert plain.pretrained is None
    assert both.pretrained.tokens >= 9_000
    assert both.made_from.pretraining
    assert both.loss != plain.loss
    of_teacher = both.taught.teacher_seconds + both.taught.reading_seconds
    assert both.all_seconds == both.train_seconds + both.pretrained.seconds + of_teacher
    assert not any((tmp_path / "study" / "runs").iterdir())


def test_a_teacher_stays_for_the_student_that_needs_it(tmp_path, shared, monkeypatch):
    """One is over and the other is not, or has failed; a start later it finds the teacher's model and logits."""
    from penstock.engine.study.run_trial import run_trial

    def stops(task: TrialTask) -> TrialResult:
        if task.trial.family == STUDENTS[1]:
            raise KeyboardInterrupt
        return run_trial(task)

    out = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        run(shared, out, run_trial=stops)
    assert {path.name for path in (out / "runs").iterdir()} == {"encoder-30-0", "encoder-30-0.logits"}

    def fails(task: TrialTask) -> TrialResult:
        return TrialResult(task.trial, "failed", error="no memory")

    run(shared, out, run_trial=fails)
    assert {path.name for path in (out / "runs").iterdir()} == {"encoder-30-0", "encoder-30-0.logits"}

    monkeypatch.setattr(logits_module, "_write", pytest.fail)
    made = run(shared, out)
    assert made["lstm-pretrained-distilled-30-0"].status == "done"
    assert not any((out / "runs").iterdir())


def test_one_pretraining_is_for_all_that_begin_with_it(tmp_path, shared):
    study = replace(
        shared,
        families=("lstm-pretrained", *shared.families),
        overrides=(*shared.overrides, "lstm-pretrained.model.hidden_size=16", "lstm-pretrained.model.embedding_size=8"),
    )
    with pytest.raises(ConfigError, match=r"begin with one pretraining, but have model.hidden_size=16 and .*=8"):
        run(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()


# -- waiting for the teacher -------------------------------------------------------------------------------------------


def stand_in(task: TrialTask) -> TrialResult:
    family = "lstm" if task.trial.teacher else task.trial.family
    return replace(result(family, task.trial.size, task.trial.seed), trial=task.trial)


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_student_without_a_teacher_has_failed(status, tmp_path, settings):
    """The next start tries what failed again, with its student; what diverged would again."""
    from penstock.engine.study.run_trial import run_trial

    ran = []

    def unlucky(task: TrialTask) -> TrialResult:
        ran.append(task.trial.name)
        if task.trial.name == "encoder-30-0" and ran.count("encoder-30-0") == 1:
            return TrialResult(task.trial, status, error="bad luck")
        if task.trial.name == "lstm-distilled-30-0" and task.teacher_result.status != "done":
            return run_trial(task)
        return stand_in(task)

    made = run(settings, tmp_path / "study", run_trial=unlucky)
    assert made["encoder-30-0"].status == status
    assert made["lstm-distilled-30-0"].status == "failed"
    assert made["lstm-distilled-30-0"].error == f"its teacher encoder-30-0 {status}: bad luck"
    assert made["lstm-distilled-60-0"].status == "done"
    ran.clear()
    again = run(settings, tmp_path / "study", run_trial=unlucky if status == "diverged" else stand_in)
    assert again["lstm-distilled-30-0"].status == ("failed" if status == "diverged" else "done")
    assert ran == (["lstm-distilled-30-0"] if status == "diverged" else [])


def tasks_of(study: StudySettings, out: Path) -> list[TrialTask]:
    shown = StudyProgress(False)
    with opened(study, out, jobs=1, keep_runs=False, progress=False, shown=shown) as found:
        return found.tasks


@pytest.mark.slow
@as_subtests(("jobs", "seed"), [(jobs, seed) for jobs in (1, 2, 3) for seed in range(4)])
def test_the_queue_gives_no_student_before_its_teacher_is_over(jobs, seed, tmp_path, settings):
    study = replace(settings, seeds=parse_seeds("2"), families=("lstm", *FAMILIES))
    tasks = tasks_of(study, tmp_path / "study")
    assert len(tasks) == 12
    finished: dict[Trial, TrialResult] = {}
    queue, running, random = Queue(tasks, finished, jobs), [], np.random.default_rng(seed)
    given = []
    while len(finished) < len(tasks):
        while len(running) < jobs and (task := queue()) is not None:
            assert task.trial.teacher is None or task.trial.teacher in finished
            running.append(task)
            given.append(task.trial)
        over = running.pop(int(random.integers(len(running))))
        finished[over.trial] = stand_in(over)
    assert sorted(given) == sorted(task.trial for task in tasks)


@pytest.mark.slow
def test_several_processes(tmp_path, settings, finished):
    _, _, made = finished
    again = run(settings, tmp_path / "study", jobs=2)
    assert {name: one.status for name, one in again.items()} == dict.fromkeys(made, "done")
    assert not any((tmp_path / "study" / "runs").iterdir())


@as_subtests("seed", range(6))
def test_a_budget_gives_no_student_before_its_teacher_is_over(seed):
    """Whatever trials take and gaps are, with several running at a time."""
    random = np.random.default_rng(seed)
    families, sizes, seeds = ("lstm", "lstm-distilled", "encoder"), (100, 400), range(3)
    planned = [Trial(size, own, family) for size in sizes for own in seeds for family in families]
    seconds = {trial: float(random.uniform(1, 100)) for trial in planned}
    gaps = {
        (family, size): Estimate(float(random.normal(0, 0.02)), -0.05, 0.05, 3, 100)
        for family in families[:2]
        for size in sizes
    }
    over, running, left = set(), [], 2000.0
    while True:
        state = State(planned, frozenset(over), frozenset(), frozenset(running), seconds, gaps, left)
        trial = choose_next(state) if len(running) < 2 else None
        if trial is None and not running:
            break
        if trial is None:
            done = running.pop(int(random.integers(len(running))))
            over.add(done)
            left -= seconds[done]
            continue
        assert trial.teacher is None or trial.teacher in over
        assert trial not in over
        running.append(trial)
    assert any(trial.family == "lstm-distilled" for trial in over)


# -- plans and costs ---------------------------------------------------------------------------------------------------


def test_an_estimate_has_the_teacher_s_reading(tmp_path, settings):
    tasks = {task.trial: task for task in tasks_of(settings, tmp_path / "study")}
    train, test = (Store.open(store[0]) for store in (settings.train, settings.test))
    loads = Loads(train, test)
    speeds = {"lstm-distilled": Speed(1.0, 1e-3, 1e-4), "encoder": Speed(2.0, 1e-2, 5e-3)}
    found = Estimates(tasks.values(), loads, speeds).seconds({})
    student = tasks[Trial(30, 0, "lstm-distilled")]
    assert student.examples == 400
    limits = loads.limits(student)
    assert limits is not None
    assert limits.epoch > 300 * train.num_tokens / 400
    reading = loads.of_reading(student).predicted
    assert reading == pytest.approx(read_by(student.teacher.settings, train).num_tokens)
    own = speeds["lstm-distilled"].seconds(loads(student))
    assert found[student.trial] == pytest.approx(own + 5e-3 * reading)
    # a teacher that was not kept is trained again
    teacher = student.teacher.trial
    over = {teacher: replace(stand_in(student.teacher), tokens_per_second=0.0)}  # it tells no speed
    more = Estimates(tasks.values(), loads, speeds).seconds(over)
    assert more[student.trial] == pytest.approx(found[student.trial] + found[teacher])
    # one that was over with its teacher trained again says nothing of another's, whose teacher is there
    taught = Taught(340, 0, 600.0, 600.0, 50.0, 50.0, again_seconds=600.0)
    over[student.trial] = replace(stand_in(student), wall_seconds=760.0, tokens_per_second=0.0, taught=taught)
    assert Estimates(tasks.values(), loads, speeds).seconds(over)[student.trial] == pytest.approx(160.0)


def test_a_plan_counts_it(tmp_path, settings):
    plan = plan_study(
        settings, tmp_path / "study", progress=False, measure=lambda task, *_: Speed(1.0, 1e-3, 1e-3, 1_000)
    )
    names = ("lstm-distilled-30-0", "encoder-30-0")
    assert set(names) <= set(plan.seconds)
    assert plan.seconds[names[0]] > plan.seconds[names[1]] + 1e-3 * 30 * 400
    without = plan_study(
        replace(settings, families=("encoder",)),
        tmp_path / "without",
        progress=False,
        measure=lambda task, *_: Speed(1.0, 1e-3, 1e-3, 1_000),
    )
    assert plan.disk.runs > without.disk.runs


def test_the_report_says_what_each_family_needs(finished, tmp_path, undrawn):
    from penstock.engine.study.money import Prices

    _, out, made = finished
    shutil.copytree(out, tmp_path / "study")
    findings = write_report(tmp_path / "study", Prices(label=0.1, hour=3600.0))
    report = json.loads((tmp_path / "study" / "report.json").read_text())
    student = made["lstm-distilled-60-0"]
    need = next(own for own in report["needs"] if (own["family"], own["size"]) == ("lstm-distilled", 60))
    assert (need["labels"], need["unlabelled_texts"]) == (60, student.taught.texts)
    assert need["cpu_hours"] == pytest.approx(student.all_cpu_seconds / 3600)
    assert need["money"] == pytest.approx(0.1 * 60 + student.all_seconds)
    page = (tmp_path / "study" / "report.md").read_text()
    assert "What each family needs" in page
    first, *rest = report["answer"]["sentences"]
    assert "distilled" not in first, "no rival: it needs the encoder"
    assert "A BiLSTM distilled from the encoder, which needs that as its teacher, reaches " in rest[-1]
    assert f"| BiLSTM, distilled from the encoder | 60 | {student.taught.texts} |" in page.replace("  ", " ")
    assert "the teacher of each trial is that of encoder with the same subset and seed" in page
    assert (tmp_path / "study" / "needs.csv").read_text().startswith("family,size,labels,unlabelled_texts,cpu_hours")
    assert findings.needs


# -- what does not fit -------------------------------------------------------------------------------------------------


MISFITS = {
    "without the teacher's family": ({"families": ("lstm-distilled",)}, "learns from that of encoder: name encoder"),
    "sizes without a teacher": (
        {"max_sizes": parse_max_sizes(["encoder=30", "lstm-distilled=60"], FAMILIES)},
        "--max-size lstm-distilled=60: it learns from encoder of the same size, which has none of 60",
    ),
    "a setting of students for another family": (
        {"overrides": (*QUICK, "encoder.distillation.mix=0.3")},
        r"distillation\.mix=0\.3 has no effect",
    ),
    "weights of labels that nobody saw": (
        {"overrides": (*QUICK, "lstm-distilled.training.class_weights=balanced")},
        "cannot be had in a distillation",
    ),
    "a mix that is none": ({"overrides": (*QUICK, "distillation.mix=2")}, "distillation.mix must be between"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit(case, tmp_path, settings):
    changes, message = MISFITS[case]
    with pytest.raises(ConfigError, match=message):
        run(replace(settings, **changes), tmp_path / "study", run_trial=stand_in)


def test_sizes_beyond_the_teacher_s_are_left_out(tmp_path, settings):
    study = replace(settings, families=("lstm", *FAMILIES), max_sizes=parse_max_sizes(["encoder=30"], FAMILIES))
    names = set(run(study, tmp_path / "study", run_trial=stand_in))
    assert names == {"lstm-30-0", "lstm-60-0", "encoder-30-0", "lstm-distilled-30-0"}


def test_settings_for_all_are_for_those_that_have_a_use_for_them(tmp_path, settings):
    overrides = (*QUICK, "distillation.mix=0.25", "distillation.texts=50", "training.class_weights=balanced")
    tasks = {task.trial: task for task in tasks_of(replace(settings, overrides=overrides), tmp_path / "study")}
    student, teacher = tasks[Trial(30, 0, "lstm-distilled")], tasks[Trial(30, 0, "encoder")]
    assert (student.settings.distillation.mix, student.texts) == (0.25, 50)
    assert (teacher.settings.distillation.mix, teacher.texts) == (0.5, 0)
    weights = [task.settings.training.class_weights for task in (student, teacher)]
    assert weights == [None, "balanced"]


def test_a_teacher_made_from_something_else_is_found(tmp_path, settings, finished):
    """An encoder whose files were exchanged since, as for its own trials."""
    _, out, _ = finished
    shutil.copytree(out, tmp_path / "study")
    path = tmp_path / "study" / "trials" / "lstm-distilled-30-0.json"
    entry = json.loads(path.read_text())
    del entry["crc32"]
    entry["made_from"]["teacher"] = "0" * 64
    path.write_text(json.dumps(entry))
    with pytest.raises(RunError, match="what its teacher was made from: 000000000000 then"):
        run(settings, tmp_path / "study")


def test_a_damaged_entry_is_found(tmp_path, settings, finished):
    _, out, _ = finished
    shutil.copytree(out, tmp_path / "study")
    path = tmp_path / "study" / "trials" / "lstm-distilled-30-0.json"
    entry = json.loads(path.read_text())
    del entry["crc32"]
    entry["taught"]["texts"] = -1
    path.write_text(json.dumps(entry))
    with pytest.raises(RunError, match=r"not a trial's result \(taught\.texts is -1"):
        run(settings, tmp_path / "study")


def test_amounts_add_up():
    trial, taught = Trial(10, 0, "lstm-distilled"), Taught(5, 0, 100.0, 90.0, 20.0, 18.0)
    made = TrialResult(trial, "done", train_seconds=3.0, train_cpu_seconds=2.0, taught=taught)
    assert (made.all_seconds, made.all_cpu_seconds) == (123.0, 110.0)
    assert replace(made, train_cpu_seconds=None).all_cpu_seconds is None
    assert replace(made, taught=replace(taught, teacher_cpu_seconds=None)).all_cpu_seconds is None
