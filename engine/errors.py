"""What a user can get wrong, each kind with an exit code of its own. The command line prints the message, one line."""

import re


def first_line(error: BaseException) -> str:
    """What an exception says, or else its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class PenstockError(Exception):
    """An error that the user can mend: its message says what, where and what to do. It is one line that can be printed,
    whatever names a damaged or hostile file brings into it."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        line = re.sub(r"\s*\n\s*", " ", message.strip())
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line))


class SourceError(PenstockError):
    """The input texts or labels cannot be read or used."""

    exit_code = 3


class TokenizerError(PenstockError):
    """The tokenizer cannot be found, loaded or trained."""

    exit_code = 4


class StoreError(PenstockError):
    """A store is missing, incomplete, damaged or does not fit."""

    exit_code = 5


class OtherDataError(StoreError):
    """A folder holds a store, or the beginning of one, of other data or settings than are given now."""


class ConfigError(PenstockError):
    """A configuration key or value is wrong."""

    exit_code = 6


class RunError(PenstockError):
    """A run or study directory is missing, incomplete, or belongs to something else."""

    exit_code = 7


class ModelError(PenstockError):
    """A model cannot be found, loaded or used with this data."""

    exit_code = 8


class DiskError(PenstockError):
    """The disk is full or cannot be written."""

    exit_code = 9


class OutOfMemoryError(PenstockError):
    """The memory does not suffice; the last good checkpoint stands."""

    exit_code = 11


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, numpy's and Arrow's MemoryError, and what torch raises: a type of its own on a GPU, none on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(one in said for one in _NO_MEMORY)


_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


class RankError(PenstockError):
    """Another process of the same run did not answer, or is gone; the last good checkpoint stands."""

    exit_code = 12


class NonFiniteError(PenstockError):
    """The loss or the gradients are no longer finite; the last good checkpoint stands."""

    exit_code = 10
