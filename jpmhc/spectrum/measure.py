"""Measurement: the singular values of the Jacobian of any function, at any input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from jpmhc.layers import HyperConnection
from jpmhc.spectrum.arguments import as_number, as_seed
from jpmhc.spectrum.golub_kahan import Bidiagonal, Bidiagonalisation, Product
from jpmhc.spectrum.jacobian import Jacobian, wide
from jpmhc.spectrum.measured import MeasuredLaw
from jpmhc.spectrum.section import Place, section

_METHODS = ("exact", "lanczos")


class ExtremesWarning(UserWarning):
    """The Lanczos method stopped before the extreme singular values were as exact as asked for."""


def measure(
    fn: Callable[..., Any],
    x: Any,
    method: str = "exact",
    *,
    start: Place | None = None,
    stop: Place | None = None,
    batch_dims: int = 0,
    randomness: str = "refuse",
    seed: int = 0,
    memory_gib: float = 1.0,
    probes: int = 16,
    steps: int = 64,
    tol: float = 1e-4,
    max_steps: int = 1000,
    chunk: int | None = None,
    progress: bool = False,
) -> MeasuredLaw:
    """Measure the singular values of the Jacobian of a function at a point.

    Parameters
    ----------
    fn : Callable
        Function or module from one real tensor to one real tensor, of any shapes, on any device. With ``start`` and
        ``stop`` it is a module, called with anything.
    x : Tensor
        The point. With ``start`` and ``stop`` the batch: the module's argument, a tuple of arguments, or a dict of
        arguments by name.
    method : str
        ``"exact"``: the dense Jacobian, a few rows at a time by ``torch.func``, and all its singular values.
        ``"lanczos"``: Golub-Kahan bidiagonalisation with full reorthogonalisation, for Jacobians too large for that:
        the extremes, and the distribution by quadrature from random probes, with error bars.
    start, stop : str or (str, int), optional
        Measure a section of a model: from the input of the module of that name to the output of another. The same name
        twice is one layer, two layers and all between them a range; ``(name, k)`` is the k-th call of a module that is
        applied repeatedly. Both or none.
    batch_dims : int
        Leading dimensions of x, kept in the result, that index independent samples; their Jacobians are measured at
        once and pooled. 0: all of x is one point.
    randomness : str
        What to do with dropout in training mode and its like. ``"refuse"`` (default): two evaluations must agree, and
        none may draw from torch's global generators. ``"freeze"``: every evaluation starts from ``seed``, so that one
        draw of the random function is measured; the caller's generators are left as they were.
    seed : int
        Of the probes and of frozen randomness.
    memory_gib : float
        Most memory for the dense Jacobians of the exact method, in float64.
    probes, steps : int
        Of the quadrature: random start vectors, orthogonal to one another, and steps from each.
    tol, max_steps : float, int
        One of the sequences goes on until both extremes are estimated to within this relative error, to at most that
        many steps.
    chunk : int, optional
        Products computed at once; chosen by size if left out. Fewer take less memory.
    progress : bool
        Show a progress bar, if rich is installed.

    Returns
    -------
    MeasuredLaw
        A law like those of :func:`~jpmhc.spectrum.predict`; ``law.singular_values`` after the exact method.

    Raises
    ------
    TypeError
        If fn does not map one real tensor to one real tensor.
    ValueError
        For a random or non-finite function, one that depends on x without a derivative, samples that act on one
        another, a Jacobian too large for the exact method (its size is named), and options out of range.
    RuntimeError
        If forward and reverse derivatives of fn disagree (Lanczos needs both), beyond the round-off of these dtypes.

    Warns
    -----
    ExtremesWarning
        If ``max_steps`` were too few for the extremes; the law has their estimated errors.

    Notes
    -----
    Exact, with N = min(outputs, inputs) and M the other: N products with reverse mode (reverse mode twice for a tall
    Jacobian, M with reverse mode where that is not to be had), 8 N M bytes, O(N^2 M) for the singular values: seconds
    at N = 512, minutes at 4096. Lanczos: two products a step for all probes at once, and at most
    ``probes * steps + max_steps`` pairs of vectors in memory. Products run in the function's dtype and the rest in
    float64: singular values below four times the round-off of that dtype, or of autocast's, of the largest,
    ``law.floor``, are noise. What fn does in lower precision by itself is not known to it.

    The function's mode (``eval``, ``train``) is not touched. A module keeps its gradients, buffers and running
    statistics; a plain function that closes over a module in training mode may update them.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import spectrum
    >>> matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> law = spectrum.measure(lambda x: x @ matrix, torch.zeros(3))
    >>> law.singular_values.tolist()
    [[1.0, 2.0, 3.0]]
    >>> print(spectrum.measure(lambda x: x @ matrix, torch.zeros(3), method="lanczos").condition)
    3.0...
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {_METHODS}, got {method!r}")
    for name, value in (("probes", probes), ("steps", steps), ("max_steps", max_steps), ("chunk", chunk)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    seed = as_seed(seed)
    tol, memory_gib = as_number("tol", tol), as_number("memory_gib", memory_gib)
    if not tol > 0 or not memory_gib > 0:
        raise ValueError(f"tol, memory_gib: expected positive numbers, got {tol} and {memory_gib}")
    if (start is None) != (stop is None):
        raise ValueError("start, stop: expected both or none; the same name twice measures one layer")
    if start is not None and stop is not None:
        if not isinstance(fn, nn.Module):
            raise TypeError(f"fn: expected a module with start and stop, got {type(fn).__name__}")
        fn, x = section(fn, x, start, stop)
    jacobian = Jacobian(fn, x, batch_dims=batch_dims, randomness=randomness, seed=seed, chunk=chunk)
    if method == "exact":
        return _exact(jacobian, memory_gib, progress)
    return _lanczos(jacobian, probes, steps, tol, max_steps, seed, progress)


def measure_layers(
    model: nn.Module,
    batch: Any,
    layers: Sequence[Place] | None = None,
    *,
    composed: bool = False,
    **options: Any,
) -> dict[Place, MeasuredLaw]:
    """Measure every layer of a model, or the composition of the first up to each.

    Parameters
    ----------
    model : Module
        Any module.
    batch : Tensor, tuple or dict
        What it is called with.
    layers : sequence of str or (str, int), optional
        Which, in the order in which they run; every hyper-connection by default, at its first call. Those of a
        converted model run in halves inside of its blocks, so name the blocks.
    composed : bool
        Measure from the input of the first layer to the output of each, in place of each by itself.
    **options
        As for :func:`measure`.

    Returns
    -------
    dict of MeasuredLaw
        By layer.

    Raises
    ------
    ValueError
        If there is no layer to measure, or one runs in halves; otherwise as :func:`measure`.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers, spectrum
    >>> model = torch.nn.Sequential(*(layers.HyperConnection(8, torch.nn.Tanh(), layer_index=i) for i in range(3)))
    >>> laws = spectrum.measure_layers(model, torch.randn(4, 8), composed=True)
    >>> [name for name in laws]
    ['0', '1', '2']
    """
    chosen: list[Place] = list(layers) if layers is not None else _hyper_connections(model)
    if not chosen:
        raise ValueError("layers: expected at least one; the model has no HyperConnection, so name some of its modules")
    return {
        place: measure(model, batch, start=chosen[0] if composed else place, stop=place, **options) for place in chosen
    }


def _hyper_connections(model: nn.Module) -> list[Place]:
    return [name for name, module in model.named_modules() if isinstance(module, HyperConnection)]


def _exact(jacobian: Jacobian, memory_gib: float, progress: bool) -> MeasuredLaw:
    rows, columns, samples = jacobian.outputs, jacobian.inputs, jacobian.samples
    gib = 8 * samples * rows * columns / 2**30
    if gib > memory_gib:
        blocks = f"{samples} blocks of " if samples > 1 else ""
        raise ValueError(
            f"fn: its Jacobian has {blocks}{rows} x {columns} entries, {gib:.3g} GiB in float64, more than memory_gib="
            f"{memory_gib:g} allows the exact method; use method='lanczos'"
        )
    by_rows = rows <= columns or not jacobian.has_columns()
    count, product = (rows, jacobian.rows) if by_rows else (columns, jacobian.columns)
    dense = torch.empty(
        samples, count, columns if by_rows else rows, dtype=wide(jacobian.device), device=jacobian.device
    )
    with _bar("Jacobian", count, progress) as advance:
        for begin in range(0, count, jacobian.chunk):
            end = min(begin + jacobian.chunk, count)
            dense[:, begin:end] = product(begin, end).movedim(0, 1)
            advance(end - begin)
    if not dense.isfinite().all():
        raise ValueError("fn: its Jacobian at x holds NaN or infinity")
    # A sample at a time: the decomposition's own copies stay those of one.
    values = torch.stack(
        [torch.linalg.svdvals(matrix.cpu() if matrix.device.type == "mps" else matrix) for matrix in dense]
    )
    return MeasuredLaw(
        values.unsqueeze(0),
        torch.full_like(values, 1 / values.shape[-1]).unsqueeze(0),
        shape=(rows, columns),
        method="exact",
        precision=jacobian.precision,
    )


def _lanczos(
    jacobian: Jacobian, probes: int, steps: int, tol: float, max_steps: int, seed: int, progress: bool
) -> MeasuredLaw:
    size = min(jacobian.inputs, jacobian.outputs)
    noise = jacobian.precision
    times: Product = jacobian.times
    back: Product = jacobian.transposed_times
    if jacobian.outputs < jacobian.inputs:
        times, back = back, times
    sequences = Bidiagonalisation(times, back, jacobian.probes(min(probes, size), size, seed))
    with _bar("Lanczos", min(max(steps, max_steps), size), progress) as advance:
        while sequences.steps < steps and not sequences.complete():
            sequences.step()
            advance(1)
        density = sequences.result()
        # One sequence goes on to the extremes.
        sequences.keep(slice(0, 1))
        extremes = sequences.result()
        while sequences.steps < max_steps and not sequences.complete() and not _converged(extremes, tol, noise):
            for _ in range(8):
                sequences.step()
                advance(1)
            extremes = sequences.result()
    # All are bounds from within, so the outermost is the best.
    values = (
        torch.minimum(extremes.smallest[0], density.smallest.amin(0)),
        torch.maximum(extremes.largest[0], density.largest.amax(0)),
    )
    errors = (extremes.smallest_error[0], extremes.largest_error[0])
    converged = _converged(extremes, tol, noise)
    if not converged:
        bad = [float((error / value).nan_to_num(0).max()) for error, value in zip(errors, values, strict=True)]
        warnings.warn(
            f"max_steps: after {sequences.steps} steps the estimated relative errors are {bad[0]:.1e} of the smallest "
            f"and {bad[1]:.1e} of the largest singular value; tol={tol:g} was asked for",
            ExtremesWarning,
            stacklevel=3,
        )
    return MeasuredLaw(
        density.nodes,
        density.weights,
        shape=(jacobian.outputs, jacobian.inputs),
        method="lanczos",
        extremes=values,
        extremes_error=errors,
        converged=converged,
        precision=noise,
        residual=density.residual,
    )


def _converged(found: Bidiagonal, tol: float, noise: float) -> bool:
    good = found.largest_error <= tol * found.largest
    # Nothing below the round-off of the products can be resolved.
    good &= found.smallest_error <= torch.maximum(tol * found.smallest, noise * found.largest)
    return bool(good.all())


@contextmanager
def _bar(title: str, total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    if wanted:
        try:
            from rich.progress import Progress
        except ModuleNotFoundError:
            wanted = False
    if not wanted:
        yield lambda count: None
        return
    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
