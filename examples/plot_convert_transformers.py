"""
Hyper-connections for a Transformers model
==========================================

:func:`jpmhc.layers.convert` gives an existing model n residual streams. At first it computes what it computed before;
then the streams part and it trains. Here a small Llama of Hugging Face Transformers learns to continue a text, is
converted halfway, and goes on.
"""

# %%
# A plain model
# -------------
# Built from a configuration with random weights, nothing is downloaded. The text counts in words, so the next letter is
# sometimes certain and sometimes a matter of remembering where the sentence began.

import copy
import random

import matplotlib.pyplot as plt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jpmhc import layers

torch.manual_seed(0)
random.seed(0)
steps = 60
words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def sentence():
    start, step = random.randrange(10), random.randrange(1, 4)
    return " ".join(words[(start + k * step) % 10] for k in range(8)) + ". "


text = "".join(sentence() for _ in range(800))
letters = sorted(set(text))
tokens = torch.tensor([letters.index(letter) for letter in text])


def batch(size=12, length=48):
    starts = torch.randint(len(tokens) - length, (size,))
    return torch.stack([tokens[start : start + length] for start in starts])


def train(model, groups):
    optimiser = torch.optim.AdamW(groups, lr=3e-3)
    # A new optimiser knows no gradients yet; at full speed it would undo some of what was learnt.
    warmup = torch.optim.lr_scheduler.LinearLR(optimiser, 0.05, total_iters=15)
    losses, spreads = [], []
    for _ in range(steps):
        ids = batch()
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        warmup.step()
        losses.append(loss.item())
        spreads.append(spread[0])
    return losses, spreads


spread = [0.0]
config = LlamaConfig(
    vocab_size=len(letters),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
model = LlamaForCausalLM(config)
before, _ = train(model, model.parameters())

# %%
# Conversion
# ----------
# The model runs once on a small example while every residual vector is watched: each addition in each block is found
# and becomes a :class:`~jpmhc.layers.HyperConnection`. Logits and greedy text are those of the original.

plain = copy.deepcopy(model)
layers.convert(model, streams=4, mixer="cayley")
ids = batch(2, 32)
with torch.no_grad():
    difference = (model(ids).logits - plain(ids).logits).abs().max()
settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
ours, theirs = (m.generate(ids[:1], **settings)[0] for m in (model, plain))
print(f"largest difference of the logits: {difference:.1e}")
print(f"same text: {torch.equal(ours, theirs)}")
print("".join(letters[i] for i in ours))

# %%
# The weights keep their names, and every block has gained one entry for each of its additions.

new = [name for name in model.state_dict() if "model.layers.0.hyper_connections" in name]
print("\n".join(new))

# %%
# Training
# --------
# Weight decay would pull the mixing parameters towards raw = 0, so they get none. A hook on the third block looks at
# the streams it hands on: how far from their mean they are.


def watch(module, arguments, streams):
    streams = streams.detach()
    spread[0] = float((streams - streams.mean(-2, keepdim=True)).norm() / streams.norm())


model.model.layers[2].register_forward_hook(watch)
mixing = layers.mixing_parameters(model)
others = [p for p in model.parameters() if p not in set(mixing)]
state = torch.get_rng_state()
converted, spreads = train(model, [{"params": others}, {"params": mixing, "weight_decay": 0.0}])
torch.set_rng_state(state)
unchanged, _ = train(plain, plain.parameters())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(range(steps), before, color="0.6", label="before conversion")
left.plot(range(steps, 2 * steps), unchanged, color="0.3", label="plain")
left.plot(range(steps, 2 * steps), converted, color="tab:blue", label="4 streams, cayley")
left.set(xlabel="step", ylabel="loss", yscale="log", title="the loss goes on where it was")
left.legend()
right.plot(range(steps, 2 * steps), spreads, color="tab:blue")
right.set(xlabel="step", ylabel="||x - mean|| / ||x||", title="spread of the streams after block 2")
figure.show()
