"""Operations called as torch.ops.penstock.name, past the functions that check arguments: as compiled code calls them.

They keep what they promise a compiler, and refuse tensors of other forms, which C++ would read by their addresses.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import bounds
from subtested import as_subtests
from torch import Tensor

from penstock.kernels import dropout, embedding, lstm, ngram_bag  # noqa: F401 (they define operations)

CU, SEED, IDS = bounds([2, 0, 3]), torch.tensor(5), torch.tensor([7, 1, 9])
DROP = 0.5, CU, IDS, SEED


def ops(name: str) -> Any:
    return getattr(torch.ops.penstock, name).default


def x(*shape: int) -> Tensor:
    """Normal numbers; of several dimensions, the first two lie transposed."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.transpose(0, 1).contiguous().transpose(0, 1) if len(shape) > 1 else values.repeat_interleave(2)[::2]


QKV = x(5, 2, 4), x(5, 1, 4), x(5, 1, 4)
ATTENTION = (CU, CU, 3, 3, 0.5, -1, -1, 0.5, SEED, IDS)
ALL, PLAIN = ("cpu", "torch", "reference"), ("torch", "reference")
# {name: (the operation, its arguments but the backend, what has code of its own)}
CASES: dict[str, tuple[str, Callable[[], tuple[Any, ...]], tuple[str, ...]]] = {
    "residual_norm": (
        "residual_norm",
        lambda: (x(5, 4), x(5, 4), x(4), x(4), x(4), 1e-5, *DROP, True, True),
        ALL,
    ),
    "residual_norm, plain": (
        "residual_norm",
        lambda: (x(5, 4), x(5, 4), None, x(4), None, 1e-5, 0.0, None, None, None, False, False),
        ALL,
    ),
    "residual_norm_backward": (
        "residual_norm_backward",
        lambda: (x(5, 4), x(5, 4), x(5, 4), x(5), x(4), x(4), *DROP),
        ALL,
    ),
    "residual_norm_backward, plain": (
        "residual_norm_backward",
        lambda: (x(5, 4), None, x(5, 4), x(5), None, x(4), 0.0, None, None, None),
        ALL,
    ),
    "bias_gelu": ("bias_gelu", lambda: (x(5, 4), x(4), True), ALL),
    "bias_gelu_backward": ("bias_gelu_backward", lambda: (x(5, 4), x(5, 4), True), ALL),
    "geglu": ("geglu", lambda: (x(5, 8), x(8)), ALL),
    "geglu_backward": ("geglu_backward", lambda: (x(5, 4), x(5, 8), x(8)), ALL),
    "rotary": ("rotary", lambda: (QKV[0], QKV[1], x(5, 4), x(5, 4), False), ALL),
    "varlen_attention": ("varlen_attention", lambda: (*QKV, *ATTENTION), ALL),
    "varlen_attention, plain": ("varlen_attention", lambda: (*QKV, *ATTENTION[:-3], 0.0, None, None), ALL),
    "varlen_attention_backward": (
        "varlen_attention_backward",
        lambda: (x(5, 2, 4), *QKV, *ops("varlen_attention")(*QKV, *ATTENTION, "reference"), *ATTENTION),
        ALL,
    ),
    "ngram_bag": ("ngram_bag", lambda: (x(7, 4), IDS.int().repeat(2)[:5] % 4, CU, 4, 2), ("cpu", "reference")),
    "linear_backward": ("linear_backward", lambda: (x(5, 3), x(5, 4), True), PLAIN),
    **{
        f"segment_pool, {mode}": (
            "segment_pool",
            lambda m=mode: (x(5, 4), x(5) if m == "attention" else None, CU, m, False),
            PLAIN,
        )
        for mode in ("max", "mean", "last", "attention")
    },
    **{
        f"segment_pool_backward, {mode}": ("segment_pool_backward", lambda m=mode: of_pool(m), PLAIN)
        for mode in ("max", "mean", "last", "attention")
    },
    "dropout": ("dropout", lambda: (x(5, 4), CU, 0.5, SEED, 0, IDS, False), ("any",)),
    "keep_mask": ("keep_mask", lambda: (CU, 5, 0.5, SEED, 0, IDS, 4, False), ("any",)),
    "embedding": ("embedding", lambda: (IDS % 4, x(5, 4), 1), ("any",)),
    "embedding_backward": ("embedding_backward", lambda: (x(3, 4), IDS % 4, 5, 1), ("any",)),
    "lstm_cell": ("lstm_cell", lambda: (x(3, 16), x(3, 4)), PLAIN),
    "lstm_cell_backward": ("lstm_cell_backward", lambda: (x(3, 4), x(3, 4), x(3, 16), x(3, 4)), PLAIN),
    "lstm_layer": ("lstm_layer", lambda: (*layer(), False, True), ALL),
    "lstm_layer_backward": ("lstm_layer_backward", lambda: of_layer(), ("cpu",)),
}
EVERY = [(name, backend) for name, (*_, backends) in CASES.items() for backend in backends]


