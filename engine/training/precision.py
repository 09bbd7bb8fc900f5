"""Mixed precision: which type, and the contexts that apply it."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from penstock.engine.errors import ConfigError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16" for "auto": bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU.

    Raises:
        ConfigError: the device cannot train in the precision asked for.
    """
    if precision == "auto":
        if device.type != "cuda":
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            return "bf16" if native else "fp32"
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision=fp16 needs a GPU: on a CPU use bf16 or fp32")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast context of a resolved precision, whatever context the caller is in."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    # torch keeps what it cast until the outermost context is left: in a caller's own, weights would be those of before
    return torch.autocast(device.type, dtype=_DTYPES[precision], cache_enabled=not _is_within_autocast())


def _is_within_autocast() -> bool:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth > 1


@contextlib.contextmanager
def usual_defaults(device: torch.device) -> Iterator[None]:
    """What torch begins with, whatever the caller has set: gradients, float32 where nothing else is said, no autocast,
    which would reach backward too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    no_autocast = torch.autocast(device.type, enabled=False) if _is_within_autocast() else contextlib.nullcontext()
    try:
        with torch.inference_mode(False), torch.enable_grad(), no_autocast:
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def tf32(wanted: bool | None) -> Iterator[None]:
    """Whether a GPU multiplies float32 matrices in TF32 meanwhile; None leaves it as torch is set."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if wanted is not None:
        matmul.allow_tf32 = cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        if wanted is not None:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which only fp16 needs; disabled otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
