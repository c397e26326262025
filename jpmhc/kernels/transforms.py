"""What is at work around a call: transforms of ``torch.func``, forward mode, gradients."""

import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

FunctionClass = TypeVar("FunctionClass", bound=type[torch.autograd.Function])


def transform_depth() -> int:
    """Count the transforms at work, eagerly or while ``torch.compile`` traces: levels of ``torch.func`` and duals.

    The tracer guards on the result. At depth 0 a custom backward is safe; deeper, the tracer would drop it without a
    word.
    """
    return _functorch_depth() + (forward_ad._current_level >= 0)


def recorded() -> bool:
    """Whether a compiler, a trace or a mode of dispatch writes down what is computed, and sizes may be symbols."""
    if torch.compiler.is_compiling():
        return True
    return bool(torch._C._is_tracing()) or torch._C._len_torch_dispatch_stack() > 0


def wants_derivative(*args: Any) -> bool:
    """Whether a derivative of what is computed from these arguments now may be asked for, or a transform is at work."""
    if transform_depth():
        return True
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in args)


def signed(function: FunctionClass) -> FunctionClass:
    """Keep the signature of a function's forward, which torch works out at every call: 45 us for twelve arguments."""
    forward: Any = function.forward
    forward.__signature__ = inspect.signature(forward)
    return function


def _functorch_depth() -> int:
    level: int | None = _functorch.maybe_current_level()
    return level or 0


# What torch.compiler.assume_constant_result does, without importing the compiler, and Triton with it, for those who
# do not compile.
_functorch_depth._dynamo_marked_constant = True  # type: ignore[attr-defined]
