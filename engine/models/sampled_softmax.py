"""The cross-entropy over a large vocabulary, from a few of its tokens."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # torch's own sign for a target that no loss counts


def inclusion_probabilities(counts: np.ndarray, candidates: int) -> np.ndarray:
    """float64 (vocab_size,): with which probability each token is among the candidates.

    In proportion to the number of times that it occurs, to the power 3/4 (Mikolov et al., NeurIPS 2013), but 1 at most;
    they add up to the number of candidates.

    Args:
        counts: integers (vocab_size,). candidates: 1 to vocab_size.
    """
    weights = (counts + 1.0) ** 0.75
    result = np.ones(len(counts))
    left = np.arange(len(counts))
    rest = float(candidates)
    while len(left) > rest:
        share = weights[left] * (rest / weights[left].sum())
        certain = share >= 1.0
        if not certain.any():
            result[left] = share
            break
        rest -= certain.sum()
        left = left[~certain]
    return result


def draw_candidates(inclusion: Tensor) -> Tensor:
    """int64 (candidates,): different tokens, each with its probability, drawn from torch's generator.

    Systematic sampling (Madow, Annals of Mathematical Statistics 20, 1949) of the tokens in random order.

    Args:
        inclusion: float64 (vocab_size,), which add up to a whole number.
    """
    order = torch.randperm(len(inclusion), device=inclusion.device)
    ends = inclusion[order].cumsum(0)
    count = round(float(inclusion.sum()))
    points = torch.arange(count, device=ends.device) + torch.rand((), dtype=ends.dtype, device=ends.device)
    return order[torch.searchsorted(ends, points, right=True).clamp(max=len(order) - 1)]


def sampled_cross_entropy(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, candidates: Tensor, log_inclusion: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and at how many places the target has the highest score among the candidates.

    The softmax's denominator is estimated from the candidates, each weighted by the inverse of the probability with
    which it is one (Horvitz and Thompson, JASA 47, 1952), which for a logit is the correction of Jean et al. (ACL 2015,
    section 3.1); the target counts once, whether it is a candidate or not.

    Args:
        hidden: (places, width). table: (vocab_size, width). bias: (vocab_size,). targets: int64 (places,), IGNORED
            where there is none. candidates: int64 (candidates,). log_inclusion: float32 (vocab_size,), the logarithms
            of their probabilities.
    """
    count = len(candidates)
    wanted = targets.clamp(min=0)
    rows = F.embedding(torch.cat([candidates, wanted]), table)  # together: one gradient of the table
    scores = hidden @ rows[:count].T
    scores = scores.float() + (bias[candidates] - log_inclusion[candidates])
    scores = scores.masked_fill(candidates == wanted[:, None], float("-inf"))
    own = (hidden.float() * rows[count:].float()).sum(-1) + bias[wanted]
    counts = targets >= 0
    loss = torch.logaddexp(own, scores.logsumexp(-1)) - own
    right = (own.detach() >= scores.detach().amax(-1)) & counts
    return loss.where(counts, 0.0).sum(), right.sum()


def exact_cross_entropy(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same over the whole vocabulary."""
    return cross_entropy_of(F.linear(hidden, table).float() + bias, targets)


def cross_entropy_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses of logits, (places, vocab_size), and at how many places the target has the highest one."""
    loss = F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)
    return loss, (logits.detach().argmax(-1) == targets).sum()
