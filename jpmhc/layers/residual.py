"""The plain residual, with the calls of a hyper-connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from jpmhc.layers.outputs import replace_first_tensor


class Residual(nn.Module):
    """``x + branch(x)`` behind the same calls as :class:`~jpmhc.layers.HyperConnection`, for comparisons.

    Parameters
    ----------
    branch : Callable, optional
        Module or function (..., d) -> (..., d); may be left out when :meth:`read` is used alone.

    Examples
    --------
    >>> import torch
    >>> Residual(torch.nn.Identity())(torch.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(self, branch: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.branch = branch

    def read(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the branch input, x itself, and the function that adds a branch's result to x.

        Raises
        ------
        ValueError
            From the function, if the result is not of the shape of x.
        """

        def write(y: Tensor) -> Tensor:
            if y.shape != x.shape:
                raise ValueError(f"branch: expected a result of shape {tuple(x.shape)}, got {tuple(y.shape)}")
            return x + y

        return x, write

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return ``x + branch(x, *args, **kwargs)``, in the place of the first tensor that the branch returns.

        Raises
        ------
        TypeError
            If there is no branch.
        """
        if self.branch is None:
            raise TypeError("branch: this Residual wraps none; use `u, write = residual.read(x)`")
        u, write = self.read(x)
        return replace_first_tensor(self.branch(u, *args, **kwargs), write)
