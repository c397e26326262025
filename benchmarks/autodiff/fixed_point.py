"""A generic fixed point forward and backward, against other libraries' and the unrolled loop."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jpmhc import autodiff

SIZE, BATCH, TOL = 64, 256, 1e-6

Gradients = Callable[[Tensor, Tensor, Tensor], Any]


@dataclass(frozen=True)
class Problem:
    """``z = tanh(z W^T + x + b)`` with the loss ``|z|^2``; ``exact`` are the gradients in float64."""

    name: str
    weight: Tensor
    x: Tensor
    bias: Tensor
    exact: tuple[Tensor, ...]


@dataclass(frozen=True)
class Contender:
    """A way to the gradients with respect to ``(W, x, b)``; ``build()`` raises where it does not run."""

    name: str
    group: str  # "jpmhc", "torch" (a PyTorch library), "unrolled" or "jax"
    build: Callable[[], Gradients]
    in_quick: bool = True


def run(quick: bool) -> dict[str, Any]:
    """Measure all contenders on one thread, in float32, at tolerance 1e-6, on two problems with 64 unknowns a sample.

    Parameters
    ----------
    quick : bool
        Fewer rounds, without the slowest contenders.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with name, group, contraction (what is fixed about W: its spectral radius 0.9 or its
        norm 1.5), ms (CPU time of forward and backward, minimum over interleaved rounds), error (largest relative error
        of a gradient against a direct solve in float64) and ratio (time over that of the fastest PyTorch library that
        is as accurate, within a factor of two). A contender that does not run has an ``error_message`` instead.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = 5 if quick else 25
        contenders = [contender for contender in CONTENDERS if contender.in_quick or not quick]
        rows = [row for kind in ("radius 0.9", "norm 1.5") for row in _rows(make_problem(kind), contenders, rounds)]
    finally:
        torch.set_num_threads(threads)
    return {"name": "fixed_point", "dtype": "float32", "tol": TOL, "threads": 1, "rounds": rounds, "rows": rows}


def make_problem(kind: str) -> Problem:
    """Weights drawn from a normal distribution and scaled to ``"radius 0.9"`` or ``"norm 1.5"``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    scale = {
        "radius 0.9": 0.9 / torch.linalg.eigvals(weight).abs().max(),
        "norm 1.5": 1.5 / torch.linalg.matrix_norm(weight, 2),
    }
    weight = weight * scale[kind]
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
    bias = 0.1 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    # The truth belongs to the numbers that the contenders see.
    weight, x, bias = weight.float(), x.float(), bias.float()
    return Problem(kind, weight, x, bias, exact_gradients(weight.double(), x.double(), bias.double()))


def exact_gradients(weight: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Gradients by a long iteration and a direct solve with ``I - J``."""
    z = torch.zeros_like(x)
    for _ in range(2000):
        z = torch.tanh(z @ weight.T + x + bias)
    slope = 1 - z.square()
    jacobian = slope.unsqueeze(-1) * weight
    adjoint = torch.linalg.solve((torch.eye(SIZE, dtype=z.dtype) - jacobian).mT, 2 * z)
    return (adjoint * slope).T @ z, adjoint * slope, (adjoint * slope).sum(0)


