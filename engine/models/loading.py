"""Loading from the transformers library: quietly, with errors of one line, and without code that a model brings."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig

from penstock.engine.checked import DamageError, check_sealed, read_seal
from penstock.engine.data.own_code import NONE_IS_RUN, code_of_model
from penstock.engine.errors import ModelError, PenstockError, first_line


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
    except Exception as error:  # of any type: damaged files raise what they lead the library to
        if os.path.isdir(name):
            where = "its folder is incomplete or damaged"
        elif str(name).startswith(("/", ".", "~")):
            raise ModelError(f"cannot load model {str(name)!r}: there is no such folder") from error
        else:
            where = "there is no such folder, and the hub does not have it or is out of reach"
        reason = first_line(error).rstrip(".")
        raise ModelError(f"cannot load model {str(name)!r}: {where} ({reason})") from error


def check_files(folder: Path) -> None:
    """Compares a saved model's files with their checksums, if it has some.

    Raises:
        ModelError: one is damaged or missing.
    """
    try:
        seal = read_seal(folder)
        if seal is not None:
            check_sealed(folder, seal, skip=("training_state.pt",))
    except DamageError as damage:
        raise ModelError(f"{folder}: {damage}: put it back from a copy, or train again into another folder") from None


def check_whole(name: str | os.PathLike, info: Mapping[str, Any]) -> None:
    """
    Args:
        info: what transformers says of how it loaded the model.

    Raises:
        ModelError: some of its weights were not in the file, or of another shape.
    """
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        names = sorted(str(entry if isinstance(entry, str) else entry[0]) for entry in info[key])
        if names:
            raise ModelError(
                f"cannot load model {str(name)!r}: its file of weights {what} {len(names)} of its tensors, such as "
                f"{names[0]}"
            )


def load_whole(kind: Any, folder: Path) -> Any:
    """The saved model of one of our classes, float32.

    Raises:
        ModelError: it cannot be loaded, or its file lacks some of its weights.
    """
    with quiet(), as_model_error(folder):
        model, info = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    check_whole(folder, info)
    return model


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
