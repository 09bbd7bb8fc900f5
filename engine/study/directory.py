"""The directory of a study: whose it is, and the lock on it."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.data.clusters import ClusterOverlap
from penstock.engine.data.hub_names import is_same, settled
from penstock.engine.data.overlap import Overlap
from penstock.engine.data.sources.open import SCHEMES
from penstock.engine.errors import RunError
from penstock.engine.files import FolderLock, disk_errors, remove_leftovers
from penstock.engine.records import check_entries
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.trials import trial_named
from penstock.engine.training.run_record import in_use

STUDY_NAME = "study.json"
EXTERNAL = "external"  # the folder of predictions from elsewhere
_OLD_TRIALS = "cells"  # what an earlier penstock called them
_PLAN = "plan.json"  # as `plan.PLAN_NAME`, which comes with much else


_ENTRIES: dict[str, Any] = {
    "identity": dict,
    "families": list[str],
    "trials": list[str],
    _OLD_TRIALS: list[str],
    "labels": list[str],
    "train": dict[str, int | str],
    "test": dict[str, int | str],
    "max_length": int,
    "reads": dict,
    "cluster": str | None,
    "cluster_overlap": ClusterOverlap,
    "encoders": dict[str, str],
    "overlap": Overlap,
    "machine": dict,
}


def read_study(folder: Path | str) -> dict[str, Any]:
    """The contents of DIR/study.json.

    Raises:
        RunError: there is no study, or it cannot be read.
    """
    path = Path(folder) / STUDY_NAME
    try:
        document = read_checked(path)
    except FileNotFoundError:
        raise RunError(f"{folder} holds no study: there is no {STUDY_NAME}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; put it back from a copy, or give another --out") from None
    if not isinstance(document, dict) or document.get("format") != 1:
        raise RunError(f"{path} was written by another version of penstock")
    try:
        check_entries(document, _ENTRIES, ("identity",))
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from None
    return document


def trials_folder(folder: Path) -> Path:
    """Where a study's finished trials are; a study that an earlier penstock began keeps its folder."""
    old = folder / _OLD_TRIALS
    return old if old.is_dir() else folder / "trials"


def planned_trials(study: dict[str, Any]) -> list[str]:
    """The names of the trials that study.json plans."""
    return study.get("trials", study.get(_OLD_TRIALS, []))


def has_begun(folder: Path, study: dict[str, Any]) -> bool:
    """Whether trials are planned, or something is there of one. Before that nothing was made from the study's data,
    which a study may then be refused for: whatever the next command gives instead takes its place."""
    of_trials = (trials_folder(folder), folder / "runs")
    return bool(planned_trials(study)) or any(place.is_dir() and any(place.iterdir()) for place in of_trials)


def claim(folder: Path, identity: dict[str, Any]) -> FolderLock:
    """Locks the directory and makes sure that it is this study's, or new, or of one that has not begun."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give a directory for the study")
    path = folder / STUDY_NAME
    if folder.is_dir() and not path.exists() and any(name != ".lock" for name in os.listdir(folder)):
        raise RunError(f"{folder} is not empty and holds no study: give another --out")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, in_use(folder), file=".lock")
    try:
        if path.exists():
            study = read_study(folder)
            there, families = study["identity"], families_of(folder, study)
            for key in [*identity, *there]:
                if _is_alike(key, there.get(key), identity.get(key), families):
                    continue
                if has_begun(folder, study):
                    raise RunError(
                        f"{folder} belongs to another study: {key} is {there.get(key)!r} there and "
                        f"{identity.get(key)!r} here; give another --out"
                    )
                _begin_as(folder, identity)
                break
        else:
            write_study(folder, {"identity": identity})
        folders = [folder / "data", folder / "costs", trials_folder(folder), folder / "runs"]
        for path in folders:
            path.mkdir(exist_ok=True)  # whoever removes one has it made again
        for path in (folder, *folders):
            remove_leftovers(path)
    except BaseException:
        lock.close()
        raise
    return lock


def _begin_as(folder: Path, identity: dict[str, Any]) -> None:
    """Gives the directory of a study that has not begun to another one. Stores and costs say themselves what they were
    made from; the rest goes."""
    (folder / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / EXTERNAL, ignore_errors=True)
    write_study(folder, {"identity": identity})


def _is_alike(key: str, there: Any, here: Any, families: Collection[str]) -> bool:
    """Whether an entry of two identities makes no difference.

    An earlier penstock wrote "head" where no truncation was given: what the data was made with, it says itself. A
    family that is added may bring settings of its own. A file may be named from another directory.
    """
    if key == "truncation":
        return there == here or {there, here} == {"head", None}
    if key in ("train", "test") and isinstance(there, list):
        return len(there) == len(here) and all(map(_is_same_source, there, here))
    if key == "encoder" and None not in (there, here):
        return is_same(there, settled(here))
    if key == "overrides":
        there, here = (
            [each for each in every or () if (name := each.split(".")[0]) not in FAMILIES or name in families]
            for every in (there, here)
        )
        return len(there) == len(here) and all(map(_is_same_override, there, here))
    return there == here


def _is_same_override(there: str, here: str) -> bool:
    (key, _, place), (other, _, now) = there.partition("="), here.partition("=")
    return there == here or (key == other and key.endswith("model.encoder") and is_same(place, settled(now)))


def _is_same_source(there: str, here: str) -> bool:
    """Whether two names may be of the same data: what it holds has fingerprints, compared later."""
    if there == here or there.startswith(SCHEMES) or here.startswith(SCHEMES):
        return there == here
    place = os.path.abspath(os.path.expanduser(here))
    # the name itself and, if it is a link, what it leads to
    return is_same(there, place) or is_same(there, os.path.realpath(place))


def families_of(folder: Path, study: dict[str, Any]) -> set[str]:
    """Those that the study has planned or that something is there of."""
    names = [path.stem for path in trials_folder(folder).glob("*.json")]
    names += [path.name for path in (folder / "runs").glob("*")] + planned_trials(study)
    return {trial.family for trial in map(trial_named, names) if trial is not None}


def write_study(folder: Path, document: dict[str, Any]) -> None:
    write_checked(folder / STUDY_NAME, {"format": 1, **document})
