"""
Matching two graphs on the Birkhoff polytope
============================================

Two graphs are the same up to the names of their nodes. A permutation would tell, but there is no gradient among
permutations; among the doubly stochastic matrices, whose corners they are, there is.
"""

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment

from jpmhc import manifolds, optim

torch.manual_seed(1)
n = 12
weights = torch.rand(n, n, dtype=torch.float64)
graph = weights + weights.T
order = torch.randperm(n)
renamed = graph[order][:, order]

# %%
# Start in the middle, where every node is matched with every other equally, and follow the Riemannian gradient. The
# metric is the Fisher metric: near a face it slows down whatever would cross it, so every iterate is positive.

birkhoff = manifolds.Birkhoff()
middle = birkhoff.origin(n, n, dtype=torch.float64)
nudge = birkhoff.proju(middle, 1e-3 * torch.randn(n, n, dtype=torch.float64))
point = manifolds.Parameter(birkhoff.retr(middle, nudge), manifold=birkhoff)
optimiser = optim.RiemannianAdam([point], lr=0.05)
losses, snapshots = [], {}
for step in range(401):
    optimiser.zero_grad()
    loss = (point @ graph - renamed @ point).square().sum()
    loss.backward()
    if step in (0, 50, 150, 400):
        snapshots[step] = point.detach().clone()
    losses.append(loss.item())
    optimiser.step()

rows, columns = linear_sum_assignment(-point.detach().numpy())
print("the matching is the planted one:", torch.equal(torch.as_tensor(columns), order))
print(f"sums off by {birkhoff.point_error(point.detach()).item():.0e} after {len(losses)} steps")

# %%
figure, axes = plt.subplots(1, 5, figsize=(14, 3), layout="constrained", width_ratios=[1, 1, 1, 1, 1.4])
for axis, (step, matrix) in zip(axes, snapshots.items(), strict=False):
    axis.imshow(matrix, cmap="magma", vmin=0, vmax=1)
    axis.set(title=f"step {step}", xticks=[], yticks=[])
axes[-1].semilogy(losses)
axes[-1].set(xlabel="step", title="disagreement of the graphs")
axes[-1].grid(alpha=0.3)
plt.show()
