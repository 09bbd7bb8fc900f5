"""Whatever must be a number is one: no integer is rounded, True is not 1, and no dtype is read as another."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from subtested import as_subtests
from torch import Tensor

from penstock.kernels import (
    LSTM,
    Ragged,
    bias_gelu,
    geglu,
    linear,
    lstm,
    lstm_cell,
    ngram_bag,
    philox,
    residual_norm,
    rotary,
    segment_pool,
    varlen_attention,
)
from penstock.kernels.dropout import dropout, keep_mask
from penstock.kernels.embedding import embedding
from penstock.kernels.lstm import LayerWeights
from penstock.kernels.packed_linear import PackedLinear

BOUNDS = torch.tensor([0, 2, 5], dtype=torch.int32)
IDS, SEED = torch.tensor([3, 4]), torch.tensor(5)
X, TABLE = torch.randn(5, 4), torch.randn(6, 4)
WEIGHTS = [LayerWeights([torch.randn(8, 4)], [torch.randn(8, 2)], [], [], [])]
WORDS = torch.tensor([0, 1, 5, 2, 2])
QKV = torch.randn(5, 1, 4)
X6, QKV6 = torch.randn(6), torch.randn(5, 6)


def ops(name: str) -> Any:
    return getattr(torch.ops.penstock, name)


# each takes one integer; the value beside it is a good one
NUMBERS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "LSTM input_size": (lambda n: LSTM(n, 2), 4),
    "LSTM hidden_size": (lambda n: LSTM(4, n), 2),
    "LSTM num_layers": (lambda n: LSTM(4, 2, n), 2),
    "LSTM proj_size": (lambda n: LSTM(4, 3, proj_size=n), 2),
    "Ragged max_seqlen": (lambda n: Ragged(X, BOUNDS, n), 3),
    "lstm max_seqlen": (lambda n: lstm(X, BOUNDS, n, WEIGHTS), 3),
    "varlen_attention max_seqlen_q": (lambda n: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, n, 3), 3),
    "varlen_attention max_seqlen_k": (lambda n: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, 3, n), 3),
    "varlen_attention window": (lambda n: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, 3, 3, window=(1, n)), 1),
    "keep_mask tokens": (lambda n: keep_mask(BOUNDS, n, 0.5, SEED, 0, IDS, 3), 5),
    "keep_mask stream": (lambda n: keep_mask(BOUNDS, 5, 0.5, SEED, n, IDS, 3), 1),
    "keep_mask units": (lambda n: keep_mask(BOUNDS, 5, 0.5, SEED, 0, IDS, n), 3),
    "dropout stream": (lambda n: dropout(X, BOUNDS, 0.5, SEED, n), 1),
    "embedding padding_idx": (lambda n: embedding(WORDS, TABLE, n), 2),
    "dropout_bits stream": (lambda n: philox.dropout_bits(SEED, IDS, IDS, n, 3), 2),
}
WRONG_NUMBERS = [2.0, 4.7, True, "3", None, torch.tensor(2), torch.tensor(2.5), np.float64(2), np.bool_(True), [2]]

# each takes one tensor, and the dtypes in which that may come
INT32, INT64 = {torch.int32}, {torch.int64}
TENSORS: dict[str, tuple[Callable[[Tensor], Any], Tensor, set[torch.dtype]]] = {
    "Ragged cu_seqlens": (lambda t: Ragged(X, t, 3), BOUNDS, INT32),
    "Ragged ids": (lambda t: Ragged(X, BOUNDS, 3, t), IDS, INT64),
    "from_lengths": (
        lambda t: Ragged.from_lengths(X, t),
        torch.tensor([2, 3]),
        {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64},
    ),
    "from_lengths ids": (lambda t: Ragged.from_lengths(X, [2, 3], t), IDS, INT64),
    "lstm cu_seqlens": (lambda t: lstm(X, t, 3, WEIGHTS), BOUNDS, INT32),
    "lstm ids": (lambda t: lstm(X, BOUNDS, 3, WEIGHTS, ids=t), IDS, INT64),
    "lstm seed": (lambda t: lstm(X, BOUNDS, 3, WEIGHTS, seed=t), SEED, INT64),
    "lstm words": (lambda t: lstm(t, BOUNDS, 3, WEIGHTS, embeddings=TABLE), WORDS, INT32 | INT64),
    "LSTM seed": (lambda t: LSTM(4, 2)(Ragged(X, BOUNDS, 3), seed=t), SEED, INT64),
    "LSTM words": (lambda t: LSTM(4, 2)(Ragged(t, BOUNDS, 3), embeddings=TABLE), WORDS, INT32 | INT64),
    "segment_pool cu_seqlens": (lambda t: segment_pool(X, t, "max"), BOUNDS, INT32),
    "attention cu_seqlens_q": (lambda t: varlen_attention(QKV, QKV, QKV, t, BOUNDS, 3, 3), BOUNDS, INT32),
    "attention cu_seqlens_k": (lambda t: varlen_attention(QKV, QKV, QKV, BOUNDS, t, 3, 3), BOUNDS, INT32),
    "attention ids": (
        lambda t: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, 3, 3, dropout_p=0.5, ids=t),
        IDS,
        INT64,
    ),
    "attention seed": (
        lambda t: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, 3, 3, dropout_p=0.5, seed=t),
        SEED,
        INT64,
    ),
    "norm cu_seqlens": (lambda t: residual_norm(X, X, X[0], dropout_p=0.5, cu_seqlens=t), BOUNDS, INT32),
    "norm ids": (lambda t: residual_norm(X, X, X[0], dropout_p=0.5, cu_seqlens=BOUNDS, ids=t), IDS, INT64),
    "norm seed": (lambda t: residual_norm(X, X, X[0], dropout_p=0.5, cu_seqlens=BOUNDS, seed=t), SEED, INT64),
    "dropout cu_seqlens": (lambda t: dropout(X, t, 0.5, SEED, 0, IDS), BOUNDS, INT32),
    "dropout ids": (lambda t: dropout(X, BOUNDS, 0.5, SEED, 0, t), IDS, INT64),
    "dropout seed": (lambda t: dropout(X, BOUNDS, 0.5, t, 0, IDS), SEED, INT64),
    "keep_mask cu_seqlens": (lambda t: keep_mask(t, 5, 0.5, SEED, 0, IDS, 3), BOUNDS, INT32),
    "keep_mask ids": (lambda t: keep_mask(BOUNDS, 5, 0.5, SEED, 0, t, 3), IDS, INT64),
    "keep_mask seed": (lambda t: keep_mask(BOUNDS, 5, 0.5, t, 0, IDS, 3), SEED, INT64),
    # the operations themselves: C++ reads these by address
    "dropout operation, cu_seqlens": (lambda t: ops("dropout")(X, t, 0.5, SEED, 0, IDS, False), BOUNDS, INT32),
    "dropout operation, ids": (lambda t: ops("dropout")(X, BOUNDS, 0.5, SEED, 0, t, False), IDS, INT64),
    "keep_mask operation, cu_seqlens": (lambda t: ops("keep_mask")(t, 5, 0.5, SEED, 0, IDS, 3, False), BOUNDS, INT32),
    "keep_mask operation, ids": (lambda t: ops("keep_mask")(BOUNDS, 5, 0.5, SEED, 0, t, 3, False), IDS, INT64),
    "embedding ids": (lambda t: embedding(t, TABLE), WORDS, INT32 | INT64),
}
MAY_BE_NONE = {"norm cu_seqlens", *(name for name in TENSORS if name.endswith((" ids", " seed")))}
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64]


@as_subtests("name", NUMBERS)
def test_numbers(name: str) -> None:
    call, good = NUMBERS[name]
    call(good)
    call(np.int64(good))
    for wrong in WRONG_NUMBERS:
        if wrong is None and "padding_idx" in name:
            continue
        if isinstance(wrong, Tensor) and "dropout_bits" in name:
            continue  # a tensor of streams is allowed
        with pytest.raises(TypeError):
            call(wrong)


@as_subtests("name", TENSORS)
def test_tensors(name: str) -> None:
    call, good, dtypes = TENSORS[name]
    for dtype in DTYPES:
        if dtype in dtypes:
            call(good.to(dtype))
        else:
            with pytest.raises(TypeError):
                call(good.to(dtype))
    refused = (
        TypeError if "cu_seqlens" in name and "operation" not in name else (TypeError, AttributeError, RuntimeError)
    )
    for wrong in (good.tolist(), 2, "2", None):
        if (name == "from_lengths" and isinstance(wrong, list)) or (wrong is None and name in MAY_BE_NONE):
            continue
        with pytest.raises(refused):
            call(wrong)


# each takes one real number; the one beside it is a good one, and what lies beyond what is allowed, if anything does
REALS: dict[str, tuple[Callable[[Any], Any], float, list[float]]] = {
    "varlen_attention softmax_scale": (
        lambda s: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, 3, 3, softmax_scale=s),
        0.5,
        [],
    ),
    "varlen_attention dropout_p": (
        lambda p: varlen_attention(QKV, QKV, QKV, BOUNDS, BOUNDS, 3, 3, dropout_p=p, seed=SEED),
        0.5,
        [-0.1, 1.1],
    ),
    "residual_norm eps": (lambda e: residual_norm(X, X, X[0], eps=e), 0.5, []),
    "residual_norm dropout_p": (
        lambda p: residual_norm(X, X, X[0], dropout_p=p, cu_seqlens=BOUNDS, seed=SEED),
        0.5,
        [-0.1, 1.1],
    ),
    "PackedLinear eps": (lambda e: PackedLinear([TABLE], [], torch.float32).norm(X, QKV6, X6, X6, eps=e)[0], 0.5, []),
    "dropout": (lambda p: dropout(X, BOUNDS, p, SEED, 0), 0.5, [-0.1, 1.1]),
    "keep_mask": (lambda p: keep_mask(BOUNDS, 5, p, SEED, 0, None, 3), 0.5, [-0.1, 1.1]),
    **{
        f"lstm {name}, training={training}": (
            lambda p, options=options, training=training: lstm(
                X, BOUNDS, 3, WEIGHTS, training=training, seed=SEED, **options(p)
            )[0],
            0.5,
            [-0.1, 1.1, float("nan")],
        )
        for training in (True, False)
        for name, options in (
            ("dropout", lambda p: {"dropout": p}),
            ("zoneout of h", lambda p: {"zoneout": (p, 0.0)}),
            ("zoneout of c", lambda p: {"zoneout": (0.0, p)}),
        )
    },
}
WRONG_REALS = [True, "0.5", torch.tensor(0.5), np.bool_(True), [0.5], 0.5j]


@as_subtests("name", REALS)
def test_real_numbers(name: str) -> None:
    """What a number is made of does not show in a result."""
    call, good, beyond = REALS[name]
    expected = call(good)
    for number in (np.float32(good), np.float64(good), np.float16(good), Fraction(good)):
        assert torch.equal(call(number), expected)
    call(1)
    call(np.int64(1))
    for wrong in WRONG_REALS:
        with pytest.raises(TypeError, match="must be a number"):
            call(wrong)
    for wrong in beyond:
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            call(wrong)


# each takes one tensor of real numbers
FLOATING: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "linear weight": (lambda t: linear(X, [t]), TABLE),
    "linear bias": (lambda t: linear(X, [TABLE], [t]), X6),
    "bias_gelu": (lambda t: bias_gelu(X, t), X[0]),
    "geglu": (lambda t: geglu(X, t), X[0]),
    "residual_norm weight": (lambda t: residual_norm(X, X, t), X[0]),
    "residual_norm bias": (lambda t: residual_norm(X, X, X[0], t), X[0]),
    "residual_norm x_bias": (lambda t: residual_norm(X, X, X[0], x_bias=t), X[0]),
    "rotary cos": (lambda t: rotary(QKV, QKV, t, X), X),
    "rotary sin": (lambda t: rotary(QKV, QKV, X, t), X),
    "lstm_cell gates": (lambda t: lstm_cell(t, X[:, :1]), X),
    "lstm_cell c": (lambda t: lstm_cell(X, t), X[:, :1]),
    "linear x": (lambda t: linear(t, [TABLE]), X),
    "bias_gelu x": (bias_gelu, X),
    "geglu x": (geglu, X),
    "residual_norm x": (lambda t: residual_norm(t, X, X[0]), X),
    "residual_norm residual": (lambda t: residual_norm(X, t, X[0]), X),
    "residual_norm residual, prenorm": (lambda t: residual_norm(X, t, X[0], prenorm=True), X),
    "LSTM input": (lambda t: LSTM(4, 2)(t), X),
    "LSTM h0": (lambda t: LSTM(4, 2)(X, (t, torch.zeros(1, 2))), torch.zeros(1, 2)),
    "lstm weights": (lambda t: lstm(X, BOUNDS, 3, [WEIGHTS[0]._replace(w_ih=[t])]), torch.zeros(8, 4)),
    "lstm embeddings": (lambda t: lstm(WORDS, BOUNDS, 3, WEIGHTS, embeddings=t), TABLE),
    "lstm x": (lambda t: lstm(t, BOUNDS, 3, WEIGHTS), X),
    "lstm c0": (lambda t: lstm(X, BOUNDS, 3, WEIGHTS, c0=t), torch.zeros(1, 2, 2)),
    "lstm h0": (lambda t: lstm(X, BOUNDS, 3, WEIGHTS, h0=t), torch.zeros(1, 2, 2)),
    "segment_pool": (lambda t: segment_pool(t, BOUNDS, "max"), X),
    "segment_pool scores": (lambda t: segment_pool(X, BOUNDS, "attention", t), X[:, 0]),
    "ngram_bag": (lambda t: ngram_bag(WORDS.int(), BOUNDS, t, vocabulary=6, ngrams=1), TABLE),
    "attention": (lambda t: varlen_attention(t, t, t, BOUNDS, BOUNDS, 3, 3), QKV),
    "attention q": (lambda t: varlen_attention(t, QKV, QKV, BOUNDS, BOUNDS, 3, 3), QKV),
    "attention k": (lambda t: varlen_attention(QKV, t, QKV, BOUNDS, BOUNDS, 3, 3), QKV),
    "attention v": (lambda t: varlen_attention(QKV, QKV, t, BOUNDS, BOUNDS, 3, 3), QKV),
    "dropout": (lambda t: dropout(t, BOUNDS, 0.5, SEED, 0), X),
}


@as_subtests("name, autocast", itertools.product(FLOATING, [False, True]))
def test_floating_point(name: str, autocast: bool) -> None:
    call, good = FLOATING[name]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        call(good)
        for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64):
            with pytest.raises(TypeError):
                call(good.to(dtype))


@as_subtests(
    "lengths",
    [
        [4.7, 6.9],
        [2.0, 3.0],
        (2, 3.0),
        [True, 4],
        ["2", "3"],
        [None, 5],
        "23",
        5,
        [torch.tensor(2), 3],
        np.array([2.0, 3.0]),
        np.array([True, False]),
        torch.tensor([2.0, 3.0]),
        torch.tensor([True, True]),
        torch.tensor([2 + 0j, 3]),
    ],
)
def test_lengths_are_not_rounded(lengths: Any) -> None:
    with pytest.raises(TypeError, match="lengths"):
        Ragged.from_lengths(X, lengths)


@as_subtests("lengths", [[2, 3], (2, 3), range(2, 4), np.array([2, 3]), [np.int32(2), 3], iter([2, 3])])
def test_lengths_of_every_integer_kind(lengths: Any) -> None:
    assert Ragged.from_lengths(X, lengths).cu_seqlens.tolist() == [0, 2, 5]


@as_subtests("p, name", itertools.product([True, "0.5", None, torch.tensor(0.5)], ["weight_dropout", "zoneout"]))
def test_probabilities_are_numbers(name: str, p: Any) -> None:
    with pytest.raises(TypeError, match=name):
        LSTM(4, 2, **{name: p})
    with pytest.raises(ValueError, match="zoneout"):
        LSTM(4, 2, zoneout=(0.1, 0.2, 0.3))


def test_rows_and_streams_out_of_range() -> None:
    for stream in (-1, 2**32):
        with pytest.raises(ValueError, match="stream"):
            dropout(X, BOUNDS, 0.5, SEED, stream)
    for row in (-1, 6):
        with pytest.raises(ValueError, match="padding_idx"):
            embedding(WORDS, TABLE, row)
    for words in (torch.tensor([0, 6, 1, 1, 1]), torch.tensor([0, -1, 1, 1, 1])):
        with pytest.raises(IndexError):
            embedding(words, TABLE)


def test_too_many_tokens_for_int32() -> None:
    with pytest.raises(ValueError, match="int32"):
        LSTM(1, 1)(torch.empty(1, 1, device="meta").expand(2**16, 2**15, 1))
