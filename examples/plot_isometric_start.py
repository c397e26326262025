"""
Designing a start for isometry
==============================

A deep network trains when its Jacobian neither stretches nor shrinks: when its singular values are alike. For a product
of hyper-connections their law is known before anything is trained, and it can be differentiated.
"""

# %%
# Twelve layers, four streams
# ---------------------------
# Every branch reads mostly one stream and writes to all, as layers do at their start. With M = I everything that is
# written stays where it is and adds up in the mean of the streams. :func:`jpmhc.spectrum.isometry_gap`,
# ``log E[s^2] - 2 E[log s]``, is zero only if all singular values are equal.

import matplotlib.pyplot as plt
import torch

from jpmhc import autodiff, spectrum

torch.manual_seed(0)
depth, streams, load = 12, 4, 0.5
start = spectrum.initial_chain("cayley", streams, depth)
read, write = start["read"], start["write"]
energy = load * streams / depth / (read.square().sum(-1) * write.square().sum(-1))
before = start["mixers"]
print(f"gap with M = I: {spectrum.isometry_gap(before, read, write, energy):.3f}")

# %%
# Rotations that spread the energy
# --------------------------------
# The gap is a closed form, so it is a loss like any other: here of the raw numbers of twelve rotations. Beside it
# stands the gap c = 0.5 of the scalar law, many thin layers whose branches act on all directions alike. Twelve layers
# can do a little better.

raw = torch.nn.Parameter(0.01 * torch.randn(depth, streams, streams, dtype=torch.float64))
optimiser = torch.optim.Adam([raw], lr=0.05)
gaps = []
for _ in range(150):
    optimiser.zero_grad()
    gap = spectrum.isometry_gap(autodiff.cayley(raw), read, write, energy)
    gap.backward()
    optimiser.step()
    gaps.append(gap.item())
after = autodiff.cayley(raw).detach()
print(f"gap with the rotations found: {gaps[-1]:.3f}")

# %%
# The laws
# --------
# Before, half of all singular values are exactly one (directions that no branch moves) and the others reach far out.
# After, all of them share the load, and the condition number falls.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(gaps)
left.axhline(load, color="0.5", linestyle="--", label="scalar law")
left.set(xlabel="step", ylabel="isometry gap", ylim=(0, None))
left.legend()
for mixers, label in ((before, "M = I"), (after, "optimised")):
    law = spectrum.predict(mixers, read, write, energy)
    print(f"{label}: condition {law.condition:.1f}, 1 to 99 %: {law.quantile(0.01):.2f} to {law.quantile(0.99):.2f}")
    law.plot(right, log=True, points=200, label=label)
right.legend()
figure.show()

# %%
# Every mixer at its start
# ------------------------
# The same numbers for stacks of every mixer, under the load above. Rotations start at M = I and are free to leave it,
# as here; doubly stochastic mixers lose the differences between streams in so many layers, and would need a diagonal
# of ``e^bias`` to keep half of them. Projectors take half of all directions to zero.

print(f"{'mixer':16} {'smallest':>9} {'largest':>8} {'mean log':>9} {'gap':>6} {'half lost after':>16} {'bias':>6}")
for found in spectrum.design_table(streams, depth, load=load):
    print(
        f"{found.mixer:16} {found.smallest:9.3f} {found.largest:8.2f} {found.mean_log:9.3f} {found.isometry_gap:6.2f} "
        f"{found.contrast_depth:16.1f} {'' if found.bias is None else f'{found.bias:6.1f}':>6}"
    )
