"""A study from its settings to its report: stores, costs, trials. What is finished is on the disk and not done again.

study.json       what is studied
data/            the stores, where the sources were not stores already, and the test rows' clusters
costs/           one file per family
trials/          a finished trial's figures, and its predictions
pretraining/     the one that trials of lstm-pretrained and lstm-pretrained-distilled begin with
encoded/         texts as vectors of the frozen encoder
external/        predictions that were made elsewhere
runs/            a trial in progress, or all of them on request
report.*, *.csv, *.png
"""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import cluster_file
from penstock.engine.data.overlap import Overlap, find_overlap
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.study.budget import Scheduler
from penstock.engine.study.costs import read_cost, write_cost
from penstock.engine.study.directory import read_study, trials_folder, write_study
from penstock.engine.study.families import FAMILIES, learns
from penstock.engine.study.fingerprints import MadeFrom, changed, difference
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.measure_cost import device_name, measure_cost
from penstock.engine.study.measure_speed import SECONDS
from penstock.engine.study.measure_speed import measure_speed as measure_speed_here
from penstock.engine.study.opened import OpenedStudy, opened
from penstock.engine.study.paired import Key, Paired
from penstock.engine.study.plan import plan_for
from penstock.engine.study.planning import MeasureSpeed, estimates_for, pretraining_seconds
from penstock.engine.study.pretraining import Pretraining, pretrain
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.run_trial import TrialTask, remove_run, run_trial
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.table import Table
from penstock.engine.study.trials import Pretrained, Trial, TrialResult, write_result
from penstock.engine.study.workers import Queue, RunTrial, run_trials
from penstock.engine.training.reading import LENGTH, OWN, TRUNCATION, WHOLE, Reading, read_by


