"""Loading from the transformers library: quietly, with errors of one line, and without code that a model brings."""

import contextlib
import os
from collections.abc import Iterator

import transformers
from transformers import AutoConfig, PreTrainedConfig

from penstock.engine.data.own_code import NONE_IS_RUN, code_of_model
from penstock.engine.errors import ModelError, PenstockError


def load_config(name: str | os.PathLike) -> PreTrainedConfig:
    """The configuration of a model by name or path. Every model is loaded through here.

    Raises:
        ModelError: there is none, or the model brings code of its own.
    """
    with as_model_error(name):
        content, _ = PreTrainedConfig.get_config_dict(name)
        if (code := code_of_model(content)) is not None:
            raise ModelError(
                f"cannot load model {str(name)!r}: its config.json asks for code of its own ({code}), {NONE_IS_RUN}; "
                "use one of an architecture that the transformers library has"
            )
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


@contextlib.contextmanager
def as_model_error(name: str | os.PathLike) -> Iterator[None]:
    """Turns what transformers raises into one line: where it finds nothing to load, or something that is no model."""
    try:
        yield
    except (PenstockError, MemoryError):
        raise
    except Exception as error:  # of any type, where a configuration holds values of other types
        if os.path.isdir(name):
            where = "its folder is incomplete or damaged"
        elif str(name).startswith(("/", ".", "~")):
            raise ModelError(f"cannot load model {str(name)!r}: there is no such folder") from error
        else:
            where = "there is no such folder, and the hub does not have it or is out of reach"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ModelError(f"cannot load model {str(name)!r}: {where} ({reason})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars and from announcing a fresh head as something to worry about."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
