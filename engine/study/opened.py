"""A study's stores, trials and what is there of them, checked: all that comes before the first training."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.engine.data.clusters import ClusterOverlap
from penstock.engine.data.cut import texts_cut_short
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.data.verify import check_files
from penstock.engine.errors import ConfigError, OtherDataError, RunError, StoreError
from penstock.engine.study.check import HAS_LISTS, check_plan, is_store
from penstock.engine.study.clusters import settle_clusters
from penstock.engine.study.directory import (
    EXTERNAL,
    STUDY_NAME,
    claim,
    families_of,
    has_begun,
    planned_trials,
    read_study,
    trials_folder,
)
from penstock.engine.study.existing import Existing, remains
from penstock.engine.study.external import keep_external
from penstock.engine.study.families import FAMILIES, learns
from penstock.engine.study.fingerprints import MadeFrom, made_from
from penstock.engine.study.predictions import predictions_path
from penstock.engine.study.pretraining import Pretraining, planned_pretraining
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import (
    StudySettings,
    resolved_pretraining,
    subset_seed,
    trial_settings,
    unlabelled_texts,
)
from penstock.engine.study.sizes import resolve_sizes, sizes_up_to
from penstock.engine.study.trials import Trial, plan_trials, trial_named
from penstock.engine.training.reading import read_alike, read_by
from penstock.engine.training.run_record import how_stored

_LONG_TRIAL = 20_000  # examples from which a trial shows its own progress


@dataclass(frozen=True)
class OpenedStudy:
    """
    Attributes:
        settings: those of the study as it was begun.
        train, test: the stores.
        tasks: of all trials of the grid.
        planned: those, and what earlier starts have planned or finished; see `with_earlier`.
        largest: {family: the largest of its planned trials}, of the grid's families.
        existing: what earlier starts have left.
        pretraining: that some of the trials begin with; None where none does.
        clusters: the groups of test rows of which the training data has rows too; None where that is not known.
    """

    settings: StudySettings
    train: Store
    test: Store
    tasks: list[TrialTask]
    planned: list[Trial]
    largest: dict[str, TrialTask]
    existing: Existing
    clusters: ClusterOverlap | None = None
    pretraining: Pretraining | None = None


@contextlib.contextmanager
def opened(
    settings: StudySettings, folder: Path, *, jobs: int, keep_runs: bool, progress: bool, shown: StudyProgress
) -> Iterator[OpenedStudy]:
    """The study in its folder, which is locked meanwhile. Stores are prepared where they are not there.

    Raises: as `run_study`, of all that is wrong before a trial is run.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 at least, got {jobs}")
    _check_apart(folder, (*settings.train, *settings.test))
    if (folder / STUDY_NAME).exists():
        begun = read_study(folder)
        earlier = [name for name in FAMILIES if name in families_of(folder, begun)]
        settings = replace(settings.as_begun(begun["identity"]), earlier=tuple(earlier))
    for note in check_plan(settings):
        shown.note(note)
    with claim(folder, settings.identity()):
        if settings.prices is not None:
            settings.prices.keep(folder)
        existing = Existing(folder)
        renew = not has_begun(folder, existing.study)
        train = open_or_prepare(settings.train, folder / "data" / "train", settings, None, progress, renew)
        existing.check_data("train", train)
        trials = grid_of(settings, train)
        test = open_or_prepare(settings.test, folder / "data" / "test", settings, train, progress, renew)
        existing.check_data("test", test)
        _check_alike(train, test)
        for store in (train, test):
            check_files(store)
        if settings.max_test is not None and settings.max_test > test.num_examples:
            raise ConfigError(f"--max-test {settings.max_test:,}: the test data has {test.num_examples:,} examples")
        clusters = None
        if settings.cluster is not None:
            found = settle_clusters(settings, folder, train, test)
            clusters = None if isinstance(found, str) else found
            unknown = f"whether the training data shares groups with the test data is not known: {found}"
            shown.note(f"--cluster {settings.cluster}: {unknown if clusters is None else found}")
        for name, file in settings.external.items():
            keep_external(folder / EXTERNAL, name, file, test, settings.max_test)

        def task_of(trial: Trial) -> TrialTask:
            return _task(settings, trial, folder, train, test, keep_runs, jobs)

        tasks = [task_of(trial) for trial in trials]
        _check_cuts(tasks, train, test)
        pretraining, before = None, None
        if settings.pretrains:
            existing.check_pretraining(folder / "pretraining")
            own = resolved_pretraining(settings, train)
            pretraining = planned_pretraining(folder / "pretraining", own, tasks, train, test)
            before = pretraining.made_from

        def from_now(trial: Trial) -> MadeFrom:
            own = trial_settings(settings, trial, train)
            theirs = None if trial.teacher is None else trial_settings(settings, trial.teacher, train)
            earlier = before if FAMILIES[trial.family].pretrains else None
            if not settings.pretrains and trial in existing.results:  # nothing is added to it
                done = existing.results[trial].made_from
                earlier = None if done is None else done.pretraining
            return made_from(own, train.fingerprint, test.fingerprint, settings.max_test, theirs, earlier)

        tasks = [
            replace(
                task,
                made_from=from_now(task.trial),
                pretraining=pretraining.run if pretraining and FAMILIES[task.trial.family].pretrains else None,
            )
            for task in tasks
        ]
        tasks = with_teachers(tasks, existing)
        existing.check_trials(from_now)
        _check_encoders(tasks, train)
        if pretraining is not None:
            pretraining.taken()  # which was this one
        if existing.old:
            shown.note(_about_old(existing))
        if keep_runs:
            for line in _about_runs(tasks, existing):
                shown.note(line)
        planned = with_earlier(trials, settings, existing, train)
        if later := [trial for trial in planned if trial not in {*trials, *existing.results}]:
            shown.note(_about_later(later))
        largest = {trial.family: trial for trial in sorted(planned, key=lambda trial: (trial.size, -trial.seed))}
        measured = {
            name: replace(task_of(largest[name]), made_from=from_now(largest[name])) for name in settings.families
        }
        yield OpenedStudy(settings, train, test, tasks, planned, measured, existing, clusters, pretraining)