def run_study(
    settings: StudySettings,
    out: Path | str,
    *,
    jobs: int = 1,
    keep_runs: bool = False,
    progress: bool = True,
    run_trial: RunTrial = run_trial,
    measure: Callable | None = None,
    budget: float | None = None,
    measure_speed: MeasureSpeed | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[TrialResult]:
    """Runs what is missing of a study and returns the results of its trials: of all of them, or with a budget of those
    that it sufficed for.

    A study may be continued with more sizes, seeds or families; with fewer, the others stay planned. Trials that failed
    are tried again; those that diverged are not: they would again.

    All that can be found wrong without reading the data is, before any of it is read. Nothing is trained where
    something in `out` was made from other data, settings or weights than are there now.

    Args:
        out: the study's directory, new or of the same study.
        jobs: trials run at a time, each in a process of its own if there are several. Those import the main module
            again: a script calls this under `if __name__ == "__main__":`, and is a file.
        keep_runs: keep the trials' run directories, with the trained models.
        run_trial, measure: what runs a trial and measures a family's cost; None: `measure_cost`.
        budget: seconds of `clock` that the trials and their pretraining may take, see `penstock.engine.study.budget`;
            None for no limit. What comes before is not part of it, and what was begun is ended.
        measure_speed: tells how long trials take, for the budget; None: `measure_speed`.

    Raises:
        ConfigError: sizes, seeds or overrides do not fit the data or each other, or no trial fits into the budget.
        RunError: `out` belongs to another study or holds what was made from something else, or another process works in
            it; or a process that was to run trials could not import the main module.
        StoreError: the two stores have other labels or tokenizers.
        PenstockError: of the sources, the encoder, the disk.
    """
    folder, shown = Path(out), StudyProgress(progress)
    with opened(settings, folder, jobs=jobs, keep_runs=keep_runs, progress=progress, shown=shown) as study:
        settings, train, test, tasks, existing = study.settings, study.train, study.test, study.tasks, study.existing
        overlap = _overlap(existing.study, train, test)
        shown.note(f"train and test: {overlap}")
        reads = {
            task.trial.family: Reading.of(read_by(task.settings, train)) for task in tasks if learns(task.trial.family)
        }
        for family, reading in reads.items():
            shown.note(f"{family} {reading}")
        _describe(folder, study, overlap, reads)
        _measure(folder / "costs", study, measure or measure_cost, shown)
        finished = {task.trial: existing.results[task.trial] for task in tasks if task.trial in existing.results}

        @functools.cache
        def pretrained() -> Pretrained:
            assert study.pretraining is not None
            return _pretrain(study.pretraining, train, shown, progress)

        scheduler = None
        if budget is None:
            if any(task.pretraining is not None and task.trial not in finished for task in tasks):
                pretrained()  # before the first trial, with the machine to itself
        else:
            quickly = measure_speed or partial(measure_speed_here, seconds=min(max(budget / 100, 0.2), SECONDS))
            estimates = estimates_for(study, folder, jobs, keep_runs, shown, quickly)
            gaps = partial(_gaps, folder, settings.cluster)
            before = pretraining_seconds(study, finished, estimates.speeds(finished)) or 0.0
            scheduler = Scheduler(tasks, finished, estimates, gaps, budget, clock, before)
        plan = plan_for(folder, settings.overrides)
        expected = {} if plan is None else plan.likely
        return _run(tasks, finished, folder, jobs, run_trial, shown, scheduler, expected, pretrained)


def _pretrain(pretraining: Pretraining, train: Store, shown: StudyProgress, progress: bool) -> Pretrained:
    """What it took. It is run, or goes on, unless it is over."""
    if pretraining.taken() is None:
        shown.note(str(pretraining))
    if pretraining.later:
        shown.note(
            f"note: the pretraining reads {pretraining.later:,} texts, without their labels, by which trials that were "
            "added since choose their best model"
        )
    return pretrain(pretraining, train, progress)


def _overlap(study: dict[str, Any], train: Store, test: Store) -> Overlap:
    """What train and test share; from study.json if that is about the same stores."""
    same = all(
        study.get(name, {}).get("fingerprint") == store.fingerprint
        for name, store in (("train", train), ("test", test))
    )
    return Overlap(**study["overlap"]) if same and "overlap" in study else find_overlap(train, test)


def _measure(folder: Path, study: OpenedStudy, measure: Callable, progress: StudyProgress) -> None:
    """The cost of each family that has none, or one of another model or for other data. A model may grow with its
    training examples: that of the family's largest trial is measured."""
    train, test, before = study.train, study.test, study.existing.study
    for family, task in study.largest.items():
        path = folder / f"{family}.json"
        assert task.made_from is not None
        now = _of_cost(family, task.made_from)
        if path.exists():
            made_from = read_cost(path).made_from
            then = None if made_from is None else _of_cost(family, made_from)
            last = (before.get("train", {}).get("fingerprint"), before.get("test", {}).get("fingerprint"))
            if (then is not None and _same_cost(then, now)) or (then is None and last == (now.train, now.test)):
                continue
            found = "other data" if then is None else _other_size(then, now) or difference(then, now) or "another model"
            progress.note(f"{path} is of something else than the largest trial now ({found}): measured again")
        write_cost(path, dataclasses.replace(measure(family, task.settings, train, test), made_from=now))


def _of_cost(family: str, trial: MadeFrom) -> MadeFrom:
    """The part of what a trial was made from that its model's size and speed depend on; of that part, itself."""
    settings = {key: value for key, value in trial.settings.items() if key not in ("model.encoder", "training.seed")}
    if not learns(family):
        settings = {}
    elif FAMILIES[family].baseline is None:
        read = {key: settings[key] for key in (LENGTH, TRUNCATION) if settings.get(key) not in (None, WHOLE, OWN)}
        settings = {key: value for key, value in settings.items() if key.startswith("model.")} | read
        trial = dataclasses.replace(trial, teacher=None)
    return dataclasses.replace(trial, settings=settings, max_test=None, precision=None)


def _other_size(then: MadeFrom, now: MadeFrom) -> str | None:
    """As `difference`, of the training examples that a baseline's model grows with, and nothing else."""
    sizes = [made.settings.get("examples") for made in (then, now)]
    same = dataclasses.replace(then, settings=then.settings | {"examples": sizes[1]}) == now
    return changed("its training examples", *sizes) if same else None


def _same_cost(then: MadeFrom, now: MadeFrom) -> bool:
    """A setting of the model that an earlier penstock did not have was at its default."""
    from penstock.engine.training.settings import Settings

    added = {}
    if "model.kind" in then.settings:
        usual = Settings().flat()
        added = {key: usual[key] for key in now.settings.keys() - then.settings.keys() if key.startswith("model.")}
    return dataclasses.replace(then, settings=then.settings | added) == now


def _describe(folder: Path, study: OpenedStudy, overlap: Overlap, reads: Mapping[str, Reading]) -> None:
    """What the report says of the study besides its trials, and what the next start compares with what it finds."""
    settings, train, test, before = study.settings, study.train, study.test, study.existing.study
    families = {trial.family for trial in study.planned}
    now = [task.made_from for task in study.tasks if task.made_from is not None]
    encoders = {made.settings["model.encoder"]: made.encoder for made in now if made.encoder is not None}
    kept = {name: before[name] for name in ("machine", "prices") if name in before}
    document = {
        "identity": settings.identity(),
        "families": [name for name in FAMILIES if name in families],
        "trials": [trial.name for trial in study.planned],
        "labels": train.label_names,
        "train": {"examples": train.num_examples, "tokens": train.num_tokens, "fingerprint": train.fingerprint},
        "test": {
            "examples": test.num_examples,
            "tokens": test.num_tokens,
            "fingerprint": test.fingerprint,
            "place": str(test.path.resolve()),  # `identity` has it as it was given, from a directory that is not known
        },
        "max_length": train.max_length,
        "reads": before.get("reads", {}) | {family: reading.to_json() for family, reading in reads.items()},
        "cluster": settings.cluster,
        **({} if study.clusters is None else {"cluster_overlap": study.clusters.to_json()}),
        "encoders": before.get("encoders", {}) | encoders,
        "overlap": overlap.to_json(),
    }
    write_study(folder, document | kept)


def _machine(jobs: int) -> dict[str, Any]:
    """What trials run on now: the entry of study.json, which is written with the first of them that is over."""
    import torch

    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "jobs": jobs,
        "torch": torch.__version__,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Versions that figures may depend on, besides that of torch."""
    packages = {name: importlib.metadata.version(name) for name in ("penstock", "transformers")}
    return packages | {"python": platform.python_version()}


def _gaps(folder: Path, cluster: str | None, results: Iterable[TrialResult]) -> dict[Key, Estimate]:
    """The encoder's lead over each family at each size, as the report has it."""
    results = list(results)
    clusters = None if cluster is None else cluster_file(folder / "data" / "test")
    table = Table(results, Paired.of(trials_folder(folder), results, clusters))
    points = [point for family in table.families for point in table.points(family)]
    return {(point.family, point.size): point.gap for point in points if point.gap is not None}


def _leave_teacher(teacher: Trial | None, tasks: Sequence[TrialTask], finished: Mapping[Trial, TrialResult]) -> None:
    """Removes a teacher's model and logits once nothing learns from them any more."""
    students = [task for task in tasks if teacher is not None and task.trial.teacher == teacher]
    if any((result := finished.get(task.trial)) is None or result.status == "failed" for task in students):
        return
    for model in (task.teacher for task in students[:1]):
        if model is not None and not model.keep_run:
            remove_run(model.run)
            remove_run(model.logits)


def _run(
    tasks: Sequence[TrialTask],
    finished: dict[Trial, TrialResult],
    folder: Path,
    jobs: int,
    run_trial: RunTrial,
    progress: StudyProgress,
    scheduler: Scheduler | None,
    expected: Mapping[str, float],
    pretrained: Callable[[], Pretrained],
) -> list[TrialResult]:
    sources = {task.trial: task.made_from for task in tasks}
    left = [task for task in tasks if task.trial not in finished]
    next_task = scheduler or Queue(left, finished, jobs)

    def with_result() -> TrialTask | None:
        task = next_task()
        if task is not None and task.pretraining is not None:
            task = dataclasses.replace(task, pretrained=pretrained())
        if task is not None and task.teacher is not None:
            task = dataclasses.replace(task, teacher_result=finished[task.teacher.trial])
        return task

    progress.start(
        [task.trial for task in tasks], finished, jobs, expected, None if scheduler is None else scheduler.left
    )
    started, machine = time.monotonic(), None
    for result in run_trials(with_result, jobs, run_trial) if left else ():
        result = dataclasses.replace(result, made_from=sources[result.trial])
        if machine is None:  # before its result: a study that is stopped between the two says what its trials ran on
            machine = _machine(jobs)
            write_study(folder, read_study(folder) | {"machine": machine})
        write_result(trials_folder(folder), result)
        finished[result.trial] = result
        _leave_teacher(result.trial.teacher, tasks, finished)
        progress.finished(result, time.monotonic() - started)
        started = time.monotonic()
    if scheduler is not None:
        for line in scheduler.lines():
            progress.note(line)
        if not finished:
            raise ConfigError(scheduler.too_short())
    results = [finished[task.trial] for task in tasks if task.trial in finished]
    if results and all(result.status != "done" for result in results):
        kinds = {result.status for result in results}
        what = kinds.pop() if len(kinds) == 1 else "diverged or failed"
        raise RunError(f"every trial {what}; the first one, {results[0].trial.name}: {results[0].error}")
    return results
