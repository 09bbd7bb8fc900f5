"""Whether an exported file computes what the run does: the logits of both on generated batches."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from penstock.engine.errors import ModelError
from penstock.engine.models import EncoderClassifier

BOUND = 1e-4  # of the greatest logit, or of 1 where that is less
_SHAPES = ((1, 1), (3, 6), (5, 33), (2, 200))  # texts, tokens of the longest


@dataclass(frozen=True)
class Compared:
    """
    Attributes:
        texts, longest: how many were compared, and the tokens of the longest.
        difference, allowed: of two logits, the greatest there was, and the greatest there may be.
    """

    texts: int
    longest: int
    difference: float
    allowed: float


def compare(model: Any, file: bytes, inputs: Sequence[str]) -> Compared | None:
    """
    Args:
        model: of the run, on the CPU. inputs: names of the file's.

    Returns:
        None where onnxruntime is not installed.

    Raises:
        ModelError: they differ by more than rounding.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    texts = longest = 0
    difference = greatest = 0.0
    for batch in _batches(model):
        batch = {name: batch[name] for name in inputs}
        with torch.no_grad():
            ours = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()
        theirs = session.run(["logits"], batch)[0]
        texts, longest = texts + len(ours), max(longest, batch["input_ids"].shape[1])
        apart = np.abs(ours - theirs)
        difference = max(difference, float(np.where(np.isfinite(apart), apart, np.inf).max()))
        greatest = max(greatest, float(np.abs(ours).max()))
    compared = Compared(texts, longest, difference, BOUND * max(1.0, greatest))
    if not compared.difference <= compared.allowed:
        raise ModelError(
            f"the ONNX file would not compute what the run does: on {texts} generated texts logits differ by up to "
            f"{difference:.1e}, and rounding explains {compared.allowed:.1e}; nothing was written"
        )
    return compared


def _batches(model: Any) -> Iterator[dict[str, np.ndarray]]:
    """int64 (texts, tokens) arrays of all that a model may read: texts of all lengths, padded on the right."""
    draw = np.random.default_rng(0)
    is_encoder = isinstance(model, EncoderClassifier)
    padding = model.config.pad_token_id or 0
    for texts, longest in _SHAPES:
        longest = min(longest, model.max_length) if is_encoder else longest
        lengths = draw.integers(int(is_encoder), longest, texts, endpoint=True)  # an encoder reads one token at least
        lengths[0] = longest
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = draw.integers(0, model.config.vocab_size, mask.shape)
        ids[ids == padding] = padding - 1 if padding else 1  # to some encoders it is no token
        seconds = np.arange(longest) >= draw.integers(0, lengths, endpoint=True)[:, None]
        yield {
            "input_ids": np.where(mask, ids, padding),
            "attention_mask": mask,
            "token_type_ids": seconds * mask,
        }
