"""Checkpoints that are whole or not there: written aside, flushed, renamed, and checked by hash when read.

A checkpoint is a folder ``step-00000300`` of safetensors files, a ``state.json`` and a ``manifest.json`` with the
SHA-256 of the others. Nothing is pickled, and nothing in it depends on the time of day, so equal runs write equal
bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from benchmarks.arc.files import naming

_MANIFEST = "manifest.json"
_STATE = "state.json"

TensorFiles = dict[str, dict[str, torch.Tensor]]


class CheckpointError(ValueError):
    """A checkpoint is missing or damaged; the message names the file and the last good step."""


def save(folder: Path, step: int, files: TensorFiles, state: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint and delete all but the last ``keep`` up to it.

    Checkpoints of later steps are deleted too: a run that writes step 11 has gone back behind them.

    Parameters
    ----------
    folder : Path
        Holds the checkpoints of a run; made if it is not there.
    step : int
        Number of optimiser steps done.
    files : dict of dict of Tensor
        Tensors by file name (without ending) and name.
    state : dict
        JSON values.
    keep : int
        Checkpoints to keep, at least one.

    Returns
    -------
    Path
        The new checkpoint.

    Raises
    ------
    OSError
        If the disk is full, say; older checkpoints are untouched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    aside = folder / f"{target.name}.partial"
    for leftover in folder.glob("step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir()
    contents = {
        f"{name}.safetensors": save_tensors({key: value.contiguous() for key, value in tensors.items()})
        for name, tensors in files.items()
    }
    contents[_STATE] = json.dumps(state, indent=1).encode()
    contents[_MANIFEST] = json.dumps(
        {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}, indent=1
    ).encode()
    try:
        for name, data in contents.items():
            with naming(aside / name), (aside / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _flush(aside)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    _flush(folder)
    kept = [s for s in steps(folder) if s <= step][-keep:]
    for other in steps(folder):
        if other not in kept:
            shutil.rmtree(folder / f"step-{other:08d}")
    return target


def load(path: Path) -> tuple[TensorFiles, dict[str, Any]]:
    """Read a checkpoint and check every byte of it.

    Raises
    ------
    CheckpointError
        If a file is missing or differs from what was written, with the name of that file.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if not isinstance(manifest, dict) or _STATE not in manifest:
            raise ValueError("not a manifest")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / _MANIFEST}: unreadable ({error})") from error
    absent = {f"{name}.safetensors" for name in ("weights", "training")} - set(manifest)
    if absent:
        raise CheckpointError(f"{path / _MANIFEST}: damaged, lacks {', '.join(sorted(absent))}")
    files: TensorFiles = {}
    state: dict[str, Any] = {}
    for name, expected in manifest.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path / name}: unreadable ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(f"{path / name}: damaged, its SHA-256 is not the one written ({len(data)} bytes)")
        if name == _STATE:
            state = json.loads(data)
        else:
            files[name.removesuffix(".safetensors")] = load_tensors(data)
    return files, state


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first, damaged ones included."""
    digits = (path.name.removeprefix("step-") for path in folder.glob("step-????????") if path.is_dir())
    return sorted(int(number) for number in digits if number.isdecimal())


def load_step(folder: Path, step: int | None = None) -> tuple[int, TensorFiles, dict[str, Any]]:
    """Read the checkpoint of a step, the last one by default.

    Raises
    ------
    CheckpointError
        If there is none, or it is damaged; the message then names the last good step.
    """
    present = steps(folder)
    if not present:
        raise CheckpointError(f"{folder}: no checkpoint")
    wanted = present[-1] if step is None else step
    if wanted not in present:
        raise CheckpointError(f"{folder}: no checkpoint of step {wanted}, expected one of {present}")
    try:
        return wanted, *load(folder / f"step-{wanted:08d}")
    except CheckpointError as error:
        good, _ = last_good(folder)
        found = "no good checkpoint is left" if good is None else f"the last good step is {good}"
        raise CheckpointError(f"{error}; {found}") from error


def last_good(folder: Path) -> tuple[int | None, list[str]]:
    """Return the newest step whose checkpoint is whole, and what is wrong with every newer one."""
    faults = []
    for step in reversed(steps(folder)):
        try:
            load(folder / f"step-{step:08d}")
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return step, faults
    return None, faults


def _flush(folder: Path) -> None:
    # A rename is only durable once the folder that holds the name is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
