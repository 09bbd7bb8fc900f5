"""A study's clusters: which test rows belong together, and whether training rows belong with them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penstock.engine.data.clusters import (
    ClusterOverlap,
    KeptClusters,
    check_several,
    cluster_file,
    keep_clusters,
    read_cluster_file,
    read_clusters,
    write_cluster_file,
)
from penstock.engine.data.store import Store
from penstock.engine.errors import SourceError, StoreError
from penstock.engine.study.check import is_store, open_as_prepared
from penstock.engine.study.settings import StudySettings
from penstock.engine.study.subsets import subset


def settle_clusters(settings: StudySettings, folder: Path, train: Store, test: Store) -> ClusterOverlap | str:
    """Keeps the test rows' clusters where the report looks for them, in the study's folder.

    Returns:
        how many of them the training data has rows of too, or why that is not known.

    Raises:
        SourceError: the test data has no such column, a row has no value in it, or all test rows have the same.
        StoreError: a store keeps no such column, or the clusters are damaged.
        DiskError: the disk is full or cannot be written.
    """
    column = settings.cluster
    assert column is not None
    data = folder / "data"
    found = _kept(settings.test, data / "test", test, train, settings)
    rows = np.arange(test.num_examples)
    if settings.max_test is not None:
        rows = subset(test.labels, settings.max_test, 0)
    check_several(found.keys[rows], column, "the test data")
    try:
        of_train = _kept(settings.train, data / "train", train, train, settings)
    except (SourceError, StoreError) as error:
        return str(error)
    both = ClusterOverlap.of(of_train, KeptClusters(column, found.keys[rows], found.comparable))
    return both or "an earlier penstock kept the groups of one, which cannot be compared: prepare it again"


def _kept(sources: Sequence[str], beside: Path, store: Store, like: Store, settings: StudySettings) -> KeptClusters:
    """The clusters of the store, which are then kept beside `beside`.

    Args:
        like: whose columns the store was prepared from, where none are named.
    """
    path, column = cluster_file(beside), settings.cluster
    assert column is not None
    if path.exists():
        with contextlib.suppress(StoreError):  # of another column, store or penstock: they are made again
            there = read_cluster_file(path, store.fingerprint)
            if there.column == column and there.comparable:
                return there
    if is_store(sources):
        keep_clusters(path, store, read_clusters(store, column))
        return read_cluster_file(path, store.fingerprint)
    write_cluster_file(path, store, open_as_prepared(sources, settings, like), column)
    return read_cluster_file(path, store.fingerprint)
