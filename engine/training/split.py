"""The validation split, carved from the training rows."""

import numpy as np

from penstock.engine.data.rows import checked_rows
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError
from penstock.engine.training.settings import Settings


def split_validation(
    labels: np.ndarray, rows: np.ndarray, *, fraction: float, maximum: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into (training, validation), each sorted, with the classes in proportion.

    Every class keeps at least one training row. The result depends on nothing but the arguments.

    Args:
        labels: int64, of the whole store. rows: int64, the rows to split.
        fraction: share of the rows that goes to validation, `maximum` rows at most; 0 gives no validation rows.

    Raises:
        ConfigError: the rows are too few to leave something on both sides.
    """
    wanted = min(round(fraction * len(rows)), maximum) if fraction > 0 else 0
    if fraction > 0:
        wanted = max(wanted, 1)
    random = np.random.default_rng([seed, 0x5B117])
    shuffled = rows[random.permutation(len(rows))]
    classes, counts = np.unique(labels[shuffled], return_counts=True)
    available = counts - 1
    if wanted > available.sum():
        raise ConfigError(
            f"{len(rows)} training rows in {len(classes)} classes leave no validation split: "
            "give more rows or set data.validation_fraction=0"
        )
    take = _proportional(counts, available, wanted)
    order = np.argsort(labels[shuffled], kind="stable")
    starts = np.cumsum(counts) - counts
    chosen = np.zeros(len(rows), dtype=bool)
    for start, number in zip(starts, take, strict=True):
        chosen[order[start : start + number]] = True
    return np.sort(shuffled[~chosen]), np.sort(shuffled[chosen])


def check_split(
    num_examples: int, rows: np.ndarray | None, validation_rows: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The rows that a caller gives, sorted; of validation rows alone follow the training rows: all others.

    Raises:
        TypeError, ValueError: as `checked_rows`, or a row is given twice.
    """
    given = {}
    for name, found in (("rows", rows), ("validation_rows", validation_rows)):
        if found is None:
            continue
        given[name] = np.sort(checked_rows(found, num_examples, name))
        if (again := given[name][1:][np.diff(given[name]) == 0]).size:
            raise ValueError(f"{name}: row {again[0]:,} is given more than once")
    rows, validation_rows = given.get("rows"), given.get("validation_rows")
    if validation_rows is None:
        return rows, None
    if rows is None:
        return np.setdiff1d(np.arange(num_examples, dtype=np.int64), validation_rows, True), validation_rows
    if (both := np.intersect1d(rows, validation_rows, True)).size:
        raise ValueError(f"rows and validation_rows share {both.size:,} rows, row {both[0]:,} among them")
    return rows, validation_rows


def split_rows(
    settings: Settings, store: Store, rows: np.ndarray | None, validation_rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """A run's (training, validation) rows.

    Args:
        settings: resolved.
        rows: those to train on; None for all. validation_rows: those of the user; None to carve them from `rows`.

    Raises:
        ConfigError: there are none, or too few for both. TypeError, ValueError: as `check_split`.
    """
    rows, validation_rows = check_split(store.num_examples, rows, validation_rows)
    rows = np.arange(store.num_examples, dtype=np.int64) if rows is None else rows
    if not len(rows):
        raise ConfigError("there are no training rows")
    if validation_rows is not None:
        return rows, validation_rows
    data = settings.data
    assert data.validation_fraction is not None
    return split_validation(
        np.zeros(store.num_examples, np.int64) if settings.pretrains else store.labels,
        rows,
        fraction=data.validation_fraction,
        maximum=data.validation_max,
        seed=settings.training.seed,
    )


def _proportional(counts: np.ndarray, available: np.ndarray, wanted: int) -> np.ndarray:
    """Integers that add up to `wanted`, in proportion to `counts` by largest remainder, none above `available`."""
    share = wanted * counts / max(counts.sum(), 1)
    take = np.minimum(np.floor(share).astype(np.int64), available)
    by_remainder = np.argsort(-(share - np.floor(share)), kind="stable")
    while take.sum() < wanted:
        for index in by_remainder:
            if take.sum() < wanted and take[index] < available[index]:
                take[index] += 1
    return take
