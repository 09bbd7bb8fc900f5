"""What the predictions of a study's trials say together: draws over seeds and test rows, paired across families."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.data.clusters import check_several, read_cluster_file
from penstock.engine.errors import RunError, StoreError
from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.mcnemar import Discordant, holm, mcnemar
from penstock.engine.statistics.resample import LEAST_P, Drawn, Series, draw_groups
from penstock.engine.study.families import REFERENCE, learns
from penstock.engine.study.predictions import Predictions, read_predictions
from penstock.engine.study.trials import Trial, TrialResult

Key = tuple[str, int]  # family, size


@dataclass(frozen=True)
class GapTest:
    """Whether a family and the reference differ at one size.

    Attributes:
        pairs: McNemar's exact test of the models as they were trained, with all seeds' answers to a row, or a group
            of rows, kept together; `first` is the reference.
        p_value: of the families, from the draws behind the gap's interval, so `LEAST_P` at least, and that of `pairs`
            where this does not tell the models apart; adjusted: by Holm over the family's sizes.
        mcnemar_adjusted: the p-value of `pairs`, adjusted likewise.
    """

    pairs: Discordant
    p_value: float
    adjusted: float
    mcnemar_adjusted: float

    @property
    def at_least(self) -> bool:
        """Whether the first two are the least that draws can tell."""
        return self.p_value <= LEAST_P


@dataclass(frozen=True)
class Paired:
    """
    Attributes:
        accuracies, macro_f1: by family and size, of the points whose finished trials have all kept their predictions.
        gaps: the reference's accuracy minus the family's, over the seeds that both have.
        tests: of those gaps.
        rows: test rows; clusters: in how many groups they were resampled, which differ from the rows only where
            `column` says of which column.
        without: finished trials that have kept none, as those of an earlier penstock.
    """

    accuracies: Mapping[Key, Drawn]
    macro_f1: Mapping[Key, Drawn]
    gaps: Mapping[Key, Drawn]
    tests: Mapping[Key, GapTest]
    rows: int
    clusters: int
    column: str | None
    without: int

    @classmethod
    def of(cls, trials: Path, results: Iterable[TrialResult], clusters: Path | None = None) -> "Paired":
        """
        Args:
            trials: the folder of the results. clusters: the file of the test rows' clusters, see `data.clusters`.

        Raises:
            RunError: predictions are missing, damaged or of other test rows than the others'.
            StoreError: the clusters are, or are not of this test data. SourceError: all rows are in one.
        """
        done = [result for result in results if result.status == "done"]
        kept = _Kept(trials)
        for result in done:
            kept.add(result)
        if kept.first is None:
            return cls({}, {}, {}, {}, 0, 0, None, len(done))
        seeds: dict[Key, list[int]] = {}
        for result in done:
            seeds.setdefault((result.trial.family, result.trial.size), []).append(result.trial.seed)
        shared = {
            key: sorted(set(own) & set(seeds[REFERENCE, key[1]]))
            for key, own in seeds.items()
            if key[0] != REFERENCE and (REFERENCE, key[1]) in seeds
        }
        column, groups = None, Clusters.single(len(kept.first.rows))
        if clusters is not None:
            of_rows = read_cluster_file(clusters, kept.first.test)
            if len(of_rows.keys) != kept.first.test_rows:
                raise StoreError(
                    f"{clusters}: damaged: {len(of_rows.keys):,} rows, the test data has {kept.first.test_rows:,}"
                )
            column, keys = of_rows.column, of_rows.keys[kept.first.rows]
            check_several(keys, column, str(clusters))
            groups = Clusters.of(keys)
        whole = {key: own for key, own in seeds.items() if kept.has(key, own)}
        both = {key: own for key, own in shared.items() if own and kept.has(key, own)}
        both = {key: own for key, own in both.items() if kept.has((REFERENCE, key[1]), own)}
        gaps = {
            key: Series(kept.right((REFERENCE, key[1]), own) - kept.right(key, own), key[1], family=key[0])
            for key, own in both.items()
        }
        pairs = {
            key: mcnemar(kept.right((REFERENCE, key[1]), own) > 0, kept.right(key, own) > 0, groups)
            for key, own in both.items()
        }
        accuracies, macro_f1, drawn = draw_groups(
            [
                (kept.series(kept.right, whole), "share"),
                (kept.series(kept.f1_scores, whole), "share"),
                (gaps, "difference"),
            ],
            groups,
        )
        drawn = {key: replace(own, exact=pairs[key].p_value) for key, own in drawn.items()}
        of_families = {family: [key for key in both if key[0] == family] for family, _ in both}
        return cls(
            accuracies=accuracies,
            macro_f1=macro_f1,
            gaps=drawn,
            tests={key: test for keys in of_families.values() for key, test in gap_tests(keys, drawn, pairs).items()},
            rows=groups.rows,
            clusters=groups.count,
            column=column,
            without=len(done) - kept.count,
        )


class _Kept:
    """The predictions of the trials, which have to be of the same test rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._labels: dict[Trial, np.ndarray] = {}
        self._name = ""
        self.first: Predictions | None = None

    @property
    def count(self) -> int:
        return len(self._labels)

    def add(self, result: TrialResult) -> None:
        if result.predictions is None:
            return
        found = read_predictions(self._folder, result.predictions)
        if self.first is None:
            self.first, self._name = found, result.predictions.name
        same = np.array_equal(found.rows, self.first.rows) and np.array_equal(found.truth, self.first.truth)
        if not same or found.test != self.first.test:
            raise RunError(
                f"{self._folder / result.predictions.name}: its predictions are of other test rows than those of "
                f"{self._name}; remove {result.trial.name}.json to run the trial again"
            )
        self._labels[result.trial] = found.labels

    def has(self, key: Key, seeds: Sequence[int]) -> bool:
        return all(Trial(key[1], seed, key[0]) in self._labels for seed in seeds)

    def right(self, key: Key, seeds: Sequence[int]) -> np.ndarray:
        """float64 (seeds, rows): 1 where the prediction is right."""
        assert self.first is not None
        labels = [self._labels[Trial(key[1], seed, key[0])] for seed in seeds]
        return np.stack([own == self.first.truth for own in labels]).astype(np.float64)

    def f1_scores(self, key: Key, seeds: Sequence[int]) -> np.ndarray:
        """float64 (seeds, rows), see `macro_f1_scores`."""
        assert self.first is not None
        classes = len(self.first.label_names)
        labels = [self._labels[Trial(key[1], seed, key[0])] for seed in seeds]
        return np.stack([macro_f1_scores(self.first.truth, own, classes) for own in labels])

    def series(self, scores, seeds: Mapping[Key, Sequence[int]]) -> dict[Key, Series]:
        return {key: Series(scores(key, own), key[1], not learns(key[0]), key[0]) for key, own in seeds.items()}