def of_pool(mode: str) -> tuple[Any, ...]:
    values, scores, *rest = CASES[f"segment_pool, {mode}"][1]()
    _, saved = ops("segment_pool")(values, scores, *rest, "reference")
    return x(3, 4), values if mode == "attention" else None, scores, saved, CU, 5, mode, False


def layer() -> tuple[Any, ...]:
    weights = [x(12, 4)], [x(12, 3)], [x(12)], [x(12)], []
    return x(5, 4), CU, 3, *weights, x(1, 3, 3), x(1, 3, 3), None, None, None, None, ""


def of_layer() -> tuple[Any, ...]:
    y, h, c, _, saved, _ = ops("lstm_layer")(*layer(), False, True, "cpu")
    return x(*y.shape), x(*h.shape), x(*c.shape), None, None, *layer(), y, saved, True, True


def arguments(name: str, backend: str) -> tuple[Any, ...]:
    return (*CASES[name][1](), *([] if backend == "any" else [backend]))


def test_every_operation_is_here() -> None:
    every = {
        name.removeprefix("penstock::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("penstock::") and "tests_" not in name and "swish" not in name
    }
    assert every == {operation for operation, *_ in CASES.values()}


@as_subtests("name, backend", EVERY)
def test_what_is_promised_of_shapes_strides_and_memory(name: str, backend: str) -> None:
    """Compiled code may hand on tensors that are strided."""
    checked = torch.library.opcheck(ops(CASES[name][0]), arguments(name, backend), test_utils=CHECKED)
    assert set(checked.values()) == {"SUCCESS"}


CHECKED = ("test_schema", "test_faketensor")


def others(tensor: Tensor) -> list[Tensor]:
    """Tensors of other forms: longer, shorter, of other dimensions, of another dtype."""
    found = [tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.float32)]
    found += [tensor.to(torch.int16), tensor[None].expand(2, *tensor.shape)]
    for dim in range(tensor.ndim):
        found += [tensor.narrow(dim, 0, tensor.shape[dim] - 1), torch.cat([tensor, tensor], dim)]
    return found + ([tensor.flatten()] if tensor.ndim > 1 else [])


GUARDED = [(name, backend) for name, backend in EVERY if backend == "cpu" and "lstm" not in name]
GUARDED += [(name, "torch") for name, (*_, backends) in CASES.items() if backends == PLAIN and "lstm" not in name]


SAVED = 2, 3  # scores, and what forward made of them


@as_subtests("name, backend", GUARDED)
def test_tensors_of_other_forms_are_refused_or_make_sense(name: str, backend: str) -> None:
    given = CASES[name][1]()
    call, refused = ops(CASES[name][0]), 0
    for place, tensor in enumerate(given):
        if not isinstance(tensor, Tensor) or (name.startswith("segment_pool_backward") and place in SAVED):
            continue
        for other in others(tensor):
            changed = *given[:place], other, *given[place + 1 :]
            try:
                found = call(*changed, backend)
            except (ValueError, RuntimeError):
                refused += 1
            else:
                torch.testing.assert_close(found, call(*changed, "reference"))
    assert refused


@as_subtests("name", [name for name, backend in GUARDED if backend == "cpu"])
def test_a_backend_is_asked_whether_it_serves(name: str) -> None:
    """In half precision C++ would read beyond the end."""
    low = [
        each.half() if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in arguments(name, "cpu")
    ]
    with pytest.raises((ValueError, RuntimeError)):
        ops(CASES[name][0])(*low)


@pytest.mark.parametrize("missing", [2, 3, 4])
def test_dropout_is_given_what_it_is_drawn_from(missing: int) -> None:
    given = list(arguments("residual_norm", "cpu"))
    given[5 + missing] = None
    with pytest.raises(ValueError, match=r"ids must|dropout needs"):
        ops("residual_norm")(*given)
