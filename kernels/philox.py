"""Reproducible dropout: one counter-based mask for every backend.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by a seed and by what is
dropped, never by where it happens to lie in a batch:

    counter = (unit // 8, position, stream, example id & 0xFFFFFFFF)
    key     = (seed & 0xFFFFFFFF, seed >> 32 ^ example id >> 32)

`stream` is the layer (LSTM) or the head (attention); `position` is the token's place in its own sequence. Unit u owns
half-word u % 8 of the four output words, low half first, and is dropped where its 16 bits are below
`threshold(p) = round(p * 65536)`. Kept values are scaled by `scale(p)`, the inverse of the exact keep probability.
`csrc/philox.h` states the same rule for C++ and CUDA.
"""

import torch
from torch import Tensor

from penstock.kernels import checks

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def threshold(p: float) -> int:
    """The 16-bit bound below which a unit is dropped, 0 to 65536, for a drop probability of p in [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout p must lie in [0, 1], got {p}")
    return round(p * 65536)


def scale(p: float) -> float:
    """What kept values are multiplied by: 1 / (exact keep probability); 0 if everything is dropped."""
    kept = 65536 - threshold(p)
    return 65536 / kept if kept else 0.0


def new_seed(device: torch.device | str = "cpu") -> Tensor:
    """Draws a seed, an int64 scalar on `device`, from torch's default generator of that device."""
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit values; the four words of the output, likewise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # 32 x 32 -> 64 bits in int64 arithmetic: the product wraps, its low 32 bits and, shifted, its high ones survive
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def dropout_bits(seed: Tensor, example_id: Tensor, position: Tensor, stream: Tensor | int, units: int) -> Tensor:
    """The 16 random bits of `units` units for each of N (example, position, stream) triples.

    Args:
        seed: int64 scalar. example_id, position: integer, (N,). stream: integer or (N,).
    Returns:
        int32, (N, units), values 0 to 65535.
    Raises:
        TypeError: one of them is not an integer.
    """
    for name, value in (("seed", seed), ("example_id", example_id), ("position", position), ("stream", stream)):
        if not isinstance(value, Tensor):
            checks.integer(name, value)
        elif value.dtype not in checks.INTEGERS:
            raise TypeError(f"{name} must be integers, got {value.dtype}")
    example_id, position = example_id.long()[:, None], position.long()[:, None]
    streams = stream.long()[:, None] if isinstance(stream, Tensor) else torch.full_like(position, stream)
    block = torch.arange((units + 7) // 8, device=position.device)[None, :]
    block, position, streams, example_id = torch.broadcast_tensors(block, position, streams, example_id)
    seed = seed.long()
    key = (seed & _MASK, (seed >> 32 & _MASK) ^ (example_id >> 32 & _MASK))
    words = philox4x32((block & _MASK, position & _MASK, streams & _MASK, example_id & _MASK), key)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten(1)[:, :units].to(torch.int32)


def keep_mask(seed: Tensor, example_id: Tensor, position: Tensor, stream: Tensor | int, units: int, p: float) -> Tensor:
    """True where a unit is kept; bool, (N, units). Arguments as in `dropout_bits`."""
    return dropout_bits(seed, example_id, position, stream, units) >= threshold(p)
