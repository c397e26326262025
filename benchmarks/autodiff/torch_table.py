"""What PyTorch does with a custom derivative: four ways to write one, under every way to ask for it.

``python -m benchmarks.autodiff.torch_table docs/autodiff_torch_table.md`` measures the torch it runs on and writes
that version's section of the page, leaving those of other versions as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacfwd, jvp, vmap

SWEEPS = 5  # few enough that the derivative of the equation and that of the sweeps differ

Map = Callable[[Tensor], Tensor]


def sweep(logits: Tensor, sweeps: int, rows: Tensor | float = 0.0, columns: Tensor | float = 0.0) -> Tensor:
    """Normalise rows, then columns, of ``exp(logits)``, to given logarithms of their sums."""
    for _ in range(sweeps):
        logits = logits - logits.logsumexp(-1, keepdim=True) + rows
        logits = logits - logits.logsumexp(-2, keepdim=True) + columns
    return logits.exp()


def unrolled(logits: Tensor) -> Tensor:
    """Leave the derivative to autograd."""
    return sweep(logits, SWEEPS)


def implicit(logits: Tensor) -> Tensor:
    """Solve, by many sweeps, the equation whose solution five sweeps give: the same value, the exact derivatives."""
    with torch.no_grad():
        matrix = sweep(logits.detach(), SWEEPS)
    return sweep(logits, 400, matrix.sum(-1, keepdim=True).log(), matrix.sum(-2, keepdim=True).log())


def derivative(matrix: Tensor, direction: Tensor) -> Tensor:
    """Apply ``dP / dlogits`` with the sums of P held fixed, in plain operations."""
    weighted = matrix * direction
    return weighted - matrix * potentials(matrix, weighted)


def potentials(matrix: Tensor, imbalance: Tensor) -> Tensor:
    """Solve for ``u 1^T + 1 v^T`` whose product with P has the sums of another matrix."""
    n = matrix.shape[-1]
    identity = torch.eye(n, dtype=matrix.dtype)
    conditional = matrix / matrix.sum(-2, keepdim=True)
    laplacian = identity * matrix.sum(-1, keepdim=True) - matrix @ conditional.mT
    x, y = imbalance.sum(-1, keepdim=True), imbalance.sum(-2).unsqueeze(-1)
    u = torch.linalg.inv_ex(laplacian + 1 / n).inverse @ (x - conditional @ y)
    v = y / matrix.sum(-2).unsqueeze(-1) - conditional.mT @ u
    return u + v.mT


class Function(torch.autograd.Function):
    """A backward of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:  # noqa: D102
        return sweep(logits, SWEEPS)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: D102
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: D102
        return derivative(*ctx.saved_tensors, gradient)


