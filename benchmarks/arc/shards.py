"""The weights of a wide model in shards: of several processes each keeps its rows of the net's matrices.

With them it keeps the optimiser's state and the average of these rows alone. FSDP2 gathers the matrices for a step and
adds up their gradients. Whatever is small stays whole on every process: mixers, gates and base points, which are no
rows of anything, embedding and heads; and the table of puzzles, whose gradients are exchanged by row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.arc import processes
from benchmarks.arc.model import TinyRecursiveModel
from jpmhc import layers, manifolds


def shard(model: TinyRecursiveModel) -> None:
    """Leave this process its rows of every matrix in the branches of the net, in place; a process group is joined.

    Parameters
    ----------
    model : TinyRecursiveModel
        With the same weights on all processes.

    Notes
    -----
    The model is one unit. Its recursion comes to every matrix ``h_cycles (l_cycles + 1)`` times a segment, and autograd
    holds the gradient of a matrix whole until the last of its uses is through. Smaller units would gather so much more
    often, to save no more than the gathered weights beside those gradients; and their hooks would cut compiled nets.
    """
    # Slow to import, and whoever has no shards need not wait.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    small = {*layers.mixing_parameters(model), *manifolds.unsharded_parameters(model)}
    matrices = {p for p in model.net.parameters() if p.ndim == 2 and p not in small}
    mesh = init_device_mesh(model.embed.device.type, (processes.world(),))
    unit = fully_shard(model, mesh=mesh, ignored_params=set(model.parameters()) - matrices)
    # Losses are divided by the whole batch, so gradients are added and not averaged.
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)
    # The halting logits are a view, which nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Have the whole weights in a model in shards inside the block, where it is run in parts; all processes enter."""
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def in_shards(tensor: Tensor | None) -> bool:
    """Return whether this process holds rows of a tensor alone: whether it is a ``DTensor``."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: its rows of one in shards, sharing memory, and a whole one itself."""
    held: Tensor = tensor.to_local() if in_shards(tensor) else tensor  # type: ignore[operator]
    return held


def part(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, in shards where the parameter is."""
    if not in_shards(parameter):
        return whole
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    # FSDP2 cuts as torch.chunk does, which may make fewer pieces than there are processes.
    pieces = whole.chunk(processes.world())
    mine = pieces[processes.rank()] if processes.rank() < len(pieces) else whole[:0]
    return DTensor.from_local(
        mine.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def whole(parameter: Tensor | None, value: Tensor) -> Tensor:
    """Return the whole of a value of which each process holds the rows that it holds of the parameter."""
    return processes.gather(value) if in_shards(parameter) else value


def on_first(parameter: Tensor | None, value: Tensor) -> Tensor | None:
    """Return the whole of a value in the host's memory of the first process, and None on others, if it is in shards."""
    if not in_shards(parameter):
        return value
    everything = processes.gather(value)
    return everything.cpu() if processes.rank() == 0 else None


def sum_gradients(gradients: Sequence[Tensor]) -> None:
    """Add up over the processes, in place, the gradients that FSDP2 has not added up."""
    processes.sum_gradients(gradient for gradient in gradients if not in_shards(gradient))


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, the same number on all processes."""
    mine = [local(gradient) for gradient in gradients if in_shards(gradient)]
    same = [gradient for gradient in gradients if not in_shards(gradient)]
    if not mine:
        return torch.nn.utils.get_total_norm(same)
    # In double precision, as the square of a finite norm may not be finite in its own.
    squares = (torch.nn.utils.get_total_norm(part).double().square() for part in (mine, same))
    return (processes.add_up(next(squares)) + next(squares)).sqrt()
