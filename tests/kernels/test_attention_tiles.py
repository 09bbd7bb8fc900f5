"""Which tiles the Triton attention takes for which lengths, and what one backward kernel costs beside two."""

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("penstock.benchmarks")  # not where the kernels alone are installed

import compiled_triton as compiled

from penstock.benchmarks.gpu import useful_work
from penstock.benchmarks.gpu.attention import draw_lengths
from penstock.kernels.attention import triton as backend

# least shares of forward and backward; tiles of 128 x 64 had 33, 66, 91 and 67%
SHARES = {
    "log-normal, mean 50": (0.58, 0.48),
    "log-normal, mean 150": (0.80, 0.74),
    "log-normal, mean 400": (0.92, 0.93),
    "even, 32 to 256": (0.79, 0.73),
    "all 128": (1.0, 1.0),
    "all 512": (1.0, 1.0),
}


@pytest.mark.parametrize("name", SHARES)
def test_most_of_the_work_is_asked_for(name: str) -> None:
    found = useful_work.shares(useful_work.DISTRIBUTIONS[name])
    forward, backward = SHARES[name]
    assert found["forward"] >= forward
    assert found["backward"] >= backward


@pytest.mark.parametrize("name", useful_work.DISTRIBUTIONS)
def test_no_more_programs_are_started_than_any_lengths_need(name: str) -> None:
    lengths = useful_work.DISTRIBUTIONS[name]
    started, empty = useful_work.programs(lengths)
    assert 0 <= empty <= len(lengths)
    assert started <= sum(lengths) // 64 + len(lengths)


def test_the_share_counts_what_a_tile_computes() -> None:
    assert useful_work.share([128], 128, 64) == 1.0
    assert useful_work.share([64, 64], 128, 64) == 0.5
    assert useful_work.share([150], 128, 64) == pytest.approx(150 * 150 / (256 * 192))
    assert useful_work.share([150], 64, 64, 32) == pytest.approx(150 * 150 / (192 * 160))


def test_tiles_depend_on_shapes_alone() -> None:
    """So that the same shapes give the same bits, and no device is asked for anything."""
    for mean, rows in ((10, 64), (255, 64), (256, 128), (400, 128)):
        assert backend.choose_tiles(torch.bfloat16, 64, 512, mean).forward.block_q == rows
    short = backend.choose_tiles(torch.bfloat16, 64, 64, 40)
    assert all(max(tile.block_q, tile.block_k) <= 64 for tile in short if tile is not None)


@pytest.mark.parametrize(
    ("sequences", "length", "kernels"),
    [
        (30, 100, ["backward_kernel"]),
        (30, 256, ["backward_kernel"]),
        (30, 257, ["backward_kernel", "sum_kernel"]),
        (8, 5000, ["backward_kernel", "sum_kernel"]),
        (2, 5000, ["delta_kernel", "dq_kernel", "dkdv_kernel"]),
        (3, 100, ["delta_kernel", "dq_kernel", "dkdv_kernel"]),
    ],
)
def test_one_kernel_serves_where_sequences_are_many(
    sequences: int, length: int, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[str] = []
    jit = type(backend.backward_kernel)
    monkeypatch.setattr(jit, "run", lambda kernel, *_, **__: met.append(kernel.__name__))
    monkeypatch.setattr(compiled, "LENGTHS", [length] * sequences)
    compiled.attention(torch.bfloat16)
    assert met == ["forward_kernel", *kernels]


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "most"), [(0.0, 630), (0.1, 970)])
def test_one_kernel_of_five_products_is_less_work_than_two_of_seven(dropout: float, most: int) -> None:
    """Instructions of a warp in the loops, for one tile of 64 x 64 weights of each kernel; and no register is spilt."""
    with compiled.compiled_for(90) as found:
        compiled.attention(torch.bfloat16, p=dropout, copies=8)
        compiled.attention(torch.bfloat16, p=dropout)
    code = {
        name: compiled.code(kernel) for name, kernel in found if name in ("backward_kernel", "dq_kernel", "dkdv_kernel")
    }
    one = code["backward_kernel"]
    assert one.stack == 0
    assert one.shared <= 99 << 10
    assert max(one.loops) <= most
    two = {"dq_kernel": (128, 64), "dkdv_kernel": (32, 128)}
    apart = sum(
        max(code[name].loops) * 64 * 64 * 2 / (q * k) for name, (q, k) in two.items()
    )  # of eight warps, not four
    assert max(one.loops) < 0.75 * apart


def test_dq_is_added_up_in_words_of_sixteen_bytes() -> None:
    with compiled.compiled_for(90) as found:
        compiled.attention(torch.bfloat16, copies=8)
    ptx = dict(found)["backward_kernel"].asm["ptx"]
    adds = [line for line in ptx.splitlines() if "red." in line.replace("shared.", "") or "atom." in line]
    assert adds
    assert all(".v4.f32" in line for line in adds), adds[:3]


def test_the_drawn_lengths_have_the_mean_that_they_are_named_after() -> None:
    for mean in (50, 150, 400):
        lengths = draw_lengths(mean, 65_536)
        assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.01)
