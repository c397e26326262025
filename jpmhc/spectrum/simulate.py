"""Monte-Carlo: the singular values of a product of layers whose branches are drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jpmhc.host import on_host
from jpmhc.spectrum.arguments import as_seed
from jpmhc.spectrum.branches import Branch, Gaussian, Haar, Hidden
from jpmhc.spectrum.measured import MeasuredLaw
from jpmhc.spectrum.model import make_model


@on_host
def simulate(
    mixers: Tensor | Sequence[Tensor],
    read: Tensor | None = None,
    write: Tensor | None = None,
    energy: Tensor | float = 1.0,
    branch: str | Branch = "gaussian",
    *,
    width: int = 256,
    draws: int = 1,
    seed: int = 0,
    memory_gib: float = 1.0,
) -> MeasuredLaw:
    """Draw the Jacobian that :func:`~jpmhc.spectrum.predict` speaks of, and decompose it.

    Parameters
    ----------
    mixers, read, write, energy
        As for :func:`~jpmhc.spectrum.predict`.
    branch : str or Branch
        ``"gaussian"``: X has independent entries. ``"haar"``: a rotation. ``"relu"`` or ``Hidden(active)``: two
        Gaussian layers around a mask. ``"isotropic"``: ``J_l = M_l (x) I + N_l`` with independent entries, the model of
        the JPmHC paper.
    width : int
        Width C; the Jacobian is n C x n C.
    draws : int
        Independent Jacobians, pooled.
    seed : int
        Of the draws.
    memory_gib : float
        Most memory for one Jacobian; a draw takes some four times as much.

    Returns
    -------
    MeasuredLaw
        All singular values, float64.

    Raises
    ------
    ValueError
        As :func:`~jpmhc.spectrum.predict`; for sizes below one, a Jacobian larger than allowed, and a branch that is
        known by its law alone.

    Notes
    -----
    O(L n C^3 + (n C)^3) a draw: a second at n = 4, C = 256, L = 10 on a core, eight times as much for twice the width.
    It decides whether a prediction is right, and is what a prediction saves.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import spectrum
    >>> eye = torch.eye(2).expand(3, 2, 2)
    >>> law = spectrum.simulate(eye, torch.full((3, 2), 0.5), torch.ones(3, 2), energy=0.3, width=32)
    >>> law.singular_values.shape
    torch.Size([1, 64])
    """
    model = make_model(mixers, read, write, energy, branch)
    if type(model.branch) not in (Gaussian, Haar, Hidden):
        raise ValueError(
            f"branch: expected gaussian, haar, relu or isotropic, which can be drawn; got {model.branch!r}"
        )
    seed = as_seed(seed)
    for name, value in (("width", width), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    size = model.streams * width
    gib = 8 * size**2 / 2**30
    if not gib <= memory_gib:
        raise ValueError(
            f"width: a Jacobian of {size} x {size} entries takes {gib:.3g} GiB, more than "
            f"memory_gib={memory_gib:g} allows"
        )
    M, v = model.mixers.detach(), model.energy.detach()
    p, q = (None if gate is None else gate.detach() for gate in (model.read, model.write))
    generator = torch.Generator().manual_seed(seed)
    n = M.shape[-1]
    values = []
    for _ in range(draws):
        jacobian = torch.eye(n * width, dtype=torch.float64).view(n, width, n * width)
        for l in range(len(M)):
            mixed = torch.einsum("ij,jcd->icd", M[l], jacobian)
            if p is None or q is None:
                noise = torch.randn(n * width, n * width, dtype=torch.float64, generator=generator)
                added = noise @ jacobian.flatten(0, 1) * (v[l] / (n * width)).sqrt()
                jacobian = mixed + added.view_as(mixed)
            else:
                read_out = torch.einsum("j,jcd->cd", p[l], jacobian)
                drawn = _draw(model.branch, width, generator) @ read_out * v[l].sqrt()
                jacobian = mixed + q[l, :, None, None] * drawn
        values.append(torch.linalg.svdvals(jacobian.flatten(0, 1)))
    found = torch.stack(values).unsqueeze(0)
    return MeasuredLaw(found, torch.full_like(found, 1 / (n * width)), shape=(n * width, n * width), method="exact")


def _draw(branch: Branch, width: int, generator: torch.Generator) -> Tensor:
    """Matrix (C, C) of energy one."""

    def gaussian(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=torch.float64, generator=generator)

    if isinstance(branch, Hidden):
        # Hidden units that are off have no part in the product, so only the others are drawn.
        active = max(1, round(branch.active * width))
        return gaussian(width, active) @ gaussian(active, width) / (width * active) ** 0.5
    drawn = gaussian(width, width)
    if isinstance(branch, Haar):
        rotation, triangle = torch.linalg.qr(drawn)
        # Without the signs the factor is not uniform.
        return rotation * triangle.diagonal().sign()
    return drawn / width**0.5
