"""Philox against the known answers of its authors' library (Random123, kat_vectors), and the rules of dropout."""

import pytest
import torch
from subtested import as_subtests

from penstock import _native
from penstock.kernels import philox

PI = "243f6a88 85a308d3 13198a2e 03707344"
KNOWN = [
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, PI, "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, PI, "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (7, "00000000 00000000", "00000000", "257a3673 cd26be2a"),
    (7, "ffffffff ffffffff", "ffffffff", "ab302c4d 3dc9d239"),
    (7, "243f6a88 85a308d3", "13198a2e", "bedbbe6b e4c770b3"),
]


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@as_subtests("rounds, counter, key, expected", KNOWN)
def test_known_answers(rounds: int, counter: str, key: str, expected: str) -> None:
    if len(words(counter)) == 4:
        assert philox.philox4x32(words(counter), words(key), rounds) == words(expected)
    else:
        assert philox.philox2x32(words(counter), *words(key), rounds) == words(expected)


NAMES = [(0, 0, 0), (2**63 - 1, 7, 11), (-(2**62) + 12345, 2**33 + 7, 3)]


@pytest.mark.parametrize(("seed", "example", "head"), NAMES)
@pytest.mark.parametrize(
    ("queries", "keys"), [(range(0, 3), 1), (range(21, 50), 45), (range(2**31 - 20, 2**31 - 7), 16)]
)
def test_attention_weights_follow_the_rule(seed: int, example: int, head: int, queries: range, keys: int) -> None:
    """As the docstring of philox.py words it, in Python's own integers; and C++ draws the same."""
    low, high = 0xFFFFFFFF, 32

    def of_64(number: int) -> tuple[int, int]:
        return number & low, number >> high & low

    (seed_low, seed_high), (example_low, example_high) = of_64(seed), of_64(example)
    counter = (low, low, head, example_low)
    a, b, key, _ = philox.philox4x32(
        *(tuple(map(torch.tensor, x)) for x in (counter, (seed_low, seed_high ^ example_high)))
    )
    bits = philox.weight_bits(torch.tensor(seed), torch.tensor([example]), torch.tensor([head]), queries, keys)[0]
    for i, row in zip(queries, bits.tolist(), strict=True):
        drawn = [philox.philox2x32((a ^ (i // 16 * 8 + i % 8), b ^ (j // 16 * 8 + j % 8)), key) for j in range(keys)]
        assert row == [int(words[i // 8 % 2]) >> 16 * (j // 8 % 2) & 0xFFFF for j, words in enumerate(drawn)]
        assert row == _native.weight_bits(seed % 2**64, example, head, i, keys).tolist()


@as_subtests("p, bound", [(0.0, 0), (0.5, 32768), (1.0, 65536), (0.1, 6554)])
def test_threshold_and_scale(p: float, bound: int) -> None:
    assert philox.threshold(p) == bound
    assert philox.scale(p) == (65536 / (65536 - bound) if bound < 65536 else 0.0)


@as_subtests("p", [-0.1, 1.1])
def test_probability_outside_its_range(p: float) -> None:
    with pytest.raises(ValueError, match="p must lie"):
        philox.threshold(p)


def test_new_seed_follows_torchs_generator() -> None:
    torch.manual_seed(3)
    first = philox.new_seed()
    torch.manual_seed(3)
    assert torch.equal(philox.new_seed(), first)
    assert first.dtype == torch.int64


@pytest.mark.slow
@as_subtests("apart", [(0, 1), (0, 8), (0, 16), (1, 0), (8, 0), (16, 0), (1, 1), (8, 8), (7, 9)])
def test_neighbouring_attention_weights_are_independent(apart: tuple[int, int]) -> None:
    """A share of 0.3 dropped, and 0.3^2 of all pairs at a distance, each within five standard errors; whatever shares a
    call of Philox is among them."""
    heads = torch.arange(4)
    keep = philox.keep_weights(torch.tensor(5), torch.full((4,), 9), heads, range(1024), 1024, 0.3)
    dropped = (~keep).double()
    rows, columns = apart
    both = dropped[:, : 1024 - rows, : 1024 - columns] * dropped[:, rows:, columns:]
    assert abs(float(dropped.mean()) - 0.3) < 5 * (0.21 / dropped.numel()) ** 0.5
    assert abs(float(both.mean()) - 0.09) < 5 * (0.09 * 0.91 / both.numel() * 2) ** 0.5


@as_subtests("other", ["seed", "example", "head"])
def test_attention_weights_of_other_names_are_independent(other: str) -> None:
    names = {"seed": torch.tensor(5), "example": torch.tensor([9]), "head": torch.tensor([2])}
    one, two = (
        (~philox.keep_weights(*n.values(), range(1024), 1024, 0.5)).double() - 0.5
        for n in (names, {**names, other: names[other] + 1})
    )
    assert abs(float((one * two).mean())) < 5 * 0.25 / 1024


def test_rows_and_attention_weights_pass_a_chi_square_of_their_bytes() -> None:
    """The bytes of 4 million draws are uniform: 255 degrees of freedom, five standard deviations either way."""
    position = torch.arange(4096)
    of_rows = philox.dropout_bits(torch.tensor(5), torch.full((4096,), 9), position, 0, 1024)
    of_weights = philox.weight_bits(torch.tensor(5), torch.tensor([9]), torch.tensor([2]), range(2048), 2048)
    for bits in (of_rows.long().flatten(), of_weights.flatten()):
        for byte in (bits & 0xFF, bits >> 8):
            counts, expected = byte.bincount(minlength=256).double(), bits.numel() / 256
            assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 5 * (2 * 255) ** 0.5
