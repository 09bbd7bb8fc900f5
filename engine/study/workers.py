"""Trials one after the other in this process, or several at a time in processes of their own."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from penstock.engine.errors import PenstockError, RunError
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.trials import TrialResult

RunTrial = Callable[[TrialTask], TrialResult]
_PR_SET_PDEATHSIG = 1


def run_trials(tasks: Sequence[TrialTask], jobs: int, run_trial: RunTrial) -> Iterator[TrialResult]:
    """Yields results as they come: in the order of the tasks with one job, large trials first with several.

    Raises:
        PenstockError: of the first trial that cannot be run; the others are checkpointed and stopped.
        RunError: a process was killed.
    """
    if jobs == 1:
        yield from map(run_trial, tasks)
        return
    # the largest trial last would leave the other processes idle
    tasks = sorted(tasks, key=lambda task: task.trial.size, reverse=True)
    children = _Children()
    executor = ProcessPoolExecutor(
        max_workers=min(jobs, len(tasks)),
        mp_context=children,
        initializer=_prepare_worker,
        initargs=(max(1, (os.cpu_count() or 1) // jobs),),
    )
    previous = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        futures: dict[Future[TrialResult], TrialTask] = {
            executor.submit(_in_worker, run_trial, task): task for task in tasks
        }
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                raise RunError(
                    f"a process was killed while it ran {futures[future].trial.name} or beside it (out of memory?): "
                    "the same command resumes; try fewer --jobs"
                ) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
        # terminated workers write a checkpoint first
        for process in children.made:
            if process.is_alive():
                process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


class _Children(SpawnContext):
    """Knows the processes that it has made: the caller may have others, which are none of our business."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[SpawnProcess] = []

    def Process(self, *args: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]
        process = SpawnProcess(*args, **options)
        self.made.append(process)
        return process


def _prepare_worker(threads: int) -> None:
    import torch

    from penstock.engine.training.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # a parent that is killed outright cannot stop its workers
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _in_worker(run_trial: RunTrial, task: TrialTask) -> TrialResult:
    try:
        return run_trial(task)
    except PenstockError as error:
        # only what a message and an exit code carry survives the way to the parent
        if error.exit_code > 128:
            os._exit(error.exit_code)
        raise error from None


def _exit_on_signal(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