def _rows(problem: Problem, contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    rows, calls = [], []
    inputs = [tensor.clone().requires_grad_() for tensor in (problem.weight, problem.x, problem.bias)]
    for contender in contenders:
        row: dict[str, Any] = {"name": contender.name, "group": contender.group, "contraction": problem.name}
        rows.append(row)
        try:
            gradients = contender.build()
            found = gradients(*inputs)
        except Exception as error:  # a peer's fault is a result here, whatever it raises
            row["error_message"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        row["error"] = max(_relative_error(f, e) for f, e in zip(found, problem.exact, strict=True))
        row["ms"] = float("inf")
        calls.append((row, gradients))
    for _ in range(rounds):
        for row, gradients in calls:
            start = time.process_time()
            gradients(*inputs)
            row["ms"] = min(row["ms"], 1e3 * (time.process_time() - start))
    for row, _ in calls:
        peers = [r["ms"] for r, _ in calls if r["group"] == "torch" and r["error"] <= 2 * row["error"]]
        row["ratio"] = row["ms"] / min(peers) if peers else None
    return rows


def _relative_error(found: Any, exact: Tensor) -> float:
    difference = torch.from_numpy(np.array(found.detach() if isinstance(found, Tensor) else found)).double() - exact
    return (difference.abs().max() / exact.abs().max()).item()


def layer(z: Tensor, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """Evaluate the map, as every PyTorch contender gets it."""
    return torch.tanh(z @ weight.T + x + bias)


def _gradients(solve: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Gradients:
    def gradients(*inputs: Tensor) -> Any:
        return torch.autograd.grad(solve(*inputs).square().sum(), inputs)

    return gradients


def _jpmhc(solver: Any, linear_solver: Any, check: Any = "raise") -> Callable[[], Gradients]:
    def solve(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        options = {"solver": solver, "adjoint": autodiff.Implicit(linear_solver), "check": check}
        return autodiff.fixed_point(layer, torch.zeros_like(x), weight, x, bias, **options).value

    return lambda: _gradients(solve)


def _unrolled(steps: int) -> Callable[[], Gradients]:
    def solve(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(steps):
            z = layer(z, weight, x, bias)
        return z

    return lambda: _gradients(solve)


def _torchdeq(solver: str) -> Callable[[], Gradients]:
    def build() -> Gradients:
        import torchdeq

        options = {"f_max_iter": 150, "b_max_iter": 150, "f_tol": TOL, "b_tol": TOL, "ift": True}
        # The derivative of torchdeq's simple iteration refuses the damping that its solution wants.
        deq = torchdeq.get_deq(f_solver=solver, b_solver=solver.removeprefix("simple_"), **options)

        def solve(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
            return deq(lambda z: layer(z, weight, x, bias), torch.zeros_like(x))[0][-1]

        return _gradients(solve)

    return build


def _torchopt(method: str) -> Callable[[], Gradients]:
    def build() -> Gradients:
        import torchopt

        def optimality(z: Tensor, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
            return layer(z, weight, x, bias) - z

        linear_solver = getattr(torchopt.linear_solve, method)(maxiter=150, atol=0.0, rtol=TOL)

        @torchopt.diff.implicit.custom_root(optimality, argnums=(1, 2, 3), solve=linear_solver)
        def solve(z: Tensor, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
            # The solver is the caller's to write: the plain iteration, with the stopping rule of the others.
            for _ in range(150):
                new = layer(z, weight, x, bias)
                if (new - z).norm() <= TOL * new.norm():
                    return new
                z = new
            return z

        return _gradients(lambda weight, x, bias: solve(torch.zeros_like(x), weight, x, bias))

    return build


def _jaxopt(solver: str, linear_solver: str) -> Callable[[], Gradients]:
    def build() -> Gradients:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import jax
            import jaxopt
            from jaxopt import linear_solve

        def loss(*inputs: Any) -> Any:
            def fn(z: Any, weight: Any, x: Any, bias: Any) -> Any:
                return jax.numpy.tanh(z @ weight.T + x + bias)

            adjoint = functools.partial(getattr(linear_solve, linear_solver), tol=TOL)
            options = {"tol": TOL, "maxiter": 150, "implicit_diff_solve": adjoint}
            solution = getattr(jaxopt, solver)(fn, **options).run(jax.numpy.zeros_like(inputs[1]), *inputs)
            return (solution.params**2).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

        def gradients(*inputs: Tensor) -> Any:
            return jax.block_until_ready(compiled(*(tensor.detach().numpy() for tensor in inputs)))

        return gradients

    return build


CONTENDERS = (
    Contender("jpmhc Anderson, GMRES (default)", "jpmhc", _jpmhc(autodiff.Anderson(), autodiff.GMRES())),
    Contender("jpmhc Picard, Neumann", "jpmhc", _jpmhc(autodiff.Picard(), autodiff.Neumann())),
    Contender(
        "jpmhc Picard, Neumann, tol 2e-7", "jpmhc", _jpmhc(autodiff.Picard(tol=2e-7), autodiff.Neumann(tol=2e-7))
    ),
    Contender(
        "jpmhc Picard, Neumann, 50 steps",
        "jpmhc",
        _jpmhc(autodiff.Picard(tol=1e-9, max_steps=50), autodiff.Neumann(tol=1e-9, steps=50), "none"),
    ),
    Contender("jpmhc Picard, GMRES", "jpmhc", _jpmhc(autodiff.Picard(), autodiff.GMRES())),
    Contender("jpmhc Picard, Dense", "jpmhc", _jpmhc(autodiff.Picard(), autodiff.Dense())),
    Contender("jpmhc Broyden, GMRES", "jpmhc", _jpmhc(autodiff.Broyden(), autodiff.GMRES())),
    Contender("jpmhc Newton, Dense", "jpmhc", _jpmhc(autodiff.Newton(), autodiff.Dense())),
    Contender("torchdeq fixed_point_iter", "torch", _torchdeq("fixed_point_iter")),
    Contender("torchdeq simple_fixed_point_iter", "torch", _torchdeq("simple_fixed_point_iter")),
    Contender("torchdeq anderson", "torch", _torchdeq("anderson"), in_quick=False),
    Contender("torchdeq broyden", "torch", _torchdeq("broyden"), in_quick=False),
    Contender("torchopt normal_cg", "torch", _torchopt("solve_normal_cg")),
    Contender("torchopt cg", "torch", _torchopt("solve_cg")),
    Contender("unrolled, 50 steps", "unrolled", _unrolled(50)),
    Contender("unrolled, 80 steps", "unrolled", _unrolled(80)),
    Contender("jaxopt Picard, normal_cg (default)", "jax", _jaxopt("FixedPointIteration", "solve_normal_cg")),
    Contender("jaxopt Picard, gmres", "jax", _jaxopt("FixedPointIteration", "solve_gmres"), in_quick=False),
    Contender("jaxopt Anderson, gmres", "jax", _jaxopt("AndersonAcceleration", "solve_gmres"), in_quick=False),
)
