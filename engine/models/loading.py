"""Loading from the transformers library: quietly, and with errors of one line."""

import contextlib
import os
from collections.abc import Iterator

import transformers
from transformers import AutoConfig, PreTrainedConfig

from penstock.engine.errors import ModelError


def load_config(name: str | os.PathLike) -> PreTrainedConfig:
    """The configuration of a model by name or path; ModelError if there is none."""
    with as_model_error(name):
        return AutoConfig.from_pretrained(name)


@contextlib.contextmanager
def as_model_error(name: str | os.PathLike) -> Iterator[None]:
    """Turns what transformers raises when it finds nothing to load into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if os.path.isdir(name):
            where = "its folder is incomplete or damaged"
        elif str(name).startswith(("/", ".", "~")):
            raise ModelError(f"cannot load model {str(name)!r}: there is no such folder") from error
        else:
            where = "there is no such folder, and the hub does not have it or is out of reach"
        reason = str(error).strip().splitlines()[0].rstrip(".")
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
