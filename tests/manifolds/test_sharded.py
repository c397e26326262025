"""FSDP on two processes: left out, manifold parameters train as on one; not left out, the loss is named."""

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
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from jpmhc import manifolds, optim

rank, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
stiefel = manifolds.Stiefel()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn = manifolds.Parameter(stiefel.origin(6, 4), stiefel)
        self.shift = nn.Parameter(torch.zeros(6))
        self.out = nn.Linear(6, 8)

    def forward(self, x):
        return self.out(x @ self.turn.mT + self.shift)


torch.manual_seed(0)
model = Net()
x, target = torch.randn(2, 8, 4), torch.randn(2, 8, 8)
pieces = [0, 1] if rank < 0 else [rank]
if rank >= 0:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    lost = Net()
    fully_shard(lost)
    assert manifolds.lost_parameters(lost) == ["turn"], manifolds.lost_parameters(lost)
    try:
        optim.parameter_groups(lost)
    except TypeError as error:
        assert "turn" in str(error) and "unsharded_parameters" in str(error), error
    else:
        raise AssertionError("a lost manifold went unnoticed")
    try:
        optim.RiemannianSGD(lost.parameters())
    except TypeError as error:
        assert "Net.turn, got a DTensor of shape (6, 4)" in str(error), error
    else:
        raise AssertionError("an optimiser took a lost manifold for a free parameter")
    for options in ({}, {"use_orig_params": True}):
        lost = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), **options)
        lost.load_state_dict(lost.state_dict())
        names = manifolds.lost_parameters(lost)
        assert [name.split(".")[-1] for name in names] == ["turn"], names
        try:
            optim.RiemannianSGD(lost.parameters())
        except TypeError as error:
            assert "that was Net.turn" in str(error) and "unsharded_parameters" in str(error), error
        else:
            raise AssertionError("an optimiser took what FSDP1 made of a point")
        kept = Net()
        whole = list(manifolds.unsharded_parameters(kept))
        kept = FullyShardedDataParallel(kept, device_id=torch.device("cpu"), ignored_states=whole, **options)
        assert manifolds.lost_parameters(kept) == []
        optimizer = optim.RiemannianAdam(optim.parameter_groups(kept), lr=0.1)
        kept(x[rank]).square().sum().backward()
        optimizer.step()
        assert stiefel.point_error(whole[0].detach()) < 1e-6
    # A small free parameter left whole too: shards and whole tensors meet in one optimiser, even in one group.
    fully_shard(model, ignored_params=manifolds.unsharded_parameters(model) | {model.shift})
    assert isinstance(model.turn, manifolds.Parameter)
    assert not isinstance(model.shift, DTensor)
    assert isinstance(model.out.weight, DTensor)
if sys.argv[4] == "adam":
    optimizer = optim.RiemannianAdam(optim.parameter_groups(model, lr=0.05, weight_decay=0.1))
else:
    optimizer = optim.RiemannianSGD(model.named_parameters(), lr=0.05, momentum=0.9, nesterov=True)
for _ in range(5):
    optimizer.zero_grad()
    loss = sum((model(x[i]) - target[i]).square().mean() for i in pieces) / len(pieces)
    loss.backward()
    if rank >= 0:  # FSDP2 averages what it shards and nothing else
        for whole in (model.turn, model.shift):
            dist.all_reduce(whole.grad)
            whole.grad /= 2
    optimizer.step()
assert stiefel.point_error(model.turn.detach()) < 1e-6
weight = model.out.weight.full_tensor() if rank >= 0 else model.out.weight
if rank <= 0:
    torch.save([model.turn.detach(), model.shift.detach(), weight.detach()], path)
if rank >= 0:
    dist.destroy_process_group()
"""


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("name", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_two_processes_with_sharded_layers_train_like_one(name, tmp_path):
    port = str(free_port())

    def start(rank, file):
        return subprocess.Popen([sys.executable, "-c", WORKER, str(rank), port, str(tmp_path / file), name])

    processes = [start(-1, "one"), start(0, "two"), start(1, "two")]
    assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
    one, two = (torch.load(tmp_path / file, weights_only=True) for file in ("one", "two"))
    for expected, actual in zip(one, two, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
