"""What `penstock compare` is given: the test data, and two runs, files of predictions or trials of a study."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.clusters import ClusterKeys, carried_values, read_clusters
from penstock.engine.data.sources import PLAIN_READING, Reading, Source, open_sources
from penstock.engine.data.sources.labels import KINDS, LabelNames, kind_of, sort_labels
from penstock.engine.data.sources.open import form_of
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, SourceError, StoreError
from penstock.engine.study.compare import Judged, Truth
from penstock.engine.study.prediction_files import PredictionFile, read_content, read_prediction_file
from penstock.engine.study.predictions import Predictions, parse_predictions
from penstock.engine.training.run_record import (
    as_trained,
    check_fits,
    is_store,
    open_like_training,
    read_trained_record,
)

ID = "id"
ROW = "row"  # the test row's number, from 0, as `--flips` and `study --external` have it
_LISTED = 10


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        text, label, reading: of test data that is a source. cluster: its column of rows that belong together.
        id: the column that says which row a prediction is of, in a file and in the source; None for `id` where both
            have it, else the file's `row`, else the order of the rows.
    """

    text: str | None = None
    label: str | None = None
    cluster: str | None = None
    id: str | None = None
    reading: Reading = PLAIN_READING

    def id_column(self, columns: Collection[str], there: Collection[str]) -> str | None:
        """The one of a file with these columns, for test data with those."""
        both = ID in columns and ID in there
        return self.id or (ID if both else ROW if ROW in columns else None)


@dataclass(frozen=True)
class _Run:
    """A run's folder, not opened yet."""

    name: str
    record: dict[str, Any]

    @property
    def label_names(self) -> Sequence[str]:
        return self.record["data"]["label_names"]


@dataclass(frozen=True)
class _Trial:
    name: str
    predictions: Predictions

    @property
    def label_names(self) -> Sequence[str]:
        return self.predictions.label_names


@dataclass(frozen=True)
class _Unread:
    """A file of predictions. Which of its columns says what they are of is a question of the test data too.

    Attributes:
        content: of a parquet file, which was looked into.
    """

    name: str
    content: bytes | None


@dataclass(frozen=True)
class _File:
    """
    Attributes:
        by: the column that says which rows the predictions are of; None for their order.
    """

    read: PredictionFile
    by: str | None

    @property
    def name(self) -> str:
        return self.read.name


Given = _Run | _File | _Trial


class _Classes:
    """The classes of several label columns, each read as that column was: in runs and trials, then in the test data.

    Attributes:
        numbers: {class: its number}, of all of them. A class that no test row has may well be predicted.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._columns: list[tuple[LabelNames, dict[str, int]]] = []

    @property
    def names(self) -> list[str]:
        return list(self.numbers)

    def add(self, names: Sequence[str]) -> None:
        """The classes of a store, a run or a trial; those that are known already are the same."""
        self._columns.append((LabelNames(names), self._settle(names)))

    def add_spelled(self, spelled: Collection[str]) -> None:
        """The classes of a column as they are spelled in it. What is a number is a fact of all of it, and of the
        classes that are known: beside a word, or a class that is one, 1.10 is another class than 1.1."""
        rule = KINDS[kind_of([*self.numbers, *spelled])]
        self._settle(sort_labels(list({str(rule(one)) for one in spelled})))
        self.add(self.names)

    def _settle(self, names: Sequence[str]) -> dict[str, int]:
        """{class: its number}. Two that a column tells apart stay apart, though one that came before it, of numbers
        alone, would read both as the same."""
        alike = Counter(map(self, names))
        return {
            name: known
            if (known := self(name)) is not None and alike[known] == 1
            else self.numbers.setdefault(name, len(self.numbers))
            for name in names
        }

    def numbers_of(self, names: Sequence[str]) -> np.ndarray:
        """int64: for each of a column's classes its number here.

        Args:
            names: of a column that was added.
        """
        return np.array([self(name) for name in names], np.int64)

    def __call__(self, spelled: str) -> int | None:
        """A class's number by its spelling; None if there is no such."""
        if spelled in self.numbers:
            return self.numbers[spelled]
        for known, numbers in self._columns:
            if (name := known(spelled)) is not None:
                return numbers[name]
        return None


