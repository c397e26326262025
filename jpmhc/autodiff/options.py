"""Checks of the options of solvers and adjoints."""

from __future__ import annotations


def check_tolerance(tol: float | None) -> None:
    """Refuse a tolerance that is not positive; ``None`` stands for the default of the dtype."""
    if tol is not None and not tol > 0:
        raise ValueError(f"tol: expected a positive number, got {tol}")


def check_count(name: str, count: int) -> None:
    """Refuse a count that is not a positive integer."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name}: expected a positive integer, got {count!r}")


def check_damping(damping: float) -> None:
    """Refuse a share of a step outside (0, 1]."""
    if not 0 < damping <= 1:
        raise ValueError(f"damping: expected the share of a step that is taken, in (0, 1], got {damping}")
