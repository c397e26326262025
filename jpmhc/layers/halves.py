"""A layer in two halves: what its branch gets of the streams, and how the branch's result is written to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from jpmhc.autodiff.gates import opened
from jpmhc.kernels.crossing import Reading, Writing, cross
from jpmhc.kernels.handing import hand_on
from jpmhc.kernels.precision import full_precision
from jpmhc.layers.coefficients import Coefficients
from jpmhc.layers.outputs import check_result
from jpmhc.layers.parts import pull_rows, read_rows, write_fractions


class Halves(Coefficients):
    """The part of a :class:`~jpmhc.layers.HyperConnection` that crosses streams, with a branch of anybody's between."""

    # Coefficients of the last forward if it was an eager one, for statistics alone; no part of a copy or a pickle.
    last: tuple[Tensor, Tensor, Tensor] | None = None
    # Whether there are compiled forwards that cannot take them away.
    hidden: bool = False

    def enter(self, x: Tensor, before: Writing | None = None) -> tuple[Tensor, Tensor, Callable[[Tensor], Writing]]:
        """Cross the boundary into this layer: :meth:`read`, with what the layer before has to write in the same pass.

        :class:`~jpmhc.layers.HyperStack` chains layers so. It takes one read of whole streams.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams.
        before : Writing, optional
            What is written to them before they are read.

        Returns
        -------
        u : Tensor, shape (..., d)
            Branch input.
        x : Tensor, shape (..., n, d)
            Streams to go on with.
        writing : Callable
            ``writing(y)`` is what this layer has to write for a result y of the branch.
        """
        u, x, _, writing = self._entered(x, before)
        return u, x, writing

    def _entered(
        self, x: Tensor, before: Writing | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Writing]]:
        """Cross the boundary as :meth:`enter`, and return the read weights (..., n) beside the streams.

        ``last`` is no substitute for them: it belongs to whichever thread ran the layer last.
        """
        dtype, given = self._coefficient_dtype(x), x
        # Autocast would take the projection and the charts to half precision.
        with full_precision(x.device):
            reading = self._reading(dtype)
            if reading is None:
                if before is not None and self._sees_streams():
                    given = x = cross(x, before).streams
                    before = None
                x, pre, post, matrix = self._made(x)
                u, x = self._read(x, pre, before)
            else:
                crossing = cross(x, before, reading[0])
                u, x, pre = crossing.u, crossing.streams, crossing.pre  # type: ignore[assignment]
                if reading[1] is None:
                    _, post, matrix = self._charted(crossing.z, dtype)
                else:
                    post, raw = opened(crossing.z, reading[1])  # type: ignore[arg-type]
                    matrix = self._mixed(raw)
        if before is None:
            self._ran(given, pre, post, matrix)
        else:
            self._remember(pre, post, matrix)
        return u, x, pre, partial(Writing, matrix if self.mixer.mixes else None, post)

    def carry(self, x: Tensor, pre: Tensor) -> tuple[Any, Callable[[Tensor], Tensor], Tensor]:
        """Read with weights that were made before, and hand on the ones that this layer makes.

        The single-pass form of DeepSeek-V4.1: the read of a layer does not wait for its own coefficients.
        :class:`~jpmhc.layers.SinglePass` chains layers so.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams.
        pre : Tensor, shape (..., n) or (n,)
            Read weights, from the layer before.

        Returns
        -------
        u, write
            As :meth:`read`, read with ``pre``.
        own : Tensor, shape (..., n)
            The read weights that this layer makes of x.

        Raises
        ------
        ValueError, RuntimeError
            As :meth:`read`, and if ``pre`` has another n.
        """
        self._check_streams(x)
        given = x
        x, own, post, matrix = self._made(x)
        if pre.shape[-1:] != own.shape[-1:]:
            raise ValueError(f"pre: expected shape (..., {own.shape[-1]}), got {tuple(pre.shape)}")
        self._ran(given, pre, post, matrix)
        u, x = self._read(x, pre)
        return u, self._writer(x, partial(Writing, matrix if self.mixer.mixes else None, post)), own

    def _check_streams(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a floating-point tensor, got {got}")
        if hasattr(x, "device_mesh"):
            raise TypeError(
                f"x: expected a plain tensor, got a DTensor with {getattr(x, 'placements', None)}; give the layer the "
                "tokens that are here, x.to_local(): they do not see each other. Keep its parameters whole"
            )
        if x.shape[-2:] != (self.streams, self.dim):
            raise ValueError(
                f"x: expected shape (..., {self.streams}, {self.dim}), got {tuple(x.shape)}; call expand_streams first"
            )
        own = self.static if self.projection is None else self.projection
        if hasattr(own, "device_mesh"):
            raise RuntimeError(
                "parameters: expected whole ones, got shards; FSDP2 gathers them when the layer itself is called, not "
                "for read, carry or enter: shard the module that calls those (a SinglePass, a block) instead"
            )
        if own.is_meta and not x.is_meta:
            raise RuntimeError(
                f'parameters: expected them on {x.device}, where x is, got "meta"; load the weights first. Hooks that '
                "offload parameters bring them back when the layer itself is called, not for read, carry or enter"
            )

    def _ran(self, x: Tensor, pre: Tensor, post: Tensor, matrix: Tensor) -> None:
        """Every run whose streams x are at hand before they are read comes by here, with what they are read with."""
        self._remember(pre, post, matrix)

    def _remember(self, pre: Tensor, post: Tensor, matrix: Tensor) -> None:
        # What an older run left would be taken for this one's.
        if torch.compiler.is_compiling():
            if not torch.compiler.is_exporting() and self._traced_outermost():
                self.last = None
        elif any(is_functorch_wrapped_tensor(weights) for weights in (pre, post, matrix)):
            self.last = None
        else:
            self.last = (pre.detach(), post.detach(), matrix.detach())

    def _traced_outermost(self) -> bool:
        """Whether compiled code may change a module here, at the time of tracing; if not, note that it was asked to.

        Inside of a checkpoint, a condition and other operators that take functions it may not.
        """
        try:
            from torch._dynamo.symbolic_convert import InstructionTranslator

            outermost: bool = InstructionTranslator.current_tx().output.is_root_tracer()
        except (ImportError, AttributeError):  # what torch keeps to itself may move; compiling goes on without
            outermost = False
        if not outermost:
            self.hidden = True
        return outermost

    # What torch.compiler.assume_constant_result does, without importing the compiler.
    _traced_outermost._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _read(self, x: Tensor, pre: Tensor, before: Writing | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x.device):
            crossing = cross(x, before, Reading(pre))
        return crossing.u, crossing.streams  # type: ignore[return-value]

    def _writer(self, x: Tensor, writing: Callable[[Tensor], Writing]) -> Callable[[Tensor], Tensor]:
        def write(y: Tensor) -> Tensor:
            check_result(y, x)
            with full_precision(x.device):
                return cross(x, writing(y)).streams

        return write

    def _read_parts(self, x: Tensor) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """Read several times, or fractions of the streams."""
        given = x
        x, pre, post, matrix = self._made(x)
        self._ran(given, pre, post, matrix)
        kept = matrix if self.mixer.mixes else None
        with full_precision(x.device):
            pieces, rows = hand_on(read_rows, pull_rows, self._pieces(x), pre, keep_result=False)
            inputs = rows.to(x.dtype).unflatten(-2, (self.reads, self.fractions)).flatten(-2)
        # One view each: a branch that changes its input in place may not do so to one of several views.
        reads = tuple(inputs.select(-2, i) for i in range(self.reads))

        def write(y: Tensor) -> Tensor:
            check_result(y, x)
            with full_precision(x.device):
                if self.fractions == 1:
                    return cross(pieces, Writing(kept, post, y)).streams
                return write_fractions(pieces, kept, post, y, self.fractions).view(x.shape).to(x.dtype)

        return reads if self.reads > 1 else reads[0], write

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "last": None, "hidden": False}

    def __prepare_scriptable__(self) -> None:
        """Refuse ``torch.jit.script``, which calls this of every module that it comes upon, in words."""
        raise TypeError(
            f"torch.jit.script: expected modules in the part of Python that it compiles, got {type(self).__name__}; "
            "take torch.jit.trace, torch.export or torch.compile"
        )
