"""The baselines: models of a study that no training loop trains. One module each, which defines

Options         a frozen dataclass of its settings, the section of that name
VERSION         a higher number when the same data and settings give another model
REQUIRES        modules of other packages that it imports
fit(task)       -> Fitted, the trained model
untrained(task) -> Fitted of the same size with weights that have learned nothing, which costs are measured on
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, Protocol, cast

from penstock.engine.errors import ConfigError

if TYPE_CHECKING:
    from penstock.engine.study.baselines.fitting import FitTask, Fitted


class Baseline(Protocol):
    """Such a module."""

    Options: type[Any]
    VERSION: int
    REQUIRES: tuple[str, ...]

    def fit(self, task: "FitTask") -> "Fitted": ...

    def untrained(self, task: "FitTask") -> "Fitted": ...


def baseline(name: str) -> Baseline:
    """The baseline of that name, a module beside this one."""
    return cast(Baseline, importlib.import_module(f"{__name__}.{name}"))


def check_installed(name: str) -> None:
    """
    Raises:
        ConfigError: the baseline needs a package that is not installed.
    """
    for module in baseline(name).REQUIRES:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            named = {"sklearn": "scikit-learn"}.get(package, package)
            raise ConfigError(
                f"the family {name} needs {named}, which is not installed: pip install {named}, or leave the family "
                "out with --families"
            )


def import_required(name: str) -> None:
    """Imports what the baseline needs, so that the seconds which that takes are not those of a training."""
    check_installed(name)
    for module in baseline(name).REQUIRES:
        importlib.import_module(module)
