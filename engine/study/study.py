"""A study from its settings to its report: stores, costs, trials. What is finished is on the disk and not done again.

study.json       what is studied
data/            the stores, where the sources were not stores already, and the test rows' clusters
costs/           one file per family
trials/          a finished trial's figures, and its predictions
encoded/         texts as vectors of the frozen encoder
external/        predictions that were made elsewhere
runs/            a trial in progress, or all of them on request
report.*, *.csv, *.png
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import cluster_file, read_cluster_file, read_clusters, write_cluster_file
from penstock.engine.data.overlap import Overlap, find_overlap
from penstock.engine.data.prepare import prepare
from penstock.engine.data.sources import open_sources
from penstock.engine.data.store import Store
from penstock.engine.data.verify import check_files
from penstock.engine.errors import ConfigError, OtherDataError, RunError, StoreError
from penstock.engine.files import write_committed
from penstock.engine.study.check import HAS_LISTS, check_plan, is_store
from penstock.engine.study.costs import read_cost, write_cost
from penstock.engine.study.directory import STUDY_NAME, claim, read_study, trials_folder, write_study
from penstock.engine.study.existing import Existing, remains
from penstock.engine.study.external import keep_external
from penstock.engine.study.families import FAMILIES, learns
from penstock.engine.study.fingerprints import MadeFrom, made_from
from penstock.engine.study.measure_cost import device_name, measure_cost
from penstock.engine.study.predictions import predictions_path
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.run_trial import TrialTask, run_trial
from penstock.engine.study.settings import StudySettings, subset_seed, trial_settings
from penstock.engine.study.sizes import resolve_sizes, sizes_up_to
from penstock.engine.study.trials import Trial, TrialResult, plan_trials, write_result
from penstock.engine.study.workers import RunTrial, run_trials
from penstock.engine.training.reading import LENGTH, OWN, TRUNCATION, WHOLE, Reading, read_by

_LONG_TRIAL = 20_000  # examples from which a trial shows its own progress


def run_study(
    settings: StudySettings,
    out: Path | str,
    *,
    jobs: int = 1,
    keep_runs: bool = False,
    progress: bool = True,
    run_trial: RunTrial = run_trial,
    measure: Callable | None = None,
) -> list[TrialResult]:
    """Runs what is missing of a study and returns the results of all its trials.

    A study may be continued with more sizes, seeds or families. Trials that failed are tried again; those that diverged
    are not: they would again.

    All that can be found wrong without reading the data is, before any of it is read. Nothing is trained where
    something in `out` was made from other data, settings or weights than are there now.

    Args:
        out: the study's directory, new or of the same study.
        jobs: trials run at a time, each in a process of its own if there are several.
        keep_runs: keep the trials' run directories, with the trained models.
        run_trial, measure: what runs a trial and measures a family's cost; None: `measure_cost`.

    Raises:
        ConfigError: sizes, seeds or overrides do not fit the data or each other.
        RunError: `out` belongs to another study or holds what was made from something else, or another process works in
            it.
        StoreError: the two stores have other labels or tokenizers.
        PenstockError: of the sources, the encoder, the disk.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 at least, got {jobs}")
    folder, shown = Path(out), StudyProgress(progress)
    if (folder / STUDY_NAME).exists():
        settings = settings.as_begun(read_study(folder).get("identity", {}))
    for note in check_plan(settings):
        shown.note(note)
    with claim(folder, settings.identity()):
        existing = Existing(folder)
        train = open_or_prepare(settings.train, folder / "data" / "train", settings, None, progress)
        existing.check_data("train", train)
        trials = planned_trials(settings, train)
        test = open_or_prepare(settings.test, folder / "data" / "test", settings, train, progress)
        existing.check_data("test", test)
        _check_alike(train, test)
        for store in (train, test):
            check_files(store)
        if settings.cluster is not None:
            _keep_clusters(settings, settings.cluster, cluster_file(folder / "data" / "test"), test)
        if settings.max_test is not None and settings.max_test > test.num_examples:
            raise ConfigError(f"--max-test {settings.max_test:,}: the test data has {test.num_examples:,} examples")

        for name, file in settings.external.items():
            keep_external(folder / "external", name, file, test, settings.max_test)

        def from_now(trial: Trial) -> MadeFrom:
            own = trial_settings(settings, trial, train)
            return made_from(own, train.fingerprint, test.fingerprint, settings.max_test)

        tasks = [_task(settings, trial, folder, train, test, keep_runs, jobs, from_now(trial)) for trial in trials]
        existing.check_trials(from_now)
        if existing.old:
            shown.note(_about_old(existing))
        overlap = _overlap(existing.study, train, test)
        shown.note(f"train and test: {overlap}")
        reads = {
            task.trial.family: Reading.of(read_by(task.settings, train)) for task in tasks if learns(task.trial.family)
        }
        for family, reading in reads.items():
            shown.note(f"{family} {reading}")
        _describe(folder, settings, existing.study, train, test, tasks, jobs, overlap, reads)
        _measure(folder / "costs", settings, existing.study, tasks, train, test, measure or measure_cost, shown)
        return _run(tasks, existing.results, trials_folder(folder), jobs, run_trial, shown)


