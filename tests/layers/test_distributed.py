"""Data-parallel training equals training on one process, and shards leave the constraint alone."""

import socket
import subprocess
import sys

import pytest
import torch

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from jpmhc import layers

rank, port, mixer = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
model = nn.Sequential(
    layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer, layer_index=0),
    layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer, layer_index=1),
)
x, target = torch.randn(2, 6, 4, 8)


def train(network, x, target):
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        loss = (network(x) - target).square().mean()
        loss.backward()
        optimiser.step()
    return loss.detach()


if rank < 0:
    loss = train(model, x, target)
else:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mine = slice(3 * rank, 3 * rank + 3)
    loss = train(nn.parallel.DistributedDataParallel(model), x[mine], target[mine])
    dist.all_reduce(loss)
    loss /= 2
    dist.destroy_process_group()
if rank <= 0:
    torch.save([loss, *[t for p in model.parameters() for t in (p.grad, p.detach())]], sys.argv[4])
"""


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("mixer", ["cayley", pytest.param("sinkhorn", marks=pytest.mark.slow)])
def test_two_processes_train_like_one(mixer, tmp_path):
    port = str(free_port())

    def start(rank, path):
        return subprocess.Popen([sys.executable, "-c", WORKER, str(rank), port, mixer, str(path)])

    alone = start(-1, tmp_path / "one")
    both = [start(rank, tmp_path / "two") for rank in (0, 1)]
    for process in (alone, *both):
        assert process.wait(timeout=120) == 0
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    for expected, actual in zip(one, two, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
