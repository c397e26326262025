"""The averaged weights of a run as files to carry away: half precision if asked, in shards below a size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from benchmarks.arc import checkpoint
from benchmarks.arc.files import write_json
from benchmarks.arc.run import RunSpec

_CHECKPOINTS, _INDEX = "checkpoints", "weights.json"
# What a safetensors file holds beside its numbers: names, shapes, offsets.
_HEADER = 256


def export(
    folder: Path, out: Path, *, step: int | None = None, max_shard_mib: float = 64.0, dtype: str = "float32"
) -> list[Path]:
    """Write ``weights-00001-of-00003.safetensors`` and so on, with ``weights.json`` that says what is where.

    Parameters
    ----------
    folder : Path
        Of the run.
    out : Path
        Folder to write to; made if it is not there. An earlier export there is replaced.
    step : int, optional
        Of the checkpoint; the last one by default.
    max_shard_mib : float
        No file is larger; a tensor that is, such as the table of puzzle embeddings, is cut along its first dimension.
    dtype : str
        ``"float32"`` or ``"bfloat16"``, of floating-point tensors.

    Returns
    -------
    list of Path
        The shards, in order.

    Raises
    ------
    ValueError
        For another dtype, a size that does not hold a single row, or a run without a good checkpoint.
    """
    check_dtype(dtype)
    spec = RunSpec.load(folder)
    found, files, _ = checkpoint.load_step(folder / _CHECKPOINTS, step)
    wanted = getattr(torch, dtype)
    tensors = {k: v.to(wanted) if v.is_floating_point() else v for k, v in files["weights"].items()}
    shards = _shards(tensors, int(max_shard_mib * 2**20))
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"weights-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    # Without this file there is no export, rather than one of which some shards are another's.
    (out / _INDEX).unlink(missing_ok=True)
    for earlier in set(out.glob("weights-*-of-*.safetensors")).difference(paths):
        earlier.unlink()
    for path, shard in zip(paths, shards, strict=True):
        path.write_bytes(save_tensors(shard))
    places = {path.name: list(shard) for path, shard in zip(paths, shards, strict=True)}
    write_json(out / _INDEX, {"run": spec.to_json(), "step": found, "dtype": dtype, "shards": places})
    return paths


def check_dtype(dtype: str) -> None:
    """Raise ValueError for a dtype that `export` does not write."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected float32 or bfloat16, got {dtype!r}")


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what `export` wrote: what ``weights.json`` says, and the tensors in one piece."""
    from safetensors.torch import load as load_tensors

    index = json.loads((folder / _INDEX).read_text())
    pieces: dict[str, list[torch.Tensor]] = {}
    for name in index["shards"]:
        for key, value in load_tensors((folder / name).read_bytes()).items():
            pieces.setdefault(key.rpartition("#")[0] or key, []).append(value)
    return index, {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in pieces.items()}


def _shards(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """Pack tensors, in order, into as few files as this order allows."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, piece in _pieces(tensors, limit):
        size = piece.nbytes + len(name) + _HEADER
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = piece
        used += size
    return shards


def _pieces(tensors: dict[str, torch.Tensor], limit: int) -> list[tuple[str, torch.Tensor]]:
    pieces = []
    for name, tensor in tensors.items():
        room = limit - len(name) - 8 - _HEADER
        if tensor.nbytes <= room:
            pieces.append((name, tensor.contiguous()))
            continue
        rows = room // max(tensor[0].nbytes, 1) if tensor.ndim else 0
        if rows < 1:
            raise ValueError(f"max_shard_mib: {limit / 2**20:g} MiB hold no row of {name}, {tuple(tensor.shape)}")
        parts = tensor.split(rows)
        pieces += [(f"{name}#{index:05d}", part.clone()) for index, part in enumerate(parts)]
    return pieces
