"""
A deep-equilibrium layer
========================

A deep-equilibrium layer outputs the fixed point of a cell, ``z = tanh(W z + U x + b)``: a network of infinite depth
with the weights of one layer. :func:`jpmhc.autodiff.fixed_point` solves for it and differentiates the equation, so that
a gradient needs the solution and nothing of the way there.
"""

# %%
# The layer
# ---------
# ``W`` is 0.9 times a rotation, so the cell contracts whatever the parameters are. The function may use tensors from
# outside as it finds them; their gradients arrive.

import matplotlib.pyplot as plt
import torch
from torch import nn

from jpmhc import autodiff

torch.manual_seed(0)


class Equilibrium(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.raw = nn.Parameter(0.3 * torch.randn(hidden, hidden))
        self.inject = nn.Linear(inputs, hidden)

    def cell(self, x):
        weight, injected = 0.9 * autodiff.cayley(self.raw), self.inject(x)
        return lambda z: torch.tanh(z @ weight.T + injected), torch.zeros_like(injected)

    def forward(self, x, **options):
        return autodiff.fixed_point(*self.cell(x), **options)


# %%
# Its gradient, against the unrolled one
# --------------------------------------
# Unrolled, a gradient is exact only in the limit of many steps, and every step is kept in memory. The implicit one does
# not know how many steps there were.

layer = Equilibrium(2, 32).double()
x = torch.randn(64, 2, dtype=torch.float64)
parameters = list(layer.parameters())


def flat_gradient(value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value.square().sum(), parameters)])


def unrolled(steps):
    cell, z = layer.cell(x)
    for _ in range(steps):
        z = cell(z)
    return z


exact = flat_gradient(unrolled(400))
depths = [2, 4, 8, 16, 32, 48, 64, 96, 128]
unrolled_errors = [(flat_gradient(unrolled(steps)) - exact).norm() / exact.norm() for steps in depths]

tolerances = [10.0**-k for k in range(2, 13)]
implicit_errors, evaluations = [], []
for tol in tolerances:
    solution = layer(x, solver=autodiff.Anderson(tol=tol, max_steps=300))
    implicit_errors.append((flat_gradient(solution.value) - exact).norm() / exact.norm())
    evaluations.append(int(solution.steps.max()))

# %%
# Training it
# -----------
# Two spirals, a layer of 32 units, and a linear head. Loose tolerances are enough to train.

angle = torch.linspace(0.5, 9.5, 150)
arm = torch.stack([angle.cos(), angle.sin()], dim=-1) * angle[:, None] / 9.5
points = torch.cat([arm, -arm]) + 0.02 * torch.randn(300, 2)
labels = torch.cat([torch.zeros(150), torch.ones(150)])

layer, head = Equilibrium(2, 32), nn.Linear(32, 1)
nn.init.normal_(layer.inject.weight, std=3.0)
optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=4e-2)
losses = []
for _ in range(120):
    solution = layer(points, solver=autodiff.Anderson(tol=1e-4))
    loss = nn.functional.binary_cross_entropy_with_logits(head(solution.value)[:, 0], labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
print(f"loss {losses[-1]:.4f}, {int(solution.steps.max())} evaluations for the slowest sample")

# %%
axis = torch.linspace(-1.2, 1.2, 80)
grid = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    score = head(layer(grid, solver=autodiff.Anderson(tol=1e-4)).value)[:, 0].sigmoid().reshape(80, 80)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.semilogy(depths, unrolled_errors, "o-", label="unrolled")
left.semilogy(evaluations, implicit_errors, "s-", label="implicit, tol from 1e-2 to 1e-12")
left.set(xlabel="evaluations of the cell in forward", ylabel="relative error of the gradient", title="Gradient")
left.grid(alpha=0.3)
left.legend()
right.contourf(axis, axis, score.T, levels=20, cmap="RdBu_r", alpha=0.7)
right.scatter(*points.T, c=labels, cmap="RdBu_r", s=10, edgecolors="k", linewidths=0.3)
right.set(title=f"Two spirals after {len(losses)} steps, loss {losses[-1]:.3f}", aspect="equal")
plt.show()
