"""The kinds of classifier, saved and loaded the way of the transformers library."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.engine.models.bag import BagClassifier
    from penstock.engine.models.bag_config import BagClassifierConfig
    from penstock.engine.models.build import build_model, load_model
    from penstock.engine.models.encoder import EncoderClassifier
    from penstock.engine.models.lstm import LSTMClassifier
    from penstock.engine.models.lstm_config import LSTMClassifierConfig
    from penstock.engine.models.settings import ModelSettings

__all__ = [
    "BagClassifier",
    "BagClassifierConfig",
    "EncoderClassifier",
    "LSTMClassifier",
    "LSTMClassifierConfig",
    "ModelSettings",
    "build_model",
    "load_model",
]

_MODULES = {
    "BagClassifier": "bag",
    "BagClassifierConfig": "bag_config",
    "EncoderClassifier": "encoder",
    "LSTMClassifier": "lstm",
    "LSTMClassifierConfig": "lstm_config",
    "ModelSettings": "settings",
    "build_model": "build",
    "load_model": "build",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: settings need no torch, and transformers may ask for a configuration while it loads."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
