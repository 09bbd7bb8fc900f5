"""What teachers say of a store's rows: their logits, in a folder beside the store, made part by part.

    logits.json         which rows of which store, and which teachers; written first
    part-00000.arrow    the logits of 8,192 of the rows, float16, and
    part-00000.json     its receipt: size, checksum, rows; written after it

A part is a function of the rows and the teachers alone, so an interrupted labelling goes on where it was, and several
machines can share one.
"""

import contextlib
import hashlib
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.data.job import write_batch
from penstock.engine.data.manifest import digest
from penstock.engine.errors import RunError, first_line
from penstock.engine.files import FolderLock, committed, disk_errors, remove_leftovers, sync_folder
from penstock.engine.records import check_range, read_file, read_record

LOGITS_NAME = "logits.json"
ROWS_PER_PART = 1 << 13
_FORMAT = 1
_MANY = (1 << 63) - 1
_HERE = 4  # parts named in a message


@dataclass(frozen=True)
class LogitsOf:
    """What logits are of.

    Attributes:
        store: its fingerprint. tokenizer: that of its tokenizer.
        rows: how many of the store's there are; rows_digest: which.
        teachers: for each a digest of its weights, of what it reads of a text and of the precision that it computes in.
        label_names: of the teachers, in the order of the logits.
    """

    store: str
    tokenizer: str
    rows: int
    rows_digest: str
    teachers: list[str]
    label_names: list[str]
    rows_per_part: int = field(default_factory=lambda: ROWS_PER_PART)
    format: int = _FORMAT

    @property
    def parts(self) -> int:
        return -(-self.rows // self.rows_per_part)

    @property
    def name(self) -> str:
        """Tells apart the folders of one store's logits."""
        return digest(asdict(self))[:16]

    def share(self, share: tuple[int, int]) -> range:
        """The parts of the i-th of n equal runs of them, for share = (i, n)."""
        index, shares = share
        return range(self.parts * index // shares, self.parts * (index + 1) // shares)

    def rows_in(self, share: tuple[int, int]) -> int:
        """How many rows these parts have."""
        parts = self.share(share)
        return self.rows_of(parts[-1]).stop - self.rows_of(parts[0]).start if parts else 0

    def rows_of(self, part: int) -> slice:
        """The places, among the rows, of a part's."""
        return slice(part * self.rows_per_part, min((part + 1) * self.rows_per_part, self.rows))

    def schema(self, part: int) -> pa.Schema:
        one = pa.list_(pa.field("item", pa.float16(), False), len(self.label_names))
        return pa.schema([pa.field("logits", one, False)], metadata={"penstock.logits": f"{self.name} {part}"})


@dataclass(frozen=True)
class PartEntry:
    """A part, as it was committed."""

    of: str
    part: int
    bytes: int
    file_crc32: int
    rows: int
    seconds: float = 0.0  # that the teachers took, by the clock and
    cpu_seconds: float = 0.0  # of all threads


def digest_of_rows(rows: np.ndarray) -> str:
    """One line of text for row numbers, int64 (rows,)."""
    return hashlib.blake2b(np.ascontiguousarray(rows, "<i8").tobytes(), digest_size=16).hexdigest()


def make_logits(
    folder: Path,
    of: LogitsOf,
    compute: Callable[[slice], np.ndarray],
    share: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] = lambda rows: None,
) -> bool:
    """Makes the parts of a share that are not there yet; returns whether all parts of all shares are.

    Args:
        compute: the logits, float32 (rows, num_labels), of the rows at these places.
        share: (i, n): the i-th of n equal runs of the parts.
        advance: told of rows as they are done.

    Raises:
        RunError: the folder holds the logits of something else, or a teacher gives logits that are no numbers.
        DiskError: the disk is full or cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    with FolderLock(folder, None, shared=True):  # who has it alone clears it, which is done at once
        there = read_of(folder)
        if there is None:
            write_checked(folder / LOGITS_NAME, asdict(of))
        else:
            check_of(folder, there, of)
        for part in of.share(share):
            places = of.rows_of(part)
            if _finished(folder, of, part) is None:
                began, cpu_began = time.perf_counter(), time.process_time()
                logits = compute(places)
                spent = time.perf_counter() - began, time.process_time() - cpu_began
                _write(folder, of, part, logits, spent)
            advance(places.stop - places.start)
        missing = missing_parts(folder, of)
    if not missing:
        # others that write here clear it themselves
        with contextlib.suppress(RunError), FolderLock(folder, RunError("busy")), disk_errors(folder):
            remove_leftovers(folder)
    return not missing


def missing_parts(folder: Path, of: LogitsOf) -> list[int]:
    """Those that have no receipt yet."""
    return [part for part in range(of.parts) if _receipt(folder, of, part) is None]


@dataclass(frozen=True)
class Logits:
    """The logits of some of a store's rows, open for reading.

    Attributes:
        folder: where they are. of: what they are of.
        rows: int64 (rows,), ascending: those of the store.
        values: float16 (rows, num_labels).
        fingerprint: of the values and of what they are of.
        seconds, cpu_seconds: that the teachers took for them, by the clock and of all threads, whenever that was.
    """

    folder: Path
    of: LogitsOf
    rows: np.ndarray
    values: np.ndarray
    fingerprint: str
    seconds: float
    cpu_seconds: float

    @classmethod
    def open(cls, folder: Path, rows: np.ndarray, of: LogitsOf | None = None) -> "Logits":
        """Reads all of them, their checksums compared.

        Args:
            rows: int64, ascending: those of the store that they have to be of.
            of: what they have to be of; None where the rows and what is done with `fingerprint` tell.

        Raises:
            RunError: they are not there, incomplete, damaged, or of something else.
        """
        there = read_of(folder)
        if there is None:
            raise RunError(f"{folder} holds no logits: there is no {LOGITS_NAME}; penstock distil --teacher makes them")
        if of is not None:
            check_of(folder, there, of)
        if (there.rows, there.rows_digest) != (len(rows), digest_of_rows(rows)):
            raise RunError(f"{folder} holds the logits of other rows than are learned from: {_REMEDY}")
        values = np.empty((there.rows, len(there.label_names)), np.float16)
        entries = []
        for part in range(there.parts):
            values[there.rows_of(part)], entry = _read_part(folder, there, part)
            entries.append(entry)
        if not np.isfinite(values).all():
            raise RunError(f"{folder}: damaged: some of its logits are no numbers; {_REMEDY}")
        fingerprint = digest([asdict(there), [entry.file_crc32 for entry in entries]])
        seconds, cpu_seconds = sum(entry.seconds for entry in entries), sum(entry.cpu_seconds for entry in entries)
        return cls(folder, there, rows, values, fingerprint, seconds, cpu_seconds)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """float32 (rows, num_labels): of rows of the store, int64, that are among `rows`."""
        return self.values[np.searchsorted(self.rows, rows)].astype(np.float32)

    def labels(self) -> np.ndarray:
        """int64 (rows,): the label that the teachers give each of `rows`."""
        return self.values.argmax(1).astype(np.int64)


_REMEDY = "remove the folder to make them again, or give another --logits"


def check_of(folder: Path, there: LogitsOf, here: LogitsOf) -> None:
    """
    Raises:
        RunError: the folder's logits are of something else than they should be; says of what.
    """
    if (other := difference(there, here)) is not None:
        raise RunError(f"{folder} holds logits of {other}: {_REMEDY}")


def difference(there: LogitsOf, here: LogitsOf) -> str | None:
    """What logits that are there are of instead of what they should be; None if they are of the same."""
    for what, a, b in (
        ("another store", there.store, here.store),
        ("another tokenizer", there.tokenizer, here.tokenizer),
        ("other labels", there.label_names, here.label_names),
        ("other teachers", there.teachers, here.teachers),
        ("other rows", (there.rows, there.rows_digest), (here.rows, here.rows_digest)),
        ("another size of parts", there.rows_per_part, here.rows_per_part),
        ("another penstock", there.format, here.format),
    ):
        if a != b:
            return what
    return None


def read_of(folder: Path) -> LogitsOf | None:
    """What a folder's logits are of; None where there are none.

    Raises:
        RunError: what says so is damaged.
    """
    file = folder / LOGITS_NAME
    try:
        found = read_record(LogitsOf, read_checked(file))
        check_range("rows", found.rows, 1, _MANY)
        check_range("rows_per_part", found.rows_per_part, 1, _MANY)
        if len(found.label_names) < 2 or not found.teachers:
            raise ValueError("it names no labels or no teachers")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged: {error}; {_REMEDY}") from None


def _write(folder: Path, of: LogitsOf, part: int, logits: np.ndarray, spent: tuple[float, float]) -> None:
    """One part, then its receipt."""
    with np.errstate(over="ignore"):  # what is too large is found here
        values = logits.astype(np.float16)
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values).all(1))[0]) + of.rows_of(part).start
        raise RunError(
            f"the teachers' logits of text {place + 1:,} of {of.rows:,} are no numbers in float16 (the largest is "
            f"{np.abs(logits).max():g}): such a teacher cannot be learned from"
        )
    schema = of.schema(part)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field("logits").type)
    path = _part_path(folder, part)
    with committed(path) as file:
        write_batch(file, pa.record_batch([column], schema=schema))
    entry = PartEntry(of.name, part, file.size, file.crc32, len(values), *spent)
    write_checked(path.with_suffix(".json"), asdict(entry))


def _receipt(folder: Path, of: LogitsOf, part: int) -> PartEntry | None:
    """A part's receipt; None where there is none, or one of other logits."""
    try:
        found = read_record(PartEntry, read_checked(_part_path(folder, part).with_suffix(".json")))
    except (OSError, ValueError):
        return None
    places = of.rows_of(part)
    return found if (found.of, found.part, found.rows) == (of.name, part, places.stop - places.start) else None


def _finished(folder: Path, of: LogitsOf, part: int) -> PartEntry | None:
    """As `_receipt`, if the part's bytes are what it says."""
    found = _receipt(folder, of, part)
    try:
        content = read_file(_part_path(folder, part))
    except OSError:
        return None
    same = found is not None and (found.bytes, found.file_crc32) == (len(content), zlib.crc32(content))
    return found if same else None


def _read_part(folder: Path, of: LogitsOf, part: int) -> tuple[np.ndarray, PartEntry]:
    """(float16 (rows, num_labels), its receipt)"""
    path, entry = _part_path(folder, part), _receipt(folder, of, part)
    if entry is None:
        missing = missing_parts(folder, of)
        listed = ", ".join(map(str, missing[:_HERE])) + (", ..." if len(missing) > _HERE else "")
        raise RunError(
            f"{folder}: {len(missing):,} of {of.parts:,} parts are missing: {listed}; penstock distil with the same "
            "--teacher and --unlabelled makes them"
        )
    try:
        content = read_file(path)
        if (len(content), zlib.crc32(content)) != (entry.bytes, entry.file_crc32):
            raise ValueError("its checksum is not that of what was written")
        batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
        if not batch.schema.equals(of.schema(part), check_metadata=True) or batch.num_rows != entry.rows:
            raise ValueError("its columns or rows are not those of these logits")
        values = np.asarray(batch["logits"].values).reshape(entry.rows, -1)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"{path}: damaged: {first_line(error)}; remove it, and penstock distil with the same --teacher and "
            "--unlabelled makes it again"
        ) from None
    return values, entry


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.arrow"
