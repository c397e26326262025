"""The fixed point of a function, with its derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jpmhc.autodiff.adjoints import Adjoint, Implicit
from jpmhc.autodiff.captures import find_captures
from jpmhc.autodiff.convergence import Check
from jpmhc.autodiff.derivatives import AdjointRecord
from jpmhc.autodiff.equation import Equation
from jpmhc.autodiff.packing import Layout
from jpmhc.autodiff.precision import raised
from jpmhc.autodiff.recording import Lifted, Recording
from jpmhc.autodiff.solvers import Anderson, Solver
from jpmhc.kernels.precision import full_precision

State = TypeVar("State")

_ANDERSON = Anderson()
_IMPLICIT = Implicit()


@dataclass(frozen=True, eq=False)
class Solution(Generic[State]):
    """A fixed point with what is known about it.

    Attributes
    ----------
    value : tensor or tree of tensors
        The solution, like ``z0``.
    steps : Tensor, shape batch, int64
        Steps that each sample took, one evaluation of the function each and with `Newton` a second one.
    residual : Tensor, shape batch
        ``max |fn(z) - z| / (1 + max |z|)`` of each sample, at ``value``.
    converged : Tensor, shape batch, bool
        Whether the residual is at most the solver's ``tol``.
    """

    value: State
    steps: Tensor
    residual: Tensor
    converged: Tensor
    _record: AdjointRecord = field(repr=False)

    @property
    def adjoint_residual(self) -> Tensor | None:
        """``|b - (I - J) x| / (|b| + |x|)`` of each sample in the last linear solve of a derivative of this solution.

        ``None`` before the first, for adjoints that solve nothing, and inside ``torch.compile``. Axes mapped by
        ``torch.vmap`` come first.
        """
        return self._record.residual


def fixed_point(
    fn: Callable[..., State],
    z0: State,
    *args: Any,
    solver: Solver = _ANDERSON,
    adjoint: Adjoint = _IMPLICIT,
    batch_dims: int = 1,
    check: Check = "raise",
) -> Solution[State]:
    """Solve ``z = fn(z, *args)`` and differentiate the solution.

    Parameters
    ----------
    fn : callable
        ``fn(z, *args)`` returns a state like ``z``. It must be deterministic and treat every sample on its own: with
        batch statistics inside, set ``batch_dims=0``.
    z0 : tensor or tree of tensors
        Where the solver starts. Every leaf has the batch dimensions in front and is real and floating-point.
    *args : tensors, trees of tensors, anything
        Passed on. Derivatives reach every tensor in here, and every tensor that ``fn`` captured: parameters of a
        module, variables of an enclosing function.
    solver : Picard | Anderson | Broyden | Newton, default=Anderson()
        How to find the solution, with ``tol`` and ``max_steps``.
    adjoint : Implicit | Unrolled | PhantomGradient, default=Implicit(GMRES())
        How to differentiate it.
    batch_dims : int, default=1
        Leading dimensions that count samples. Each sample converges, and stops, on its own.
    check : {"raise", "warn", "none"}, default="raise"
        What happens when a solve, of the solution or of a derivative, ends above its tolerance. ``"raise"`` and
        ``"warn"`` read the device once a step and stop early. ``"none"`` takes exactly ``max_steps`` steps, freezes
        converged samples and never reads the device; it is the one for ``torch.compile`` and CUDA graphs.

    Returns
    -------
    Solution
        ``value``, and per sample ``steps``, ``residual``, ``converged``; ``adjoint_residual`` after a derivative.

    Raises
    ------
    NotConvergedError
        Under ``check="raise"``; at once when ``fn`` returns NaN or infinity. Also from ``backward``.
    ValueError, TypeError
        The output of ``fn`` has another structure, shape, dtype or device than ``z0``; ``fn`` writes to its arguments
        in place; a derivative enters it where it cannot be followed; an option is out of range; ``check`` is not
        ``"none"`` where ``torch.compile`` traces the call.
    RuntimeError
        From a derivative: ``fn`` no longer does what it did when the equation was solved, or what it uses was written
        to since.

    Notes
    -----
    ``fn`` is called twice more than the solver asks, at ``z0`` and at the solution, to see what it captures. If it
    captures at the solution what it did not at ``z0``, the equation is solved a second time, with the new arguments.
    Derivatives call it again and hand its operations, one by one, the tensors that they took at the solution, whatever
    its variables, attributes or a `torch.func.functional_call` point to by then; once it takes other operations, they
    know captured tensors by their identity.

    With `Implicit`, backward saves the solution and the tensors in ``args``, nothing of the iteration. Derivatives of
    any order, in reverse and forward mode and mixed, are those of the equation, also under ``torch.vmap``. A mapped
    axis joins the batch; the solves never see it. The derivative with respect to ``z0`` is zero.

    States and arguments in half precision are raised to float32 and autocast is switched off inside; ``value`` has the
    dtype of ``z0``.

    The derivative of ``fn`` is that of ``torch.func.vjp``. What this refuses, `Implicit` cannot differentiate:
    ``torch.utils.checkpoint`` inside ``fn``, an ``autograd.Function`` without ``setup_context``, a custom operator with
    ``register_autograd``, batch normalisation in training mode with running statistics (``track_running_stats=False``
    works).

    Inside ``torch.compile`` the loop is unrolled: choose ``max_steps`` with care. There ``Implicit`` solves with its
    linear solver in plain reverse mode, and with the full Jacobian, ``D x D`` numbers a sample, under ``torch.func``
    transforms. Torch refuses what it cannot do: ``backward`` twice through a compiled function, a transform of a
    compiled function, forward mode over forward mode in one.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import autodiff
    >>> a = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    >>> heron = lambda z, a: 0.5 * (z + a / z)
    >>> solution = autodiff.fixed_point(heron, torch.ones(2, dtype=torch.float64), a, solver=autodiff.Picard(tol=1e-12))
    >>> solution.value.sum().backward()
    >>> torch.allclose(solution.value, a.sqrt()), torch.allclose(a.grad, 0.5 / a.sqrt())
    (True, True)
    """
    _check_arguments(fn, solver, adjoint, batch_dims, check)
    layout = Layout.of(z0, batch_dims)
    record = AdjointRecord()
    with full_precision(layout.device):
        evaluate, given = _lift_arguments(fn, args)

        def recorded_at(state: Any) -> Recording:
            if torch.compiler.is_compiling():
                # The tracer follows captured tensors itself.
                layout.require(evaluate(pytree.tree_map_only(Tensor, Tensor.clone, state), *given))
                return Recording()
            recording, output = find_captures(evaluate, (state, *given), owner=fn)
            layout.require(output)
            return recording

        def solve(captures: list[Tensor]) -> tuple[Lifted, tuple[Tensor, ...]]:
            lifted = Lifted(evaluate, captures)
            equation = _formulate(lifted, len(given), layout)
            leaves = [*given, *(raised(capture) for capture in captures)]
            return lifted, adjoint.solve(equation, layout.pack(z0), leaves, solver, check, record)

        first = recorded_at(pytree.tree_map_only(Tensor, raised, z0))
        captures = first.captured
        lifted, (z, steps, residual, converged) = solve(captures)
        if not torch.compiler.is_compiling():
            recording = recorded_at(layout.unpack(z, layout.working_dtypes))
            # A function that takes another branch at the solution may capture other tensors there.
            known = {id(capture) for capture in captures}
            late = [capture for capture in recording.captured if id(capture) not in known]
            if late:
                lifted, (z, steps, residual, converged) = solve([*captures, *late])
            lifted.keep(first, recording)
    return Solution(layout.unpack(z, layout.dtypes), steps, residual, converged, record)


def _check_arguments(fn: Any, solver: Any, adjoint: Any, batch_dims: int, check: str) -> None:
    if not callable(fn):
        raise TypeError(f"fn: expected a function (z, *args) -> z, got {type(fn).__name__}")
    if not hasattr(solver, "step") or isinstance(solver, type):
        raise TypeError(f"solver: expected Picard(...), Anderson(...), Broyden(...) or Newton(...), got {solver!r}")
    if not hasattr(adjoint, "solve") or hasattr(adjoint, "step") or isinstance(adjoint, type):
        raise TypeError(f"adjoint: expected Implicit(...), Unrolled() or PhantomGradient(...), got {adjoint!r}")
    if not isinstance(batch_dims, int) or batch_dims < 0:
        raise ValueError(f"batch_dims: expected an integer >= 0, got {batch_dims!r}")
    if check not in ("raise", "warn", "none"):
        raise ValueError(f"check: expected 'raise', 'warn' or 'none', got {check!r}")
    if check != "none" and torch.compiler.is_compiling():
        raise ValueError(f"check: inside torch.compile expected 'none', which never reads the device, got {check!r}")


def _lift_arguments(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], list[Tensor]]:
    """Write ``fn(z, *args)`` as a function of ``z`` and the tensors in ``args``, which are the second value."""
    entries, tree = pytree.tree_flatten(args)
    places = [place for place, entry in enumerate(entries) if isinstance(entry, Tensor)]

    def evaluate(z: Any, *tensors: Tensor) -> Any:
        filled = list(entries)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return fn(z, *pytree.tree_unflatten(filled, tree))

    return evaluate, [raised(entries[place]) for place in places]


def _formulate(lifted: Lifted, given: int, layout: Layout) -> Equation:
    """Write the equation on packed states, as a function of the ``given`` tensors and then those it captured."""

    def packed(z: Tensor, *leaves: Tensor) -> Tensor:
        # Traced, a function that writes to its argument goes unnoticed; the copy costs nothing where it does not.
        state = layout.unpack(z.clone() if torch.compiler.is_compiling() else z, layout.working_dtypes)
        output = lifted(leaves[given:], state, *leaves[:given])
        layout.require(output)
        return layout.pack(output)

    return Equation(packed)
