import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.study.subsets import stratified_order, subset

labels_and_sizes = st.lists(st.integers(0, 6), min_size=1, max_size=300).flatmap(
    lambda labels: st.tuples(
        st.just(np.array(labels)), st.integers(1, len(labels)), st.integers(1, len(labels)), st.integers(0, 2**32 - 1)
    )
)


@given(labels_and_sizes)
@settings(max_examples=150, deadline=None)
def test_subsets_are_nested_stratified_and_hold_every_class(case):
    labels, first, second, seed = case
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    small, large = subset(labels, min(first, second), seed), subset(labels, max(first, second), seed)
    assert set(small) <= set(large)
    assert len(small) == min(first, second)
    assert (np.diff(small) > 0).all()

    classes, counts = np.unique(labels, return_counts=True)
    share = counts / len(labels)
    taken = np.array([(labels[small] == label).sum() for label in classes])
    assert (np.abs(taken - len(small) * share) <= len(classes) / 2 + 2).all()
    if len(small) >= len(classes):
        assert (taken > 0).all()


def test_other_seeds_give_other_subsets_of_the_same_make_up():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    subsets = [set(subset(labels, 100, seed)) for seed in range(5)]
    assert all(len(a & b) < 30 for i, a in enumerate(subsets) for b in subsets[:i])
    for rows in subsets:
        assert np.abs(np.bincount(labels[sorted(rows)]) - [70, 20, 10]).max() <= 2


def test_every_row_is_as_likely_as_any_other():
    labels = np.repeat([0, 1], [30, 10])
    chosen = sum(np.bincount(subset(labels, 20, seed), minlength=40) for seed in range(400))
    assert chosen.min() > 0.35 * 400
    assert chosen.max() < 0.65 * 400
