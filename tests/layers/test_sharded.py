"""Layers sharded by FSDP2: the same losses as unsharded, and checkpoints that come back in shards."""

import socket
import subprocess
import sys

import torch

WORKER = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from jpmhc import layers, manifolds, optim

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
MIXERS = ["cayley", "sinkhorn", "quaternion", "identity", "grassmann", "manifold"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand = layers.StreamEmbedding(8, 4)
        self.layers = nn.ModuleList(
            layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer, layer_index=i) for i, mixer in enumerate(MIXERS)
        )
        self.head = layers.StreamHead(8, 4)

    def forward(self, x):
        x = self.expand(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def build():
    torch.manual_seed(0)
    return Model()


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=manifolds.unsharded_parameters(layer))
    return fully_shard(model, mesh=mesh, ignored_params=manifolds.unsharded_parameters(model))


def optimisers(model):
    points = manifolds.unsharded_parameters(model)
    rest = [p for p in model.parameters() if p not in points]
    return [torch.optim.AdamW(rest, lr=1e-2), optim.RiemannianAdam(list(points), lr=1e-2)]


def step(model, both, x, target, alone=False):
    model.zero_grad()
    loss = (model(x) - target).square().mean()
    loss.backward()
    if not alone:  # base points are whole on every process: their gradients are averaged here
        for parameter in manifolds.unsharded_parameters(model):
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
    for optimiser in both:
        optimiser.step()
    return loss.detach()


torch.manual_seed(1)
x, target = torch.randn(2, 6, 8)
if rank == 0:
    model = build()
    both = optimisers(model)
    losses = [step(model, both, x, target, alone=True) for _ in range(3)]
    torch.save([torch.stack(losses), model(x).detach()], folder + "/plain")
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
mine = slice(3 * rank, 3 * rank + 3)
model = shard(build())
both = optimisers(model)
losses = []
for _ in range(3):
    loss = step(model, both, x[mine], target[mine])
    dist.all_reduce(loss)
    losses.append(loss / 2)
before = model(x).detach()
dcp.save(get_model_state_dict(model), checkpoint_id=folder + "/sharded")
other = build()
with torch.no_grad():
    for parameter in set(other.parameters()) - manifolds.unsharded_parameters(other):
        parameter.add_(1.0)
other = shard(other)
state = get_model_state_dict(other)
dcp.load(state, checkpoint_id=folder + "/sharded")
set_model_state_dict(other, state)
after = other(x).detach()
error = other.layers[-1].mixer.residual(other.layers[-1].mixer.base.detach())
assert isinstance(other.layers[-1].mixer.base, manifolds.Parameter) and error < 1e-5
if rank == 0:
    torch.save([torch.stack(losses), before, after], folder + "/two")
dist.destroy_process_group()
"""


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_shards_train_like_one_process_and_come_back_from_a_sharded_checkpoint(tmp_path):
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(rank), port, str(tmp_path)], stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()[-3000:]
    plain_losses, plain = torch.load(tmp_path / "plain", weights_only=True)
    losses, before, after = torch.load(tmp_path / "two", weights_only=True)
    torch.testing.assert_close(losses, plain_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(before, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(after, before)
