"""A part's work, cell by cell: what one cell costs, be it a wrong result, an error or a hang, the others do not pay."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from penstock.benchmarks.gpu.context import PATIENCE, Context, WrongResultError, emit, finished, key, reason
from penstock.benchmarks.gpu.timing import Call, compare

Row = dict[str, Any]
T = TypeVar("T")

COMPILING = 90.0  # seconds for a call of torch.compile


def each(
    context: Context, cells: Iterable[Row], measure: Callable[..., None], *, needs: float = 3.0, spare: int = 0
) -> None:
    """Calls `measure(**cell, seconds=its share)` for every cell that an earlier try has not finished.

    Args:
        cells: rows that name what is measured; `kind` is not handed on.
        needs: with fewer seconds left a cell is not begun: a row says so.
        spare: shares of the time that stay for what comes behind the cells.
    Raises:
        RuntimeError: an error has broken the device's context, so that only a new process can go on.
    """
    left = [cell for cell in cells if name(cell) not in context.done]
    for place, cell in enumerate(left):
        if context.left() < needs:
            emit(**cell, why="not run: the time was up")
            continue
        arguments = {field: value for field, value in cell.items() if field != "kind"}
        try:
            measure(**arguments, seconds=context.share(len(left) - place + spare))
        except Exception as failure:
            emit(**cell, why=reason(failure))
            survive(context)
        finished(name(cell))
        context.at()


def name(cell: Row) -> str:
    return " ".join(f"{field}={value}" for field, value in cell.items())


def survive(context: Context) -> None:
    """Raises again if an error has broken the device's context: nothing in this process can go on then."""
    if context.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def checked(
    context: Context, operation: str, contestants: dict[str, T], check: Callable[[str, T], dict[str, float]]
) -> tuple[dict[str, T], dict[str, dict[str, float]], dict[str, Row]]:
    """Those whose results are right, their errors, and {name: {"why": ...}} of the others, which are switched off."""
    right: dict[str, T] = {}
    errors: dict[str, dict[str, float]] = {}
    why: dict[str, Row] = {}
    for label, contestant in contestants.items():
        what = key(operation, label)
        if what in context.off:
            why[label] = {"why": context.off[what]}
            continue
        context.at(what)
        try:
            errors[label] = check(label, contestant)
            right[label] = contestant
        except WrongResultError as error:
            context.switch_off(what, f"wrong result: {error}")
            why[label] = {"why": context.off[what]}
        except Exception as failure:  # the dispatcher, say: this backend cannot serve such a call
            why[label] = {"why": reason(failure)}
            survive(context)
    return right, errors, why


def in_turn(context: Context, operation: str, calls: dict[str, Call], seconds: float) -> dict[str, Any]:
    """`compare`, without those that are switched off, and watched: one that hangs is known by name."""
    off = {label: {"why": why} for label in calls if (why := context.off.get(key(operation, label)))}
    chosen = {label: call for label, call in calls.items() if label not in off}

    def watch(label: str) -> None:
        context.at(key(operation, label), COMPILING if "compile" in label else PATIENCE)

    timed = compare(context.device, chosen, seconds, context.smoke, watch)
    context.at()
    return timed | off
