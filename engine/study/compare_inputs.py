"""What `penstock compare` is given: the test data, and two runs, files of predictions or trials of a study."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.clusters import ClusterKeys, carried_values, read_clusters
from penstock.engine.data.sources import PLAIN_READING, Reading, Source, open_source, open_sources
from penstock.engine.data.sources.labels import LabelNames, merged_spellings, sort_labels, spelling
from penstock.engine.data.sources.open import form_of
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, SourceError, StoreError, first_line
from penstock.engine.study.compare import Judged, Truth
from penstock.engine.study.predictions import Predictions, parse_predictions
from penstock.engine.training.run_record import (
    as_trained,
    check_fits,
    is_store,
    open_like_training,
    read_trained_record,
)

PREDICTION_FORMS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
ID, LABEL = "id", "label"
_LISTED = 10


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        text, label, reading: of test data that is a source. cluster: its column of rows that belong together.
        id: the column that says which row a prediction is of, in files and in the source; None for `id` where all have
            it, and the order of the rows otherwise.
    """

    text: str | None = None
    label: str | None = None
    cluster: str | None = None
    id: str | None = None
    reading: Reading = PLAIN_READING


@dataclass(frozen=True)
class _Run:
    """A run's folder, not opened yet."""

    name: str
    record: dict[str, Any]

    @property
    def label_names(self) -> list[str]:
        return self.record["data"]["label_names"]


@dataclass(frozen=True)
class _File:
    """A file of predictions: each row's label as it is spelled, and its id."""

    name: str
    spelled: list[str]
    ids: list[str] | None


@dataclass(frozen=True)
class _Trial:
    name: str
    predictions: Predictions


Given = _Run | _File | _Trial


def read_inputs(first: str, second: str, data: str, options: Options) -> tuple[Truth, Judged, Judged, list[str]]:
    """The test data, both classifiers' predictions of it, and lines that the user should read.

    What can be found wrong without a model is, before one is loaded.

    Raises:
        PenstockError: one of them is missing, damaged or does not fit the others.
    """
    given = [_open(name, options) for name in (first, second)]
    if is_store(data):
        return _on_store(given, data, options)
    return _on_source(given, data, options)


def _open(name: str, options: Options) -> Given:
    path = Path(name).expanduser()
    if path.is_dir():
        record = read_trained_record(path)
        if record["data"].get("multi_label"):
            raise ConfigError(f"{name}: gives lists of labels; single labels are compared")
        return _Run(name, record)
    if not path.is_file():
        raise SourceError(f"{name}: no such run or file of predictions")
    if form_of(path) == ".parquet":
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{name}: cannot be read: {error.strerror}") from None
        try:
            found = parse_predictions(path, content)
        except RunError as error:
            raise SourceError(str(error)) from None
        return _Trial(name, found) if found is not None else _read_parquet(name, content, options.id)
    if form_of(path) not in PREDICTION_FORMS:
        raise SourceError(f"{name}: predictions are csv, tsv, jsonl or parquet files, or the folder of a run")
    return _read_file(name, options.id)


def _read_file(name: str, id_column: str | None) -> _File:
    """csv, tsv, jsonl. The label is read as a text, and what it cannot be is found by its spelling."""
    try:
        source = open_source(name, text=LABEL, need_label=False)
    except SourceError as error:
        if "no column" in str(error):
            raise SourceError(f"{error}; a file of predictions has such a column") from None
        raise
    wanted = _id_column(name, source.columns, id_column)
    source.carry([LABEL, *([wanted] if wanted else [])])
    labels: list[Any] = []
    ids: list[Any] = []
    for rows in source.rows():
        count = len(rows.texts) + len(rows.bad)
        labels += carried_values(rows.carried, LABEL, count)
        ids += carried_values(rows.carried, wanted, count) if wanted else []
    return _file(name, labels, ids if wanted else None)


def _read_parquet(name: str, content: bytes, id_column: str | None) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content))
    columns = file.schema_arrow.names
    if LABEL not in columns:
        raise SourceError(
            f"{name}: no column {LABEL!r}; there are: {', '.join(columns)}; a file of predictions has such a column"
        )
    wanted = _id_column(name, columns, id_column)
    table = file.read([LABEL, *([wanted] if wanted else [])])
    return _file(name, table[LABEL].to_pylist(), table[wanted].to_pylist() if wanted else None)


def _id_column(name: str, columns: Sequence[str], given: str | None) -> str | None:
    if given is not None and given not in columns:
        raise SourceError(f"{name}: no column {given!r}; there are: {', '.join(columns)}")
    return given or (ID if ID in columns else None)


