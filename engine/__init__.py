"""Training text classifiers: data, models, training, the study, and the command line.

Importing this package makes transformers' Auto classes and pipelines know penstock's LSTM. The models need torch and
transformers, which take seconds to import, so ours are imported when transformers loads its Auto classes: until then
this package costs nothing, and `penstock --help` answers at once.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# When the first has been loaded, the second registers itself with it.
_REGISTER = {
    "transformers.models.auto.configuration_auto": "penstock.engine.models.lstm_config",
    "transformers.models.auto.modeling_auto": "penstock.engine.models.lstm",
}


class _AfterAuto(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module of transformers as usual, and then ours."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.theirs:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module(self.ours)


for _theirs, _ours in _REGISTER.items():
    if _theirs in sys.modules:
        importlib.import_module(_ours)
    else:
        sys.meta_path.insert(0, _AfterAuto(_theirs, _ours))
