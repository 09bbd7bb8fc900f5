"""Temperature scaling (Guo et al. 2017): one number that makes a model's probabilities as sure as they are right."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

from penstock.engine.models import load_model
from penstock.engine.models.build import TEMPERATURE
from penstock.engine.models.start import output_layer_name
from penstock.engine.training.evaluation import calibration_error, reliability_bins

CONFIG_ENTRY = TEMPERATURE
_BOUNDS = 1e-2, 1e2


@dataclass(frozen=True)
class Calibration:
    """
    Attributes:
        temperature: what the logits were divided by.
        loss_before, loss_after: mean cross-entropy on the validation rows, nats.
        error_before, error_after: expected calibration error there; with lists of labels, over all examples and labels.
        bound: 0.01 or 100 where the cross-entropy is least there, at an end of what is tried: the rows do not tell
            which temperature is right, and it is 1. None where they do.
    """

    temperature: float
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float
    bound: float | None = None

    def describe(self, rows: int) -> str:
        """One line, for the user. Args: rows: how many there were to find it on."""
        if self.bound is not None:
            why = "all of them are told right" if self.bound < 1 else "the model tells them no better than chance"
            return (
                f"warning: training.calibrate changes nothing: on {rows:,} validation rows the best temperature is at "
                f"the bound of {self.bound:g}: they are too few, or {why}; the probabilities stay as they are"
            )
        return (
            f"calibrated: temperature {self.temperature:.3f}; on the validation rows the expected calibration error "
            f"goes from {self.error_before:.4f} to {self.error_after:.4f}, "
            f"the loss from {self.loss_before:z.4f} to {self.loss_after:z.4f}"
        )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """The temperature of the least cross-entropy; 1 where none is better, or the rows do not tell which is.

    Args:
        logits: float (examples, classes).
        labels: int64 (examples,), or 0 and 1 for each label, (examples, classes).
    """
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if labels.ndim == 2:
            return float((np.logaddexp(0, scaled) - labels * scaled).mean())
        return 0.0 - float(log_softmax(scaled, axis=1)[rows, labels].mean())  # of 0 it is 0, not -0

    found = minimize_scalar(loss, bounds=tuple(np.log(_BOUNDS)), method="bounded", options={"xatol": 1e-6})
    temperature, bound = 1.0, None
    if found.fun < loss(0.0):
        # towards it the loss only falls, or is 0 from somewhere on
        bound = next((end for end in _BOUNDS if loss(np.log(end)) <= found.fun), None)
        temperature = float(np.exp(found.x)) if bound is None else 1.0
    return Calibration(
        temperature,
        loss(0.0),
        loss(np.log(temperature)),
        _calibration_error(logits, labels),
        _calibration_error(logits / temperature, labels),
        bound,
    )


def scale_logits(model: Any, temperature: float) -> None:
    """Divides a model's logits by folding the temperature into its output layer: exact, and nothing that loads the
    model has to know. Its configuration keeps the number."""
    layer = model.get_submodule(output_layer_name(model, len(model.config.id2label)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(temperature)
    setattr(model.config, CONFIG_ENTRY, temperature)


def calibrated(folder: Path, fit: Callable[[Any], Calibration]) -> tuple[Any, Calibration] | None:
    """The saved model with its logits scaled; None if that was done before it was saved.

    Args:
        fit: finds the temperature of the model that it is given.
    """
    model: Any = load_model(folder)
    if getattr(model.config, CONFIG_ENTRY, None) is not None:
        return None
    calibration = fit(model)
    scale_logits(model, calibration.temperature)
    return model, calibration


def _calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    if labels.ndim == 2:
        confidence, right = expit(logits).ravel(), labels.ravel() > 0
    else:
        probabilities = np.exp(log_softmax(logits, axis=1))
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    return calibration_error(reliability_bins(confidence, right))
