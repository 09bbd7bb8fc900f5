"""What a trial predicted, test row by test row: `NAME.parquet` beside `NAME.json`. All paired figures come from it.

Columns, a line for each test row that was read, in the order of the rows:
    row              int32 or int64, its number in the test store
    truth, label     the row's class and the predicted one, numbers of the smallest type that holds them
    probability_N    float16, of class N; of up to `EVERY_CLASS` classes
    top_label_N, top_probability_N, probability_true
                     of more: the `MOST_PROBABLE` most probable classes, N from 1, and what the true class was given
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.errors import RunError
from penstock.engine.files import committed

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

FORMAT = 1
EVERY_CLASS = 64
MOST_PROBABLE = 10
_ROWS_IN_GROUP = 1 << 18


@dataclass(frozen=True)
class PredictionsEntry:
    """A file of predictions as a trial's JSON names it: what it has to be like to be the trial's."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class Predictions:
    """
    Attributes:
        rows: int64, (rows,), ascending: numbers of rows of the test store.
        truth, labels: integers, (rows,): the class and the predicted one.
        test: fingerprint of the test store. max_test: how many of its rows were read; None for all.
        test_rows: rows of the test store.
        label_names: of the classes.
    """

    rows: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    test: str
    max_test: int | None
    test_rows: int
    label_names: list[str]

    @property
    def right(self) -> np.ndarray:
        """bool, (rows,)."""
        return self.labels == self.truth


class PredictionsRecorder:
    """Takes a trial's predictions as they are made, in any order, in memory that is settled before the first.

    Args:
        rows: int64, (rows,), ascending: the rows of the test store that will be evaluated; num_labels: its classes.
    """

    def __init__(self, rows: np.ndarray, num_labels: int) -> None:
        classes = np.min_scalar_type(max(num_labels - 1, 1))
        self._rows, self._num_labels = rows, num_labels
        self._truth, self._labels = np.zeros(len(rows), classes), np.zeros(len(rows), classes)
        self._seen = np.zeros(len(rows), bool)
        most = 0 if num_labels <= EVERY_CLASS else MOST_PROBABLE
        self._probabilities = np.zeros((most or num_labels, len(rows)), np.float16)
        self._top = np.zeros((most, len(rows)), classes)
        self._of_truth = np.zeros(len(rows) if most else 0, np.float16)

    def add(self, rows: "Tensor", truth: "Tensor", probabilities: "Tensor") -> None:
        """rows, truth int64 (batch,); probabilities float32 (batch, num_labels)."""
        labels, scores = truth.cpu().numpy(), probabilities.cpu().numpy()
        places = np.searchsorted(self._rows, rows.cpu().numpy())
        self._truth[places], self._labels[places], self._seen[places] = labels, scores.argmax(1), True
        if not len(self._top):
            self._probabilities[:, places] = scores.T
            return
        top = np.argpartition(-scores, MOST_PROBABLE, axis=1)[:, :MOST_PROBABLE]
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, 1)
        self._top[:, places] = top.T
        self._probabilities[:, places] = np.take_along_axis(scores, top, 1).T
        self._of_truth[places] = scores[np.arange(len(labels)), labels]

    def write(
        self, path: Path, *, test: str, max_test: int | None, test_rows: int, label_names: list[str]
    ) -> PredictionsEntry:
        """Writes the file, whole or not at all.

        Args: as the attributes of `Predictions`.

        Raises:
            RunError: a row has no prediction.
            DiskError: the disk is full or cannot be written.
        """
        if not self._seen.all():
            raise RunError(f"{path}: {(~self._seen).sum():,} of {len(self._rows):,} test rows were not evaluated")
        about = Predictions(self._rows, self._truth, self._labels, test, max_test, test_rows, label_names)
        return _write(path, about, self._columns())

    def _columns(self) -> dict[str, "np.ndarray | pa.Array"]:
        columns = _classes(self._rows, self._truth, self._labels)
        if not len(self._top):
            return columns | {f"probability_{number}": own for number, own in enumerate(self._probabilities)}
        for number, own in enumerate(self._top):
            columns[f"top_label_{number + 1}"] = own
            columns[f"top_probability_{number + 1}"] = self._probabilities[number]
        return columns | {"probability_true": self._of_truth}


