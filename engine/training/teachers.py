"""Runs whose logits are learned from: what they have to have in common, and what they say of a store's rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.checked import DamageError, check_sealed, crc32_of, read_seal
from penstock.engine.data.logits import LogitsOf, digest_of_rows
from penstock.engine.data.manifest import digest
from penstock.engine.data.store import Store
from penstock.engine.errors import RunError, StoreError
from penstock.engine.training.run_record import as_trained, check_fits, read_trained_record

_OF_A_MODEL = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Teacher:
    """
    Attributes:
        path: of the run. data: the entry `data` of its run.json. weights: a digest of its best model's files.
        test: the fingerprint of the test set that it was trained beside; None where there was none.
    """

    path: Path
    data: dict[str, Any]
    weights: str
    test: str | None

    @classmethod
    def open(cls, path: Path) -> "Teacher":
        """
        Raises:
            RunError: there is no run, it has no model, the model is damaged, or it gives lists of labels.
        """
        record = read_trained_record(path)
        if record["data"].get("multi_label", False):
            raise RunError(
                f"{path} gives each text a list of labels: only teachers that choose one label can be learned from"
            )
        best = path / "best"
        try:
            if (seal := read_seal(best)) is not None:
                check_sealed(best, seal)
            files = [f"{name} {crc32_of(best / name)}" for name in _OF_A_MODEL]
        except (DamageError, OSError) as error:
            raise RunError(f"{best}: {error}: put it back from a copy, or train the teacher again") from None
        weights = hashlib.blake2b(" ".join(files).encode(), digest_size=16).hexdigest()
        return cls(path, record["data"], weights, record["identity"].get("test data"))


def open_teachers(paths: Sequence[Path | str]) -> list[Teacher]:
    """Runs, in an order of their own: that in which they are given changes nothing.

    Raises:
        TypeError: a single path. ValueError: there are none.
        RunError: as `Teacher.open`; or two of them have other labels, or one is given twice.
    """
    if isinstance(paths, str | Path):
        raise TypeError(f"teachers must be a list of runs, as in [{str(paths)!r}]")
    if not paths:
        raise ValueError("there are no teachers: give the folder of one run at least")
    teachers = [Teacher.open(Path(path)) for path in paths]
    first = teachers[0]
    for number, other in enumerate(teachers):
        if other.data["label_names"] != first.data["label_names"]:
            raise RunError(
                f"{other.path} has other labels ({_named(other)}) than {first.path} ({_named(first)}): teachers whose "
                "logits are averaged need the same ones"
            )
        if other.weights in [one.weights for one in teachers[:number]]:
            raise RunError(f"{other.path} is given twice, or has the weights of another teacher: leave it out")
    return sorted(teachers, key=lambda teacher: teacher.weights)


def check_store(store: Store, teachers: Sequence[Teacher], *, labels: bool) -> None:
    """
    Args:
        labels: whether the store's are to be used.

    Raises:
        StoreError: a teacher cannot read the store, or has other labels than it.
    """
    for teacher in teachers:
        try:
            check_fits(store, teacher.data, labels=labels)
        except StoreError as error:
            raise StoreError(f"{error} (it is that of the teacher {teacher.path})") from None


def logits_of(store: Store, rows: np.ndarray, teachers: Sequence[Teacher]) -> LogitsOf:
    """What logits of these rows by these teachers are called here.

    Raises:
        RunError, ModelError: a teacher's settings cannot be read.
    """
    return LogitsOf(
        store=store.fingerprint,
        tokenizer=store.manifest.tokenizer.fingerprint,
        rows=len(rows),
        rows_digest=digest_of_rows(rows),
        teachers=identities(teachers),
        label_names=teachers[0].data["label_names"],
    )


def folder_of(store: Store, of: LogitsOf) -> Path:
    """Beside the store."""
    whole = store.path.resolve()
    return whole.with_name(f"{whole.name}.logits") / of.name


def identities(teachers: Sequence[Teacher]) -> list[str]:
    """What the logits of each depend on, as a digest; in the order of `open_teachers`.

    Raises:
        RunError, ModelError: a teacher's settings cannot be read.
    """
    return [_identity(teacher) for teacher in sorted(teachers, key=lambda teacher: teacher.weights)]


def _identity(teacher: Teacher) -> str:
    import torch

    from penstock.engine.training.precision import resolve_precision
    from penstock.engine.training.trained import precision_of_run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(precision_of_run(teacher.path, device), device)
    return digest([teacher.weights, teacher.data["max_length"], teacher.data["truncation"], precision])


class Labeller:
    """Reads a store's rows with `penstock predict`'s models and batches. The teachers are opened when the first part is
    asked for: what is finished needs none of them.

    Args:
        rows: int64, ascending.
    """

    def __init__(self, store: Store, rows: np.ndarray, teachers: Sequence[Teacher]) -> None:
        self._store, self._rows, self._teachers = store, rows, teachers
        self._opened: list[Any] = []

    def __call__(self, places: slice) -> np.ndarray:
        """float32 (rows, num_labels): the mean of the teachers' logits of the rows at these places."""
        from penstock.engine.data.verify import check_files
        from penstock.engine.training.distributed import World
        from penstock.engine.training.evaluate import run, store_batches
        from penstock.engine.training.trained import TrainedRun

        if not self._opened:
            check_files(self._store)
            self._opened = [TrainedRun.open(teacher.path) for teacher in self._teachers]
        rows = self._rows[places]
        total = np.zeros((len(rows), len(self._opened[0].label_names)), np.float32)
        for trained in self._opened:
            read = as_trained(self._store, trained.data, labels=False, say=lambda line: None)  # which was said before
            alone = World.alone(trained.model)
            batches = store_batches(read, rows, trained.tokens_per_batch, alone)
            for batch, logits in run(trained.model, batches, trained.precision):
                assert batch.tokens.ids is not None
                total[np.searchsorted(rows, batch.tokens.ids.cpu().numpy())] += logits.cpu().numpy()
        return total / len(self._opened)


def _named(teacher: Teacher) -> str:
    names = teacher.data["label_names"]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
