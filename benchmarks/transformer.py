"""The network of the task benchmarks: a small pre-norm transformer whose residual is an arm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.arc.arms import Arm
from jpmhc import layers

_WIRINGS = ("copies", "split")
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the network.

    Attributes
    ----------
    width, heads, blocks : int
        Width d of one stream, attention heads, blocks (attention, then a GELU network of inner width 4 d).
    length : int
        Longest sequence.
    streams : int
        Streams n of every arm but ``plain``.
    wiring : str
        ``"copies"``: the embedding has width d, streams start as copies and are averaged at the end. ``"split"``: the
        embedding has width n d and is cut into streams; the head sees all of them.
    plain_blocks : int or None
        Blocks of the plain arm, to match the parameters of the others; None for as many.
    causal : bool
        Whether a token sees only what is before it.
    pooled : bool
        Whether the head sees the mean over the tokens.
    """

    width: int
    heads: int
    blocks: int
    length: int
    streams: int = 4
    wiring: str = "copies"
    plain_blocks: int | None = None
    causal: bool = True
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width: expected a multiple of heads={self.heads}, got {self.width}")
        if self.wiring not in _WIRINGS:
            raise ValueError(f"wiring: expected one of {_WIRINGS}, got {self.wiring!r}")


class Attention(nn.Module):
    """Layer norm and multi-head attention, (B, T, d) -> (B, T, d)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = nn.LayerNorm(width, bias=False)
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = self.inputs(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # The fused CPU kernel has no rule under vmap.
        backends = [SDPBackend.MATH] if x.device.type == "cpu" else _FUSED
        with sdpa_kernel(backends):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Layer norm and a GELU network of inner width 4 d, (..., d) -> (..., d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.inner = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to every token."""
        return self.output(F.gelu(self.inner(self.norm(x))))


class Transformer(nn.Module):
    """Embedding, blocks with the arm's residual, norm and linear head.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    arm : Arm
        Residual.
    embed : Callable
        ``embed(width)`` makes the module from a batch to (B, T, width).
    outputs : int
        Width of the head.
    seed : int
        Of the initial weights. Arms of one seed and one number of blocks start from the same weights.
    """

    def __init__(
        self, config: TransformerConfig, arm: Arm, embed: Callable[[int], nn.Module], outputs: int, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(config, arm, embed, outputs)

    def _build(self, config: TransformerConfig, arm: Arm, embed: Callable[[int], nn.Module], outputs: int) -> None:
        self.config, self.single = config, arm.mixer is None
        self.split = config.wiring == "split" and not self.single
        whole = config.width * (config.streams if self.split else 1)
        blocks = config.plain_blocks or config.blocks if self.single else config.blocks
        self.embed = embed(whole)
        self.positions = nn.Parameter(0.02 * torch.randn(config.length, whole))
        branches: list[nn.Module] = []
        for _ in range(blocks):
            branches += [Attention(config.width, config.heads, config.causal), FeedForward(config.width)]
        for module in branches:
            _initialise(module, len(branches))
        self.norm = nn.LayerNorm(whole, bias=False)
        self.head = nn.Linear(whole, outputs)
        # Last, because some published layers start at random: everything above is then the same in every arm.
        self.layers = nn.ModuleList(
            arm.residual(config.width, branch, config.streams, index) for index, branch in enumerate(branches)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch (B, T, ...) to (B, T, outputs), or (B, outputs) where pooled."""
        h = self.embed(x) + self.positions[: x.shape[1]]
        n = self.config.streams
        if self.split:
            h = h.unflatten(-1, (n, self.config.width))
        elif not self.single:
            h = layers.expand_streams(h, n)
        for layer in self.layers:
            h = layer(h)
        if self.split:
            h = h.flatten(-2)
        elif not self.single:
            h = layers.reduce_streams(h)
        h = self.norm(h)
        return self.head(h.mean(1) if self.config.pooled else h)


def _initialise(branch: nn.Module, branches: int) -> None:
    for name, parameter in branch.named_parameters():
        if parameter.ndim == 2:
            # The sum over all branches then has the size of one.
            scale = math.sqrt(branches) if name.startswith("output") else 1.0
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]) / scale)
