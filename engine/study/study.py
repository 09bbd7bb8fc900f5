"""A study from its settings to its report: stores, costs, cells. What is finished is on the disk and not done again.

study.json       what is studied
data/            the stores, where the sources were not stores already
costs/           one file per family
cells/           one file per finished cell
runs/            a cell in progress, or all of them on request
report.*, *.csv, *.png
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penstock.engine.data.manifest import MANIFEST_NAME
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.study.cells import Cell, CellResult, plan_cells, read_result, result_path, write_result
from penstock.engine.study.costs import device_name, measure_cost, write_cost
from penstock.engine.study.directory import claim, write_study
from penstock.engine.study.pool import RunCell, run_cells
from penstock.engine.study.progress import StudyProgress
from penstock.engine.study.run_cell import CellTask, run_cell
from penstock.engine.study.settings import StudySettings, cell_settings, subset_seed
from penstock.engine.study.sizes import resolve_sizes, sizes_up_to

_LONG_CELL = 20_000  # examples from which a cell shows its own progress


def run_study(
    settings: StudySettings,
    out: Path | str,
    *,
    jobs: int = 1,
    keep_runs: bool = False,
    progress: bool = True,
    run_cell: RunCell = run_cell,
    measure: Callable = measure_cost,
) -> list[CellResult]:
    """Runs what is missing of a study and returns the results of all its cells.

    A study may be continued with more sizes, seeds or families; cells that failed are tried again, cells that diverged
    are not: they would again.

    Args:
        out: the study's directory, new or of the same study.
        jobs: cells run at a time, each in a process of its own if there are several.
        keep_runs: keep the cells' run directories, with the trained models.
        run_cell, measure: what runs a cell and measures a family's cost.

    Raises:
        ConfigError: sizes, seeds or overrides do not fit the data or each other.
        RunError: `out` belongs to another study, or another process works in it.
        PenstockError: of the sources, the encoder, the disk.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 at least, got {jobs}")
    folder = Path(out)
    with claim(folder, settings.identity()):
        train = open_or_prepare(settings.train, folder / "data" / "train", settings, None, progress)
        test = open_or_prepare(settings.test, folder / "data" / "test", settings, train, progress)
        if settings.max_test is not None and settings.max_test > test.num_examples:
            raise ConfigError(f"--max-test {settings.max_test:,}: the test data has {test.num_examples:,} examples")
        cells = planned_cells(settings, train)
        tasks = [_task(settings, cell, folder, train, test, keep_runs, jobs) for cell in cells]
        _describe(folder, settings, train, test, cells, jobs)
        for family in settings.families:
            path = folder / "costs" / f"{family}.json"
            if not path.exists():
                first = next(task for task in tasks if task.cell.family == family)
                write_cost(path, measure(family, first.settings, train, test))
        return _run(tasks, folder / "cells", jobs, run_cell, StudyProgress(progress))


def planned_cells(settings: StudySettings, train: Store) -> list[Cell]:
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
    return plan_cells(own, seeds)


def open_or_prepare(
    sources: Sequence[str], folder: Path, settings: StudySettings, like: Store | None, progress: bool
) -> Store:
    """The store that the one source is, or one prepared from the sources with the encoder's tokenizer.

    Raises:
        StoreError, SourceError, TokenizerError, DiskError: as `prepare` and `Store.open`.
    """
    if len(sources) == 1 and (Path(sources[0]) / MANIFEST_NAME).is_file():
        return Store.open(sources[0])
    choices: dict[str, Any] = {"text": settings.text, "label": settings.label, "bad_rows": settings.bad_rows}
    if like is None:
        choices |= {"tokenizer": settings.encoder, "max_length": settings.max_length, "truncation": settings.truncation}
    else:
        choices["like"] = like.path
    folder.parent.mkdir(parents=True, exist_ok=True)
    return prepare(list(sources), folder, progress=progress, **choices)


def _describe(
    folder: Path, settings: StudySettings, train: Store, test: Store, cells: Sequence[Cell], jobs: int
) -> None:
    """What the report says of the study besides its cells."""
    import torch

    document = {
        "identity": settings.identity(),
        "families": list(settings.families),
        "cells": [cell.name for cell in cells],
        "labels": train.label_names,
        "train": {"examples": train.num_examples, "tokens": train.num_tokens, "fingerprint": train.fingerprint},
        "test": {"examples": test.num_examples, "tokens": test.num_tokens, "fingerprint": test.fingerprint},
        "machine": {
            "device": device_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "jobs": jobs,
            "torch": torch.__version__,
        },
    }
    write_study(folder, document)


def _task(
    settings: StudySettings, cell: Cell, folder: Path, train: Store, test: Store, keep_runs: bool, jobs: int
) -> CellTask:
    return CellTask(
        cell=cell,
        settings=cell_settings(settings, cell, train),
        train_store=train.path,
        test_store=test.path,
        subset_seed=subset_seed(settings.seed, cell.seed),
        max_test=settings.max_test,
        run=folder / "runs" / cell.name,
        keep_run=keep_runs,
        progress="auto" if jobs == 1 and cell.size >= _LONG_CELL else "none",
    )


def _run(
    tasks: Sequence[CellTask], folder: Path, jobs: int, run_cell: RunCell, progress: StudyProgress
) -> list[CellResult]:
    finished: dict[Cell, CellResult] = {}
    for task in tasks:
        path = result_path(folder, task.cell)
        if path.exists() and (result := read_result(path)).status != "failed":
            finished[task.cell] = result
    left = [task for task in tasks if task.cell not in finished]
    progress.start([task.cell for task in tasks], finished, jobs)
    started = time.monotonic()
    for result in run_cells(left, jobs, run_cell) if left else ():
        write_result(folder, result)
        finished[result.cell] = result
        progress.finished(result, time.monotonic() - started)
        started = time.monotonic()
    if tasks and all(finished[task.cell].status == "failed" for task in tasks):
        first = finished[tasks[0].cell]
        raise RunError(f"every cell failed; the first one, {first.cell.name}: {first.error}")
    return [finished[task.cell] for task in tasks]
