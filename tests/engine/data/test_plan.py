"""The batches of an epoch: complete, within the budget, the same everywhere, and unbiased."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subtested import as_subtests

from penstock.engine.data.plan import PLAN_VERSION, PlanParameters, plan_epoch, plan_fingerprint
from penstock.engine.errors import ConfigError

MASK = (1 << 64) - 1


class Random:
    """xoshiro256** seeded by SplitMix64, written again from its definition."""

    def __init__(self, seed: int, stream: int) -> None:
        x = self._mix(seed) ^ (stream * 0x9E3779B97F4A7C15 & MASK)
        self.state = []
        for _ in range(4):
            x = x + 0x9E3779B97F4A7C15 & MASK
            self.state.append(self._mix(x))

    @staticmethod
    def _mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return z ^ z >> 31

    def next(self) -> int:
        def rotate(x: int, k: int) -> int:
            return (x << k | x >> 64 - k) & MASK

        s = self.state
        result = rotate(s[1] * 5 & MASK, 7) * 9 & MASK
        t = s[1] << 17 & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
        return result

    def below(self, bound: int) -> int:
        product = self.next() * bound
        if product & MASK < bound:
            threshold = (1 << 64) % bound
            while product & MASK < threshold:
                product = self.next() * bound
        return product >> 64

    def shuffle(self, items: list) -> None:
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


def reference(lengths, rows, seed, epoch, parameters, shuffle) -> list[list[int]]:
    """The definition of the plan, in loops; without the division of the last step."""
    order = list(range(len(lengths))) if rows is None else list(rows)
    random = Random(seed, epoch)
    if shuffle:
        random.shuffle(order)
    cost = [max(int(length), 1) for length in lengths]
    budget = parameters.tokens_per_batch

    def next_fit(part: list[int], room: int) -> list[list[int]]:
        parts: list[list[int]] = []
        used = 0
        for row in part:
            if parts and used + cost[row] <= room:
                parts[-1].append(row)
                used += cost[row]
            else:
                parts.append([row])
                used = cost[row]
        return parts

    def best_fit() -> list[list[int]]:
        parts: list[list[int]] = []
        open_: list[tuple[float, int]] = [(-math.inf, -1)] * 16  # rooms, ascending, and parts
        for row in order:
            fitting = [place for place, (room, _) in enumerate(open_) if room >= cost[row]]
            if fitting:
                room, part = open_.pop(fitting[0])
            else:
                open_.pop(0)
                room, part = budget, len(parts)
                parts.append([])
            parts[part].append(row)
            place = sum(other <= room - cost[row] for other, _ in open_)
            open_.insert(place, (room - cost[row], part))
        return parts

    if parameters.mode == "pack":
        batches = best_fit() if shuffle else next_fit(order, budget)
    else:
        windows = next_fit(order, budget * parameters.window_batches)
        batches = [b for window in windows for b in next_fit(sorted(window, key=lambda r: lengths[r]), budget)]
        if shuffle:
            random.shuffle(batches)
    if shuffle and epoch == 0:
        sizes = [(sum(int(lengths[r]) for r in b), sum(int(lengths[r]) ** 2 for r in b)) for b in batches]
        worst = sizes.index(max(sizes))
        batches[0], batches[worst] = batches[worst], batches[0]
    return batches


def batches_of(plan) -> list[list[int]]:
    return [plan.rows(b).tolist() for b in range(plan.num_batches)]


lengths_strategy = st.lists(
    st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 63, 64, 65, 2047, 2048, 65535, 65536])),
    min_size=1,
    max_size=200,
)


@settings(max_examples=300, deadline=None)
@given(
    lengths=lengths_strategy,
    seed=st.integers(0, MASK),
    epoch=st.integers(0, 3),
    budget=st.sampled_from([1, 7, 64, 100, 65536]),
    width=st.integers(1, 5),
    mode=st.sampled_from(["pack", "bucket"]),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_properties(lengths, seed, epoch, budget, width, mode, shuffle, data):
    rows = None
    if data.draw(st.booleans()):
        rows = np.array(data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(1, len(lengths)))])
    count = len(lengths) if rows is None else len(rows)
    lengths = np.array(lengths, np.int32)
    parameters = PlanParameters(budget, width, mode, window_batches=3)
    if shuffle and count < width:
        with pytest.raises(ConfigError, match="too few"):
            plan_epoch(lengths, "store", seed, epoch, parameters, rows, shuffle)
        return
    plan = plan_epoch(lengths, "store", seed, epoch, parameters, rows, shuffle)

    # every example exactly once
    assert sorted(plan.order.tolist()) == sorted(range(count) if rows is None else rows.tolist())
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == count
    # whole steps; a batch is empty only if there are fewer examples than batches
    assert plan.num_batches % width == 0
    sizes = np.diff(plan.bounds)
    assert (sizes > 0).all() or count < plan.num_batches
    for step in range(plan.num_steps):
        assert sizes[step * width : (step + 1) * width].sum() == plan.step_examples(step)
    # the budget, and the sums
    for batch in range(plan.num_batches):
        of_batch = lengths[plan.rows(batch)].astype(np.int64)
        assert of_batch.sum() <= budget or len(of_batch) == 1
        assert plan.tokens[batch] == of_batch.sum()
        assert plan.squares[batch] == (of_batch**2).sum()
        assert plan.longest[batch] == (of_batch.max() if len(of_batch) else 0)
    # the definition, up to the last step
    expected = reference(lengths, None if rows is None else rows.tolist(), seed, epoch, parameters, shuffle)
    assert plan.num_batches == -(-len(expected) // width) * width
    same = len(expected) - len(expected) % width
    if same < len(expected):
        while same and sum(map(len, expected[same:])) < plan.num_batches - same:
            same -= width
    assert batches_of(plan)[:same] == expected[:same]
    # a pure function
    again = plan_epoch(lengths, "store", seed, epoch, parameters, rows, shuffle)
    assert again.order.tolist() == plan.order.tolist()
    assert again.bounds.tolist() == plan.bounds.tolist()


@as_subtests(
    "mode, count", itertools.product(["pack", "bucket"], [2**k + d for k in (1, 4, 8, 16) for d in (-1, 0, 1)])
)
def test_powers_of_two(count, mode):
    plan = plan_epoch(np.full(count, 3, np.int32), "store", 1, 0, PlanParameters(64, 1, mode))
    assert (np.bincount(plan.order, minlength=count) == 1).all()


def test_empty_examples_do_not_pile_up():
    plan = plan_epoch(np.zeros(1000, np.int32), "store", 0, 0, PlanParameters(64, 4))
    assert np.diff(plan.bounds).max() <= 64
    assert plan.tokens.sum() == 0


def test_a_fixed_plan_stays_as_it_is():
    """Another result here means another PLAN_VERSION: runs under way must not go on with other batches."""
    lengths = np.arange(40, dtype=np.int32) * 7 % 23
    assert PLAN_VERSION == 2
    pack = plan_epoch(lengths, "store", 7, 1, PlanParameters(64, 2))
    assert pack.order[:12].tolist() == [8, 19, 4, 21, 12, 17, 23, 33, 10, 9, 18, 24]
    bucket = plan_epoch(lengths, "store", 7, 1, PlanParameters(64, 2, "bucket", 4))
    assert bucket.order[:12].tolist() == [29, 6, 26, 13, 35, 22, 32, 12, 9, 19, 36, 18]


def realistic_lengths(count: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(4.0, 0.8, count).clip(3, 512).astype(np.int32)


def test_packing_fills_the_batches():
    plan = plan_epoch(realistic_lengths(100_000), "store", 0, 1, PlanParameters(16384, 8))
    assert plan.statistics()["fill"] >= 0.999
    bucketed = plan_epoch(realistic_lengths(100_000), "store", 0, 1, PlanParameters(16384, 8, "bucket"))
    assert bucketed.statistics()["fill"] >= 0.98


def test_packing_has_no_order_by_length():
    lengths = realistic_lengths(100_000)
    plan = plan_epoch(lengths, "store", 0, 1, PlanParameters(16384))
    means = np.array([lengths[plan.rows(b)].mean() for b in range(plan.num_batches)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.12
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.12


def test_bucketing_sorts_within_batches_and_shuffles_them():
    lengths = realistic_lengths(100_000)
    plan = plan_epoch(lengths, "store", 0, 1, PlanParameters(16384, 1, "bucket"))
    padded = sum(int(plan.longest[b]) * len(plan.rows(b)) for b in range(plan.num_batches))
    assert plan.tokens.sum() / padded > 0.93
    means = np.array([lengths[plan.rows(b)].mean() for b in range(plan.num_batches)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.12


def test_shuffles_are_fair():
    """Every row comes first about equally often."""
    first = [plan_epoch(np.ones(8, np.int32), "s", seed, 1, PlanParameters(1)).order[0] for seed in range(8000)]
    counts = np.bincount(first, minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 30  # chi-squared, 7 degrees of freedom: p < 1e-4


def test_epochs_and_seeds_differ():
    lengths = np.ones(64, np.int32)
    orders = {
        tuple(plan_epoch(lengths, "s", seed, epoch, PlanParameters(8)).order) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16


def test_worst_batch_first():
    lengths = realistic_lengths(5000)
    lengths[4321] = 5000
    assert plan_epoch(lengths, "s", 0, 0, PlanParameters(2048, 2)).rows(0).tolist() == [4321]
    assert plan_epoch(lengths, "s", 0, 1, PlanParameters(2048, 2)).rows(0).tolist() != [4321]


def test_fingerprint_names_all_that_matters():
    base = {"fingerprint": "s", "seed": 0, "parameters": PlanParameters(64), "rows": None, "shuffle": True}
    others = [
        {"fingerprint": "t"},
        {"seed": 1},
        {"parameters": PlanParameters(65)},
        {"parameters": PlanParameters(64, 2)},
        {"parameters": PlanParameters(64, mode="bucket")},
        {"rows": np.arange(3)},
        {"rows": np.arange(4)},
        {"shuffle": False},
    ]
    assert len({plan_fingerprint(**{**base, **other}) for other in [{}, *others]}) == len(others) + 1


def test_parameters_as_json():
    parameters = PlanParameters(100, 2, "bucket", 7)
    assert PlanParameters.from_json(parameters.to_json()) == parameters
    with pytest.raises(ConfigError, match="unknown plan parameters: tokens"):
        PlanParameters.from_json({"tokens": 1})
    for wrong in ({"tokens_per_batch": 0}, {"batches_per_step": True}, {"mode": "sorted"}, {"tokens_per_batch": 2**31}):
        with pytest.raises(ConfigError):
            PlanParameters(**wrong)


def test_rows_outside_the_store():
    with pytest.raises(ValueError, match="rows must be from 0 to 2, got 0 to 3"):
        plan_epoch(np.ones(3, np.int32), "s", 0, 0, PlanParameters(8), np.array([0, 3]))
