"""Keeping weights packed between calls, whatever for: what is asked of them, and how a change is seen."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from penstock.kernels import compiled, transforms

DTYPES = (None, torch.bfloat16, torch.int8)  # what `prepare_inference` takes
MOST_INT8_FEATURES = (2**31 - 1) // 127**2  # products of whole numbers up to 127 are summed in int32


def check_asked(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Raises RuntimeError where the module is in training, ValueError for a dtype that no `prepare_inference` takes."""
    if module.training:
        raise RuntimeError("prepare_inference is for inference: call eval() first")
    if dtype not in DTYPES:
        raise ValueError(f"prepare_inference takes {', '.join(map(str, DTYPES))}, got {dtype}")


def check_quantisable(weights: Iterable[Tensor], name: str = "one") -> None:
    """Raises ValueError where int8 cannot stand for one of them, nor its products."""
    for weight in weights:
        features = weight.shape[1]
        if features > MOST_INT8_FEATURES:
            raise ValueError(f"int8 takes up to {MOST_INT8_FEATURES:,} input features, and {name} has {features:,}")
        if not bool(weight.isfinite().all()):
            raise ValueError(f"int8 takes finite weights, and {name} holds NaN or infinity")


def refuse(what: str, dtype: torch.dtype, reason: str) -> NoReturn:
    """Raises RuntimeError: a module that is prepared to answer in a dtype is called where it cannot."""
    raise RuntimeError(
        f"this {what} is prepared to answer in {name(dtype)}, which this call cannot: {reason} (train() undoes "
        "prepare_inference)"
    )


def why_seen(tensors: Sequence[Tensor | None], weights: Any) -> str | None:
    """Why a call must go through torch's operations, with the weights themselves.

    Args:
        tensors: what the call reads besides its weights. weights: tensors, also in lists.
    """
    if transforms.is_intercepted():
        return "it is traced, compiled, transformed or watched by a mode of torch"
    if any(type(tensor) not in transforms.PLAIN or (tensor is not None and tensor.is_meta) for tensor in tensors):
        return "its tensors are of a subclass, or without memory"
    if transforms.wants_gradient((tensors, weights)):
        return "it records gradients: call it under torch.no_grad()"
    return None


def why_not_kept(weights: Iterable[Tensor]) -> str | None:
    """Why weights cannot be kept packed: a change of theirs would not be seen, or they do not lie in one piece."""
    weights = list(weights)
    if any(type(weight) is not nn.Parameter for weight in weights):
        return "a weight is no parameter but computed, by a parametrization or by pruning, or of a subclass"
    if any(weight.is_inference() for weight in weights):
        return "the weights were made in torch.inference_mode(), which counts no changes of theirs"
    if not all(weight.is_contiguous() and not weight.is_neg() for weight in weights):
        return "a weight is not contiguous"
    return None


def state_of(weights: Sequence[Tensor]) -> tuple[Any, ...]:
    """What differs once weights that were packed are of no more use.

    torch counts a tensor's changes, but not those made by way of `.data` or NumPy: of each tensor some words are
    compared too.
    """
    pieces = [(weight.data_ptr(), weight.numel() * weight.itemsize) for weight in weights]
    versions = [weight._version for weight in weights]
    return compiled.isa(), pieces, versions, compiled.native.sampled(pieces)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def nothing() -> None:
    """What a deep copy and a pickle of a module have in the place of its packed weights."""
