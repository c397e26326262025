"""What unrolled and implicit Sinkhorn cost a training step beside arithmetic: nodes, operations, waiting in DDP."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.kernels.small_maps import SWEEPS, unrolled
from jpmhc import layers

WIDTH, STREAMS, DEPTH = 128, 4, 8


class UnrolledSinkhorn(layers.Sinkhorn):
    """The Sinkhorn mixer with autograd through its sweeps."""

    def forward(self, raw: Tensor) -> Tensor:
        """Map logits (..., n^2) to matrices (..., n, n)."""
        return unrolled(self._coefficients(raw).unflatten(-1, (self.streams, self.streams)))


def _model(mixer: str) -> nn.Sequential:
    torch.manual_seed(0)
    made = {
        "unrolled": lambda: UnrolledSinkhorn(STREAMS),
        "implicit": lambda: layers.Sinkhorn(STREAMS, iterations=SWEEPS),
    }[mixer]
    return nn.Sequential(
        *(layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), mixer=made(), layer_index=k) for k in range(DEPTH))
    )


def count(quick: bool) -> dict[str, Any]:
    """Count nodes of the autograd graph and operations (on a GPU: kernel launches) of a step of eight sublayers.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with mixer, and nodes and launches of the step and of one mixer alone.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(256, STREAMS, WIDTH, device=device)
    rows = []
    for mixer in ("unrolled", "implicit"):
        model = _model(mixer).to(device)
        chart, raw = model[0].mixer, torch.randn(256, STREAMS**2, device=device, requires_grad=True)
        rows.append({"mixer": f"{mixer}, {SWEEPS} sweeps"})
        for name, call in (("step", lambda m=model: m(x)), ("one_mixer", lambda c=chart, r=raw: c(r))):
            call().sum().backward()
            nodes, launches = _nodes(call()), _launches(call, device)
            rows[-1] |= {f"{name}_nodes": nodes, f"{name}_launches": launches}
    return {"name": "nodes and launches", "device": device, "width": WIDTH, "sublayers": DEPTH, "rows": rows}


def _nodes(result: Tensor) -> int:
    seen, stack = set(), [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [after for after, _ in node.next_functions]
    return len(seen)


def _launches(call: Any, device: str) -> int:
    """Count kernels on a GPU; on a CPU the operations that call no other."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as record:
        call().sum().backward()
    if device == "cuda":
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in record.events())
    outermost = [event for event in record.events() if not event.cpu_children]
    return sum(event.name.startswith(("aten::", "jpmhc::")) for event in outermost)


def wait(quick: bool) -> dict[str, Any]:
    """Train the same model with two gloo processes of one thread each.

    Returns
    -------
    dict
        JSON-able: ``rows``, each with mixer, step_ms, alone_ms (the same step without the exchange of gradients, in
        the same rounds) and waiting, the share of the step that is neither. A process waits for its peer's gradients
        and for the exchange itself.
    """
    rows = []
    for mixer in ("unrolled", "implicit"):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_train, args=(mixer, folder, 3 if quick else 15), nprocs=2)
            step, alone = map(float, (Path(folder) / "times").read_text().split())
        rows.append({"mixer": mixer, "step_ms": step, "alone_ms": alone, "waiting": max(0.0, 1 - alone / step)})
    return {"name": "waiting", "backend": "gloo", "processes": 2, "width": WIDTH, "sublayers": DEPTH, "rows": rows}


def _train(rank: int, mixer: str, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = nn.parallel.DistributedDataParallel(_model(mixer))
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    x = torch.randn(256, STREAMS, WIDTH)

    def step() -> float:
        begin = time.perf_counter()
        optimiser.zero_grad()
        network(x).square().mean().backward()
        optimiser.step()
        return time.perf_counter() - begin

    step()
    with_exchange, without = [], []
    for _ in range(rounds):
        dist.barrier()
        with_exchange.append(step())
        with network.no_sync():
            dist.barrier()
            without.append(step())
    if rank == 0:
        times = [1e3 * sorted(values)[rounds // 2] for values in (with_exchange, without)]
        (Path(folder) / "times").write_text(f"{times[0]}{os.linesep}{times[1]}")
    dist.destroy_process_group()
