"""Predictions of the test rows that somebody else made, a language model or a vendor: read once, kept in the study.

external/NAME.json names the file; external/NAME.parquet holds the classes as a trial's predictions do.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock.engine.checked import read_checked, write_checked
from penstock.engine.data.clusters import read_cluster_file
from penstock.engine.data.sources.labels import LabelNames
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, SourceError
from penstock.engine.records import read_record
from penstock.engine.setting import split_key_value
from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.mcnemar import mcnemar
from penstock.engine.statistics.resample import Series, draw
from penstock.engine.study.families import FAMILIES, REFERENCE
from penstock.engine.study.intervals import Estimate
from penstock.engine.study.paired import GapTest, gap_tests
from penstock.engine.study.prediction_files import read_prediction_file
from penstock.engine.study.predictions import Predictions, PredictionsEntry, read_predictions, write_labels
from penstock.engine.study.subsets import subset
from penstock.engine.study.trials import TrialResult

ROW = "row"
_OTHER_ROWS = ("id", "index", "idx", "row_id")  # what a column is called that says which row it is, in another way
_FORM = "--external NAME=FILE, such as gpt=predictions.csv"
_LISTED = 10


@dataclass(frozen=True)
class External:
    """
    Attributes:
        name: as the report shows it. source: the file that it was read from.
        predictions: the file beside it.
    """

    name: str
    source: str
    predictions: PredictionsEntry


def parse_externals(items: Sequence[str]) -> dict[str, str]:
    """{name: file}

    Raises:
        ConfigError: an item has another form, or two have the same name.
    """
    found: dict[str, str] = {}
    for item in items:
        name, file = split_key_value(item, _FORM)
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name) or not file:
            raise ConfigError(f"--external {item!r}: write {_FORM}, a name of letters, digits, '.', '-' and '_'")
        if name in FAMILIES or name in found:
            what = "a family of penstock's" if name in FAMILIES else "given twice"
            raise ConfigError(f"--external {item!r}: the name {name} is {what}: take another")
        found[name] = file
    return found


def read_external(file: str, test: Store, rows: np.ndarray) -> np.ndarray:
    """int64: the predicted class of each of the rows.

    Args:
        file: with a column `label`, in the order of all the test rows, or beside a column `row`, their numbers from 0.
        rows: int64, ascending: those that the study evaluates.

    Raises:
        SourceError: it lacks rows, or has others, or a row twice, or a label that is none of the test data's, or says
            by another column which rows they are.
    """
    found = read_prediction_file(file, _row_column)
    spelled, ids = found.spelled, found.ids
    known, numbers = LabelNames(test.label_names), {name: number for number, name in enumerate(test.label_names)}
    labels = np.empty(len(spelled), np.int64)
    for place, own in enumerate(spelled):
        name = known(own)
        if name is None:
            listed = ", ".join(test.label_names[:_LISTED]) + (", …" if test.num_labels > _LISTED else "")
            raise SourceError(f"{file}: row {place + 1}: the test data has no class {own!r} ({listed})")
        labels[place] = numbers[name]
    if ids is None:
        if len(labels) != test.num_examples:
            raise SourceError(
                f"{file}: {len(labels):,} rows, and the test data has {test.num_examples:,}: each needs a prediction, "
                f"or a column {ROW!r} has to say which rows these are, from 0"
            )
        return labels[rows]
    given = {}
    for place, own in enumerate(ids):
        if not own.isdecimal() or int(own) >= test.num_examples:
            last = test.num_examples - 1
            raise SourceError(f"{file}: row {place + 1}: {ROW} {own!r} is none of the test data's, 0 to {last:,}")
        given[int(own)] = place
    if len(given) != len(ids):
        twice = next(own for own, count in Counter(map(int, ids)).items() if count > 1)
        raise SourceError(f"{file}: two predictions of row {twice}: one each")
    missing = next((row for row in rows.tolist() if row not in given), None)
    if missing is not None:
        raise SourceError(f"{file}: no prediction of row {missing}, which the study evaluates")
    return labels[[given[row] for row in rows.tolist()]]


def _row_column(name: str, columns: Sequence[str]) -> str | None:
    """The column with the rows' numbers; None for none.

    Raises:
        SourceError: another one tells rows apart: nobody knows whether the file's order is that of the test rows.
    """
    if ROW in columns:
        return ROW
    for column in columns:
        if column.strip().lower() in (ROW, *_OTHER_ROWS):
            raise SourceError(
                f"{name}: rows cannot be found by the column {column!r}, which the study's test rows do not keep: give "
                f"a column {ROW!r} with their numbers from 0, or take {column!r} out if the order is the test data's"
            )
    return None


def keep_external(folder: Path, name: str, file: str, test: Store, max_test: int | None) -> None:
    """Reads a file and puts what it says into the study's folder.

    Raises:
        SourceError: as `read_external`.
        DiskError: it cannot be written.
    """
    rows = np.arange(test.num_examples) if max_test is None else subset(test.labels, max_test, 0)
    labels = read_external(file, test, rows)
    folder.mkdir(parents=True, exist_ok=True)
    about = Predictions(
        rows, test.labels[rows], labels, test.fingerprint, max_test, test.num_examples, test.label_names
    )
    entry = write_labels(folder / f"{name}.parquet", about)
    write_checked(folder / f"{name}.json", dataclasses.asdict(External(name, file, entry)))


def read_externals(folder: Path, test: str | None) -> list[tuple[External, Predictions]]:
    """All that a study's folder keeps, by name.

    Args:
        test: fingerprint of the study's test store.

    Raises:
        RunError: one is damaged, or of other test data.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        again = f"remove it, or give --external {path.stem}=FILE again"
        try:
            external = read_record(External, read_checked(path))
            if (external.name, external.predictions.name) != (path.stem, f"{path.stem}.parquet"):
                raise ValueError(f"it is of {external.name} in {external.predictions.name}")
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged ({error}); {again}") from None
        predictions = read_predictions(folder, external.predictions)
        if test is not None and predictions.test != test:
            raise RunError(f"{path}: predictions of another test set than the study's: {again}")
        found.append((external, predictions))
    return found


