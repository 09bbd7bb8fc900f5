"""The baselines: models of a study that no training loop trains. One module each, which defines

Options         a frozen dataclass of its settings, the section of that name
VERSION         a higher number when the same data and settings give another model
fit(task)       -> Fitted, the trained model
untrained(task) -> Fitted of the same size with weights that have learned nothing, which costs are measured on
"""

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from penstock.engine.study.baselines.fitting import FitTask, Fitted


class Baseline(Protocol):
    """Such a module."""

    Options: type[Any]
    VERSION: int

    def fit(self, task: "FitTask") -> "Fitted": ...

    def untrained(self, task: "FitTask") -> "Fitted": ...


def baseline(name: str) -> Baseline:
    """The baseline of that name, a module beside this one."""
    return cast(Baseline, importlib.import_module(f"{__name__}.{name}"))
