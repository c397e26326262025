"""Bodies on the pool under what training does to a process: forked data loaders, Python threads, DDP."""

import socket
import subprocess
import sys
import threading

import pytest
import torch

from jpmhc import autodiff, kernels, layers

TOKENS = 1200  # more than one thread's worth


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    # Not torch.set_num_threads, after which torch factorises large matrices wrongly.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def logits(seed):
    return torch.randn(TOKENS, 4, 4, generator=torch.Generator().manual_seed(seed))


def maps(seed):
    raw = logits(seed).requires_grad_()
    result = autodiff.sinkhorn(raw, iterations=5)
    return result.detach(), torch.autograd.grad(result.square().sum(), raw)[0]


def expected(seed):
    with kernels.backend("reference"):
        return maps(seed)


class Maps(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)  # a worker starts with one
        return maps(index)


def test_forked_data_loaders():
    assert kernels.choice("sinkhorn_sweeps", logits(0), None, None, 5).backend == "numba"
    maps(0)  # the pool is alive when the workers fork
    loader = torch.utils.data.DataLoader(Maps(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for seed, found in enumerate(loader):
        torch.testing.assert_close(tuple(found), expected(seed), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps(1), expected(1), rtol=1e-5, atol=1e-5)


def test_python_threads():
    found = {}

    def work(seed):
        found[seed] = [maps(seed) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in (0, 1):
        for one in found[seed]:
            torch.testing.assert_close(one, expected(seed), rtol=1e-5, atol=1e-5)


WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from jpmhc import kernels, layers

rank, port = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(2)
torch.manual_seed(0)
model = layers.HyperConnection(8, nn.Linear(8, 8), mixer="sinkhorn", layer_index=0)
x = torch.randn(2, 1200, 4, 8)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
network = nn.parallel.DistributedDataParallel(model)
for _ in range(3):
    model.zero_grad()
    network(x[rank]).square().mean().backward()
shared = [parameter.grad.clone() for parameter in model.parameters()]
with kernels.backend("reference"):
    model.zero_grad()
    model(x).square().mean().backward()
for gradient, parameter in zip(shared, model.parameters(), strict=True):
    torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


def test_distributed_data_parallel():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", WORKER]
    workers = [subprocess.Popen([*command, str(rank), port], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors


def test_storages_stay_resizable():
    # FSDP2 frees the parameters that it gathered by resizing them to nothing.
    hc = layers.HyperConnection(8, torch.nn.Linear(8, 8))
    x = torch.randn(TOKENS, 4, 8).requires_grad_()
    with kernels.backend("numba"):
        hc(x).sum().backward()
        raw = logits(0)
        autodiff.cayley(raw)
    assert all(tensor.untyped_storage().resizable() for tensor in (x, raw, *hc.parameters()))