def write_labels(path: Path, about: Predictions) -> PredictionsEntry:
    """Writes predictions whose probabilities are not known, whole or not at all.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    classes = np.min_scalar_type(max(len(about.label_names) - 1, 1))
    return _write(path, about, _classes(about.rows, about.truth.astype(classes), about.labels.astype(classes)))


def _classes(rows: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> dict[str, "np.ndarray | pa.Array"]:
    narrow = np.int32 if not len(rows) or rows[-1] < 1 << 31 else np.int64
    return {"row": rows.astype(narrow), "truth": truth, "label": labels}


def _write(path: Path, about: Predictions, columns: dict[str, "np.ndarray | pa.Array"]) -> PredictionsEntry:
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {
        "penstock.predictions": str(FORMAT),
        "penstock.test": about.test,
        "penstock.max_test": json.dumps(about.max_test),
        "penstock.test_rows": str(about.test_rows),
        "penstock.labels": json.dumps(about.label_names),
    }
    table = pa.table(columns).replace_schema_metadata(metadata)
    with committed(path) as file:
        pq.write_table(table, pa.PythonFile(file, "w"), _ROWS_IN_GROUP, compression="zstd", write_page_checksum=True)
    return PredictionsEntry(path.name, file.size, file.crc32)


def predictions_path(folder: Path, trial_name: str) -> Path:
    return folder / f"{trial_name}.parquet"


def check_predictions(folder: Path, entry: PredictionsEntry) -> bytes:
    """The content of the file that a finished trial names.

    Raises:
        RunError: it is not there, or not as it was written.
    """
    path = folder / entry.name
    again = f"remove {path.with_suffix('.json')} to run the trial again"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path}: the trial's predictions are missing; {again}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}; {again}") from None
    if (len(content), zlib.crc32(content)) != (entry.bytes, entry.crc32):
        raise RunError(f"{path}: not the predictions that the trial wrote (damaged, or of another trial); {again}")
    return content


def read_predictions(folder: Path, entry: PredictionsEntry) -> Predictions:
    """
    Raises:
        RunError: as `check_predictions`.
    """
    found = parse_predictions(folder / entry.name, check_predictions(folder, entry))
    if found is None:
        raise RunError(f"{folder / entry.name}: holds no predictions of a trial")
    return found


def parse_predictions(path: Path, content: bytes) -> Predictions | None:
    """From the bytes of a file of that name; None if it is a Parquet file of another kind.

    Raises:
        RunError: it is damaged, or of another version of penstock.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        version = metadata.get("penstock.predictions")
        if version is None:
            return None
        if version != str(FORMAT):
            raise RunError(f"{path}: predictions of format {version}, this penstock reads {FORMAT}")
        table = file.read(["row", "truth", "label"])
        found = Predictions(
            rows=table["row"].to_numpy().astype(np.int64),
            truth=table["truth"].to_numpy(),
            labels=table["label"].to_numpy(),
            test=metadata["penstock.test"],
            max_test=json.loads(metadata["penstock.max_test"]),
            test_rows=int(metadata["penstock.test_rows"]),
            label_names=json.loads(metadata["penstock.labels"]),
        )
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    rows, classes = found.rows, len(found.label_names)
    sound = len(rows) and rows[0] >= 0 and rows[-1] < found.test_rows and (np.diff(rows) > 0).all()
    if not sound or max(found.truth.max(), found.labels.max()) >= classes:
        raise RunError(f"{path}: damaged: rows or classes that the test data does not have")
    return found
