"""Trials one after the other in this process, or several at a time in processes of their own."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from penstock.engine.errors import PenstockError, RunError
from penstock.engine.study.orphans import stop_with_parent
from penstock.engine.study.run_trial import TrialTask
from penstock.engine.study.trials import Trial, TrialResult

RunTrial = Callable[[TrialTask], TrialResult]
NextTask = Callable[[], TrialTask | None]
_BEGUN = "begun"


@dataclass(frozen=True)
class Death:
    """How a worker's process ended while it had a trial."""

    exit_code: int

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        signum = -self.exit_code
        name = signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"
        return f"was killed by {name}" + (" (out of memory?)" if signum == signal.SIGKILL else "")


def run_trials(tasks: Sequence[TrialTask] | NextTask, jobs: int, run_trial: RunTrial) -> Iterator[TrialResult]:
    """Yields results as they come, with how many ran at a time: in the order of the tasks with one job, large trials
    first with several.

    A trial whose process dies is run again when all others are over, then with the machine to itself: what is missing
    is mostly memory. Dying there too, it has failed.

    Args:
        tasks: or what gives the next one, asked whenever a process is free: None for none as things stand. It is asked
            again after each result, which whoever iterates has seen by then; also after those of trials that died.

    Raises:
        PenstockError: of the first trial that cannot be run; the others are checkpointed and stopped.
        RunError: a worker was stopped by a signal, or could not begin.
    """
    if jobs == 1:
        next_task = tasks if callable(tasks) else _in_order(tasks)
        while (task := next_task()) is not None:
            yield replace(run_trial(task), jobs=1)
        return
    if not callable(tasks):
        tasks = Queue(tasks, {}, jobs)
    threads = max(1, (os.cpu_count() or 1) // jobs)  # the same in both rounds: a result depends on it
    while True:
        died = []
        for task, outcome in _in_workers(tasks, jobs, threads, run_trial):
            if isinstance(outcome, Death):
                died.append((task, outcome))
            else:
                yield replace(outcome, jobs=jobs)
        if not died:
            return
        first = {task.trial: death for task, death in died}
        for task, outcome in _in_workers(_in_order([task for task, _ in died]), 1, threads, run_trial):
            if isinstance(outcome, Death):
                error = f"its process {first[task.trial]}; run again with nothing beside it, it {outcome}"
                yield TrialResult(task.trial, "failed", error=error, jobs=1)
            else:
                yield replace(outcome, jobs=1)
        # others may have waited for these


class Queue:
    """Gives the tasks in their order, with several jobs large ones first: the largest last would leave the other
    processes idle. One that learns from a teacher waits until that is over.

    Args:
        finished: {trial: its result}; whoever runs the trials adds to it.
    """

    def __init__(self, tasks: Sequence[TrialTask], finished: Mapping[Trial, TrialResult], jobs: int) -> None:
        by_size = sorted(tasks, key=lambda task: task.trial.size, reverse=True)
        self._left, self._finished = list(tasks) if jobs == 1 else by_size, finished

    def __call__(self) -> TrialTask | None:
        for place, task in enumerate(self._left):
            if task.teacher is None or task.teacher.trial in self._finished:
                return self._left.pop(place)
        return None


def _in_order(tasks: Sequence[TrialTask]) -> NextTask:
    left = iter(tasks)
    return lambda: next(left, None)


def _in_workers(
    next_task: NextTask, jobs: int, threads: int, run_trial: RunTrial
) -> Iterator[tuple[TrialTask, TrialResult | Death]]:
    workers: list[_Worker] = []
    # who has a handler, as the command line has, ends this by itself
    unhandled = [signum for signum in _stopping_signals() if signal.getsignal(signum) is signal.SIG_DFL]
    previous = {signum: signal.signal(signum, _exit_on_signal) for signum in unhandled}
    try:
        while True:
            while sum(worker.task is not None for worker in workers) < jobs and (task := next_task()) is not None:
                worker = next((one for one in workers if one.task is None), None)
                if worker is None:
                    worker = _Worker(run_trial, threads)
                    workers.append(worker)
                worker.give(task)
            if all(worker.task is None for worker in workers):
                break
            ready = set(wait([worker.connection for worker in workers if worker.task is not None]))
            for worker in [one for one in workers if one.connection in ready]:
                if (taken := worker.take()) is None:
                    continue
                task, outcome = taken
                if isinstance(outcome, Death):
                    workers.remove(worker)
                if isinstance(outcome, PenstockError):
                    raise outcome
                yield task, outcome
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        # terminated workers write a checkpoint first
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


class _Worker:
    """A process that runs one trial after the other. It says first that it has begun."""

    def __init__(self, run_trial: RunTrial, threads: int) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task: TrialTask | None = None
        self.begun = False
        self.process = context.Process(target=_work, args=(theirs, run_trial, threads))
        self.process.start()
        theirs.close()  # so that its end is seen here

    def give(self, task: TrialTask) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # it has died, which `take` finds
            self.connection.send(task)

    def take(self) -> tuple[TrialTask, TrialResult | PenstockError | Death] | None:
        """The task that it was given, and what became of it; None while it has only begun.

        Raises:
            RunError: it was stopped by a signal, or could not begin.
        """
        outcome: Any
        try:
            outcome = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            outcome = Death(self.process.exitcode or 0)
        if outcome == _BEGUN:
            self.begun = True
            return None
        task, self.task = self.task, None
        assert task is not None
        if not isinstance(outcome, Death):
            return task, outcome
        code = outcome.exit_code
        if not self.begun and code >= 0:
            main = getattr(sys.modules["__main__"], "__file__", None) or "the main module"
            raise RunError(
                f"a process that was to run trials {outcome} before it took one, for the reason written above. It "
                f'imports {main} again: call run_study in a file, under if __name__ == "__main__":, or with jobs=1'
            )
        if code > 128:
            name = signal.Signals(code - 128).name
            raise RunError(f"the process of {task.trial.name} was stopped by {name}: the same command resumes")
        return task, outcome


def _work(connection: Connection, run_trial: RunTrial, threads: int) -> None:
    _prepare_worker(threads)
    connection.send(_BEGUN)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        outcome: Any
        try:
            outcome = run_trial(task)
        except PenstockError as error:
            if error.exit_code > 128:
                os._exit(error.exit_code)
            # only what a message and an exit code carry survives the way to the parent
            outcome = error.with_traceback(None)
            outcome.__cause__ = outcome.__context__ = None
        connection.send(outcome)


def _prepare_worker(threads: int) -> None:
    import torch

    from penstock.engine.training.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    for signum in (*_stopping_signals(), signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    stop_with_parent()  # one that is killed outright cannot stop its workers


def _stopping_signals() -> list[signal.Signals]:
    """But those that this process was told to ignore."""
    return [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]


def _exit_on_signal(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
