"""The coefficients of a hyper-connection: read, write and mixer, made from parameters and from the token's streams."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from jpmhc.autodiff.gates import Opening
from jpmhc.kernels.crossing import Reading
from jpmhc.kernels.handing import hand_on
from jpmhc.kernels.precision import cast, full_precision
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.layers.gates import make_gate, name_in_kernels
from jpmhc.layers.label import Labelled
from jpmhc.layers.mixer import Mixer, bound_in_kernels, check_matrix, make_mixer
from jpmhc.layers.projection import NORMS, by_streams, project, pull_projection
from jpmhc.layers.recipes import find_recipe
from jpmhc.layers.shards import placed_like

_PROJECTIONS = ("reduced", "published", "shared")
# Mixers that pack a skew matrix unless told otherwise.
_SKEW = ("cayley", "cayley-iterated")


class Coefficients(Labelled):
    """The part of a :class:`~jpmhc.layers.HyperConnection` that knows no branch; parameters are described there.

    Raw numbers are ``static + scale * squash(projection norm(x))``, in the order read, write, mixer; the gate and the
    mixer map them to ``pre``, ``post`` and ``M``.
    """

    static: Tensor
    # Both None where the layer is not dynamic, the second also where it has no factors.
    projection: nn.Parameter
    scale: nn.Parameter

    def __init__(
        self,
        dim: int,
        *,
        streams: int,
        mixer: str | Mixer,
        gate: str,
        norm: str | None,
        projection: str,
        dynamic: bool,
        static: bool,
        layer_index: int,
        reads: int,
        fractions: int,
        scale: float | None,
        learn_mixer_scale: bool,
        tie_mixer_scale: bool,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("streams", streams), ("reads", reads), ("fractions", fractions)):
            check_size(name, value)
        check_size("layer_index", layer_index, least=0)
        check_number("eps", eps, least=0.0)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating-point one, got {dtype}")
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
        if projection not in _PROJECTIONS:
            raise ValueError(f"projection: expected one of {_PROJECTIONS}, got {projection!r}")
        if not (dynamic or static):
            raise ValueError("dynamic, static: expected at least one to be True; layers.Residual has nothing to learn")
        if dim % fractions:
            raise ValueError(f"fractions: expected a divisor of dim={dim}, got {fractions}")
        if tie_mixer_scale and not learn_mixer_scale:
            raise ValueError("tie_mixer_scale: expected False where learn_mixer_scale is, the read's factor is learned")
        self.dim, self.streams, self.norm, self.eps = dim, streams, norm, eps
        self.reads, self.fractions, self.learn_mixer_scale = reads, fractions, learn_mixer_scale
        tied = tie_mixer_scale and dynamic and scale is not None
        self.recipe: str | None = None
        pieces = streams * fractions
        unpacked = {"packed": False} if projection == "published" and mixer in _SKEW else {}
        self.mixer = make_mixer(mixer, pieces, **unpacked).to(device=device, dtype=dtype)
        self.gate = make_gate(gate, streams, layer_index, projection, reads=reads, fractions=fractions).to(
            device=device
        )
        self.sizes = [self.gate.n_read, self.gate.n_write, self.mixer.n_coefficients]
        self._check_start(projection, pieces)
        # A uniform gate beside a mixer without raw numbers: parameters that nothing depends on would stop DDP.
        dynamic, static = dynamic and sum(self.sizes) > 0, static and sum(self.sizes) > 0
        self.shared = projection == "shared"
        rows = sum(self.sizes) // pieces if self.shared else sum(self.sizes)
        columns = dim // fractions if self.shared else streams * dim
        start = torch.empty(sum(self.sizes), device=device, dtype=dtype)
        if static:
            self.static = nn.Parameter(start)
        else:
            self.register_buffer("static", start)
        weight = torch.empty(rows, columns, device=device, dtype=dtype) if dynamic else None
        self.register_parameter("projection", None if weight is None else nn.Parameter(weight))
        self._scale_start = check_number("scale", 1.0 if scale is None else scale)
        count = 2 if tied else 3
        factors = torch.empty(count, device=device, dtype=dtype) if dynamic and scale is not None else None
        self.register_parameter("scale", None if factors is None else nn.Parameter(factors))
        label = f"{self.mixer.describe()}, {self.gate!r}, norm={norm!r}, projection={projection!r}"
        # Weights with three factors are older than the choice and do not name it.
        self.set_label(f"{label}, factor of the mixer tied to the read's" if tied else label)
        self.reset_parameters()

    def _check_start(self, projection: str, pieces: int) -> None:
        numbers = self.mixer.n_coefficients
        if projection != "reduced" and numbers != pieces**2:
            raise ValueError(
                f"projection: {projection} takes a mixer of n^2 = {pieces**2} raw numbers, {type(self.mixer).__name__} "
                f"has {numbers}"
            )
        if projection == "shared" and self.gate.n_read != self.reads * self.fractions * pieces:
            raise ValueError(f"projection: shared has no form for {self.gate!r}; the tanh gate does with fractions")
        # Parameters on "meta" have nothing to look at yet.
        numbers_at_hand = not any(t.is_meta for t in [*self.mixer.parameters(), *self.mixer.buffers()])
        if self.fractions > 1 and self.mixer.mixes and numbers_at_hand:
            with torch.device("cpu"), torch.no_grad():
                matrix = copy.deepcopy(self.mixer).to("cpu")(self.mixer.start())
            if not torch.allclose(matrix, torch.eye(pieces, dtype=matrix.dtype, device="cpu"), atol=1e-6):
                raise ValueError(
                    f"fractions: expected a mixer that starts at I, {type(self.mixer).__name__} would mix the parts of "
                    "a vector from the start; take cayley, cayley-mean, quaternion, free or identity"
                )

    def reset_parameters(self) -> None:
        """Set the mixing parameters to their start, the recipe's or the function-preserving one; not the branch."""
        self.mixer.reset_parameters()
        with torch.no_grad():
            # The start is a matter of a few numbers, computed on the CPU even while parameters are made on "meta".
            with torch.device("cpu"):
                mixing = self.mixer.start()
            start = torch.cat([mixing.new_zeros(sum(self.sizes[:2])), mixing])
            self.static.copy_(placed_like(self.static, start))
            if self.projection is not None:
                self.projection.zero_()
            if self.scale is not None:
                self.scale.fill_(self._scale_start)
            if self.recipe is not None:
                find_recipe(self.recipe).start(self)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``pre``, ``post`` and ``M`` for streams x; a subclass may make them in its own way.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams; only their leading shape and their dtype matter where the layer is not dynamic.

        Returns
        -------
        pre, post : Tensor, shape (..., n), or (n,) where not dynamic
            With several reads or fractions pre is (..., reads m, n m) and post (..., n m).
        matrix : Tensor, shape (..., n, n), or (n, n) where not dynamic
            float32, or float64 where the parameters or the streams are.
        """
        if self.projection is not None:
            return self._computed(x)[1:]
        with full_precision(x.device):
            return self._charted(None, self._coefficient_dtype(x))

    def _made(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the streams to go on with, and the coefficients, by the public name where that was replaced."""
        if self.projection is None or self._replaced():
            return x, *self.coefficients(x)
        return self._computed(x)

    def _replaced(self) -> bool:
        return type(self).coefficients is not Coefficients.coefficients or "coefficients" in self.__dict__

    def _sees_streams(self) -> bool:
        """Whether coefficients may depend on the values of the streams."""
        return self.projection is not None or self._replaced()

    def _computed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the streams to go on with, so that their gradient comes back in one piece, and the coefficients."""
        dtype = self._coefficient_dtype(x)
        # Autocast would take the projection and the charts to half precision.
        with full_precision(x.device):
            pieces, numbers = hand_on(
                partial(project, norm=self.norm, eps=self.eps, shared=self.shared),
                partial(pull_projection, norm=self.norm, eps=self.eps, shared=self.shared),
                self._pieces(x),
                self.projection.to(dtype),
            )
            if self.shared:
                numbers = by_streams(numbers, self.sizes)
            return pieces.reshape(x.shape), *self._charted(numbers, dtype)

    def _coefficient_dtype(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(torch.promote_types(self.static.dtype, x.dtype), torch.float32)

    def _charted(self, numbers: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Map what the projection gave (..., m), None where there is none, to ``pre``, ``post`` and ``M``."""
        raw = list(cast(self.static, dtype).split(self.sizes))
        if numbers is not None:
            parts = numbers.split(self.sizes, -1)
            dynamic = [self.gate.squash(parts[0]), self.gate.squash(parts[1]), self.mixer.squash(parts[2])]
            if self.scale is not None:
                dynamic = [s * z for s, z in zip(self._factors(dtype), dynamic, strict=True)]
            raw = [s + z for s, z in zip(raw, dynamic, strict=True)]
        pre, post = self.gate(raw[0], raw[1])
        return pre, post, self._mixed(raw[2])

    def _mixed(self, raw: Tensor) -> Tensor:
        matrix = self.mixer(raw)
        check_matrix(matrix, raw, self.mixer)
        return matrix

    def _factors(self, dtype: torch.dtype) -> Tensor:
        """Scales of the raw numbers of the read, the write and the mixer, (3,)."""
        scale = cast(self.scale, dtype)
        if len(scale) == 2:  # one is of the read and of the mixer
            scale = torch.cat([scale, scale[:1]])
        return scale if self.learn_mixer_scale else torch.cat([scale[:2], scale[2:].detach()])

    def _reading(self, dtype: torch.dtype) -> tuple[Reading, Opening | None] | None:
        """Describe to kernels how raw numbers come about, how they read, and what becomes of the others.

        None where kernels do not know the gate, the norm or the projection, and for the others alone where they do not
        know what bounds the mixer's.
        """
        gate, (reads, writes, mixes) = name_in_kernels(self.gate), self.sizes
        parts = self.shared or self.reads > 1 or self.fractions > 1
        if self.projection is None or gate is None or self.norm not in ("rms", None) or parts or self._replaced():
            return None
        # Cut once, so that the gradients of the pieces are joined and not filled up with zeros and added.
        of_read, others = cast(self.static, dtype).split([reads, writes + mixes])
        preference = self.gate.constant("preference", self.static.device)
        factors = others.new_ones(3) if self.scale is None else self._factors(dtype)
        of_reads, of_others = factors.split([1, 2])
        eps = self.eps if self.norm == "rms" else None
        reading = Reading(of_read + cast(preference, dtype), self.projection, of_reads, gate, eps)
        squashed = bound_in_kernels(self.mixer)
        return reading, None if squashed is None else Opening(others, of_others, gate, self.streams, squashed)

    def _pieces(self, x: Tensor) -> Tensor:
        """View streams (..., n, d) as their fractions (..., n m, d / m)."""
        if self.fractions == 1:
            return x
        return x.unflatten(-1, (self.fractions, -1)).flatten(-3, -2)

    def extra_repr(self) -> str:
        """Show the choices that the submodules do not show."""
        dynamic, static = self.projection is not None, isinstance(self.static, nn.Parameter)
        return f"dim={self.dim}, streams={self.streams}, norm={self.norm!r}, dynamic={dynamic}, static={static}"
