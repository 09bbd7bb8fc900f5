"""Training text classifiers: data, models, training, the study, and the command line.

What people use is here, each imported when it is first asked for:

    from penstock.engine import TrainedRun, load_settings, prepare, train

    store = prepare("reviews.csv", "reviews.store", tokenizer="train:bpe:8000")
    train(load_settings(), store, "run")
    TrainedRun.open("run").predict(["a lovely film"])

Importing this package makes transformers' Auto classes and pipelines know penstock's own: the configurations from when
transformers loads theirs, a model, which takes seconds to import, from when there is a configuration of its kind. Until
then this package costs nothing, and `penstock --help` answers at once.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.engine.data.loader import Loader
    from penstock.engine.data.plan import PlanParameters
    from penstock.engine.data.prepare import prepare
    from penstock.engine.data.sources.open import open_source
    from penstock.engine.data.store import Store
    from penstock.engine.data.torch_dataset import BatchDataset
    from penstock.engine.models.bag import BagClassifier
    from penstock.engine.models.build import load_model
    from penstock.engine.models.encoder import EncoderClassifier
    from penstock.engine.models.lstm import LSTMClassifier
    from penstock.engine.training.distil import distil
    from penstock.engine.training.evaluate import evaluate
    from penstock.engine.training.settings import Settings, load_settings
    from penstock.engine.training.train import train
    from penstock.engine.training.trained import TrainedRun

__all__ = [
    "BagClassifier",
    "BatchDataset",
    "EncoderClassifier",
    "LSTMClassifier",
    "Loader",
    "PlanParameters",
    "Settings",
    "Store",
    "TrainedRun",
    "distil",
    "evaluate",
    "load_model",
    "load_settings",
    "open_source",
    "prepare",
    "train",
]

_MODULES = {
    "BagClassifier": "models.bag",
    "BatchDataset": "data.torch_dataset",
    "EncoderClassifier": "models.encoder",
    "LSTMClassifier": "models.lstm",
    "Loader": "data.loader",
    "PlanParameters": "data.plan",
    "Settings": "training.settings",
    "Store": "data.store",
    "TrainedRun": "training.trained",
    "distil": "training.distil",
    "evaluate": "training.evaluate",
    "load_model": "models.build",
    "load_settings": "training.settings",
    "open_source": "data.sources.open",
    "prepare": "data.prepare",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: torch and transformers take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A configuration brings its model, see `OwnConfig`.
_AUTO = "transformers.models.auto.configuration_auto"
_OURS = ("penstock.engine.models.bag_config", "penstock.engine.models.lstm_config")


def _import_ours() -> None:
    for name in _OURS:
        importlib.import_module(name)


class _AfterAuto(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads transformers' module of configurations as usual, and then ours, which register themselves with it."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AUTO:
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
        _import_ours()


if _AUTO in sys.modules:
    _import_ours()
else:
    sys.meta_path.insert(0, _AfterAuto())
