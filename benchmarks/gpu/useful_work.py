"""How much of what attention's kernels compute is asked for, exactly, for some distributions of lengths.

    python -m penstock.benchmarks.gpu.useful_work          a table; no GPU needed

A tile that reaches behind the end of its sequence computes weights that nobody wants. `programs` counts those that
are started for one head, and of them those that find no block.
"""

import random
import sys
from collections.abc import Sequence

import torch

from penstock.benchmarks.gpu.attention import HEAD_DIM, TOKENS, draw_lengths

_EVEN = random.Random(0)
DISTRIBUTIONS: dict[str, list[int]] = {
    **{f"log-normal, mean {mean}": draw_lengths(mean, TOKENS) for mean in (50, 150, 400)},
    "even, 32 to 256": [_EVEN.randint(32, 256) for _ in range(450)],
    "all 128": [128] * 512,
    "all 512": [512] * 128,
}


def rounded(length: int, block: int) -> int:
    return -(-length // block) * block


def share(lengths: Sequence[int], block_q: int, block_k: int, tail: int | None = None) -> float:
    """The weights of a query and a key of one sequence, as a share of all that are computed.

    Args:
        tail: keys at a time behind the last full block of them; as many as before by default.
    """
    done = 0
    for length in lengths:
        full = length // block_k * block_k
        done += rounded(length, block_q) * (full + rounded(length - full, tail or block_k))
    return sum(length * length for length in lengths) / done


def shares(lengths: Sequence[int]) -> dict[str, float]:
    """`share` for forward, backward in one kernel, dq, and dk and dv; in 16 bits, with the benchmark's head_dim."""
    from penstock.kernels.attention.triton import choose_tiles, tail_of

    tiles = choose_tiles(torch.bfloat16, HEAD_DIM, max(lengths), sum(lengths) // len(lengths))
    assert tiles.backward is not None
    return {
        "forward": share(lengths, *tiles.forward[:2], tail_of(tiles.forward, windowed=False)),
        "backward": share(lengths, *tiles.backward[:2]),
        "dq": share(lengths, *tiles.dq[:2]),
        "dk, dv": share(lengths, *tiles.dkdv[:2]),
    }


def programs(lengths: Sequence[int]) -> tuple[int, int]:
    """How many of forward are started for one head, and how many of them have nothing to do."""
    from penstock.kernels.attention.triton import choose_tiles, division

    tokens, batch, longest = sum(lengths), len(lengths), max(lengths)
    block = choose_tiles(torch.bfloat16, HEAD_DIM, longest, tokens // batch).forward.block_q
    started, _ = division(tokens, batch, longest, block)
    return started, started - sum(rounded(length, block) // block for length in lengths)


def main() -> int:
    print("| lengths | sequences | forward | backward | dq | dk, dv | programs | of them empty |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, lengths in DISTRIBUTIONS.items():
        parts = " | ".join(f"{each:.0%}" for each in shares(lengths).values())
        print(f"| {name} | {len(lengths)} | {parts} | {' | '.join(map(str, programs(lengths)))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
