"""
Hyper-connections around a small GPT
====================================

A GPT of one's own: each ``x = x + branch(x)`` becomes a :class:`~jpmhc.layers.HyperConnection`, the embedding is copied
into streams, and their mean goes to the head. Everything else stays. One argument then chooses the skip connection, and
:class:`~jpmhc.layers.Residual` has the same calls for the plain one.
"""

import random

import matplotlib.pyplot as plt
import torch
from torch import nn

from jpmhc import layers

# %%
# Text that counts
# ----------------
# Sentences count in words by ones, twos or threes. A letter is sometimes certain and sometimes a matter of remembering
# where the sentence began.

words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
random.seed(0)


def sentence():
    start, step = random.randrange(10), random.randrange(1, 4)
    return " ".join(words[(start + k * step) % 10] for k in range(8)) + ". "


text = "".join(sentence() for _ in range(800))
letters = sorted(set(text))
tokens = torch.tensor([letters.index(letter) for letter in text])


def batch(size=12, length=48):
    starts = torch.randint(len(tokens) - length - 1, (size,))
    picked = torch.stack([tokens[start : start + length + 1] for start in starts])
    return picked[:, :-1], picked[:, 1:]


# %%
# The model
# ---------
# The attention hands its values on beside its result, and later layers add a learned share of the first layer's: a
# value residual. A branch may return a tuple; its first tensor is written to the streams, the rest comes back to the
# caller.


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.share = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x, first=None):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        mixed = v if first is None else v + self.share * (first - v)
        y = nn.functional.scaled_dot_product_attention(q, k, mixed, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(-2)), v


def feed_forward(width):
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class GPT(nn.Module):
    def __init__(self, mixer, width=48, depth=3, heads=4, streams=4):
        super().__init__()

        def connect(branch, index):
            if mixer is None:
                return layers.Residual(branch)
            return layers.HyperConnection(width, branch, streams=streams, mixer=mixer, layer_index=index)

        self.streams = None if mixer is None else streams
        self.token, self.place = nn.Embedding(len(letters), width), nn.Embedding(64, width)
        self.attention = nn.ModuleList(connect(Attention(width, heads), 2 * i) for i in range(depth))
        self.feed_forward = nn.ModuleList(connect(feed_forward(width), 2 * i + 1) for i in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(letters), bias=False)

    def forward(self, ids):
        x = self.token(ids) + self.place(torch.arange(ids.shape[1]))
        if self.streams:
            x = layers.expand_streams(x, self.streams)
        first = None
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            x, values = attention(x, first=first)
            first = values if first is None else first
            x = feed_forward(x)
        if self.streams:
            x = layers.reduce_streams(x)
        return self.head(self.norm(x))


# %%
# Training
# --------
# All arms start as the same function: the branches have the same weights, and whatever the mixer is, a network between
# copies and the mean computes what the plain residual one does. The mixing parameters get no weight decay.

steps = 120
arms = {"plain": None, "identity": "identity", "sinkhorn": "sinkhorn", "cayley": "cayley"}


def train(mixer):
    torch.manual_seed(0)
    model = GPT(mixer)
    torch.manual_seed(1)
    mixing = set(layers.mixing_parameters(model))
    groups = [
        {"params": [p for p in model.parameters() if p not in mixing], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p in mixing], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=3e-3)
    losses = []
    for _ in range(steps):
        ids, labels = batch()
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model, losses


models, curves = {}, {}
for name, mixer in arms.items():
    models[name], curves[name] = train(mixer)
    numbers = sum(p.numel() for p in models[name].parameters())
    last = sum(curves[name][-20:]) / 20
    print(f"{name:10} {numbers} parameters, loss at the start {curves[name][0]:.4f}, last 20 {last:.3f}")

# %%
# What the mixers did in the last forward pass: how far they are from their set, by which factors they change
# differences between streams, how far from the identity they have come.

print(layers.statistics(models["cayley"]))
print(layers.statistics(models["sinkhorn"]))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, losses in curves.items():
    left.plot(losses, label=name, color="0.4" if name == "plain" else None)
left.set(xlabel="step", ylabel="loss", yscale="log", title="one seed: a picture, not a ranking")
left.legend()
for name in ("identity", "sinkhorn", "cayley"):
    found = {layer.name: layer.distance_from_identity.mean() for layer in layers.statistics(models[name])}
    distances = [found[f"{part}.{i}"] for i in range(3) for part in ("attention", "feed_forward")]
    right.plot(distances, "o-", label=name)
right.set(xlabel="connection (attention and feed-forward in turn)", ylabel="$||M - I||_F / \\sqrt{n}$")
right.set(title="distance of the mixers from the identity")
right.legend()
plt.show()
