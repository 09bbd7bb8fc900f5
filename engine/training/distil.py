"""`penstock distil`: a student learns from what teachers say of many texts, and from true labels where there are some.

The teachers read the texts once, and their logits are kept beside the store. From then on it is a training like any
other, on a store that has them (`TransferSet`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.logits import (
    Logits,
    LogitsOf,
    difference,
    digest_of_rows,
    make_logits,
    missing_parts,
    read_of,
)
from penstock.engine.data.overlap import shared_rows
from penstock.engine.data.progress import RowProgress, print_line
from penstock.engine.data.store import Store, check_stores
from penstock.engine.data.transfer_set import TransferSet, check_alike
from penstock.engine.errors import ConfigError, PenstockError, RunError, StoreError
from penstock.engine.models.start import Say
from penstock.engine.training.progress import Mode
from penstock.engine.training.result import TrainResult
from penstock.engine.training.resume import Confirm, Resume
from penstock.engine.training.run_directory import check_out
from penstock.engine.training.run_record import about_cut, has_checkpoint, read_record
from penstock.engine.training.settings import Settings
from penstock.engine.training.teachers import (
    Labeller,
    Teacher,
    check_store,
    folder_of,
    identities,
    logits_of,
    open_teachers,
)

_NAMED = 3  # rows of a message


@dataclass(frozen=True)
class Material:
    """What a student learns from.

    Attributes:
        unlabelled: the store whose labels, if it has any, are not looked at. rows: int64, ascending: those of its rows
            that are learned from.
        labelled: the store of rows with true labels; None for none.
    """

    unlabelled: Store
    rows: np.ndarray
    labelled: Store | None = None

    @property
    def parts(self) -> list[tuple[Store, np.ndarray]]:
        """Each store and its rows; the unlabelled one comes last."""
        with_labels = [] if self.labelled is None else [(self.labelled, np.arange(self.labelled.num_examples))]
        return [*with_labels, (self.unlabelled, self.rows)]

    def logits(self, teachers: Sequence[Teacher], folder: Path | None) -> list[tuple[Path, LogitsOf]]:
        """Where the logits of each of `parts` are, and what they are of.

        Args:
            folder: for those of the unlabelled store; None for one beside it.
        """
        found = []
        for store, rows in self.parts:
            of = logits_of(store, rows, teachers)
            found.append((folder_of(store, of), of))
        return found if folder is None else [*found[:-1], (folder, found[-1][1])]

    def transfer_set(self, logits: Sequence[Logits], teachers: Sequence[str], like: str) -> TransferSet:
        """
        Args:
            logits: of each of `parts`. teachers: their paths. like: of a store with the teachers' labels.
        """
        parts = [store for store, _ in self.parts]
        masks = [np.full(store.num_examples, place < len(parts) - 1) for place, store in enumerate(parts)]
        origin = {
            "teachers": list(teachers),
            "unlabelled": str(self.unlabelled.path.resolve()),
            "labelled": None if self.labelled is None else str(self.labelled.path.resolve()),
            "logits": [str(one.folder.resolve()) for one in logits],
            "like": like if self.labelled is None else str(self.labelled.path.resolve()),
        }
        return TransferSet(parts, masks, logits, origin)

    def rows_of(self, whole: TransferSet) -> np.ndarray:
        """int64: the rows of the joined store that are learned from."""
        first = whole.num_examples - self.unlabelled.num_examples
        return np.concatenate([np.arange(first), first + self.rows])


def distil(
    settings: Settings,
    teachers: Sequence[Path | str],
    unlabelled: Store,
    out_dir: Path | str,
    *,
    train_store: Store | None = None,
    test_store: Store | None = None,
    logits: Path | str | None = None,
    device: Any = None,
    progress: Mode = "auto",
    resume: Resume = "last",
    confirm: Confirm | None = None,
) -> TrainResult:
    """Trains a student on the logits of teachers, or resumes where an earlier call stopped.

    A validation split is carved from all rows; its labels are the true ones where they are known, else the teachers'.

    Example:
        >>> from penstock.engine import Store, distil, load_settings
        >>> settings = load_settings(None, ["model.hidden_size=4", "training.epochs=1"])
        >>> texts = Store.open("train")
        >>> distil(settings, ["run"], texts, "student", progress="none").epochs
        1.0

    Args:
        settings: of the student; the section `distillation` says how it learns.
        teachers: runs whose logits are averaged.
        unlabelled: opened with labelled=False, or a store whose labels are not looked at.
        train_store: rows with true labels, which the student learns from too.
        logits: a folder for the logits of `unlabelled`; None for one beside the store.
        test_store, device, progress, resume, confirm: as `train` has them.

    Raises:
        RunError: a teacher cannot be learned from, or logits are damaged or of something else.
        StoreError: the stores do not fit the teachers or each other, or hold test texts.
        PenstockError: as `train`.
    """
    from penstock.engine.training.train import train

    check_out(Path(out_dir))
    shown = progress != "none"
    opened = open_teachers(teachers)
    material = material_for(settings, opened, unlabelled, train_store, test_store, print_line if shown else _silent)
    made = material.logits(opened, None if logits is None else Path(logits))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _check_there(made)
    _check_begun(Path(out_dir), [of for _, of in made])
    found = []
    for (folder, of), (store, rows) in zip(made, material.parts, strict=True):
        make(folder, of, store, rows, opened, shown=shown)
        found.append(Logits.open(folder, rows, of))
    paths = [str(teacher.path.resolve()) for teacher in opened]
    whole = material.transfer_set(found, paths, opened[0].data["store"])
    return train(
        settings,
        whole,
        out_dir,
        rows=material.rows_of(whole),
        test_store=test_store,
        device=device,
        progress=progress,
        resume=resume,
        confirm=confirm,
    )


def go_on(
    settings: Settings,
    teachers: Sequence[Path | str],
    unlabelled: Store,
    out_dir: Path | str,
    *,
    train_store: Store | None = None,
    test_store: Store | None = None,
    logits: Path | str | None = None,
    device: Any = None,
    progress: Mode = "auto",
    resume: Resume = "last",
    confirm: Confirm | None = None,
) -> TrainResult:
    """As `distil`, of a run that has begun: from the logits that it has, whatever has become of its teachers.

    Args:
        as `distil`, all as run.json has them.

    Raises:
        RunError: logits are missing or damaged, or which texts it learns from cannot be told without the teachers.
        PenstockError: as `distil`.
    """
    from penstock.engine.training.train import train

    out, say = Path(out_dir), print_line if progress != "none" else _silent
    origin = read_record(out)["data"]["distillation"]
    places = [Path(place) for place in origin["logits"]]
    there = read_of(places[-1])
    opened, gone = [], []
    for path in teachers:
        try:
            opened.append(Teacher.open(Path(path)))
        except RunError as error:
            gone.append(str(error))
    options: dict[str, Any] = {"device": device, "progress": progress, "resume": resume, "confirm": confirm}
    if there is None or (not gone and identities(opened) == there.teachers):
        stores: dict[str, Any] = {"train_store": train_store, "test_store": test_store, "logits": logits}
        return distil(settings, teachers, unlabelled, out, **stores, **options)
    changed = "; ".join(gone) or "its teachers are no longer what they were"
    say(f"note: {changed}: {out} goes on with their logits in {places[-1]}")
    material = material_for(settings, opened, unlabelled, train_store, test_store, say)
    if there.rows_digest != digest_of_rows(material.rows):
        raise RunError(
            f"{out} goes on with the texts that it began with, and which these are cannot be told without its teachers "
            f"({changed}): put them back, or give another --out"
        )
    found = [Logits.open(place, rows) for place, (_, rows) in zip(places, material.parts, strict=True)]
    whole = material.transfer_set(found, origin["teachers"], origin["like"])
    return train(settings, whole, out, rows=material.rows_of(whole), test_store=test_store, **options)


def label_share(
    settings: Settings,
    teachers: Sequence[Path | str],
    unlabelled: Store,
    share: tuple[int, int],
    *,
    train_store: Store | None = None,
    test_store: Store | None = None,
    logits: Path | str | None = None,
    progress: Mode = "auto",
) -> list[tuple[Path, int]]:
    """The i-th of n shares of what the teachers read for `distil`, for share = (i, n), which any machine may make.

    Returns:
        Where the logits are, and how many of their parts are still missing: of the unlabelled texts last.

    Raises: as `distil`, before its training.
    """
    if not 0 <= share[0] < share[1]:
        raise ConfigError(f"shard {share[0]}/{share[1]}: expected i/n with 0 <= i < n")
    shown = progress != "none"
    opened = open_teachers(teachers)
    material = material_for(settings, opened, unlabelled, train_store, test_store, print_line if shown else _silent)
    made = material.logits(opened, None if logits is None else Path(logits))
    found = []
    for (folder, of), (store, rows) in zip(made, material.parts, strict=True):
        make(folder, of, store, rows, opened, share=share, shown=shown)
        found.append((folder, len(missing_parts(folder, of))))
    return found


def make(
    folder: Path,
    of: LogitsOf,
    store: Store,
    rows: np.ndarray,
    teachers: Sequence[Teacher],
    *,
    share: tuple[int, int] = (0, 1),
    shown: bool = True,
) -> None:
    """Makes a share of the logits of a store's rows, as far as they are not there.

    Raises:
        RunError: a teacher cannot be opened, or the folder holds other logits.
        StoreError: the store is damaged. DiskError: the disk is full or cannot be written.
    """
    read = Labeller(store, rows, teachers)
    with RowProgress("teachers read", of.rows_in(share), shown) as bar:
        make_logits(folder, of, read, share, bar.advance)


def material_for(
    settings: Settings,
    teachers: Sequence[Teacher],
    unlabelled: Store,
    labelled: Store | None,
    test: Store | None,
    say: Say,
) -> Material:
    """What is learned from, once all of it is seen to fit together.

    Raises:
        TypeError: a store is none.
        StoreError: it does not, or the unlabelled texts hold test texts that are not to be left out.
    """
    check_stores(unlabelled=unlabelled, train_store=labelled, test_store=test)
    read = [unlabelled, *([] if labelled is None else [labelled])]
    for store in read:
        if store.multi_label:
            raise StoreError(f"{store.path} has lists of labels: only rows with one label can be learned from here")
    check_store(unlabelled, teachers, labels=False)
    if labelled is not None:
        check_store(labelled, teachers, labels=True)
        check_alike(labelled, unlabelled)
    if test is not None:
        check_store(test, teachers, labels=True)
    lines = [about_cut(store, teacher.data) for store in read for teacher in teachers]
    for line in dict.fromkeys(line for line in lines if line is not None):
        say(line)
    choice = settings.distillation
    rows = np.arange(unlabelled.num_examples)
    for which, store in _test_stores(teachers, test, say):
        found = shared_rows(unlabelled, store)
        found = found[np.isin(found, rows)]
        if len(found) and not choice.drop_overlap:
            raise StoreError(_about_overlap(unlabelled, found, which))
        if len(found):
            say(f"left out: {len(found):,} of {unlabelled.num_examples:,} unlabelled texts that {which} has too")
        rows = np.setdiff1d(rows, found, assume_unique=True)
    if not len(rows):
        raise StoreError(f"{unlabelled.path}: no text is left to learn from: all of them are test texts")
    return Material(unlabelled, chosen(rows, choice.texts, settings.training.seed), labelled)


def chosen(rows: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """int64, ascending: `most` of the rows, drawn at random, or all of them."""
    if most is None or most >= len(rows):
        return rows
    return np.sort(np.random.default_rng([seed, 0xD157]).permutation(rows)[:most])


def _check_begun(run: Path, made: Sequence[LogitsOf]) -> None:
    """The run that is there is compared with what it was begun from before the teachers read for hours, by what its
    logits are of where they still are; the training compares all of it.

    Raises:
        RunError: it was begun with other teachers or texts.
    """
    if not has_checkpoint(run):
        return
    places = read_record(run)["data"].get("distillation", {}).get("logits", [])
    for place, here in zip(map(Path, places), made, strict=False):
        there = read_of(place)
        if there is not None and (other := difference(there, here)) is not None:
            raise RunError(
                f"{run} holds another run, which learns from logits of {other}; give another --out, or --out {run} "
                "alone to go on with those"
            )


def _silent(line: str) -> None:
    pass


def _test_stores(teachers: Sequence[Teacher], test: Store | None, say: Say) -> list[tuple[str, Store]]:
    """(what it is called, the store): the student's test set, and those of the teachers that can still be opened."""
    found = [] if test is None else [(f"the test set {test.path}", test)]
    seen = {store.fingerprint for _, store in found}
    for teacher in teachers:
        place = teacher.data.get("test")
        if teacher.test is None or teacher.test in seen:
            continue
        try:
            store = Store.open(place or "")
        except PenstockError:
            store = None
        if store is None or store.fingerprint != teacher.test:
            say(
                f"note: the test set of the teacher {teacher.path} is no longer at {place}: whether the unlabelled "
                "texts hold some of it is not known"
            )
            continue
        seen.add(store.fingerprint)
        found.append((f"the test set {store.path} of the teacher {teacher.path}", store))
    return found


def _about_overlap(store: Store, rows: np.ndarray, which: str) -> str:
    places = [f"{name}: {position:,}" for name, position in (store.source_of(int(row)) for row in rows[:_NAMED])]
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    verb = "agrees" if len(rows) == 1 else "agree"
    return (
        f"{store.path}: {len(rows):,} of {store.num_examples:,} texts {verb} in all tokens with texts of {which} "
        f"({', '.join(places)}{more}): leave them out with --drop-overlap"
    )


def _check_there(made: Sequence[tuple[Path, LogitsOf]]) -> None:
    """
    Raises:
        ConfigError: several processes would make logits that are not there.
    """
    for place, of in made:
        if missing := missing_parts(place, of):
            raise ConfigError(
                f"{place}: {len(missing):,} of {of.parts:,} parts of the teachers' logits are missing: make them "
                "first, with the same command under --shard 0/1 instead of torchrun (or i/n on each of n machines)"
            )
