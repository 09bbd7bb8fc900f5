"""A line on stderr for each cell that ends, with the time that is left."""

import sys
from collections.abc import Mapping, Sequence

from penstock.engine.study.cells import Cell, CellResult
from penstock.engine.study.families import FAMILIES
from penstock.engine.training.recipe import most_epochs


class StudyProgress:
    """Silent unless `shown`. The time left is what finished cells of the family took, in proportion to the size times
    the epochs."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._left: set[Cell] = set()
        self._total = 0
        self._jobs = 1
        self._seconds: dict[str, tuple[float, int]] = {}  # family -> (seconds, work) of its longest finished cell

    def start(self, cells: Sequence[Cell], finished: Mapping[Cell, CellResult], jobs: int) -> None:
        self._total, self._left, self._jobs = len(cells), set(cells) - set(finished), jobs
        if finished:
            self._print(f"{len(finished)} of {len(cells)} cells are done already")

    def finished(self, result: CellResult, seconds: float) -> None:
        """`seconds` since the result before it."""
        cell = result.cell
        self._left.discard(cell)
        self._seconds[cell.family] = max(self._seconds.get(cell.family, (0.0, 0)), (seconds * self._jobs, _work(cell)))
        outcome = (
            f"accuracy {result.accuracy:.1%}" if result.accuracy is not None else f"{result.status}: {result.error}"
        )
        self._print(
            f"[{self._total - len(self._left)}/{self._total}] {FAMILIES[cell.family].title}, {cell.size:,} examples, "
            f"seed {cell.seed}: {outcome} in {_duration(seconds)}{self._remaining()}"
        )

    def _remaining(self) -> str:
        if not self._left or any(cell.family not in self._seconds for cell in self._left):
            return ""
        rates = {family: seconds / work for family, (seconds, work) in self._seconds.items()}
        return f"; about {_duration(sum(rates[cell.family] * _work(cell) for cell in self._left) / self._jobs)} left"

    def note(self, line: str) -> None:
        """What the user should know besides the cells."""
        self._print(line)

    def _print(self, line: str) -> None:
        if self._shown:
            print(line, file=sys.stderr, flush=True)


def _work(cell: Cell) -> int:
    """Examples that it trains on, each as often as there are epochs."""
    return cell.size * most_epochs(FAMILIES[cell.family].kind, cell.size)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
