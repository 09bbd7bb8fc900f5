"""Names of models and tokenizers, looked at without the libraries that load them: those take seconds to import."""

import os
import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def why_missing(name: str) -> str | None:
    """Why nothing can be loaded by this name, or None where that takes the hub, or the files, to tell.

    A local folder or file comes first. What is none is a name on the hub if it looks like one; offline, the hub's cache
    has to hold it.
    """
    if os.path.exists(os.path.expanduser(name)):
        return None
    if name.startswith(("/", ".", "~")):
        return "no such folder or file"
    if not _HUB_NAME.fullmatch(name):
        return "no such folder or file, and no name that the hub could have (OWNER/NAME)"
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and not (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return "no local folder has this name and it cannot be had from the hub (HF_HUB_OFFLINE is set)"
    return None


def settled(name: str) -> str:
    """A local folder or file by its absolute path, which is the same from everywhere; a name on the hub as it is.

    A link stays one: what it leads to may be gone when its name is given again.
    """
    place = os.path.expanduser(name)
    return os.path.abspath(place) if os.path.exists(place) else name


def is_same(one: str, other: str) -> bool:
    """Whether two names stand for one model, run or file: a relative path does for every absolute one that ends so, for
    it may have been given elsewhere, or all of it moved. Two relative ones may be names on the hub, of which only equal
    ones are the same."""
    places = [os.path.normpath(os.path.expanduser(name)) for name in (one, other)]
    if os.path.realpath(places[0]) == os.path.realpath(places[1]):
        return True
    relative, absolute = sorted(map(Path, places), key=Path.is_absolute)
    end = tuple(part for part in relative.parts if part != "..")  # how far up it began is not part of the absolute one
    return absolute.is_absolute() and not relative.is_absolute() and absolute.parts[-len(end) :] == end
