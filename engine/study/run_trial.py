"""One trial: train on the subset, evaluate once on the test set."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from penstock.engine.errors import NonFiniteError, OutOfMemoryError, PenstockError, RunError
from penstock.engine.files import FolderLock, disk_errors, remove_folder
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.fingerprints import MadeFrom, difference, made_from
from penstock.engine.study.predictions import PredictionsRecorder
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import Pretrained, Taught, Trial, TrialResult

if TYPE_CHECKING:
    from torch import Tensor

    from penstock.engine.data.store import Store
    from penstock.engine.study.baselines.fitting import Fitted
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.training.settings import Settings


@dataclass(frozen=True)
class TrialTask:
    """All that a trial needs, in a form that another process can take.

    Attributes:
        settings: of the training run, or of a baseline.
        train_store, test_store: folders.
        subset_seed: of the permutation whose first `trial.size` rows are trained on.
        max_test: number of test rows, always the same ones; None for all.
        run: the run's directory, from which an interrupted trial resumes.
        keep_run: leave it there; it holds the trained model.
        progress: of the training, see `train`.
        made_from: what the study found before its first trial, which has to be what this trial finds.
        predictions: the file to write them to; None for none.
        cache: a folder that the trials share, for what a baseline makes once; None for none.
        texts: of the training data without their labels, that are learned from beside the subset.
        teacher: the trial that it learns from, whose model stays until its last student is over; None for none.
        teacher_result: what came of that, once it is over.
        pretraining: the pretraining run that it begins with; None for none. pretrained: what that took, once it is
            over.
    """

    trial: Trial
    settings: "Settings | BaselineSettings"
    train_store: Path
    test_store: Path
    subset_seed: int
    max_test: int | None
    run: Path
    keep_run: bool = False
    progress: Literal["auto", "live", "plain", "none"] = "none"
    made_from: MadeFrom | None = None
    predictions: Path | None = None
    cache: Path | None = None
    texts: int = 0
    teacher: "TrialTask | None" = None
    teacher_result: TrialResult | None = None
    pretraining: Path | None = None
    pretrained: Pretrained | None = None

    @property
    def examples(self) -> int:
        """Texts that are trained on and validated with."""
        return self.trial.size + self.texts

    @property
    def logits(self) -> Path:
        """A folder for the logits of its model, while trials that learn from them are under way."""
        return self.run.with_name(f"{self.run.name}.logits")


def run_trial(task: TrialTask) -> TrialResult:
    """Trains and evaluates.

    A loss that diverges and an error that is not the user's to mend (say, out of memory) are results too.

    Raises:
        PenstockError: the study cannot go on like this (settings, data, disk), or the run was interrupted.
    """
    began = time.monotonic()
    if (lost := task.teacher_result) is not None and lost.status != "done":
        return TrialResult(task.trial, "failed", error=f"its teacher {lost.trial.name} {lost.status}: {lost.error}")
    try:
        result = _train_and_evaluate(task)
    except NonFiniteError as error:
        result = _lost(task, "diverged", _one_line(error), began)
    except (OutOfMemoryError, _NoTeacherError) as error:
        return _lost(task, "failed", _one_line(error), began)
    except PenstockError:
        raise
    except Exception as error:
        if os.environ.get("PENSTOCK_DEBUG"):
            raise
        return _lost(task, "failed", f"{type(error).__name__}: {_one_line(error)}", began)
    if not task.keep_run:
        remove_run(task.run)
    if result.train_cpu_seconds is None:
        return result  # it diverged, or went on with an interrupted one
    return replace(result, wall_seconds=time.monotonic() - began)


def remove_run(folder: Path) -> None:
    """
    Args:
        folder: of the run, or of its logits; it may not be there, as a baseline has none.
    """
    with disk_errors(folder):
        if folder.exists():
            remove_folder(folder)


def _lost(task: TrialTask, status: Literal["diverged", "failed"], error: str, began: float) -> TrialResult:
    return TrialResult(task.trial, status, error=error, wall_seconds=time.monotonic() - began)


@dataclass(frozen=True)
class _Part:
    """Some test rows, and what a trial's model makes of them.

    Attributes:
        rows, labels: int64 (rows,), of the test store. probabilities: float32 (rows, num_labels).
        loss_sum: summed cross-entropy, nats.
    """

    rows: "Tensor"
    labels: "Tensor"
    probabilities: "Tensor"
    loss_sum: float


def _train_and_evaluate(task: TrialTask) -> TrialResult:
    """The one way of a trial: a family differs in how it is trained, and in how its model gives probabilities."""
    from penstock.engine.data.store import Store
    from penstock.engine.training.evaluation import EvaluationCounter

    store, test = Store.open(task.train_store), Store.open(task.test_store)
    theirs = None if task.teacher is None else task.teacher.settings
    pretraining = None if task.made_from is None else task.made_from.pretraining
    now = made_from(task.settings, store.fingerprint, test.fingerprint, task.max_test, theirs, pretraining)
    if task.made_from is not None and (found := difference(task.made_from, now)):
        raise RunError(f"{task.trial.name}: the study's data or encoder changed while it ran: {found}; start it again")
    rows = subset(store.labels, task.trial.size, task.subset_seed)
    test_rows = np.arange(test.num_examples) if task.max_test is None else subset(test.labels, task.max_test, 0)
    recorder = PredictionsRecorder(test_rows, test.num_labels) if task.predictions is not None else None
    family = FAMILIES[task.trial.family]
    train_family = _fit_baseline if family.baseline is not None else _distil if family.teacher else _train_by_loop
    result, parts = train_family(task, store, rows, test, test_rows)
    counter = EvaluationCounter(test.label_names)  # lists of labels are refused when a study begins
    for part in parts:
        counter.add(part.labels, part.probabilities, part.loss_sum)
        if recorder is not None:
            recorder.add(part.rows, part.labels, part.probabilities)
    evaluation = counter.result()
    predictions = None
    if recorder is not None and task.predictions is not None:
        predictions = recorder.write(
            task.predictions,
            test=test.fingerprint,
            max_test=task.max_test,
            test_rows=test.num_examples,
            label_names=test.label_names,
        )
    return replace(
        result,
        accuracy=evaluation.metrics.accuracy,
        macro_f1=evaluation.metrics.macro_f1,
        loss=evaluation.metrics.loss,
        test_examples=evaluation.metrics.num_examples,
        evaluation=evaluation.to_json(),
        predictions=predictions,
    )


def _train_by_loop(
    task: TrialTask, store: "Store", rows: np.ndarray, test: "Store", test_rows: np.ndarray
) -> tuple[TrialResult, Iterator[_Part]]:
    """What training came to, and the best model's parts of the test rows."""
    from penstock.engine.training.settings import Settings
    from penstock.engine.training.train import train

    settings = task.settings
    assert isinstance(settings, Settings)
    if task.pretraining is not None:
        settings = settings.replace({"model.start_from": str(task.pretraining.resolve())})
    goes_on = task.run.exists()
    started = time.process_time()
    try:
        trained = train(settings, store, task.run, rows=rows, progress=task.progress)
    except RunError as error:
        raise RunError(f"{task.trial.name}: {error}; or remove {task.run} to train this trial again") from error
    cpu_seconds = time.process_time() - started
    validation = trained.validation.num_examples if trained.validation else 0
    result = TrialResult(
        task.trial,
        "done",
        validation_accuracy=trained.validation.accuracy if trained.validation else None,
        train_examples=len(rows) - validation,
        validation_examples=validation,
        steps=trained.steps,
        epochs=trained.epochs,
        train_seconds=trained.seconds,
        tokens_per_second=trained.tokens_per_second,
        train_cpu_seconds=None if goes_on else cpu_seconds,
        pretrained=task.pretrained,
    )
    return result, _parts_of_run(task.run, test, test_rows)