def with_teachers(tasks: Sequence[TrialTask], existing: Existing) -> list[TrialTask]:
    """The tasks with those that they learn from, which leave their models for them."""
    by_trial = {task.trial: task for task in tasks}
    awaited = {task.trial.teacher for task in tasks if task.trial not in existing.results}
    return [
        replace(
            task,
            keep_run=task.keep_run or task.trial in awaited,
            teacher=None if task.trial.teacher is None else by_trial[task.trial.teacher],
        )
        for task in tasks
    ]


def grid_of(settings: StudySettings, train: Store) -> list[Trial]:
    """
    Raises:
        ConfigError: a size does not fit the data, or a family has none.
    """
    sizes = resolve_sizes(settings.sizes, train.num_examples, len(train.label_names))
    seeds = settings.seeds.resolve(sizes, train.num_examples)
    own = {family: sizes_up_to(sizes, settings.max_sizes, family, train.num_examples) for family in settings.families}
    for family in settings.families:
        if (teacher := FAMILIES[family].teacher) is None:
            continue
        without = [size for size in own[family] if size not in own[teacher]]
        if without and family in settings.max_sizes:
            raise ConfigError(
                f"--max-size {family}={settings.max_sizes[family].text}: it learns from {teacher} of the same size, "
                f"which has none of {without[0]:,}: leave it out, or give {teacher} more"
            )
        own[family] = tuple(size for size in own[family] if size in own[teacher])
    for family, kept in own.items():
        if not kept:
            raise ConfigError(f"--max-size leaves no size for {family}: the smallest is {sizes[0]:,}")
    return plan_trials(own, seeds)


def with_earlier(trials: Sequence[Trial], settings: StudySettings, existing: Existing, train: Store) -> list[Trial]:
    """The trials of a grid, those that are finished, and those that an earlier start has planned, with as many examples
    as --max-size allows now; small ones first."""
    recorded = existing.study.get("train", {}).get("fingerprint", train.fingerprint)
    names = planned_trials(existing.study) if recorded == train.fingerprint else []
    before = [
        trial
        for trial in map(trial_named, names)
        if trial is not None
        and all(
            sizes_up_to([trial.size], settings.max_sizes, name, train.num_examples)
            for name in (trial.family, FAMILIES[trial.family].teacher)
            if name is not None
        )
    ]
    finished = [trial for trial in existing.results if trial.family in FAMILIES]
    return sorted({*trials, *before, *finished})


def open_or_prepare(
    sources: Sequence[str],
    folder: Path,
    settings: StudySettings,
    like: Store | None,
    progress: bool,
    renew: bool = False,
) -> Store:
    """The store that the one source is, or one prepared from the sources with the study's tokenizer.

    Args:
        renew: a store in `folder` of something else than the sources hold now is replaced.

    Raises:
        RunError: `folder` holds such a store, and it is not to be replaced.
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
            "tokenizer": settings.tokenizer,
            "max_length": settings.stored_length,
            "truncation": settings.truncation,
        }
    else:
        choices["like"] = like.path
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return prepare(list(sources), folder, progress=progress, **choices)
    except OtherDataError:
        if renew:
            return prepare(list(sources), folder, progress=progress, overwrite=True, **choices)
        raise RunError(
            f"{folder} was prepared from other data or settings than {', '.join(sources)} gives now. Put back what was "
            f"there, give another --out, or remove {remains(folder.parent.parent)} to train all trials again"
        ) from None


def _check_apart(folder: Path, sources: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: the study's files would lie among those of a folder that is read as data.
    """
    out = folder.resolve()
    for name in sources:
        place = Path(os.path.expanduser(name)).resolve()
        if not name or not place.is_dir() or is_store([name]) or not out.is_relative_to(place):
            continue
        if not any(part.startswith((".", "_")) for part in out.relative_to(place).parts):  # which nobody reads
            raise ConfigError(f"{folder} lies in {name}, all of whose files are data: give an --out outside of it")


