"""Value checks on every call, for debugging: ``with manifolds.checked():``."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CHECKED: ContextVar[bool] = ContextVar("jpmhc_manifolds_checked", default=False)


@contextmanager
def checked() -> Iterator[None]:
    """Check the values of every argument and result of every map of a manifold.

    Inside, a point that holds NaN or infinity or is off its manifold by more than 1e-5, and a tangent vector that is
    off its tangent space by more than 1e-5 of its size, raise ``ValueError`` naming the argument and the fault.
    Reads the device once a tensor. Without effect inside ``torch.compile`` and ``torch.func`` transforms, where there
    is no value to look at.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> sphere = manifolds.Sphere()
    >>> with manifolds.checked():
    ...     sphere.dist(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    Traceback (most recent call last):
        ...
    ValueError: y: off the Sphere manifold by 3 (tolerance 1e-05); project it with projx
    """
    token = _CHECKED.set(True)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def is_checked() -> bool:
    """Whether `checked` is in force here."""
    return _CHECKED.get()
