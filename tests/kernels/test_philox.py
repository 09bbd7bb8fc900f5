"""Philox4x32-10 against the known answers of its authors' library (Random123, kat_vectors)."""

import pytest
import torch

from penstock.kernels import philox

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert philox.philox4x32(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize(("p", "bound"), [(0.0, 0), (0.5, 32768), (1.0, 65536), (0.1, 6554)])
def test_threshold_and_scale(p: float, bound: int) -> None:
    assert philox.threshold(p) == bound
    assert philox.scale(p) == (65536 / (65536 - bound) if bound < 65536 else 0.0)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probability_outside_its_range(p: float) -> None:
    with pytest.raises(ValueError, match="p must lie"):
        philox.threshold(p)


def test_new_seed_follows_torchs_generator() -> None:
    torch.manual_seed(3)
    first = philox.new_seed()
    torch.manual_seed(3)
    assert torch.equal(philox.new_seed(), first)
    assert first.dtype == torch.int64
