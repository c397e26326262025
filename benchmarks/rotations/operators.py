"""The reflection tasks as problems: a mixer alone, without a branch, must turn a vector into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import residuals
from benchmarks.arc.arms import Arm
from benchmarks.edelta import Edelta
from benchmarks.trainer import Schedule


class Operator(nn.Module):
    """``y = M x``, where M's raw numbers come from a small network of x, or are parameters.

    Parameters
    ----------
    mixer : Mixer
        Chart of M for n streams.
    width : int
        d: x has n d entries, cut into n streams.
    hidden : int or None
        Inner width of the network of x; None for parameters alone.
    """

    def __init__(self, mixer: nn.Module, width: int, hidden: int | None) -> None:
        super().__init__()
        self.mixer, self.width = mixer, width
        self.raw = nn.Parameter(mixer.start().float())
        size, count = mixer.streams * width, mixer.n_coefficients
        self.network = None
        if hidden is not None:
            self.network = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, count))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n d) to (B, n d)."""
        raw = self.raw if self.network is None else self.raw + self.network(x)
        return (self.mixer(raw) @ x.unflatten(-1, (-1, self.width))).flatten(-2)


class Added(nn.Module):
    """``x`` plus a small network of x: what the plain residual makes of the task."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, size) to (B, size)."""
        return x + self.network(x)


@dataclass
class Mapping:
    """Alignment (mean cosine) of ``M x`` with ``target x`` for normal vectors x.

    Attributes
    ----------
    name : str
        Of the task.
    target : Tensor, shape (n, n)
        The map, on n streams.
    width : int
        d, entries of a stream; the vectors have n d.
    hidden : int or None
        Inner width of the network that makes the raw numbers from x; None for a mixer that is the same for every x.
    schedule : Schedule
        The optimisation.
    samples : int
        Training vectors; as many are held out.
    data_seed : int
        Of the vectors.
    references : dict of str to float
        On the held-out data, ``copy`` is the alignment of x itself and ``rotations`` the most that any one rotation of
        the streams, the same for every x, can have.
    facts : dict
        Sizes and published numbers, for the result.
    """

    name: str
    target: Tensor
    width: int
    hidden: int | None
    schedule: Schedule
    samples: int = 500
    data_seed: int = 42
    references: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    measure: str = "alignment"
    relative: bool = False

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.data_seed)
        size = len(self.target) * self.width
        x = torch.randn(2 * self.samples, size, generator=generator)
        self.train = x[: self.samples], self._map(x[: self.samples])
        self.held_out = x[self.samples :], self._map(x[self.samples :])
        copy = float(F.cosine_similarity(*self.held_out, dim=-1).mean())
        self.references = {"copy": copy, "rotations": self._most(), **self.references}
        sizes = {"samples": self.samples, "streams": len(self.target), "width": self.width, "hidden": self.hidden}
        self.facts = {**sizes, **self.facts}

    def _map(self, x: Tensor) -> Tensor:
        return (self.target.float() @ x.unflatten(-1, (-1, self.width))).flatten(-2)

    def _most(self) -> float:
        x = self.held_out[0].double().unflatten(-1, (-1, self.width))
        spread = (x @ x.mT / x.square().sum((-2, -1), keepdim=True)).mean(0)
        return best_rotation(self.target @ spread)[1]

    def supports(self, arm: Arm) -> bool:
        """Whether the arm exists for the number of streams and has anything to learn."""
        return residuals.supports(arm, len(self.target)) and arm.mixer != "identity"

    def build(self, arm: Arm, seed: int) -> nn.Module:
        """Return the operator of an arm."""
        streams = len(self.target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if arm.mixer is None:
                return Added(streams * self.width, self.hidden or 4 * streams * self.width)
            if arm.text == "edelta":
                # The published test starts its gate towards the reflection and pushes it harder.
                return Operator(Edelta(streams, bias=-1.5, weight=0.5), self.width, self.hidden)
            return Operator(residuals.make_mixer(arm, streams), self.width, self.hidden)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw vectors."""
        chosen = torch.randint(self.samples, (self.schedule.batch,), generator=generator)
        return self.train[0][chosen], self.train[1][chosen]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(output, target)

    def evaluate(self, predict: Callable[[Tensor], Tensor]) -> list[dict[str, float]]:
        """Return ``alignment`` and ``mse`` over the held-out vectors."""
        x, target = self.held_out
        return [
            {
                "alignment": float(F.cosine_similarity(output, target, dim=-1).mean()),
                "mse": float(F.mse_loss(output, target)),
            }
            for output in predict(x)
        ]


def householder(streams: int, seed: int) -> Tensor:
    """Return ``I - 2 k k^T`` (n, n), float64, for a random unit vector k: determinant -1."""
    k = F.normalize(torch.randn(streams, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0)
    return torch.eye(streams, dtype=torch.float64) - 2 * torch.outer(k, k)


def best_rotation(matrix: Tensor) -> tuple[Tensor, float]:
    """Return the rotation Q that maximises ``tr(Q^T matrix)``, for a matrix (n, n), and that maximum.

    From the singular value decomposition, with the least singular direction turned round where the determinant is
    negative (Kabsch). With ``matrix = target E[x x^T / |x|^2]`` and an orthogonal target the maximum is the largest
    mean cosine of ``Q x`` with ``target x``: 1 - 2/n for isotropic x and a target of determinant -1.
    """
    u, s, vh = torch.linalg.svd(matrix)
    signs = torch.ones_like(s)
    signs[-1] = torch.sign(torch.linalg.det(u @ vh))
    rotation = u @ torch.diag(signs) @ vh
    return rotation, float((rotation * matrix).sum())