def _check_alike(train: Store, test: Store) -> None:
    for store in (train, test):
        if store.multi_label:
            raise StoreError(f"{store.path} {HAS_LISTS}")
    for what, here, there in (
        ("another tokenizer", test.manifest.tokenizer.fingerprint, train.manifest.tokenizer.fingerprint),
        ("other columns of text", test.is_pair, train.is_pair),
        ("other labels", test.label_names, train.label_names),
    ):
        if here != there:
            raise StoreError(f"{test.path} has {what} than {train.path}: prepare it with --like {train.path}")


def _check_cuts(tasks: Sequence[TrialTask], train: Store, test: Store) -> None:
    """
    Raises:
        StoreError: less is left of test texts than a family reads of such texts.
        ConfigError: its pairs of texts are longer than those of the training data.
    """
    for family, settings in {task.trial.family: task.settings for task in tasks}.items():
        read = read_by(settings, train)
        read_alike(read, test)  # whether that can be done
        if learns(family) and (cut := texts_cut_short(test, read.max_length, read.truncation)):
            raise StoreError(
                f"{test.path}: {cut:,} of its {test.num_examples:,} texts were cut to {how_stored(test)} when it was "
                f"prepared, and {family} reads {read.max_length:,} tokens ({read.truncation}): prepare it with --like "
                f"{train.path}"
            )


def _check_encoders(tasks: Sequence[TrialTask], train: Store) -> None:
    """
    Raises:
        ModelError: the data was prepared with another tokenizer than an encoder's, which a family starts from.
    """
    from penstock.engine.models.build import check_tokenizer

    encoders = {name for task in tasks if (name := task.settings.flat().get("model.encoder")) is not None}
    for encoder in sorted(encoders):
        check_tokenizer(encoder, train.vocab_size, train.tokenizer())


def _about_later(trials: Sequence[Trial]) -> str:
    what = "trial is" if len(trials) == 1 else "trials are"
    return (
        f"{len(trials):,} {what} planned by an earlier command and not part of this one (the first is "
        f"{trials[0].name}): the report counts what is still to run"
    )


def _about_old(existing: Existing) -> str:
    known = "train" in existing.study and "test" in existing.study
    checked = "their data is what it was at the last start" if known else "study.json does not know their data either"
    return (
        f"{len(existing.old)} trials of an earlier penstock do not say what they were made from (the first is "
        f"{existing.old[0]}): {checked}; settings and encoder cannot be compared"
    )


def _about_runs(tasks: Sequence[TrialTask], existing: Existing) -> Iterator[str]:
    """What --keep-runs cannot keep."""
    trained = [task for task in tasks if FAMILIES[task.trial.family].baseline is None]
    if not trained:
        yield "--keep-runs has no effect: the training loop, which makes runs, trains none of these families"
    over = [task.trial for task in trained if not task.run.exists() and task.trial in existing.results]
    gone = [trial.name for trial in over if existing.results[trial].status == "done"]
    if gone:
        yield (
            f"--keep-runs: {len(gone):,} {'trial is' if len(gone) == 1 else 'trials are'} finished without it, and the "
            f"models are gone (the first is {gone[0]}): remove trials/NAME.json of those to train again"
        )


def _task(
    settings: StudySettings,
    trial: Trial,
    folder: Path,
    train: Store,
    test: Store,
    keep_runs: bool,
    jobs: int,
) -> TrialTask:
    own = trial_settings(settings, trial, train)
    return TrialTask(
        trial=trial,
        settings=own,
        texts=unlabelled_texts(own, trial, train),
        train_store=train.path,
        test_store=test.path,
        subset_seed=subset_seed(settings.seed, trial.seed),
        max_test=settings.max_test,
        run=folder / "runs" / trial.name,
        keep_run=keep_runs,
        cache=folder / "encoded",
        progress="auto" if jobs == 1 and trial.size >= _LONG_TRIAL else "none",
        predictions=predictions_path(trials_folder(folder), trial.name),
    )