def macro_f1_scores(truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """float64 (rows,): scores whose mean is macro-F1, and whose resampled means move as it does, to first order.

    A class's F1 is 2 TP / (predicted + examples), a ratio of sums over rows: a row's score is macro-F1 and its
    influence on it (the infinitesimal jackknife), so no draw needs a confusion matrix of its own.

    Args:
        truth, labels: integers, (rows,): the class and the predicted one.
    """
    right = truth == labels
    sums = np.bincount(truth, minlength=classes) + np.bincount(labels, minlength=classes)
    weight = 1 / np.maximum(sums, 1)
    f1 = 2 * np.bincount(truth[right], minlength=classes) * weight
    present = np.count_nonzero(sums)
    own = f1 * weight
    influence = 2 * right * weight[truth] - own[truth] - own[labels]
    return f1.sum() / present + influence * (len(truth) / present)


def gap_tests(keys: Sequence[Any], gaps: Mapping[Any, Drawn], pairs: Mapping[Any, Discordant]) -> dict[Any, GapTest]:
    """The tests of some gaps, which are adjusted together."""
    p_values, exact = [gaps[key].p_value() for key in keys], [pairs[key].p_value for key in keys]
    return {
        key: GapTest(pairs[key], p_value, adjusted, theirs)
        for key, p_value, adjusted, theirs in zip(keys, p_values, holm(p_values), holm(exact), strict=True)
    }
