"""The recipe's two optimisers and its weight average: AdamATan2, sign-SGD on embedding rows, EMA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arc.shards import local


class AdamATan2(torch.optim.Optimizer):
    """Adam whose step is ``lr / (1 - beta1^t) * atan2(m, sqrt(v / (1 - beta2^t)))``: no epsilon, scale-free.

    Everett et al., arXiv 2407.05872, with the scaling of the package that TRM uses (there, as here, atan2 carries no
    factor 4 / pi and the bias of m is divided out after it). Weight decay is decoupled.

    Parameters
    ----------
    params : iterable
        Parameters or groups. Of those in shards each process moves its own rows and keeps their state.
    lr, betas, weight_decay : float, (float, float), float
        TRM's defaults.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            for p in moved:
                if not self.state[p]:
                    mean, square = (torch.zeros_like(local(p)) for _ in range(2))
                    self.state[p] = {"step": 0, "mean": mean, "square": square}
                self.state[p]["step"] += 1
            lr, (beta1, beta2) = group["lr"], group["betas"]
            params: list[Tensor] = [local(p) for p in moved]
            gradients: list[Tensor] = [local(p.grad) for p in moved]
            means = [self.state[p]["mean"] for p in moved]
            squares = [self.state[p]["square"] for p in moved]
            steps = [self.state[p]["step"] for p in moved]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, [(1 - beta2**t) ** 0.5 for t in steps])
            angles = [torch.atan2(m, r) for m, r in zip(means, roots, strict=True)]
            torch._foreach_mul_(angles, [-lr / (1 - beta1**t) for t in steps])
            torch._foreach_add_(params, angles)


@torch.no_grad()
def sign_sgd_(table: Tensor, ids: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
    """Move the rows of a table that a batch used by the sign of their gradient, in place.

    Parameters
    ----------
    table : Tensor, shape (N, d)
        Embeddings.
    ids : Tensor of int64, shape (B,)
        Row of every sample; a row may occur often, its gradients are summed first.
    gradient : Tensor, shape (B, d)
        Of every sample's row.
    lr, weight_decay : float
        Step, and decoupled decay of the rows used.
    """
    rows, place = ids.unique(return_inverse=True)
    total = gradient.new_zeros(len(rows), gradient.shape[1]).index_add_(0, place, gradient)
    table[rows] = table[rows] * (1 - lr * weight_decay) - lr * total.sign()


class Average:
    """Exponential moving average of a module's parameters, ``average <- decay average + (1 - decay) weights``.

    Of parameters in shards each process averages its own rows.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: local(p.detach()).clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present weights."""
        present = [local(p.detach()) for p in module.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), present, 1 - self.decay)