def read_prediction_file(name: str, id_columns: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """A file with a label for each row: (labels as they are spelled, which of `id_columns` it has, that one's values).

    Raises:
        SourceError: there is no such file, it is of another form, it has no labels, or a row lacks one.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise SourceError(f"{name}: no such file of predictions")
    if form_of(path) not in PREDICTION_FORMS:
        raise SourceError(f"{name}: predictions are csv, tsv, jsonl or parquet files")
    if form_of(path) == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = path.read_bytes()
        try:
            columns: Sequence[str] = pq.ParquetFile(pa.BufferReader(content)).schema_arrow.names
        except pa.ArrowException as error:
            raise SourceError(f"{name}: cannot be read: {first_line(error)}") from None
        column = next((own for own in id_columns if own in columns), None)
        found = _read_parquet(name, content, column)
    else:
        try:
            columns = open_source(name, text=LABEL, need_label=False).columns
        except SourceError as error:
            if "no column" in str(error):
                raise SourceError(f"{error}; a file of predictions has such a column") from None
            raise
        column = next((own for own in id_columns if own in columns), None)
        found = _read_file(name, column)
    return found.spelled, column, found.ids if column is not None and found.ids is not None else []


def _file(name: str, labels: list[Any], ids: list[Any] | None) -> _File:
    spelled = []
    for number, label in enumerate(labels, 1):
        try:
            spelled.append(spelling(label, LABEL))
        except ValueError as error:
            raise SourceError(f"{name}: row {number}: {error}: every row needs a prediction") from None
    return _File(name, spelled, None if ids is None else [str(value) for value in ids])


def _on_store(given: Sequence[Given], data: str, options: Options) -> tuple[Truth, Judged, Judged, list[str]]:
    if options.text or options.label or options.reading != PLAIN_READING:
        raise ConfigError(f"{data} is a store: --text, --label, --separator and --encoding are for raw data")
    if options.id is not None:
        raise ConfigError(f"{data} is a store, which keeps no column {options.id!r}: give the source for --id")
    store = Store.open(data)
    if store.multi_label:
        raise StoreError(f"{data} has lists of labels; single labels are compared")
    for each in given:
        if isinstance(each, _Run):
            check_fits(store, each.record["data"])
        if isinstance(each, _Trial) and each.predictions.test != store.fingerprint:
            raise StoreError(f"{each.name}: predictions of another test store than {data}")
    clusters = None if options.cluster is None else read_clusters(store, options.cluster).keys
    truth = Truth(
        data, store.labels, store.label_names, clusters, lambda rows: _decoded(store, rows), options.cluster or ""
    )
    judged = [_judged(each, truth, None) if not isinstance(each, _Run) else None for each in given]
    for place, each in enumerate(given):
        if isinstance(each, _Run):
            judged[place] = Judged(each.name, None, _run_on_store(each, store))
    first, second = judged
    assert first is not None
    assert second is not None
    return truth, first, second, []


def _on_source(given: Sequence[Given], data: str, options: Options) -> tuple[Truth, Judged, Judged, list[str]]:
    runs = [each for each in given if isinstance(each, _Run)]

    def opened() -> list[Source]:
        if runs:
            record = runs[0].record["data"]
            return open_like_training(data, record, text=options.text, label=options.label, reading=options.reading)
        return open_sources(data, text=options.text, label=options.label, reading=options.reading)

    spelled, ids, clusters = _read_truth(opened(), options)
    merged = merged_spellings(Counter(spelled))
    names = sort_labels(list(merged))
    known = {one: name for name, alike in merged.items() for one in alike}
    of_runs = [LabelNames(run.label_names) for run in runs]
    notes = [
        f"{run.name} does not know the class {name!r} ({sum(alike.values()):,} rows): they count as wrong"
        for run, names_of in zip(runs, of_runs, strict=True)
        for name, alike in merged.items()
        if names_of(name) is None
    ]
    # a class that no test row has may well be predicted
    own = LabelNames(names)
    for each in given:
        others = each.label_names if isinstance(each, _Run) else ()
        others = each.predictions.label_names if isinstance(each, _Trial) else others
        names += [name for name in others if own(name) is None and name not in names]
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[known[one]] for one in spelled], np.int64)
    truth = Truth(data, labels, names, clusters, lambda rows: list(_texts(opened(), rows)), options.cluster or "")
    judged = [_judged(each, truth, ids) if not isinstance(each, _Run) else None for each in given]
    for place, each in enumerate(given):
        if isinstance(each, _Run):
            of_run = _renumbered(each.name, each.label_names, truth)
            judged[place] = Judged(each.name, None, of_run[_run_on_source(each, data, options)])
    first, second = judged
    assert first is not None
    assert second is not None
    return truth, first, second, notes


def _read_truth(sources: Sequence[Source], options: Options) -> tuple[list[str], list[str] | None, np.ndarray | None]:
    """Labels as they are spelled, ids and clusters of all rows."""
    has_ids = all(ID in source.columns for source in sources)
    wanted = options.id or (ID if has_ids else None)
    keys = ClusterKeys(options.cluster or "")
    spelled: list[str] = []
    ids: list[str] = []
    clusters: list[np.ndarray] = []
    for source in sources:
        if source.multi_label:
            raise SourceError(f"{source.name}: column {source.label!r} has lists of labels; single ones are compared")
        source.carry([name for name in (wanted, options.cluster) if name is not None])
        for rows in source.rows():
            if rows.bad:
                raise SourceError(f"{source.position(rows.bad[0].position)}: {rows.bad[0].reason}")
            spelled += rows.labels
            if wanted is not None:
                ids += map(str, carried_values(rows.carried, wanted, len(rows.texts)))
            if options.cluster is not None:
                clusters.append(keys.of_rows(source, rows))
    return spelled, ids if wanted else None, np.concatenate(clusters) if options.cluster is not None else None


def _judged(given: _File | _Trial, truth: Truth, ids: Sequence[str] | None) -> Judged:
    if isinstance(given, _Trial):
        return _of_trial(given, truth)
    if len(given.spelled) != len(truth.labels):
        raise SourceError(
            f"{given.name}: {len(given.spelled):,} rows, and {truth.name} has {len(truth.labels):,}: each needs one "
            "prediction"
        )
    known, numbers = LabelNames(truth.label_names), {name: number for number, name in enumerate(truth.label_names)}
    labels = np.empty(len(given.spelled), np.int64)
    for place, spelled in enumerate(given.spelled):
        name = known(spelled)
        if name is None:
            listed = ", ".join(truth.label_names[:_LISTED]) + (", …" if len(truth.label_names) > _LISTED else "")
            raise SourceError(f"{given.name}: row {place + 1}: {truth.name} has no class {spelled!r} ({listed})")
        labels[place] = numbers[name]
    if ids is None or given.ids is None:
        return Judged(given.name, None, labels)
    return Judged(given.name, None, labels[_places(given, given.ids, truth, ids)])


def _places(given: _File, theirs: Sequence[str], truth: Truth, ids: Sequence[str]) -> np.ndarray:
    """int64: for each test row the place of its prediction in the file."""
    places: dict[str, int] = {}
    for what, values in ((truth.name, ids), (given.name, theirs)):
        twice = next((value for value, count in Counter(values).items() if count > 1), None)
        if twice is not None:
            raise SourceError(f"{what}: two rows have the id {twice!r}: rows cannot be told apart")
    places = {value: place for place, value in enumerate(theirs)}
    missing = next((value for value in ids if value not in places), None)
    if missing is not None:
        raise SourceError(f"{given.name}: no row has the id {missing!r}, which {truth.name} has")
    return np.array([places[value] for value in ids], np.int64)


def _of_trial(given: _Trial, truth: Truth) -> Judged:
    found = given.predictions
    if found.test_rows != len(truth.labels):
        raise SourceError(
            f"{given.name}: predictions of a test set of {found.test_rows:,} rows, and {truth.name} has "
            f"{len(truth.labels):,}"
        )
    numbers = _renumbered(given.name, found.label_names, truth)
    if not np.array_equal(numbers[found.truth], truth.labels[found.rows]):
        raise SourceError(f"{given.name}: predictions of other test rows than those of {truth.name}: labels differ")
    rows = None if len(found.rows) == found.test_rows else found.rows
    return Judged(given.name, rows, numbers[found.labels])


def _renumbered(name: str, label_names: Sequence[str], truth: Truth) -> np.ndarray:
    """int64: for each of these classes its number in the test data's."""
    known, numbers = LabelNames(truth.label_names), {own: number for number, own in enumerate(truth.label_names)}
    found = [known(own) for own in label_names]
    for own, theirs in zip(label_names, found, strict=True):
        if theirs is None:
            raise SourceError(f"{name}: its class {own!r} is none of {truth.name}")
    return np.array([numbers[own] for own in found if own is not None], np.int64)


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
