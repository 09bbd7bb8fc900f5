"""`penstock study --plan`: what a study would do, how long and how much it takes, and what its test rows can settle.

Nothing of a trial is trained: each family takes a few steps, or finished trials tell how fast it is.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from penstock.engine.data.clusters import cluster_file, read_cluster_file
from penstock.engine.machine import Others
from penstock.engine.study.costs import read_cost
from penstock.engine.study.directory import trials_folder
from penstock.engine.study.early_stopping import NEVER, Stopping, Stoppings
from penstock.engine.study.estimate import FAR, Estimates, Loads, Speed, tells_speed
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.measure_speed import measure_speed
from penstock.engine.study.opened import OpenedStudy, opened
from penstock.engine.study.plan import Disk, Plan, plan_for, write_plan
from penstock.engine.study.predictions import EVERY_CLASS, MOST_PROBABLE
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.resolution import assumed, measured
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import Trial, TrialResult

MeasureSpeed = Callable[..., Speed]
# a run's folder: the best model, and two checkpoints with the weights and the optimizer's two numbers for each
_WEIGHTS_OF_A_RUN = 1 + 2 * 3


def plan_study(
    settings: StudySettings,
    out: Path | str,
    *,
    jobs: int = 1,
    keep_runs: bool = False,
    progress: bool = True,
    measure: MeasureSpeed = measure_speed,
) -> Plan:
    """Says what `run_study` would do with these arguments, and trains none of it. Stores are prepared if they are not
    there, for the study to use; plan.json keeps the figures.

    Args:
        measure: measures a family's speed, as `measure_speed`.

    Raises: as `run_study`.
    """
    folder, shown = Path(out), StudyProgress(progress)
    with opened(settings, folder, jobs=jobs, keep_runs=keep_runs, progress=progress, shown=shown) as study:
        plan = make_plan(study, folder, jobs, keep_runs, shown, measure)
        write_plan(folder, plan)
        return plan


def estimates_for(
    study: OpenedStudy,
    folder: Path,
    jobs: int,
    keep_runs: bool,
    shown: StudyProgress,
    measure: MeasureSpeed = measure_speed,
) -> Estimates:
    """How long the study's trials take, by its plan where that has all of them, or by one that is made now."""
    plan = plan_for(folder, study.settings.overrides)
    if plan is None or plan.jobs != jobs or any(task.trial.name not in plan.seconds for task in study.tasks):
        plan = make_plan(study, folder, jobs, keep_runs, shown, measure)
        write_plan(folder, plan)
    return Estimates(study.tasks, Loads(study.train, study.test), plan.speeds)


def make_plan(
    study: OpenedStudy,
    folder: Path,
    jobs: int,
    keep_runs: bool,
    shown: StudyProgress,
    measure: MeasureSpeed = measure_speed,
) -> Plan:
    """The plan of a study that is open."""
    finished = {
        task.trial: study.existing.results[task.trial] for task in study.tasks if task.trial in study.existing.results
    }
    speeds, others = measure_speeds(study, folder, jobs, shown, measure)
    estimates = Estimates(study.tasks, Loads(study.train, study.test), speeds)
    seconds, expected = estimates.seconds(finished), estimates.expected(finished)
    speeds = {**estimates.speeds(finished), **speeds}
    before = pretraining_seconds(study, finished, speeds)
    test_rows = study.settings.max_test or study.test.num_examples
    column, clusters = study.settings.cluster, None
    if column is not None:
        codes = read_cluster_file(cluster_file(folder / "data" / "test"), study.test.fingerprint).keys
        rows = subset(study.test.labels, test_rows, 0) if study.settings.max_test else np.arange(test_rows)
        clusters = len(np.unique(codes[rows]))
    return Plan(
        seconds={trial.name: own for trial, own in seconds.items()},
        done=[trial.name for trial in finished],
        speeds=speeds,
        jobs=jobs,
        keep_runs=keep_runs,
        disk=_disk(study, folder, speeds, jobs, keep_runs, test_rows),
        resolution=measured(trials_folder(folder), finished.values(), test_rows) or assumed(test_rows),
        test_rows=test_rows,
        clusters=clusters,
        column=column,
        others=others,
        expected={trial.name: own for trial, own in expected.items()},
        stopping=_stopping(study, estimates.stoppings(finished), finished),
        pretraining=before,
        pretraining_tokens=0.0 if before is None or study.pretraining is None else study.pretraining.tokens,
        overrides=list(study.settings.overrides),
    )


