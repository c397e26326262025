"""The Tiny Recursive Model with a choice of residual: plain, or n streams and a mixer.

The network, its recursion and its initialisation follow arXiv 2510.04871 and its published code; what is new is that
every residual addition is a `jpmhc.layers.HyperConnection`, or a `jpmhc.layers.Residual` in the plain arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.arc.arms import Arm
from benchmarks.arc.encode import VOCAB
from jpmhc import layers

_SCOPES = ("persistent", "per_call")
NORM_PLACEMENTS = ("post", "post-joint", "pre")
EPS = 1e-5  # of every norm


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model; the defaults are the 7 M model of the paper at 30 x 30.

    Attributes
    ----------
    side : int
        Grid side; a sequence has ``prefix + side^2`` positions.
    width, heads, inner, blocks : int
        Width d, attention heads, inner width of the SwiGLU, blocks (of two sublayers each).
    h_cycles, l_cycles : int
        Recursion: ``h_cycles`` times (``l_cycles`` updates of z, then one of y), gradient through the last.
    prefix : int
        Positions before the grid: the puzzle embedding, then zeros.
    streams : int
        Streams n of every arm but ``plain``.
    streams_scope : str
        ``"persistent"``: y and z carry n streams through the recursion; ``"per_call"``: streams live inside one call
        of the net.
    norm_placement : str
        ``"post"``: every stream is normalised by itself after every sublayer, as in the paper. ``"post-joint"``: the n
        streams of a token are normalised together, so that their sizes relative to one another survive. ``"pre"``: a
        branch's input is normalised, the streams themselves only at the end of a net call, without which the recursion
        grows without bound.
    gradient_cycles : int
        H cycles that carry gradient, counted from the last; the recipe's is 1.
    dynamic, static : bool
        Whether the coefficients of every hyper-connection depend on the token, on parameters, or on both.
    """

    side: int = 30
    width: int = 512
    heads: int = 8
    inner: int = 1536
    blocks: int = 2
    h_cycles: int = 3
    l_cycles: int = 4
    prefix: int = 16
    streams: int = 4
    streams_scope: str = "persistent"
    norm_placement: str = "post"
    gradient_cycles: int = 1
    dynamic: bool = True
    static: bool = True

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width: expected an even multiple of heads={self.heads}, got {self.width}")
        if self.prefix < 1:
            raise ValueError(f"prefix: expected at least 1 (the puzzle embedding), got {self.prefix}")
        if self.streams_scope not in _SCOPES:
            raise ValueError(f"streams_scope: expected one of {_SCOPES}, got {self.streams_scope!r}")
        if self.norm_placement not in NORM_PLACEMENTS:
            raise ValueError(f"norm_placement: expected one of {NORM_PLACEMENTS}, got {self.norm_placement!r}")
        if not 1 <= self.gradient_cycles <= self.h_cycles:
            raise ValueError(f"gradient_cycles: expected 1 to h_cycles={self.h_cycles}, got {self.gradient_cycles}")

    @property
    def positions(self) -> int:
        """Length of a sequence."""
        return self.prefix + self.side**2

    @property
    def calls(self) -> int:
        """Calls of the net in a segment."""
        return self.h_cycles * (self.l_cycles + 1)

    @property
    def gradient_calls(self) -> int:
        """Calls of the net in a segment that carry gradient."""
        return self.gradient_cycles * (self.l_cycles + 1)


class Latents(NamedTuple):
    """The recursion's state: the answer y and the scratch pad z, (B, T, d) or (B, T, n, d)."""

    y: Tensor
    z: Tensor


def truncated_normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Draw normal numbers cut at two standard deviations and rescaled to standard deviation ``std``."""
    values = torch.empty(shape)
    nn.init.trunc_normal_(values, 0.0, 1.0, -2.0, 2.0, generator=generator)
    # The cut lowers the standard deviation to 0.8796.
    cut = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    return values * (std / cut)


class Linear(nn.Module):
    """A matrix without bias, LeCun-normal."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(truncated_normal((outputs, inputs), inputs**-0.5, generator))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Full self-attention with rotary positions."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, generator)
        self.out = Linear(width, width, generator)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Let the positions of x (B, T, d) attend to one another."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, d / heads)
        attended = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v)
        return self.out(attended.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, width: int, inner: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * inner, generator)
        self.down = Linear(inner, width, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map every vector of x (..., d)."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def rotary_table(positions: int, size: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, size) of the rotary angles; the two halves of a head turn together."""
    frequency = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # (B, heads, T, size)
    """Turn every pair (i, i + size / 2) of a head by its position's angle."""
    cos, sin = (table.to(x.dtype) for table in rotary)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def rms_norm(x: Tensor, dims: int = 1) -> Tensor:
    """RMS norm of the last dimensions together, without gain, in float32 at least."""
    return F.rms_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-dims:], eps=EPS).to(x.dtype)


