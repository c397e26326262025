"""Random Jacobians drawn from the definition, and the layers to draw them from."""

import torch

from jpmhc import autodiff


def mixers(kind, layers, n=4, seed=0):
    raw = torch.randn(layers, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    eye = torch.eye(n, dtype=torch.float64)
    frame = torch.linalg.qr(raw)[0]
    return {
        "identity": lambda: eye.expand(layers, n, n),
        "haar": lambda: frame,
        "cayley": lambda: autodiff.cayley(0.15 * raw),
        "bistochastic": lambda: autodiff.sinkhorn(raw + 4 * eye),
        "projector": lambda: frame[..., : n - 1] @ frame[..., : n - 1].mT,
        "reflector": lambda: 2 * frame[..., : n // 2] @ frame[..., : n // 2].mT - eye,
        "free": lambda: eye + 0.3 * raw / n**0.5,
    }[kind]()


def gates(kind, layers, n=4, seed=1):
    """Read and write weights (layers, n)."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(layers, n, dtype=torch.float64)
    eyes = torch.eye(n, dtype=torch.float64)[torch.arange(layers) % n]
    if kind == "random":
        draw = torch.randn(2, layers, n, generator=generator, dtype=torch.float64)
        return draw[0] / n**0.5, draw[1]
    return {"uniform": ones / n, "softmax": torch.softmax(2 * eyes, -1), "one": eyes}[kind], ones


def energies(read, write, load):
    """Equal shares of the scalar load ``c``."""
    layers, n = read.shape
    return load * n / layers / (read.square().sum(-1) * write.square().sum(-1))


def branch_jacobian(kind, energy, width, generator):
    def draw():
        return torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5

    if kind == "haar":
        # The signs that LAPACK's factor prefers would leave it a mean.
        Q, R = torch.linalg.qr(draw())
        return energy.sqrt() * Q * R.diagonal().sign()
    if kind == "relu":
        mask = torch.randint(0, 2, (width, 1), generator=generator)
        return (2 * energy).sqrt() * draw() @ (mask * draw())
    return energy.sqrt() * draw()


def jacobian(mixers, read, write, energy, width, branch="gaussian", seed=0):
    """One draw of the nC x nC Jacobian, ``J <- M J + write (X (read^T J))``."""
    generator = torch.Generator().manual_seed(seed)
    layers, n, _ = mixers.shape
    J = torch.eye(n * width, dtype=torch.float64).view(n, width, n * width)
    for l in range(layers):
        skip = torch.einsum("ij,jck->ick", mixers[l], J)
        if branch == "isotropic":
            noise = torch.randn(n * width, n * width, generator=generator, dtype=torch.float64)
            J = skip + ((energy[l] / (n * width)).sqrt() * noise @ J.flatten(0, 1)).view_as(J)
        else:
            X = branch_jacobian(branch, energy[l], width, generator)
            J = skip + write[l][:, None, None] * (X @ torch.einsum("j,jck->ck", read[l], J))
    return J.flatten(0, 1)


def setting(kind, gate, layers, load=1.0, n=4):
    """Arguments of `predict` for mixers and gates of those kinds."""
    M = mixers(kind, layers, n)
    read, write = gates(gate, layers, n)
    return M, read, write, energies(read, write, load)