def pretraining_seconds(
    study: OpenedStudy, finished: Mapping[Trial, TrialResult], speeds: Mapping[str, Speed]
) -> float | None:
    """What the pretraining takes, about, at the speed of the trials that begin with it; None where none is to do."""
    before = study.pretraining
    waiting = any(task.pretraining is not None and task.trial not in finished for task in study.tasks)
    family = next((name for name in speeds if FAMILIES[name].pretrains), None)
    if before is None or not waiting or before.taken() is not None or family is None:
        return None
    return before.tokens * speeds[family].train


def _stopping(study: OpenedStudy, stoppings: Stoppings, finished: Mapping[Trial, TrialResult]) -> dict[str, Stopping]:
    """{family: when its trainings end, on average over the trials to do}, of those that may stop early."""
    found: dict[str, list[Stopping]] = {}
    for task in study.tasks:
        own = stoppings.of(task)
        if task.trial not in finished and own != NEVER:
            found.setdefault(task.trial.family, []).append(own)
    return {
        family: Stopping(float(np.mean([each.share for each in own])), max(each.trials or 0 for each in own))
        for family, own in found.items()
    }


def measure_speeds(
    study: OpenedStudy, folder: Path, jobs: int, shown: StudyProgress, measure: MeasureSpeed
) -> tuple[dict[str, Speed], float | None]:
    """({family: its speed, of those whose largest size no finished trial tells}, how busy others were meanwhile)"""
    import torch

    results = study.existing.results
    largest: dict[str, TrialTask] = {}
    told: dict[str, int] = {}
    for task in sorted(study.tasks, key=lambda task: (task.trial.size, -task.trial.seed)):
        largest[task.trial.family] = task
        if task.trial in results and tells_speed(results[task.trial]):
            told[task.trial.family] = task.trial.size
    left = {family: task for family, task in largest.items() if task.trial.size > FAR * told.get(family, 0)}
    if not left:
        return {}, None
    threads = torch.get_num_threads() if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
    shown.note(f"measuring how fast this machine trains {', '.join(left)}: about {15 * len(left)} s")
    others = Others()
    return {family: measure(task, study.train, study.test, threads) for family, task in left.items()}, others.cores()


def _disk(
    study: OpenedStudy, folder: Path, speeds: Mapping[str, Speed], jobs: int, keep_runs: bool, test_rows: int
) -> Disk:
    classes = study.test.num_labels

    def parameters(family: str) -> int:
        return speeds[family].parameters or _known_parameters(folder, family)

    pretrain = [name for name in study.settings.families if FAMILIES[name].pretrains]
    of_row = 2 * classes if classes <= EVERY_CLASS else 2 + 4 * MOST_PROBABLE
    runs = []
    for task in study.tasks:
        family = task.trial.family
        if FAMILIES[family].baseline is None:
            families = [family] if task.teacher is None else [family, task.teacher.trial.family]
            weights = sum(map(parameters, families))
            logits = 0 if task.teacher is None else 2 * classes * task.examples
            runs.append(4 * _WEIGHTS_OF_A_RUN * weights + logits)
    runs.sort(reverse=True)
    return Disk(
        stores=sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file()),
        encoded=_encoded(study, test_rows),
        predictions=len(study.tasks) * test_rows * (of_row + 6),
        runs=sum(runs if keep_runs else runs[:jobs]),
        pretraining=sum(4 * _WEIGHTS_OF_A_RUN * parameters(name) for name in pretrain),
    )


def _known_parameters(folder: Path, family: str) -> int:
    path = folder / "costs" / f"{family}.json"
    return read_cost(path).parameters if path.is_file() else 0


def _encoded(study: OpenedStudy, test_rows: int) -> int:
    """Bytes, each text once: a seed's subsets nest, those of other seeds share rows with it by chance."""
    tasks = [task for task in study.tasks if FAMILIES[task.trial.family].reads_encoder]
    if not tasks:
        return 0
    from penstock.engine.models.loading import load_config

    largest: dict[int, int] = {}
    for task in tasks:
        largest[task.trial.seed] = max(largest.get(task.trial.seed, 0), task.trial.size)
    rows, examples = 0.0, study.train.num_examples
    for size in largest.values():
        rows += size * (1 - rows / examples)
    return round(rows + test_rows) * (8 + 2 * load_config(study.settings.encoder_for("frozen")).hidden_size)