class FunctionWithTangent(Function):
    """A backward and a ``jvp`` of its own."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # noqa: D102
        return derivative(*ctx.saved_tensors, tangent)


def attached(logits: Tensor) -> Tensor:
    """Apply two Newton steps in plain operations to a constant solution."""
    constant = logits.detach()
    matrix = sweep(constant, SWEEPS)
    exponent = logits - constant
    for _ in range(2):
        current = matrix * exponent.exp()
        exponent = exponent - potentials(current, current - matrix)
    return matrix * exponent.exp()


@torch.library.custom_op("torch_table::sinkhorn", mutates_args=())
def operator(logits: Tensor) -> Tensor:
    """Sweep as one operator with a registered backward."""
    return sweep(logits, SWEEPS)


operator.register_fake(lambda logits: torch.empty_like(logits))
operator.register_vmap(lambda info, in_dims, logits: (operator(logits.movedim(in_dims[0], 0)), 0))
operator.register_autograd(
    lambda ctx, gradient: derivative(*ctx.saved_tensors, gradient),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
)


def library(logits: Tensor) -> Tensor:
    """Call this library."""
    from jpmhc import autodiff

    return autodiff.sinkhorn(logits, iterations=SWEEPS)


WAYS: dict[str, Map] = {
    "Function": lambda x: Function.apply(x),
    "Function with jvp": lambda x: FunctionWithTangent.apply(x),
    "attached Newton step": attached,
    "custom_op": lambda x: operator(x),
    "`autodiff.sinkhorn`": library,
}

torch.manual_seed(0)
LOGITS = torch.randn(3, 4, 4, dtype=torch.float64)
TANGENT = torch.randn(3, 4, 4, dtype=torch.float64)
WEIGHT = torch.randn(4, 4, dtype=torch.float64)


def loss(function: Map) -> Map:
    """Return a scalar function that is not linear in the map."""
    return lambda x: (WEIGHT * function(x) ** 2).sum()


def backward(function: Map, compiler: Callable[[Map], Map], create_graph: bool = False) -> Tensor:
    """Differentiate outside the compiled function."""
    logits = LOGITS.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(compiler(function))(logits), logits, create_graph=create_graph)
    return torch.autograd.grad((WEIGHT * first).sum(), logits)[0] if create_graph else first


def push(function: Map) -> Map:
    """Differentiate along the tangent."""
    return lambda x: jvp(function, (x,), (TANGENT,))[1]


CALLS: dict[str, Callable[[Map, Callable[[Map], Map]], Tensor]] = {
    "backward": backward,
    "double backward": lambda f, compiler: backward(f, compiler, create_graph=True),
    "grad": lambda f, compiler: compiler(grad(loss(f)))(LOGITS),
    "vmap of grad": lambda f, compiler: compiler(vmap(grad(loss(f))))(LOGITS),
    "jvp": lambda f, compiler: compiler(push(f))(LOGITS),
    "jacfwd": lambda f, compiler: compiler(jacfwd(f))(LOGITS[0]),
    "grad of grad": lambda f, compiler: compiler(grad(lambda x: (WEIGHT * grad(loss(f))(x)).sum()))(LOGITS),
    "jvp of grad": lambda f, compiler: compiler(push(grad(loss(f))))(LOGITS),
    "jvp of jvp": lambda f, compiler: compiler(push(push(f)))(LOGITS),
}
COMPILERS: dict[str, Callable[[Map], Map]] = {
    "eager": lambda function: function,
    "compile, fullgraph": lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
    "compile, graph breaks": lambda function: torch.compile(function, backend="aot_eager"),
}


def verdict(way: Map, call: Callable[..., Tensor], compiler: Callable[[Map], Map]) -> str:
    """Say in a word or two what came out."""
    torch._dynamo.reset()
    try:
        result = call(way, compiler)
    except Exception as error:  # whatever torch raises is the result
        return f"raises {type(error).__name__}"

    def distance(truth: Map) -> float:
        return (result - call(truth, COMPILERS["eager"])).abs().max().item()

    if distance(implicit) < 1e-9:
        return "right"
    if result.abs().max() == 0:
        return "**zero**"
    if distance(unrolled) < 1e-9:
        return "**unrolled**"
    return f"**wrong by {distance(implicit):.1g}**"


def section() -> str:
    """Measure all combinations and return the section of this version of torch."""
    version = torch.__version__.split("+")[0]
    lines = [f"## torch {version}", "", f"| call | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    for mode, compiler in COMPILERS.items():
        for name, call in CALLS.items():
            cells = [verdict(way, call, compiler) for way in WAYS.values()]
            lines.append(f"| {mode}: {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


HEADER = """# What PyTorch does with a custom derivative

Written by `python -m benchmarks.autodiff.torch_table docs/autodiff_torch_table.md`, once on each version of torch.

The map is five sweeps of Sinkhorn, which do not converge, so that the derivative of the equation and that of the
sweeps differ and one can tell which one a call returned. Four ways to give the map the derivative of its equation:
an `autograd.Function` with `setup_context` and a backward; the same with a `jvp`; two attached Newton steps in plain
operations; a `torch.library.custom_op` with a registered backward. The last column is this library.

*right*: the derivative of the equation, to 1e-9. **unrolled**: the custom derivative was dropped, without a word, and
the sweeps were differentiated. **zero** and **wrong by**: also without a word. Compiled calls use the `aot_eager`
backend, which traces as `inductor` does.
"""


def main(arguments: Sequence[str]) -> int:
    """Replace or add this version's section of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args(arguments).page
    warnings.simplefilter("ignore")
    measured = section()
    kept = re.split(r"(?m)^(?=## torch )", page.read_text())[1:] if page.exists() else []
    title = measured.splitlines()[0]
    sections = sorted([part.strip() + "\n" for part in kept if part.splitlines()[0] != title] + [measured])
    page.write_text("\n".join([HEADER, *sections]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
