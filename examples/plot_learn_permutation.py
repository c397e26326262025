"""
Learning a permutation
======================

A permutation is a vertex of the set of doubly stochastic matrices. :func:`jpmhc.autodiff.sinkhorn` maps any square
matrix of logits into that set, smoothly, so that gradient descent can look for a permutation: here for the one that
puts shuffled strips of a picture back in order.
"""

# %%
# A picture in strips
# -------------------
# Nobody tells which strip goes where. What is known of the right order is a noisy copy of the picture.

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment

from jpmhc import autodiff

generator = torch.Generator().manual_seed(0)
strips = 16
t = torch.linspace(-1, 1, strips, dtype=torch.float64)
y, x = torch.meshgrid(t, torch.linspace(-1, 1, 64, dtype=torch.float64), indexing="ij")
picture = torch.exp(-3 * (x - 0.5 * torch.sin(3 * y)) ** 2) + 0.6 * torch.sin(6 * x + 4 * y)
order = torch.randperm(strips, generator=generator)
shuffled = picture[order]
hint = picture + 0.3 * torch.randn(picture.shape, generator=generator, dtype=torch.float64)

# %%
# Gradient descent on the logits
# ------------------------------
# All permutations are equally likely at logits zero. As the fit improves the logits grow, the matrix comes near a
# vertex, and there the gradient unrolled through a few sweeps would be wrong; the one of the equation is exact.

logits = torch.zeros(strips, strips, dtype=torch.float64, requires_grad=True)
optimiser = torch.optim.Adam([logits], lr=0.2)
snapshots, losses, distance = {}, [], []
for step in range(301):
    matrix = autodiff.sinkhorn(logits)
    loss = (matrix @ shuffled - hint).square().mean()
    optimiser.zero_grad()
    loss.backward()
    if step in (0, 20, 60, 300):
        snapshots[step] = matrix.detach()
    losses.append(loss.item())
    # Zero at a permutation, one where all entries are equal.
    entropy = -(matrix * matrix.clamp_min(1e-300).log()).sum() / (strips * torch.log(torch.tensor(float(strips))))
    distance.append(entropy.item())
    optimiser.step()

rows, columns = linear_sum_assignment(-matrix.detach().numpy())
found = torch.as_tensor(columns)
print("all strips in place:", torch.equal(order[found], torch.arange(strips)))

# %%
figure, axes = plt.subplots(2, 4, figsize=(12, 5.6), layout="constrained")
for axis, (step, snapshot) in zip(axes[0], snapshots.items(), strict=True):
    axis.imshow(snapshot, cmap="magma", vmin=0, vmax=1)
    axis.set(title=f"matrix, step {step}", xticks=[], yticks=[])
images = {"shuffled": shuffled, "hint": hint, "put in order": shuffled[found]}
for axis, (title, image) in zip(axes[1], images.items(), strict=False):
    axis.imshow(image, cmap="viridis", aspect="auto", vmin=-0.6, vmax=1.6)
    axis.set(title=title, xticks=[], yticks=[])
last = axes[1, 3]
last.semilogy(losses, label="loss")
last.semilogy(distance, label="entropy")
last.set(xlabel="step", title="convergence")
last.grid(alpha=0.3)
last.legend()
plt.show()
