"""AdamW with decay where it belongs, Adagrad for sparse gradients, and the learning rate's schedule."""

import math

import torch
from torch import Tensor, nn

from penstock.engine.errors import ConfigError
from penstock.engine.training.adagrad import RowAdagrad
from penstock.engine.training.table_adamw import TableAdamW


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float | None = None
) -> torch.optim.Optimizer:
    """Fused AdamW over the trainable parameters: biases, norms and other vectors are not decayed.

    A model with sparse gradients has Adagrad, whose steps leave alone what has no gradient.

    Args:
        layer_decay: the learning rate of a layer as a share of that of the layer above it; the head's share is 1, the
            embeddings' the lowest (Howard & Ruder, ACL 2018, for an LSTM; Clark et al., ICLR 2020, for an encoder).
            Whoever sets the learning rate multiplies it by a group's entry "share".

    Raises:
        ConfigError: layer_decay is given for a model that has no layers to tell apart.
    """
    if layer_decay is not None and not hasattr(model, "depths"):
        raise ConfigError("training.layer_decay is for models with layers, lstm and encoder: leave it out")
    if any(isinstance(module, nn.Embedding) and module.sparse for module in model.modules()):
        return RowAdagrad([parameter for parameter in model.parameters() if parameter.requires_grad], lr=learning_rate)
    depths = {} if layer_decay is None else model.depths()  # type: ignore[operator]
    top = max(depths.values(), default=0)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            share = 1.0 if layer_decay is None else layer_decay ** (top - depths[parameter])
            groups.setdefault((share, parameter.ndim >= 2), []).append(parameter)
    return TableAdamW(
        [
            {"params": groups[share, is_matrix], "weight_decay": weight_decay if is_matrix else 0.0, "share": share}
            for share, is_matrix in sorted(groups, reverse=True)
        ],
        lr=learning_rate,
        fused=True,
    )


def learning_rate_factor(progress: float, *, warmup: float, schedule: str) -> float:
    """The factor on the peak learning rate: a linear rise over `warmup`, then a fall to 0 at the end of the run.

    Args:
        progress: done share of the run, 0 to 1. warmup: share of the run in which the rate rises.
        schedule: "linear", "cosine" (half a period) or "constant" (no fall).
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    if schedule == "constant":
        return 1.0
    remaining = (1.0 - progress) / (1.0 - warmup) if warmup < 1.0 else 0.0
    return remaining if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * remaining))