def _distil(
    task: TrialTask, store: "Store", rows: np.ndarray, test: "Store", test_rows: np.ndarray
) -> tuple[TrialResult, Iterator[_Part]]:
    """As `_train_by_loop`, on what the teacher says of the subset and of the rest of the training texts, whose labels
    are not looked at. Test texts are not among them."""
    from penstock.engine.data.logits import Logits, make_logits
    from penstock.engine.data.overlap import shared_rows
    from penstock.engine.data.transfer_set import TransferSet
    from penstock.engine.training.distil import chosen
    from penstock.engine.training.settings import Settings
    from penstock.engine.training.teachers import Labeller, logits_of, open_teachers

    assert isinstance(task.settings, Settings)
    assert task.teacher is not None
    rest = np.setdiff1d(np.arange(store.num_examples), rows)
    texts = np.setdiff1d(rest, shared_rows(store, test))
    left_out = len(rest) - len(texts)
    texts = chosen(texts, task.settings.distillation.texts, task.settings.training.seed)
    learned, labelled = np.union1d(rows, texts), np.zeros(store.num_examples, bool)
    labelled[rows] = True
    kept = task.teacher.logits
    with disk_errors(kept):
        kept.mkdir(parents=True, exist_ok=True)
    with FolderLock(kept, None):  # of two students at a time, the second finds what was made for the first
        again_seconds = _train_teacher(task, store, rows)
        teachers = open_teachers([task.teacher.run])
        of = logits_of(store, learned, teachers)
        make_logits(kept / of.name, of, Labeller(store, learned, teachers))
    logits = Logits.open(kept / of.name, learned, of)
    place = str(store.path.resolve())
    origin = {"teachers": [str(task.teacher.run.resolve())], "unlabelled": place, "labelled": None}
    origin |= {"logits": [str(logits.folder.resolve())], "like": place}
    result, parts = _train_by_loop(task, TransferSet([store], [labelled], [logits], origin), learned, test, test_rows)
    theirs = task.teacher_result
    taught = Taught(
        texts=len(texts),
        left_out=left_out,
        teacher_seconds=0.0 if theirs is None else theirs.train_seconds,
        teacher_cpu_seconds=None if theirs is None else theirs.train_cpu_seconds,
        reading_seconds=logits.seconds,
        reading_cpu_seconds=logits.cpu_seconds,
        again_seconds=again_seconds,
        teacher_jobs=None if theirs is None else theirs.jobs,
    )
    return replace(result, train_examples=len(rows), validation_examples=0, taught=taught), parts