def planned_trials(settings: StudySettings, train: Store) -> list[Trial]:
    """
    Raises:
        ConfigError: a size does not fit the data, or a family has none.
    """
    sizes = resolve_sizes(settings.sizes, train.num_examples, len(train.label_names))
    seeds = settings.seeds.resolve(sizes, train.num_examples)
    own = {family: sizes_up_to(sizes, settings.max_sizes, family, train.num_examples) for family in settings.families}
    for family, kept in own.items():
        if not kept:
            raise ConfigError(f"--max-size leaves no size for {family}: the smallest is {sizes[0]:,}")
    return plan_trials(own, seeds)


def open_or_prepare(
    sources: Sequence[str], folder: Path, settings: StudySettings, like: Store | None, progress: bool
) -> Store:
    """The store that the one source is, or one prepared from the sources with the encoder's tokenizer.

    Raises:
        RunError: `folder` holds a store of something else than the sources hold now.
        StoreError, SourceError, TokenizerError, DiskError: as `prepare` and `Store.open`.
    """
    if is_store(sources):
        return Store.open(sources[0])
    choices: dict[str, Any] = {
        "text": settings.text,
        "label": settings.label,
        "bad_rows": settings.bad_rows,
        "reading": settings.reading,
    }
    if like is None:
        choices |= {
            "tokenizer": settings.encoder,
            "max_length": settings.stored_length,
            "truncation": settings.truncation,
        }
    else:
        choices["like"] = like.path
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return prepare(list(sources), folder, progress=progress, **choices)
    except OtherDataError:
        raise RunError(
            f"{folder} was prepared from other data or settings than {', '.join(sources)} gives now. Put back what was "
            f"there, give another --out, or remove {remains(folder.parent.parent)} to train all trials again"
        ) from None


def _keep_clusters(settings: StudySettings, column: str, path: Path, test: Store) -> None:
    """Puts the test rows' clusters where the report looks for them, unless they are there already."""
    if path.exists():
        with contextlib.suppress(StoreError):
            if read_cluster_file(path, test.fingerprint)[0] == column:
                return
    if is_store(settings.test):
        read_clusters(test, column)
        write_committed(path, cluster_file(test.path).read_bytes())
        return
    sources = open_sources(list(settings.test), text=settings.text, label=settings.label, reading=settings.reading)
    write_cluster_file(path, test, sources, column)


def _check_alike(train: Store, test: Store) -> None:
    for store in (train, test):
        if store.multi_label:
            raise StoreError(f"{store.path} {HAS_LISTS}")
    for what, here, there in (
        ("another tokenizer", test.manifest.tokenizer.fingerprint, train.manifest.tokenizer.fingerprint),
        ("other labels", test.label_names, train.label_names),
    ):
        if here != there:
            raise StoreError(f"{test.path} has {what} than {train.path}: prepare it with --like {train.path}")


def _about_old(existing: Existing) -> str:
    known = "train" in existing.study and "test" in existing.study
    checked = "their data is what it was at the last start" if known else "study.json does not know their data either"
    return (
        f"{len(existing.old)} trials of an earlier penstock do not say what they were made from (the first is "
        f"{existing.old[0]}): {checked}; settings and encoder cannot be compared"
    )


def _overlap(study: dict[str, Any], train: Store, test: Store) -> Overlap:
    """What train and test share; from study.json if that is about the same stores."""
    same = all(
        study.get(name, {}).get("fingerprint") == store.fingerprint
        for name, store in (("train", train), ("test", test))
    )
    return Overlap(**study["overlap"]) if same and "overlap" in study else find_overlap(train, test)