def read_inputs(first: str, second: str, data: str, options: Options) -> tuple[Truth, Judged, Judged, list[str]]:
    """The test data, both classifiers' predictions of it, and lines that the user should read.

    What can be found wrong without a model is, before one is loaded.

    Raises:
        PenstockError: one of them is missing, damaged or does not fit the others.
    """
    given = [_open(name) for name in (first, second)]
    if is_store(data):
        return _on_store(given, data, options)
    return _on_source(given, data, options)


def _open(name: str) -> _Run | _Unread | _Trial:
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        record = read_trained_record(path)
        if record["data"].get("multi_label"):
            raise ConfigError(f"{name}: gives lists of labels; single labels are compared")
        return _Run(name, record)
    if not path.is_file():
        raise SourceError(f"{name}: no such run or file of predictions")
    content = None
    if form_of(path) == ".parquet":
        content = read_content(name)
        try:
            found = parse_predictions(path, content)
        except RunError as error:
            raise SourceError(str(error)) from None
        if found is not None:
            return _Trial(name, found)
    return _Unread(name, content)


def _read(
    given: Sequence[_Run | _Unread | _Trial], data: str, there: Collection[str] | None, options: Options
) -> tuple[list[Given], list[str]]:
    """The files read, and a line for each that has a column which could say what its rows are and is not used.

    Args:
        there: the columns of the test data; None of a store, which keeps none.
    """
    found: list[Given] = []
    notes = []
    for each in given:
        if not isinstance(each, _Unread):
            found.append(each)
            continue
        read = read_prediction_file(each.name, lambda _, columns: options.id_column(columns, there or ()), each.content)
        by = options.id_column(read.columns, there or ())
        found.append(_File(read, by))
        if by is None and ID in read.columns:
            lacks = "has no such column" if there is not None else "is a store, which keeps no such column"
            notes.append(
                f"{each.name}: its column {ID!r} is not used, as {data} {lacks}: its rows are taken for the test rows "
                "in their order"
            )
    return found, notes


def _on_store(
    opened: Sequence[_Run | _Unread | _Trial], data: str, options: Options
) -> tuple[Truth, Judged, Judged, list[str]]:
    if options.text or options.label or options.reading != PLAIN_READING:
        raise ConfigError(f"{data} is a store: --text, --label, --separator and --encoding are for raw data")
    if options.id is not None:
        raise ConfigError(f"{data} is a store, which keeps no column {options.id!r}: give the source for --id")
    store = Store.open(data)
    if store.multi_label:
        raise StoreError(f"{data} has lists of labels; single labels are compared")
    given, notes = _read(opened, data, None, options)
    for each in given:
        if isinstance(each, _Run):
            check_fits(store, each.record["data"])
        if isinstance(each, _Trial) and each.predictions.test != store.fingerprint:
            raise StoreError(f"{each.name}: predictions of another test store than {data}")
    clusters = None if options.cluster is None else read_clusters(store, options.cluster).keys
    classes = _Classes()
    classes.add(store.label_names)
    _add(given, classes)
    labels = classes.numbers_of(store.label_names)[store.labels]
    truth = Truth(data, labels, classes.names, clusters, lambda rows: _decoded(store, rows), options.cluster or "")
    return truth, *_judged(given, truth, classes, {}, lambda run: _run_on_store(run, store)), notes


