"""Texts as vectors of a frozen encoder, each encoded once in a study: kept in a folder of its own by store and encoder.

A part is what one trial had to add: a safetensors file of `rows`, int64, ascending, and `vectors`, float16 (rows,
width), committed whole. Its metadata says what it is of, the CRC-32 of both, and what it cost, which every trial that
takes vectors from it counts as its own. Two trials at a time may encode the same rows; either's serve.
"""

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.store import Store
from penstock.engine.errors import RunError
from penstock.engine.files import write_committed

FORMAT = 1
_PART_ROWS = 4_096  # encoded between two commits: what a kill can lose


@dataclass(frozen=True)
class Encoded:
    """
    Attributes:
        vectors: float32 (rows, width), in the order of the rows.
        seconds, cpu_seconds: that earlier trials took to encode those of them that were there already.
    """

    vectors: np.ndarray
    seconds: float
    cpu_seconds: float


class EncodedTexts:
    """
    Args:
        folder: of the parts; None to keep nothing. store: of the rows.
        encode: gives rows (int64) of the store as float32 (rows, width).
        identity: of store and encoder, which each part has to have.
    """

    def __init__(
        self, folder: Path | None, store: Store, width: int, encode: Callable[[np.ndarray], np.ndarray], identity: str
    ) -> None:
        self._folder, self._store, self._width = folder, store, width
        self._encode, self._identity = encode, identity

    def of(self, rows: np.ndarray) -> Encoded:
        """
        Args:
            rows: int64, ascending.

        Raises:
            RunError: a part is damaged. DiskError: one cannot be written.
        """
        vectors = np.empty((len(rows), self._width), np.float16)
        known = np.zeros(len(rows), bool)
        spent = np.zeros(2)
        for path in sorted(self._folder.glob("*.safetensors")) if self._folder is not None else ():
            theirs, found, cost = self._read(path)
            places = np.searchsorted(theirs, rows).clip(max=len(theirs) - 1)
            taken = np.flatnonzero((theirs[places] == rows) & ~known)
            vectors[taken] = found[places[taken]]
            known[taken] = True
            spent += cost * self._share(rows[taken], theirs)
        lacking = np.flatnonzero(~known)
        for begin in range(0, len(lacking), _PART_ROWS):
            part = lacking[begin : begin + _PART_ROWS]
            started, cpu_started = time.perf_counter(), time.process_time()
            vectors[part] = self._encode(rows[part])
            cost = np.array([time.perf_counter() - started, time.process_time() - cpu_started])
            self._write(rows[part], vectors[part], cost)
        return Encoded(vectors.astype(np.float32), *spent.tolist())

    def _share(self, taken: np.ndarray, rows: np.ndarray) -> float:
        """What those taken make of what the part's rows cost: in proportion to their tokens."""
        lengths = self._store.lengths
        return float(lengths[taken].sum(dtype=np.int64) / max(lengths[rows].sum(dtype=np.int64), 1))

    def _write(self, rows: np.ndarray, vectors: np.ndarray, cost: np.ndarray) -> None:
        from safetensors.numpy import save

        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        crc32 = _crc32(rows, vectors)
        metadata = {"identity": self._identity, "crc32": str(crc32), "cost": json.dumps(cost.tolist())}
        content = save({"rows": rows, "vectors": vectors}, {"format": str(FORMAT), **metadata})
        write_committed(self._folder / f"{rows[0]:010d}-{len(rows)}-{crc32:08x}.safetensors", content)

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rows, vectors and what they cost."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                rows, vectors = file.get_tensor("rows"), file.get_tensor("vectors")
            sound = metadata["crc32"] == str(_crc32(rows, vectors)) and metadata["identity"] == self._identity
            cost = np.array(json.loads(metadata["cost"]))
            sound &= len(rows) > 0 and vectors.shape == (len(rows), self._width) and metadata["format"] == str(FORMAT)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise RunError(f"{path}: damaged ({error}); remove it to encode its texts again") from None
        if not sound:
            raise RunError(f"{path}: damaged, or of other texts; remove it to encode its texts again")
        return rows, vectors, cost


def _crc32(rows: np.ndarray, vectors: np.ndarray) -> int:
    parts = (np.ascontiguousarray(part).data.cast("B") for part in (rows, vectors))
    crc32 = 0
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    return crc32
