"""Predictions as a file: csv, jsonl or parquet, by its ending."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from torch import Tensor, nn

from penstock.engine.data.loader import Batch
from penstock.engine.errors import ConfigError
from penstock.engine.training.evaluate import run
from penstock.engine.training.files import disk_errors

FORMATS = (".csv", ".jsonl", ".parquet")


def predict_table(
    model: nn.Module, batches: Iterable[Batch], label_names: Sequence[str], precision: str = "auto"
) -> pa.Table:
    """The predicted label and every label's probability for each text, in the texts' order.

    Returns:
        columns `row` (the text's number from 0), `label`, and `probability: NAME` for each label, float32.
    """
    rows: list[Tensor] = []
    probabilities: list[Tensor] = []
    for batch, logits in run(model, batches, precision):
        assert batch.tokens.ids is not None
        rows.append(batch.tokens.ids.cpu())
        probabilities.append(logits.softmax(-1).cpu())
    numbers = np.concatenate([part.numpy() for part in rows]) if rows else np.empty(0, np.int64)
    table = np.concatenate([part.numpy() for part in probabilities]) if rows else np.empty((0, len(label_names)))
    order = np.argsort(numbers)
    numbers, table = numbers[order], table[order].astype(np.float32)
    columns = {"row": numbers, "label": pa.array([label_names[index] for index in table.argmax(1)], pa.string())}
    return pa.table(columns | {f"probability: {name}": table[:, index] for index, name in enumerate(label_names)})


def check_format(file: Path) -> None:
    """Raises ConfigError unless the ending names a known format."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"{file}: the ending names the format, one of {', '.join(FORMATS)}")


def write_table(table: pa.Table, file: Path) -> None:
    """Writes the table whole or not at all, in the format that the file's ending names.

    Raises:
        ConfigError: another ending. DiskError: it cannot be written.
    """
    check_format(file)
    temporary = file.with_name(f".{file.name}.tmp")
    with disk_errors(file):
        try:
            if file.suffix == ".csv":
                pyarrow.csv.write_csv(table, temporary)
            elif file.suffix == ".parquet":
                pyarrow.parquet.write_table(table, temporary)
            else:
                _write_json_lines(table, temporary)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def _write_json_lines(table: pa.Table, file: Path) -> None:
    import json

    with open(file, "w") as out:
        for batch in table.to_batches(max_chunksize=4096):
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
