"""What a solve reports: the residual of every sample, and what happens when one stays too large."""

from __future__ import annotations

import math
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Check = Literal["raise", "warn", "none"]


class NotConvergedError(RuntimeError):
    """A solve ended before every sample reached its tolerance, or met NaN or infinity.

    Attributes
    ----------
    sample : tuple of int
        Index of the worst sample in the batch; dimensions mapped by ``torch.vmap`` come first.
    residual : float
        Its residual; not finite when the function returned NaN or infinity.
    steps : int
        Steps taken.
    """

    def __init__(self, message: str, sample: tuple[int, ...], residual: float, steps: int) -> None:
        super().__init__(message)
        self.sample = sample
        self.residual = residual
        self.steps = steps

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.sample, self.residual, self.steps)


class ConvergenceWarning(UserWarning):
    """A solve ended above its tolerance, or met NaN or infinity, under ``check="warn"``.

    It points at the call, of `fixed_point` or of ``backward``, and its words do not depend on residuals, so that under
    Python's default filter a line of code warns once (once a step at which the function returned NaN or infinity).
    """


_INTERNAL = (os.path.dirname(os.path.dirname(__file__)) + os.sep, os.path.dirname(torch.__file__) + os.sep)


def _level_of_the_call() -> int:
    """``stacklevel``, for the caller of this function, of the innermost frame outside of this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        level, frame = level + 1, frame.f_back
    return level


class _Physical(torch.autograd.Function):
    """The tensor itself, with the axes mapped by ``torch.vmap`` in front: something that the host can read."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], values: Tensor) -> tuple[Tensor, None]:
        return _Physical.apply(values.movedim(in_dims[0] or 0, 0)), None


def _physical(values: Tensor) -> Tensor:
    # Applying a Function costs 50 us, more than a step of a small problem.
    values = values.detach()
    return _Physical.apply(values) if torch._C._are_functorch_transforms_active() else values


@dataclass(frozen=True)
class Watch:
    """Reads residuals on behalf of one solve, and reports a failure.

    Parameters
    ----------
    check : {"raise", "warn", "none"}
        What to do about a failure; ``"none"`` never reads the device.
    subject, advice : str
        First and last words of the message.
    """

    check: Check
    subject: str
    advice: str

    def stops(self, residual: Tensor, tol: float) -> bool:
        """Whether nothing is left to do: every sample is within ``tol``, or one is not finite."""
        if self.check == "none":
            return False
        if residual.numel() == 0:
            return True
        worst = _physical(residual).amax().item()
        return worst <= tol or not math.isfinite(worst)

    def ends(self, running: Tensor) -> bool:
        """Whether no sample is ``running`` any more, as far as the device may be read."""
        return self.check != "none" and not bool(_physical(running).any())

    def conclude(self, residual: Tensor, tol: float, steps: int) -> None:
        """Raise or warn if a sample ended above ``tol`` after ``steps``."""
        if self.check == "none" or residual.numel() == 0:
            return
        residual = _physical(residual)
        flat = residual.reshape(-1)
        worst = flat.amax().item()
        if worst <= tol:
            return
        if self.check == "warn":
            missed = f"did not converge in {steps} steps to tol={tol:.0e}"
            problem = missed if math.isfinite(worst) else f"met NaN or infinity at step {steps}"
            report = "residual and adjoint_residual of the solution say in which samples"
            message = f"{self.subject} {problem}; {report}; {self.advice}"
            warnings.warn(message, ConvergenceWarning, stacklevel=_level_of_the_call())
            return
        position = int(torch.where(flat.isfinite(), flat, math.inf).argmax())
        worst = float(flat[position])
        sample = tuple(int(i) for i in torch.unravel_index(torch.tensor(position, device="cpu"), residual.shape))
        where = f"sample {sample[0] if len(sample) == 1 else sample}" if sample else "the only sample"
        if math.isfinite(worst):
            problem = (
                f"did not converge in {steps} steps: {int((flat > tol).sum())} of {flat.numel()} samples above "
                f"tol={tol:.0e}, worst {where} with residual {worst:.1e}"
            )
        else:
            problem = f"met NaN or infinity at step {steps} in {where}"
        raise NotConvergedError(f"{self.subject} {problem}; {self.advice}", sample, worst, steps)
