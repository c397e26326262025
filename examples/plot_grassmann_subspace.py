"""
A dominant subspace on the Grassmannian
=======================================

The subspace that holds most of a data set is a point of the Grassmannian: which basis spans it does not matter. Three
optimisers look for it from the same random start, and principal angles to the truth say how far they are.
"""

import matplotlib.pyplot as plt
import torch

from jpmhc import manifolds, optim

torch.manual_seed(0)
n, p = 60, 3
grassmann = manifolds.Grassmann()
spectrum = torch.cat([torch.tensor([9.0, 8.0, 7.0]), torch.linspace(4, 0.1, n - p)]).double()
basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
covariance = basis * spectrum @ basis.T
truth = basis[:, :p]
start = grassmann.random(n, p, dtype=torch.float64)


# %%
# The loss is minus the variance inside the subspace. It is the same for every basis of it, so its gradient is
# horizontal, and the optimisers never waste a step on turning the basis inside its span.


def run(make, steps):
    point = manifolds.Parameter(start.clone(), manifold=grassmann)
    optimiser = make(point)
    angles = []

    def closure():
        optimiser.zero_grad()
        loss = -torch.trace(point.T @ covariance @ point) / spectrum.sum()
        loss.backward()
        return loss

    for _ in range(steps):
        angles.append(grassmann.principal_angles(point.detach(), truth).max().item())
        optimiser.step(closure)
    return angles


curves = {
    "RiemannianAdam": run(lambda x: optim.RiemannianAdam([x], lr=0.05), 120),
    "RiemannianConjugateGradient": run(lambda x: optim.RiemannianConjugateGradient([x], 1, tolerance_grad=1e-13), 40),
    "RiemannianTrustRegion": run(lambda x: optim.RiemannianTrustRegion([x], 1, tolerance_grad=1e-13), 40),
}
for name, angles in curves.items():
    print(f"{name:28} largest angle {angles[-1]:.1e} after {len(angles) - 1} steps")

# %%
# Adam with a constant rate is still on its way when conjugate gradients and the trust region have arrived.

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, angles in curves.items():
    axis.semilogy(angles, label=name)
axis.set(xlabel="step", ylabel="largest principal angle", title=f"Subspace of dimension {p} in {n}")
axis.grid(alpha=0.3)
axis.legend()
plt.show()
