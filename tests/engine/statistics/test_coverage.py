"""Studies with a known truth: intervals hold it as often as they say, and equal families are told apart as rarely."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm

from penstock.engine.statistics.clusters import Clusters
from penstock.engine.statistics.resample import Series, draw

SIZES = (500, 2000, 8000)
FAMILIES = 4


@dataclass(frozen=True)
class World:
    """A row is right where level + seed + row + cluster + noise > 0, all normal; seeds differ less as sizes grow.

    Attributes:
        seed, cluster: standard deviations; the row's is 1.5, what is left over 1.
    """

    seeds: int
    clusters: int
    rows_in_cluster: int
    seed: float
    cluster: float = 0.0

    def study(self, random: np.random.Generator) -> tuple[dict[tuple[int, int], np.ndarray], Clusters]:
        rows = self.clusters * self.rows_in_cluster
        cluster = np.repeat(np.arange(self.clusters), self.rows_in_cluster)
        shared = random.normal(0, 1.5, rows) + random.normal(0, self.cluster, self.clusters)[cluster]
        right = {}
        for family in range(FAMILIES):
            own = random.normal(0, 0.7, rows) + random.normal(0, 0.7 * self.cluster, self.clusters)[cluster]
            for place, size in enumerate(SIZES):
                luck = random.normal(0, self.seed / (1 + place), (self.seeds, 1))
                noise = random.normal(0, 1, (self.seeds, rows))
                right[family, size] = (0.3 * place + shared + own + luck + noise > 0).astype(float)
        return right, Clusters.of(cluster) if self.rows_in_cluster > 1 else Clusters.single(rows)

    def truth(self, place: int) -> float:
        spread = np.sqrt(1.5**2 + 1 + 0.7**2 + 1.49 * self.cluster**2 + (self.seed / (1 + place)) ** 2)
        return float(norm.cdf(0.3 * place / spread))


WORLDS = {
    "few_rows": World(3, 300, 1, 0.05),
    "seeds_differ": World(3, 300, 1, 0.3),
    "two_seeds": World(2, 300, 1, 0.2),
    "one_seed": World(1, 300, 1, 0.0),
    "clusters": World(3, 60, 5, 0.1, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_intervals_hold_the_truth(world):
    random = np.random.default_rng(0)
    seeds = tuple(range(world.seeds))
    held, gaps_held, alarms = [], [], []
    for number in range(1000):
        right, clusters = world.study(random)
        accuracies = {key: Series(scores, key[1], seeds) for key, scores in right.items()}
        for (_, size), found in draw(accuracies, clusters, "share", seed=number, draws=800).items():
            low, high = found.interval
            held.append(low <= world.truth(SIZES.index(size)) <= high)
        gaps = {(f, n): Series(right[0, n] - right[f, n], n, seeds) for f, n in right if f}
        for found in draw(gaps, clusters, "difference", seed=number, draws=800).values():
            low, high = found.interval
            gaps_held.append(low <= 0 <= high)
            alarms.append(found.p_value() < 0.05)
    figures = np.mean(held), np.mean(gaps_held), np.mean(alarms)
    print(figures)
    assert 0.935 < figures[0] < 0.97
    assert 0.935 < figures[1] < 0.965
    assert figures[2] < 0.06