def _on_source(
    opened: Sequence[_Run | _Unread | _Trial], data: str, options: Options
) -> tuple[Truth, Judged, Judged, list[str]]:
    runs = [each for each in opened if isinstance(each, _Run)]

    def sources() -> list[Source]:
        if runs:
            record = runs[0].record["data"]
            return open_like_training(data, record, text=options.text, label=options.label, reading=options.reading)
        return open_sources(data, text=options.text, label=options.label, reading=options.reading)

    rows = sources()
    given, notes = _read(opened, data, set.intersection(*(set(source.columns) for source in rows)), options)
    keys = {options.id, *(each.by for each in given if isinstance(each, _File))}
    spelled, ids, clusters = _read_truth(rows, keys, options)
    classes = _Classes()
    _add(given, classes)
    classes.add_spelled(set(spelled))
    numbers = {one: classes(one) for one in set(spelled)}
    labels = np.array([numbers[one] for one in spelled], np.int64)
    rows_of = Counter(labels.tolist())
    notes += [
        f"{run.name} does not know the class {classes.names[number]!r} ({rows_of[number]:,} rows): they count as wrong"
        for run in runs
        for number in sorted(rows_of.keys() - set(classes.numbers_of(run.label_names).tolist()))
    ]
    truth = Truth(
        data, labels, classes.names, clusters, lambda rows: list(_texts(sources(), rows)), options.cluster or ""
    )
    judged = _judged(given, truth, classes, ids, lambda run: _run_on_source(run, data, options))
    return truth, *judged, notes


def _add(given: Sequence[Given], classes: _Classes) -> None:
    for each in given:
        if not isinstance(each, _File):
            classes.add(each.label_names)


def _read_truth(
    sources: Sequence[Source], by: Collection[str | None], options: Options
) -> tuple[list[str], dict[str, list[str]], np.ndarray | None]:
    """Labels as they are spelled, {column: what it has}, and clusters, of all rows.

    Args:
        by: the columns that say which rows files' predictions are of; `row`, where the data has none, is the number.
    """
    has_rows = all(ROW in source.columns for source in sources)
    ids: dict[str, list[str]] = {name: [] for name in by if name is not None and (name != ROW or has_rows)}
    keys = ClusterKeys(options.cluster or "")
    spelled: list[str] = []
    clusters: list[np.ndarray] = []
    for source in sources:
        if source.multi_label:
            raise SourceError(f"{source.name}: column {source.label!r} has lists of labels; single ones are compared")
        source.carry([*ids, *([] if options.cluster is None else [options.cluster])])
        for rows in source.rows():
            if rows.bad:
                raise SourceError(f"{source.position(rows.bad[0].position)}: {rows.bad[0].reason}")
            spelled += rows.labels
            for name, own in ids.items():
                own += map(str, carried_values(rows.carried, name, len(rows.texts)))
            if options.cluster is not None:
                clusters.append(keys.of_rows(source, rows))
    return spelled, ids, np.concatenate(clusters) if options.cluster is not None else None


def _judged(
    given: Sequence[Given],
    truth: Truth,
    classes: _Classes,
    ids: Mapping[str, Sequence[str]],
    predicted: Callable[[_Run], np.ndarray],
) -> tuple[Judged, Judged]:
    """
    Args:
        ids: {column: what it has} of the test rows. predicted: gives a run's classes of them.
    """
    found = {}
    for each in sorted(given, key=lambda one: isinstance(one, _Run)):  # what is wrong shows before a model is loaded
        if isinstance(each, _Run):
            found[each.name] = Judged(each.name, None, classes.numbers_of(each.label_names)[predicted(each)])
        else:
            own = _of_trial(each, truth, classes) if isinstance(each, _Trial) else _of_file(each, truth, classes, ids)
            found[each.name] = own
    first, second = (found[each.name] for each in given)
    return first, second


def _of_file(file: _File, truth: Truth, classes: _Classes, ids: Mapping[str, Sequence[str]]) -> Judged:
    given = file.read
    if len(given.spelled) != len(truth.labels):
        raise SourceError(
            f"{given.name}: {len(given.spelled):,} rows, and {truth.name} has {len(truth.labels):,}: each needs one "
            "prediction"
        )
    numbers = {spelled: classes(spelled) for spelled in set(given.spelled)}
    for place, spelled in enumerate(given.spelled):
        if numbers[spelled] is None:
            listed = ", ".join(classes.names[:_LISTED]) + (", …" if len(classes.names) > _LISTED else "")
            raise SourceError(
                f"{given.name}: row {place + 1}: {truth.name} has no class {spelled!r} ({listed}); if no test row has "
                "it, give the data as a store that is prepared --like the training data"
            )
    labels = np.array([numbers[spelled] for spelled in given.spelled], np.int64)
    if file.by is None or given.ids is None:
        return Judged(given.name, None, labels)
    numbers_of_rows = list(map(str, range(len(truth.labels))))
    of_rows, what = (ids[file.by], "id") if file.by in ids else (numbers_of_rows, "row number")
    return Judged(given.name, None, labels[_places(given, given.ids, truth, of_rows, what)])


