"""What the configurations of our own models share."""

import importlib
from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class OwnConfig(PreTrainedConfig):
    """A configuration whose model the Auto classes know as soon as there is an instance.

    Whoever reads a tokenizer meets the configurations of all models, but has none; the models take seconds to import.
    """

    own_module = ""  # that registers the model

    def __post_init__(self, **kwargs: Any) -> None:
        importlib.import_module(self.own_module)
        super().__post_init__(**kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        importlib.import_module(self.own_module)
        self.__dict__.update(state)
