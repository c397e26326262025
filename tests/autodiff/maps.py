"""The maps, each with a definition that torch differentiates operation by operation."""

import torch

from jpmhc import autodiff


def unrolled_sinkhorn(logits, iterations=120):
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def cayley_by_inverse(raw):  # not torch.linalg.solve: its forward-over-forward derivative is wrong in torch 2.13
    b = (raw - raw.mT) / 2
    identity = torch.eye(3, dtype=raw.dtype)
    return torch.linalg.inv(identity - b) @ (identity + b)


def polar_by_quadrature(matrix, nodes=128):
    """``A (A^T A)^(-1/2)`` by the integral of ``A (sin^2 I + cos^2 A^T A)^-1`` over a quarter turn."""
    angle = (torch.arange(nodes, dtype=matrix.dtype) + 0.5) * torch.pi / 2 / nodes
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    gram = (matrix.mT @ matrix).unsqueeze(-3)
    mean = torch.linalg.inv(sine**2 * torch.eye(matrix.shape[-1], dtype=matrix.dtype) + cosine**2 * gram).mean(-3)
    return matrix @ mean


MAPS = {
    "sinkhorn": (autodiff.sinkhorn, unrolled_sinkhorn),
    "cayley": (autodiff.cayley, cayley_by_inverse),
    "polar": (autodiff.polar, polar_by_quadrature),
}