def _measure(
    folder: Path,
    settings: StudySettings,
    study: dict[str, Any],
    tasks: Sequence[TrialTask],
    train: Store,
    test: Store,
    measure: Callable,
    progress: StudyProgress,
) -> None:
    """The cost of each family that has none, or one of a model for other data. A baseline's model grows with its
    training examples: that of its largest trial is measured."""
    for family in settings.families:
        path = folder / f"{family}.json"
        own = [task for task in tasks if task.trial.family == family]
        task = own[0] if FAMILIES[family].baseline is None else max(own, key=lambda task: task.trial.size)
        now = _of_cost(task.made_from)
        if path.exists():
            then = read_cost(path).made_from
            last = (study.get("train", {}).get("fingerprint"), study.get("test", {}).get("fingerprint"))
            if then == now or (then is None and last == (now.train, now.test)):
                continue
            progress.note(f"{path} was measured with other data or weights: measured again")
        write_cost(path, dataclasses.replace(measure(family, task.settings, train, test), made_from=now))


def _of_cost(trial: MadeFrom | None) -> MadeFrom:
    """The part of what a trial was made from that its model's size and speed depend on."""
    assert trial is not None
    if "model.kind" not in trial.settings:  # of a baseline
        return dataclasses.replace(trial, max_test=None)
    model = {key: value for key, value in trial.settings.items() if key.startswith("model.") and key != "model.encoder"}
    model |= {key: value for key in (LENGTH, TRUNCATION) if (value := trial.settings[key]) not in (WHOLE, OWN)}
    return dataclasses.replace(trial, settings=model, max_test=None)


def _describe(
    folder: Path,
    settings: StudySettings,
    before: dict[str, Any],
    train: Store,
    test: Store,
    tasks: Sequence[TrialTask],
    jobs: int,
    overlap: Overlap,
    reads: Mapping[str, Reading],
) -> None:
    """What the report says of the study besides its trials, and what the next start compares with what it finds."""
    import torch

    now = [task.made_from for task in tasks if task.made_from is not None]
    encoders = {made.settings["model.encoder"]: made.encoder for made in now if made.encoder is not None}
    document = {
        "identity": settings.identity(),
        "families": list(settings.families),
        "trials": [task.trial.name for task in tasks],
        "labels": train.label_names,
        "train": {"examples": train.num_examples, "tokens": train.num_tokens, "fingerprint": train.fingerprint},
        "test": {"examples": test.num_examples, "tokens": test.num_tokens, "fingerprint": test.fingerprint},
        "max_length": train.max_length,
        "reads": {family: reading.to_json() for family, reading in reads.items()},
        "cluster": settings.cluster,
        "encoders": before.get("encoders", {}) | encoders,
        "overlap": overlap.to_json(),
        "machine": {
            "device": device_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "jobs": jobs,
            "torch": torch.__version__,
            "versions": _versions(),
        },
        **({"prices": before["prices"]} if "prices" in before else {}),
    }
    write_study(folder, document)


def _versions() -> dict[str, str]:
    """Versions that figures may depend on, besides that of torch."""
    packages = {name: importlib.metadata.version(name) for name in ("penstock", "transformers")}
    return packages | {"python": platform.python_version()}


def _task(
    settings: StudySettings,
    trial: Trial,
    folder: Path,
    train: Store,
    test: Store,
    keep_runs: bool,
    jobs: int,
    made_from: MadeFrom,
) -> TrialTask:
    return TrialTask(
        trial=trial,
        settings=trial_settings(settings, trial, train),
        train_store=train.path,
        test_store=test.path,
        subset_seed=subset_seed(settings.seed, trial.seed),
        max_test=settings.max_test,
        run=folder / "runs" / trial.name,
        keep_run=keep_runs,
        cache=folder / "encoded",
        progress="auto" if jobs == 1 and trial.size >= _LONG_TRIAL else "none",
        made_from=made_from,
        predictions=predictions_path(trials_folder(folder), trial.name),
    )


def _run(
    tasks: Sequence[TrialTask],
    existing: Mapping[Trial, TrialResult],
    folder: Path,
    jobs: int,
    run_trial: RunTrial,
    progress: StudyProgress,
) -> list[TrialResult]:
    finished = {task.trial: existing[task.trial] for task in tasks if task.trial in existing}
    sources = {task.trial: task.made_from for task in tasks}
    left = [task for task in tasks if task.trial not in finished]
    progress.start([task.trial for task in tasks], finished, jobs)
    started = time.monotonic()
    for result in run_trials(left, jobs, run_trial) if left else ():
        result = dataclasses.replace(result, made_from=sources[result.trial])
        write_result(folder, result)
        finished[result.trial] = result
        progress.finished(result, time.monotonic() - started)
        started = time.monotonic()
    if tasks and all(finished[task.trial].status != "done" for task in tasks):
        first = finished[tasks[0].trial]
        kinds = {finished[task.trial].status for task in tasks}
        what = kinds.pop() if len(kinds) == 1 else "diverged or failed"
        raise RunError(f"every trial {what}; the first one, {first.trial.name}: {first.error}")
    return [finished[task.trial] for task in tasks]
