"""Reproducible dropout: one counter-based mask for every backend.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the seven rounds that its authors
found to pass every test they know, keyed by a seed and by what is dropped, never by where it happens to lie in a batch.
There are two rules, version DROPOUT_RULE of them.

**Rows of units**, the outputs of a layer: Philox4x32 with

    counter = (unit // 8, position, stream, example id & 0xFFFFFFFF)
    key     = (seed & 0xFFFFFFFF, seed >> 32 ^ example id >> 32)

`stream` is the layer (LSTM) or 0 (`residual_norm`); `position` is the token's place in its own sequence. Unit u owns
half-word u % 8 of the four output words, low half first.

**Attention weights**: the matrix unit of a GPU leaves rows i and i + 8, columns j and j + 8 of a block of 16 x 16 to
one thread, and so it does with the transpose. One call of Philox2x32 serves those four, so that no random bit is moved:

    a, b, c, _ = Philox4x32, counter (0xFFFFFFFF, 0xFFFFFFFF, head, example id & 0xFFFFFFFF), the key as above
    counter    = (a ^ pair(query), b ^ pair(key)) with pair(i) = i // 16 * 8 + i % 8
    key        = c

The weight of a query and a key, both places in their sequences, owns half-word key // 8 % 2, low half first, of word
query // 8 % 2.

What owns 16 bits below `threshold(p) = round(p * 65536)` is dropped. Kept values are scaled by `scale(p)`, the inverse
of the exact keep probability. `csrc/philox.h` states the same rules for C++, `philox_triton.py` for Triton.
"""

import torch
from torch import Tensor

from penstock.kernels import checks

DROPOUT_RULE = 2  # 1 was Philox4x32-10 along rows, of attention weights too
ROUNDS = 7
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
M2 = 0xD256D193
W0, _W1 = 0x9E3779B9, 0xBB67AE85
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


def check_there(*tensors: Tensor | None) -> None:
    """Raises ValueError if one of the tensors that dropout is drawn from is missing."""
    if any(tensor is None for tensor in tensors):
        raise ValueError("dropout needs the sequences' bounds, ids and seed")


def new_seed(device: torch.device | str = "cpu") -> Tensor:
    """Draws a seed, an int64 scalar on `device`, from torch's default generator of that device."""
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...], rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Philox4x32 on int64 tensors that hold 32-bit values; the four words of the output, likewise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # 32 x 32 -> 64 bits in int64 arithmetic: the product wraps, its low 32 bits and, shifted, its high ones survive
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def philox2x32(counter: tuple[Tensor, Tensor], key: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Philox2x32, likewise; the two words of the output."""
    c0, c1 = counter
    for _ in range(rounds):
        product = c0 * M2
        c0, c1 = (product >> 32 & _MASK) ^ c1 ^ key, product & _MASK
        key = (key + W0) & _MASK
    return c0, c1


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
    block = torch.arange((units + 7) // 8, dtype=torch.int64, device=position.device)[None, :]
    block, position, streams, example_id = torch.broadcast_tensors(block, position, streams, example_id)
    counter = block & _MASK, position & _MASK, streams & _MASK, example_id & _MASK
    words = philox4x32(counter, _key(seed, example_id))
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten(1)[:, :units].to(torch.int32)


def keep_mask(seed: Tensor, example_id: Tensor, position: Tensor, stream: Tensor | int, units: int, p: float) -> Tensor:
    """True where a unit is kept; bool, (N, units). Arguments as in `dropout_bits`."""
    return dropout_bits(seed, example_id, position, stream, units) >= threshold(p)


def weight_bits(seed: Tensor, example_id: Tensor, head: Tensor, queries: range, keys: int) -> Tensor:
    """The 16 random bits of the attention weights of N pairs of an example and a head.

    Args:
        seed: int64 scalar. example_id, head: int64, (N,). queries: their places, one after the other. keys: how many
            there are, from place 0 on.
    Returns:
        int64, (N, len(queries), keys), values 0 to 65535.
    """
    nowhere = torch.full_like(example_id, _MASK)
    a, b, key, _ = philox4x32((nowhere, nowhere, head & _MASK, example_id & _MASK), _key(seed, example_id))
    # whole blocks of 16 x 16, eight pairs each way
    first, last = queries.start // 16, -(-queries.stop // 16)
    pairs_q = torch.arange(8 * first, 8 * last, dtype=torch.int64, device=head.device)[:, None]
    pairs_k = torch.arange(-(-keys // 16) * 8, dtype=torch.int64, device=head.device)
    counter = torch.broadcast_tensors(a[:, None, None] ^ pairs_q, b[:, None, None] ^ pairs_k)
    words = torch.stack(philox2x32(counter, key[:, None, None]), 1)
    halves = torch.stack((words & 0xFFFF, words >> 16), -1)  # (N, word, pairs of queries, pairs of keys, half)
    halves = halves.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (N, word, block, 8, block, 8, half)
    bits = halves.permute(0, 2, 1, 3, 4, 6, 5).flatten(1, 3).flatten(2)
    return bits[:, queries.start - 16 * first : queries.stop - 16 * first, :keys]


def keep_weights(seed: Tensor, example_id: Tensor, head: Tensor, queries: range, keys: int, p: float) -> Tensor:
    """True where an attention weight is kept; bool, (N, len(queries), keys). Arguments as in `weight_bits`."""
    return weight_bits(seed, example_id, head, queries, keys) >= threshold(p)


def _key(seed: Tensor, example_id: Tensor) -> tuple[Tensor, Tensor]:
    seed = seed.long()
    return seed & _MASK, (seed >> 32 & _MASK) ^ (example_id >> 32 & _MASK)