@dataclass(frozen=True)
class ExternalFigures:
    """
    Attributes:
        accuracy: its interval is over test rows.
        gaps: {size: the reference's accuracy minus this one's}, over all seeds of the reference. tests: of the gaps,
            adjusted over the sizes.
    """

    name: str
    source: str
    accuracy: Estimate
    gaps: dict[int, Estimate]
    tests: dict[int, GapTest]


def external_figures(
    folder: Path, trials: Path, results: Iterable[TrialResult], test: str | None, clusters: Path | None = None
) -> list[ExternalFigures]:
    """What a study's report says of predictions from elsewhere.

    Args:
        folder: `external` of the study. trials: the folder of the results. test, clusters: of the study's test data.

    Raises:
        RunError: predictions are damaged, or of other test rows than the trials'.
        StoreError: the clusters are not of this test data.
    """
    kept = read_externals(folder, test)
    reference: dict[int, list[tuple[int, Predictions]]] = {}
    for result in results if kept else ():
        if result.trial.family == REFERENCE and result.status == "done" and result.predictions is not None:
            own = reference.setdefault(result.trial.size, [])
            own.append((result.trial.seed, read_predictions(trials, result.predictions)))
    return [_figures(external, found, reference, clusters) for external, found in kept]


def _figures(
    external: External,
    found: Predictions,
    reference: dict[int, list[tuple[int, Predictions]]],
    clusters: Path | None,
) -> ExternalFigures:
    groups = Clusters.single(len(found.rows))
    if clusters is not None:
        groups = Clusters.of(read_cluster_file(clusters, found.test).keys[found.rows])
    own = found.right.astype(np.float64)
    series: dict[int, Series] = {}
    pairs = {}
    for size, of_seeds in sorted(reference.items()):
        for _, theirs in of_seeds:
            if not np.array_equal(theirs.rows, found.rows) or not np.array_equal(theirs.truth, found.truth):
                raise RunError(
                    f"{external.name}: predictions of other test rows than the trials': give --external "
                    f"{external.name}=FILE again"
                )
        right = np.stack([theirs.right for _, theirs in of_seeds]).astype(np.float64)
        series[size] = Series(right - own, size)
        pairs[size] = mcnemar(right > 0, np.broadcast_to(own > 0, right.shape), groups)
    accuracy = draw({external.name: Series(own[None], 1)}, groups, "share")
    drawn = draw(series, groups, "difference")
    gaps = {size: replace(own, exact=pairs[size].p_value) for size, own in drawn.items()}
    return ExternalFigures(
        name=external.name,
        source=external.source,
        accuracy=Estimate.of(accuracy[external.name]),
        gaps={size: Estimate.of(own) for size, own in gaps.items()},
        tests=gap_tests(list(series), gaps, pairs),
    )
