"""Boundaries of every form, and the float64 truth about them: plain operations and torch's own derivatives."""

import itertools

import torch

from jpmhc import kernels
from jpmhc.kernels.crossing import Reading, Writing, cross

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
FORMS = [
    "write",
    "write identity",
    "write post-norm",
    "read given",
    "read softmax",
    "read sigmoid norm",
    "read tanh norm",
    "write, read given",
    "write identity, read softmax norm",
    "write, read sigmoid norm",
    "write post-norm, read softmax norm",
    "write identity post-norm, read tanh",
]


def boundary(form, tokens=5, n=4, d=6, m=14, dtype=torch.float64, seed=0):
    """Streams and the two halves with random numbers; coefficients are float32 at least."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape, dtype=wide, scale=1.0):
        return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()

    x = normal(tokens, n, d, dtype=dtype)
    written, _, read = form.partition("read")
    write = reading = None
    if "write" in written:
        matrix = None if "identity" in written else normal(tokens, n, n)
        write = Writing(matrix, normal(tokens, n), normal(tokens, d, dtype=dtype), 1e-3 if "post" in written else None)
    if "given" in read:
        reading = Reading(normal(tokens, n))
    elif read:
        gate = next(gate for gate in ("softmax", "sigmoid", "tanh") if gate in read)
        eps = 1e-3 if "norm" in read else None
        reading = Reading(normal(n), normal(m, n * d, scale=(n * d) ** -0.5), normal(1), gate, eps)
    return x, write, reading


def tensors(x, write, read):
    """Every tensor of a boundary."""
    return [t for t in (x, *(write or ()), *(read or ())) if isinstance(t, torch.Tensor)]


def function(write, read):
    """Cross as a function of `tensors` that returns what has a gradient."""

    def call(x, *others):
        left = iter(others)
        halves = [
            None if half is None else type(half)(*(next(left) if isinstance(t, torch.Tensor) else t for t in half))
            for half in (write, read)
        ]
        return tuple(t for t in cross(x, *halves)[:3] if t is not None)

    return call


def results(call, arguments, cotangents):
    """Outputs and gradients."""
    outputs = call(*arguments)
    cotangents = [c.to(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, arguments, cotangents, allow_unused=True)]


def truth(call, arguments, cotangents):
    """Outputs and gradients in float64, by torch's own rules."""
    wide = [a.detach().double() for a in arguments]
    with kernels.backend("reference"):
        outputs, pull = torch.func.vjp(call, *wide)
    return [*outputs, *pull(tuple(c.double() for c in cotangents))]


def deviation(form, backend, dtype=torch.float64, device="cpu", change=lambda arguments: arguments, **sizes):
    """Largest error of outputs and gradients of a body, each relative to its largest entry."""
    halves = boundary(form, dtype=dtype, **sizes)
    call = function(*halves[1:])
    arguments = [a.detach().to(device).requires_grad_() for a in tensors(*halves)]
    shapes = [o.shape for o in call(*arguments)]
    draw = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).to(device) for s in shapes]
    wanted = truth(call, arguments, cotangents)
    with kernels.backend(backend):
        found = results(call, change(arguments), change(cotangents))
    worst = 0.0
    for value, exact in itertools.zip_longest(found, wanted):
        assert value.shape == exact.shape
        if exact.numel():
            error = (value.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-3)
            worst = max(worst, error.item())
    return worst
