"""The Jacobian of a function at a point, as products with batches of vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jpmhc.layers.arguments import check_size

Product = Callable[[Tensor], Tensor]

RANDOMNESS = ("refuse", "freeze")

# Numbers of one product times vectors at once, when the caller leaves the choice open.
_CHUNK_NUMBERS = 2**21


class Jacobian:
    """Products with the Jacobian of ``fn`` at ``x``, for independent samples and many vectors at once.

    Parameters
    ----------
    fn : Callable
        Function or module from one real tensor to one real tensor.
    x : Tensor, shape (*batch, ...)
        The point.
    batch_dims : int
        Leading dimensions of x, and of the result, that index samples which do not act on one another.
    randomness : str
        ``"refuse"`` or ``"freeze"``, see :func:`~jpmhc.spectrum.measure`.
    seed : int
        Of the frozen random numbers.
    chunk : int, optional
        Vectors multiplied at once.

    Attributes
    ----------
    samples, inputs, outputs : int
        Number of samples B, and of inputs and outputs of one of them: the Jacobian is B blocks (outputs, inputs).

    Notes
    -----
    fn is evaluated three times: twice to see that it is no lottery, once for the graph that serves every product. Where
    one product is exactly zero, five more evaluations see whether fn is constant nearby or lacks a derivative. That
    none of B samples acts on another is seen in 2 + log2(B) products, whose vectors change sign with some samples. A
    module is called with detached parameters and copies of its buffers, so it is left as it is, gradients and running
    statistics included. Attention runs in plain operations: fused kernels have no second derivative.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        batch_dims: int = 0,
        randomness: str = "refuse",
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a function or a module, got {type(fn).__name__}")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a real floating-point tensor, got {got}")
        check_size("batch_dims", batch_dims, least=0)
        if not 0 <= batch_dims <= x.ndim:
            raise ValueError(f"batch_dims: expected 0 to {x.ndim} for x of shape {tuple(x.shape)}, got {batch_dims}")
        if randomness not in RANDOMNESS:
            raise ValueError(f"randomness: expected one of {RANDOMNESS}, got {randomness!r}")
        self._fn = _detached(fn)
        self._x = x.detach()
        self._batch = x.shape[:batch_dims]
        self._forked = _cuda_devices(fn, x)
        self._seed = seed if randomness == "freeze" else None
        lowers = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
        self._lowered = [torch.get_autocast_dtype(x.device.type)] if lowers else []
        self._result = result = self._check_function(batch_dims)
        self.samples = self._batch.numel()
        self.inputs = x.shape[batch_dims:].numel()
        self.outputs = result.shape[batch_dims:].numel()
        for name, size in (("x", self.samples), ("x", self.inputs), ("fn", self.outputs)):
            if size == 0:
                raise ValueError(f"{name}: expected at least one sample, input and output, got an empty tensor")
        self.chunk = chunk or max(1, _CHUNK_NUMBERS // (self.samples * max(self.inputs, self.outputs)))
        self._vectorised = {"forward": True, "reverse": True}
        # One evaluation serves every product.
        with self._conditions():
            pull = torch.func.vjp(self._evaluate, self._x)[1]
        self._pull: Product = lambda u: pull(u)[0]
        self._push: Product | None = None
        if not self.transposed_times(self.probes(1, self.outputs, seed=1)).any():
            self._check_derivative()
        if self.samples > 1:
            self._check_samples()

    @property
    def device(self) -> torch.device:
        """Where the vectors live."""
        return self._x.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the products are computed."""
        return torch.promote_types(self._x.dtype, self._result.dtype)

    @property
    def precision(self) -> float:
        """Round-off of the products: of their dtype, or of autocast's where that is coarser."""
        return max(torch.finfo(dtype).eps for dtype in (self.dtype, *self._lowered))

    def transposed_times(self, cotangents: Tensor) -> Tensor:
        """Return ``J^T u`` (k, B, inputs) in float64 for vectors u (k, B, outputs), by reverse mode."""
        return self._products("reverse", self._pull, cotangents, self._result.shape, self._result.dtype)

    def times(self, tangents: Tensor) -> Tensor:
        """Return ``J v`` (k, B, outputs) in float64 for vectors v (k, B, inputs).

        Reverse mode twice, as ``u -> J^T u`` is linear and at hand, or forward mode where an operation has no second
        derivative.

        Raises
        ------
        RuntimeError
            If neither agrees with reverse mode.
        """
        if self._push is None:
            self._push = self._find_push()
        return self._products("forward", self._push, tangents, self._x.shape, self._x.dtype)

    def has_columns(self) -> bool:
        """Whether there is a way to multiply from the right; rows there always are."""
        try:
            self._push = self._push or self._find_push()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
        return True

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows (stop - start, B, inputs), float64."""
        return self.transposed_times(self._units(start, stop, self.outputs))

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns (stop - start, B, outputs), float64."""
        return self.times(self._units(start, stop, self.inputs))

    def probes(self, count: int, size: int, seed: int) -> Tensor:
        """Random orthonormal vectors (count, B, size), count at most size, the same on every device."""
        # Far from the small seeds that functions are made with: probes that are singular vectors see nothing else.
        generator = torch.Generator().manual_seed(0x6A09E667 + seed)
        vectors = torch.randn(self.samples, size, count, dtype=torch.float64, generator=generator, device="cpu")
        return torch.linalg.qr(vectors).Q.movedim(-1, 0).to(self.device, wide(self.device))

    def _units(self, start: int, stop: int, size: int) -> Tensor:
        units = torch.zeros(stop - start, self.samples, size, dtype=wide(self.device), device=self.device)
        index = torch.arange(stop - start, device=self.device)
        units[index, :, start + index] = 1
        return units

    def _evaluate(self, x: Tensor) -> Tensor:
        if self._seed is not None:
            # No others than those that are restored: torch.manual_seed would reach every device.
            torch.default_generator.manual_seed(self._seed)
            for device in self._forked:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self._seed)
            if self.device.type not in ("cpu", "cuda"):
                torch.get_device_module(self.device).manual_seed(self._seed)
        # The function's own: it may work in place.
        return self._fn(x.clone())

    def _products(self, mode: str, product: Product, vectors: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        results = []
        with self._conditions():
            for part in vectors.to(dtype).reshape(-1, *shape).split(self.chunk):
                results.append(self._together(mode, product, part))
        return torch.cat(results).reshape(len(vectors), self.samples, -1).to(wide(self.device))

    def _together(self, mode: str, product: Product, part: Tensor) -> Tensor:
        if self._vectorised[mode] and len(part) > 1:
            try:
                return torch.func.vmap(product, randomness="same")(part)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                # Some operation has no batching rule; one vector at a time is slower and needs none.
                self._vectorised[mode] = False
        return torch.stack([product(vector) for vector in part])

    def _reverse_twice(self) -> Product:
        with self._conditions():
            push = torch.func.vjp(self._pull, torch.zeros_like(self._result))[1]
        return lambda v: push(v)[0]

    def _forward(self) -> Product:
        return lambda v: torch.func.jvp(self._evaluate, (self._x,), (v,))[1]

    def _find_push(self) -> Product:
        u = self.probes(1, self.outputs, seed=2)
        pulled = self.transposed_times(u)
        length = pulled.norm(dim=-1, keepdim=True)
        # Along J^T u <u, J v> is as large as can be; with a random v it would drown in round-off in high dimensions.
        v = torch.where(length > 0, pulled / torch.where(length > 0, length, 1), self.probes(1, self.inputs, seed=3))
        tolerance = min(0.1, 1e4 * self.precision)
        if not pulled.isfinite().all():
            raise ValueError("fn: its Jacobian at x holds NaN or infinity")
        failures = []
        for make in (self._reverse_twice, self._forward):
            try:
                push = make()
                pushed = self._products("forward", push, v, self._x.shape, self._x.dtype)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                failures.append(str(error).strip().splitlines()[0])
                continue
            difference = ((u * pushed).sum(-1) - (pulled * v).sum(-1)).abs()
            if (difference <= tolerance * (length[..., 0] + pushed.norm(dim=-1))).all():
                return push
            failures.append("<u, J v> and <J^T u, v> differ")
        reasons = "; ".join(dict.fromkeys(failures))
        if "differ" in reasons:
            reasons += (
                ": an operation of fn has a wrong derivative, or runs in lower precision than the dtype of x and the "
                f"result, {self.dtype} (pass x in that precision)"
            )
        raise RuntimeError(f"fn: no way to multiply with its Jacobian from the right: {reasons}")

    @contextlib.contextmanager
    def _conditions(self) -> Iterator[None]:
        """No outer graph, the caller's random numbers untouched, attention in plain operations."""
        with torch.no_grad(), torch.random.fork_rng(self._forked), sdpa_kernel(SDPBackend.MATH):
            yield

    def _check_function(self, batch_dims: int) -> Tensor:
        with self._conditions():
            before = _random_state(self._forked)
            results = [self._evaluate(self._x) for _ in range(2)]
            drawn = any(not torch.equal(a, b) for a, b in zip(before, _random_state(self._forked), strict=True))
        for result in results:
            if not isinstance(result, Tensor) or not result.is_floating_point():
                got = result.dtype if isinstance(result, Tensor) else type(result).__name__
                raise TypeError(
                    f"fn: expected it to return one real tensor, got {got}; wrap it in a function that does"
                )
        first, second = results
        if first.shape[:batch_dims] != self._batch:
            raise ValueError(
                f"fn: expected a result that keeps the {batch_dims} batch dimensions {tuple(self._batch)}, got shape "
                f"{tuple(first.shape)}"
            )
        if not first.isfinite().all():
            raise ValueError("fn: its result at x holds NaN or infinity")
        scale = first.abs().max() if first.numel() else first.new_zeros(())
        differs = first.numel() and (first - second).abs().max() > 1e3 * torch.finfo(first.dtype).eps * scale
        if differs or (drawn and self._seed is None):
            remedy = (
                'call fn.eval() for the network without dropout, or pass randomness="freeze" for one draw of it'
                if self._seed is None
                else "its random numbers do not come from torch's global generators, which are all that can be frozen"
            )
            raise ValueError(f"fn: it is random, so it has no Jacobian; {remedy}")
        return first

    def _check_derivative(self) -> None:
        """Refuse a function that depends on x while its derivative is zero; at steps and kinks it may be."""
        eps = torch.finfo(self._x.dtype).eps
        if eps > 1e-4:
            return  # of half precision, in which steps and slopes look alike
        far = eps ** (1 / 3)
        direction = self.probes(1, self.inputs, seed=4)[0].reshape(self._x.shape) * self.inputs**0.5
        direction = direction * self._x.abs().max().clamp_min(1)
        with self._conditions():
            here = self._evaluate(self._x).to(wide(self.device))
            ahead, half, behind, near = (
                (self._evaluate(self._x + (step * direction).to(self._x.dtype)).to(here) - here) / step
                for step in (far, far / 2, -far, min(far, 64 * eps))
            )
        moved = ahead.norm()
        # Alike on both sides and in proportion to the distance: neither a kink nor a step nor of second order. Steps
        # that are many within that distance are told from a slope next to x, unless as fine as 64 round-offs.
        alike = all((ahead - other).norm() < 0.4 * moved for other in (half, behind, near))
        if alike and far * moved > 10 * eps * here.norm():
            raise ValueError(
                "fn: its result depends on x but carries no derivative, so its Jacobian would be zero; it may run "
                "under torch.no_grad or torch.inference_mode, or detach x"
            )

    def _check_samples(self) -> None:
        u = self.probes(1, self.outputs, seed=1)
        pulled, again = (self.transposed_times(u) for _ in range(2))
        # Kernels that add in any order do not repeat themselves exactly.
        tolerance = 1e-6 * pulled.norm(dim=-1).max() + 10 * (pulled - again).norm(dim=-1).max()
        index = torch.arange(self.samples, device=self.device)
        # Any two samples differ in a digit, so in sign: there the vector of one shows in the product of the other.
        for digit in range((self.samples - 1).bit_length()):
            signs = (1 - 2 * ((index >> digit) & 1)).to(u).unsqueeze(-1)
            if (self.transposed_times(signs * u) - signs * pulled).norm(dim=-1).max() > tolerance:
                raise ValueError(
                    "batch_dims: samples act on one another, so they have no Jacobians of their own (batch norm in "
                    "training mode? call fn.eval(); tokens that attend to one another are one sample)"
                )


def wide(device: torch.device) -> torch.dtype:
    """Return the widest dtype of a device: float64 but for Apple's."""
    return torch.float32 if device.type == "mps" else torch.float64


def _detached(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if not isinstance(fn, nn.Module):
        return fn
    parameters = {name: value.detach() for name, value in fn.named_parameters()}

    def call(x: Tensor) -> Tensor:
        # Copies at every call: a batch norm in training mode writes to them.
        state = {**parameters, **{name: value.detach().clone() for name, value in fn.named_buffers()}}
        result: Tensor = torch.func.functional_call(fn, state, (x,))
        return result

    return call


def _random_state(devices: list[torch.device]) -> list[Any]:
    return [torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _cuda_devices(fn: Callable[[Tensor], Tensor], x: Tensor) -> list[torch.device]:
    own = [*fn.parameters(), *fn.buffers()] if isinstance(fn, nn.Module) else []
    return list(dict.fromkeys(tensor.device for tensor in (x, *own) if tensor.device.type == "cuda"))