class PreNorm(nn.Module):
    """A branch whose input is normalised."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the branch to the normalised x (..., d)."""
        return self.branch(rms_norm(x), *args, **kwargs)


class Net(nn.Module):
    """The blocks: residuals over attention and over the feed-forward layer, with norms where the settings put them."""

    def __init__(self, config: ModelConfig, arm: Arm, generator: torch.Generator) -> None:
        super().__init__()
        self.per_call = arm.has_streams and config.streams_scope == "per_call"
        self.streams = config.streams
        self.reduction = arm.reduction
        self.norm_placement = config.norm_placement
        # The streams of a token are normalised together, or each by itself; one stream is both.
        self.norm_dims = 2 if config.norm_placement == "post-joint" and arm.has_streams else 1
        branches: list[nn.Module] = []
        for _ in range(config.blocks):
            branches.append(Attention(config.width, config.heads, generator))
            branches.append(SwiGLU(config.width, config.inner, generator))
        if self.norm_placement == "pre":
            branches = [PreNorm(branch) for branch in branches]
        self.sublayers = nn.ModuleList(
            arm.residual(
                config.width,
                branch,
                config.streams,
                index,
                dynamic=config.dynamic,
                static=config.static,
                seed=generator.initial_seed(),
            )
            for index, branch in enumerate(branches)
        )
        # In a tuple, as the modules have their names already.
        fused = arm.has_streams and config.norm_placement == "post"
        self._stack = (layers.HyperStack(self.sublayers, post_norm="rms", post_norm_eps=EPS),) if fused else ()

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the blocks to x (B, T, d), or (B, T, n, d) where the streams are persistent."""
        if self.per_call:
            x = layers.expand_streams(x, self.streams)
        arguments = [{"rotary": rotary} if index % 2 == 0 else {} for index in range(len(self.sublayers))]
        for stack in self._stack:
            x = stack(x, arguments=arguments)
        if not self._stack:
            x = self._one_by_one(x, arguments)
        return layers.reduce_streams(x, self.reduction) if self.per_call else x

    def _one_by_one(self, x: Tensor, arguments: list[dict[str, Any]]) -> Tensor:
        for sublayer, own in zip(self.sublayers, arguments, strict=True):
            x = sublayer(x, **own)
            if self.norm_placement != "pre":
                x = rms_norm(x, self.norm_dims)
        return rms_norm(x) if self.norm_placement == "pre" else x


@contextmanager
def constant_coefficients(net: nn.Module) -> Iterator[None]:
    """Compute the coefficients that depend on no token once, not at every application inside the block."""
    static = [m for m in net.modules() if isinstance(m, layers.HyperConnection) and m.projection is None]
    if torch.compiler.is_compiling():
        static = []
    for layer in static:
        found = layer.coefficients(layer.static)
        layer.coefficients = lambda x, found=found: found  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in static:
            del layer.coefficients  # type: ignore[method-assign]


class TinyRecursiveModel(nn.Module):
    """TRM: one small net applied again and again to an answer y and a scratch pad z.

    Parameters
    ----------
    config : ModelConfig
        Sizes.
    arm : Arm
        The residual.
    seed : int
        Of the initialisation. The same seed gives every arm the same branches and heads, as mixers draw nothing.
    """

    def __init__(self, config: ModelConfig, arm: Arm, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config, self.arm = config, arm
        self.checkpoint_calls = False
        self.persistent = arm.has_streams and config.streams_scope == "persistent"
        width = config.width
        self.embed = nn.Parameter(truncated_normal((VOCAB, width), width**-0.5, generator))
        self.net = Net(config, arm, generator)
        self.head = Linear(width, VOCAB, generator)
        # Halting is never the first guess: sigmoid(-5).
        self.halt = nn.Linear(width, 1)
        with torch.no_grad():
            self.halt.weight.zero_()
            self.halt.bias.fill_(-5.0)
        self.register_buffer("start_y", truncated_normal((width,), 1.0, generator))
        self.register_buffer("start_z", truncated_normal((width,), 1.0, generator))
        cos, sin = rotary_table(config.positions, width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initial(self, batch: int, dtype: torch.dtype | None = None, side: int | None = None) -> Latents:
        """Return the latents every sample starts from; in bfloat16 the streams are kept in it throughout.

        ``side`` is that of the square of tokens, the configured one unless told otherwise.
        """
        positions = self.config.prefix + (self.config.side if side is None else side) ** 2
        shape = (batch, positions, self.config.streams, self.config.width)
        if not self.persistent:
            shape = (shape[0], shape[1], shape[3])
        # Copies, as a trainer overwrites single samples.
        y, z = (start.to(dtype or start.dtype).expand(shape).clone() for start in (self.start_y, self.start_z))
        return Latents(y, z)

    def forward(self, latents: Latents, tokens: Tensor, puzzle: Tensor) -> tuple[Latents, Tensor, Tensor]:
        """Run one segment: the whole recursion once, with gradient through its last H cycles.

        Parameters
        ----------
        latents : Latents
            Carried from the last segment.
        tokens : Tensor, shape (B, side^2), integers
            Encoded input grid: the configured square, or its top-left corner of a smaller side. The tokens of a
            corner keep their positions; those outside are not there to be attended to.
        puzzle : Tensor, shape (B, d)
            Puzzle embedding of every sample.

        Returns
        -------
        latents : Latents
            Detached.
        logits : Tensor, shape (B, side^2, 12)
            Of the output tokens.
        halt : Tensor, shape (B,)
            Logit of "this answer is right".
        """
        y, z = latents
        x = self.embed_input(tokens, puzzle).to(y.dtype)
        with constant_coefficients(self.net):
            with torch.no_grad():
                for _ in range(self.config.h_cycles - self.config.gradient_cycles):
                    y, z = self.cycle(y, z, x)
            for _ in range(self.config.gradient_cycles):
                y, z = self.cycle(y, z, x)
        logits, halt = self.answer(y)
        return Latents(y.detach(), z.detach()), logits, halt

    def embed_input(self, tokens: Tensor, puzzle: Tensor) -> Tensor:
        """Return the input x that every net call sees, (B, T, d), or (B, T, 1, d) for all streams alike."""
        prefix = F.pad(puzzle.unsqueeze(1), (0, 0, 0, self.config.prefix - 1))
        x = math.sqrt(self.config.width) * torch.cat((prefix, F.embedding(tokens.long(), self.embed)), 1)
        return x.unsqueeze(-2) if self.persistent else x

    def cycle(self, y: Tensor, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one H cycle: ``l_cycles`` updates of z, then one of y."""
        for _ in range(self.config.l_cycles):
            z = self._call(z + y + x)
        return self._call(y + z), z

    def _call(self, x: Tensor) -> Tensor:
        rotary = self._rotary(x.shape[1])
        if self.checkpoint_calls and torch.is_grad_enabled():
            return checkpoint(self.net, x, rotary, use_reentrant=False)
        return self.net(x, rotary)

    def _rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the rotary angles of a sequence: all, or those of the square's top-left corner."""
        whole, prefix = self.config.side, self.config.prefix
        if length == self.config.positions:
            return self.cos, self.sin
        side = math.isqrt(max(0, length - prefix))
        if not (1 <= side <= whole and prefix + side**2 == length):
            raise ValueError(f"tokens: expected a square of side 1 to {whole}, got {length - prefix} tokens")
        corner = (t[prefix:].unflatten(0, (whole, whole))[:side, :side].flatten(0, 1) for t in (self.cos, self.sin))
        cos, sin = (torch.cat((t[:prefix], c)) for t, c in zip((self.cos, self.sin), corner, strict=True))
        return cos, sin

    def answer(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Read the output logits (B, side^2, 12) and the halting logit (B,) from y."""
        y = layers.reduce_streams(y, self.arm.reduction) if self.persistent else y
        return self.head(y[:, self.config.prefix :]), self.halt(y[:, 0]).squeeze(-1)
