"""How many transforms of ``torch.func`` and of forward mode are at work."""

from torch._C import _functorch
from torch.autograd import forward_ad


def transform_depth() -> int:
    """Count the transforms at work, eagerly or while ``torch.compile`` traces: levels of ``torch.func`` and duals.

    The tracer guards on the result. At depth 0 a custom backward is safe; deeper, the tracer would drop it without a
    word.
    """
    return _functorch_depth() + (forward_ad._current_level >= 0)


def _functorch_depth() -> int:
    level: int | None = _functorch.maybe_current_level()
    return level or 0


# What torch.compiler.assume_constant_result does, without importing the compiler, and Triton with it, for those who
# do not compile.
_functorch_depth._dynamo_marked_constant = True  # type: ignore[attr-defined]
