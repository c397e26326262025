"""
Sorted eigenvectors on the Stiefel manifold
===========================================

Brockett's function, ``trace(X^T A X N)`` with ``N = diag(p, ..., 2, 1)``, is least where the columns of X are the
eigenvectors of A with the smallest eigenvalues, in order. Here it is minimised over matrices with orthonormal columns.
"""

import matplotlib.pyplot as plt
import torch

from jpmhc import manifolds, optim

torch.manual_seed(0)
n, p = 30, 5
stiefel = manifolds.Stiefel()
eigenvalues = torch.linspace(-3, 3, n, dtype=torch.float64)
basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
matrix = basis * eigenvalues @ basis.T
order = torch.arange(p, 0, -1, dtype=torch.float64)

point = manifolds.Parameter(stiefel.random(n, p, dtype=torch.float64), manifold=stiefel)
optimiser = optim.RiemannianConjugateGradient([point], max_iter=1)
snapshots, gaps, drift = {}, [], []
best = (eigenvalues[:p] * order).sum()


def closure():
    optimiser.zero_grad()
    loss = ((point.T @ matrix @ point).diagonal() * order).sum()
    loss.backward()
    return loss


for step in range(101):
    if step in (0, 5, 15, 100):
        snapshots[step] = (point.T @ matrix @ point).detach()
    gaps.append(max(closure().item() - best.item(), 1e-16))
    drift.append(stiefel.point_error(point.detach()).item())
    optimiser.step(closure)

print(f"above the optimum by {gaps[-1]:.0e}, off the manifold by {max(drift):.0e} at most")

# %%
# ``X^T A X`` becomes diagonal, with the smallest eigenvalues in order: a subspace would not be enough for that.

figure, axes = plt.subplots(1, 5, figsize=(14, 3), layout="constrained", width_ratios=[1, 1, 1, 1, 1.4])
for axis, (step, projected) in zip(axes, snapshots.items(), strict=False):
    axis.imshow(projected, cmap="RdBu", vmin=-3, vmax=3)
    axis.set(title=f"X'AX, step {step}", xticks=[], yticks=[])
axes[-1].semilogy(gaps)
axes[-1].set(xlabel="step", title="above the optimum")
axes[-1].grid(alpha=0.3)
plt.show()