def _train_teacher(task: TrialTask, store: "Store", rows: np.ndarray) -> float:
    """Makes sure that the teacher's model is there; the seconds that this took. It is, unless its own trial ended in an
    earlier study without this one, which did not keep it: then the same is trained again.

    Raises:
        _NoTeacherError: it cannot be.
    """
    from penstock.engine.training.settings import Settings
    from penstock.engine.training.train import train

    teacher = task.teacher
    assert teacher is not None
    assert isinstance(teacher.settings, Settings)
    began = time.monotonic()
    try:
        train(teacher.settings, store, teacher.run, rows=rows, progress=task.progress)
    except (NonFiniteError, OutOfMemoryError) as error:
        raise _NoTeacherError(f"its teacher {teacher.trial.name}: {error}") from error
    except RunError as error:
        raise RunError(f"{teacher.trial.name}: {error}; or remove {teacher.run} to train it again") from error
    return time.monotonic() - began


class _NoTeacherError(Exception):
    pass


def _parts_of_run(run: Path, test: "Store", test_rows: np.ndarray) -> Iterator[_Part]:
    """The run's best model reads the test rows as it was trained: as much of each text, in the same precision."""
    from penstock.engine.training.distributed import World
    from penstock.engine.training.evaluate import judged, store_batches
    from penstock.engine.training.run_record import as_trained
    from penstock.engine.training.trained import TrainedRun

    trained = TrainedRun.open(run)
    alone = World.alone(trained.model)
    batches = store_batches(as_trained(test, trained.data), test_rows, trained.tokens_per_batch, alone)
    for batch, probabilities, loss_sum in judged(trained.model, batches, trained.precision):
        assert batch.tokens.ids is not None
        yield _Part(batch.tokens.ids, batch.labels, probabilities, loss_sum)


def _fit_baseline(
    task: TrialTask, store: "Store", rows: np.ndarray, test: "Store", test_rows: np.ndarray
) -> tuple[TrialResult, Iterator[_Part]]:
    """What a baseline's training came to, and its parts of the test rows."""
    import torch

    from penstock.engine.study.baselines import baseline, import_required
    from penstock.engine.study.baselines.fitting import FitTask
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.training.reading import read_alike, read_by

    assert isinstance(task.settings, BaselineSettings)
    import_required(task.settings.name)
    store = read_by(task.settings, store)
    test = read_alike(store, test)
    fit = FitTask(task.settings, store, rows, torch.get_num_threads(), task.cache)
    started, cpu_started = time.perf_counter(), time.process_time()
    fitted = baseline(task.settings.name).fit(fit)
    seconds = time.perf_counter() - started + fitted.earlier_seconds
    cpu_seconds = time.process_time() - cpu_started + fitted.earlier_cpu_seconds
    result = TrialResult(
        task.trial,
        "done",
        validation_accuracy=fitted.validation_accuracy,
        train_examples=len(rows) - fitted.validation_examples,
        validation_examples=fitted.validation_examples,
        train_seconds=seconds,
        tokens_per_second=int(store.lengths[rows].sum(dtype=np.int64)) / max(seconds, 1e-9),
        train_cpu_seconds=cpu_seconds,
        chosen=fitted.chosen or None,
        notes=fitted.notes,
    )
    return result, _parts_of_baseline(fitted, test, test_rows)


def _parts_of_baseline(fitted: "Fitted", test: "Store", test_rows: np.ndarray) -> Iterator[_Part]:
    import torch

    for rows, probabilities in fitted.predict(test, test_rows):
        labels = test.labels[rows]
        of_truth = probabilities[np.arange(len(rows)), labels].astype(np.float64)
        loss_sum = float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).sum())
        yield _Part(torch.from_numpy(rows), torch.from_numpy(labels), torch.from_numpy(probabilities), loss_sum)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
