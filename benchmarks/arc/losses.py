"""The token loss and what counts as a right answer."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.arc.encode import PAD


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of every sample over its labelled tokens, in float64.

    Probabilities are ``s(x) / sum s(x)`` with ``s(x) = x + 1`` for x >= 0 and ``1 / (1 - x)`` below
    (arXiv 2501.04697).

    Parameters
    ----------
    logits : Tensor, shape (B, L, V)
    labels : Tensor of int64, shape (B, L)
        `PAD` carries no loss; a sample without labels has loss 0.

    Returns
    -------
    Tensor, shape (B,)
    """
    x = logits.double()
    # The branch not taken must stay finite, or its gradient is NaN.
    log_s = torch.where(x >= 0, torch.log1p(x.clamp_min(0)), -torch.log1p(-x.clamp_max(0)))
    log_p = log_s.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_s.logsumexp(-1)
    labelled = labels != PAD
    return -(log_p * labelled).sum(-1) / labelled.sum(-1).clamp_min(1)


def correct_tokens(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every sample, the share of labelled tokens that are right, and whether all are."""
    labelled = labels != PAD
    share = ((predicted == labels) & labelled).sum(-1) / labelled.sum(-1).clamp_min(1)
    return share, share == 1
