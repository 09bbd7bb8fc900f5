"""The learning rate as a pure function of how much of the run is done."""

import math


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
