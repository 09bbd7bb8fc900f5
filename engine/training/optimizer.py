"""AdamW with decay where it belongs."""

import torch
from torch import Tensor, nn

from penstock.engine.errors import ConfigError


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float | None = None
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters: biases, norms and other vectors are not decayed.

    Args:
        layer_decay: of an encoder: the learning rate of a layer as a share of that of the layer above it; the head's
            share is 1, the embeddings' the lowest (as in Clark et al., ICLR 2020). Whoever sets the learning rate
            multiplies it by a group's entry "share".

    Raises:
        ConfigError: layer_decay is given for a model that has no layers to tell apart.
    """
    if layer_decay is not None and not hasattr(model, "depths"):
        raise ConfigError("training.layer_decay is for encoders; leave it out, or set model.kind=encoder")
    depths = {} if layer_decay is None else model.depths()  # type: ignore[operator]
    top = max(depths.values(), default=0)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            share = 1.0 if layer_decay is None else layer_decay ** (top - depths[parameter])
            groups.setdefault((share, parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[share, is_matrix], "weight_decay": weight_decay if is_matrix else 0.0, "share": share}
            for share, is_matrix in sorted(groups, reverse=True)
        ],
        lr=learning_rate,
        fused=True,
    )