def _places(given: PredictionFile, theirs: Sequence[str], truth: Truth, ids: Sequence[str], what: str) -> np.ndarray:
    """int64: for each test row the place of its prediction in the file. `what` the ids are, messages say."""
    for name, values in ((truth.name, ids), (given.name, theirs)):
        twice = next((value for value, count in Counter(values).items() if count > 1), None)
        if twice is not None:
            raise SourceError(f"{name}: two rows have the {what} {twice!r}: rows cannot be told apart")
    places = {value: place for place, value in enumerate(theirs)}
    missing = next((value for value in ids if value not in places), None)
    if missing is not None:
        raise SourceError(f"{given.name}: no row has the {what} {missing!r}, which {truth.name} has")
    return np.array([places[value] for value in ids], np.int64)


def _of_trial(given: _Trial, truth: Truth, classes: _Classes) -> Judged:
    found = given.predictions
    if found.test_rows != len(truth.labels):
        raise SourceError(
            f"{given.name}: predictions of a test set of {found.test_rows:,} rows, and {truth.name} has "
            f"{len(truth.labels):,}"
        )
    numbers = classes.numbers_of(found.label_names)
    if not np.array_equal(numbers[found.truth], truth.labels[found.rows]):
        raise SourceError(f"{given.name}: predictions of other test rows than those of {truth.name}: labels differ")
    rows = None if len(found.rows) == found.test_rows else found.rows
    return Judged(given.name, rows, numbers[found.labels])


def _run_on_store(given: _Run, store: Store) -> np.ndarray:
    """int64 (rows,): classes."""
    from penstock.engine.training.distributed import World
    from penstock.engine.training.evaluate import run, store_batches
    from penstock.engine.training.trained import TrainedRun

    trained = TrainedRun.open(given.name)
    labels = np.empty(store.num_examples, np.int64)
    alone = World.alone(trained.model)
    batches = store_batches(as_trained(store, given.record["data"]), None, trained.tokens_per_batch, alone)
    for batch, logits in run(trained.model, batches, trained.precision):
        assert batch.tokens.ids is not None
        labels[batch.tokens.ids.cpu().numpy()] = logits.argmax(-1).cpu().numpy()
    return labels


def _run_on_source(given: _Run, data: str, options: Options) -> np.ndarray:
    """int64 (rows,): classes of the run."""
    from penstock.engine.training.trained import TrainedRun

    reading = replace(options.reading, label_separator=None)
    sources = open_like_training(data, given.record["data"], text=options.text, need_label=False, reading=reading)
    for source in sources:
        source.carry(())
    trained = TrainedRun.open(given.name)
    parts = [part.probabilities.argmax(1) for part in trained.predict_parts(sources)]
    return np.concatenate(parts).astype(np.int64)


def _texts(sources: Sequence[Source], wanted: np.ndarray) -> Iterator[str]:
    begin = place = 0
    for source in sources:
        for rows in source.rows():
            end = begin + len(rows.texts)
            while place < len(wanted) and wanted[place] < end:
                text = rows.texts[int(wanted[place]) - begin]
                yield text if isinstance(text, str) else "\n".join(text)
                place += 1
            begin = end


def _decoded(store: Store, rows: np.ndarray) -> list[str]:
    tokenizer = store.tokenizer()
    return [str(tokenizer.decode(store.tokens(int(row)).tolist(), skip_special_tokens=True)) for row in rows]
