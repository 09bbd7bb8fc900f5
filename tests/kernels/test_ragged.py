"""The batch format and the checks of its bounds."""

import copy

import pytest
import torch
from subtested import as_subtests
from torch.utils import _pytree as pytree

from penstock.kernels import Ragged
from penstock.kernels.ragged import check_cu_seqlens


def test_from_lengths() -> None:
    ids = torch.tensor([9, 4, 7])
    batch = Ragged.from_lengths(torch.arange(10).view(5, 2), [2, 0, 3], ids)
    assert batch.cu_seqlens.tolist() == [0, 2, 2, 5]
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.max_seqlen, batch.batch_size, batch.lengths.tolist()) == (3, 3, [2, 0, 3])
    assert batch.with_values(torch.zeros(5)).ids is ids
    assert Ragged.from_lengths(torch.zeros(0, 2), []).max_seqlen == 0


@as_subtests(
    "lengths, ids, message",
    [([2, 2], None, "add up"), ([-1, 6], None, "negative"), ([[5]], None, "one-dim"), ([5], torch.zeros(2), "ids")],
)
def test_from_lengths_checks(lengths: list, ids: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ragged.from_lengths(torch.zeros(5, 2), lengths, ids)


def test_is_a_pytree_and_moves() -> None:
    batch = Ragged.from_lengths(torch.ones(5, 2), [2, 3], torch.tensor([1, 2]))
    doubled = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor * 2, batch)
    assert isinstance(doubled, Ragged)
    assert doubled.cu_seqlens.tolist() == [0, 4, 10]
    moved = batch.to("meta")
    assert moved.values.is_meta
    assert moved.cu_seqlens.is_meta
    assert moved.ids.is_meta
    assert torch.equal(copy.deepcopy(batch).values, batch.values)


@as_subtests(
    "bounds, message",
    [([0, 3, 2, 5], "decrease"), ([0, 4], "number of tokens"), ([1, 5], "from 0"), ([0, 1, 5], "max_seqlen is 3")],
)
def test_check_cu_seqlens(bounds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cu_seqlens("cu_seqlens", torch.tensor(bounds, dtype=torch.int32), 5, 3)
    check_cu_seqlens("cu_seqlens", torch.tensor([0, 3, 3, 5], dtype=torch.int32), 5, 3)
    check_cu_seqlens("cu_seqlens", torch.tensor([0], dtype=torch.int32), 0, 0)


@as_subtests("batch", [3, 63, 64, 65, 500])
def test_bounds_whose_lengths_no_int32_holds(batch: int) -> None:
    """In 32 bits, which wrap, it is two steps ahead from the largest number to its negative."""
    top = 2**31 - 1
    bounds = torch.zeros(batch + 1, dtype=torch.int32)
    bounds[1], bounds[2] = top, -top
    with pytest.raises(ValueError, match="decrease"):
        check_cu_seqlens("cu_seqlens", bounds, 0, top)
