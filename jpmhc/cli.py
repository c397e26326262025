"""The command ``jpmhc``: what this installation offers and whether it works here."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass

_PACKAGES = ("jpmhc", "torch", "numpy", "scipy", "numba", "geoopt", "triton")


@dataclass
class Mixers:
    """Print the table of mixers."""

    streams: int = 4
    """Number of streams n for which raw numbers are counted."""

    def __call__(self) -> None:
        """Run the command."""
        from rich.console import Console
        from rich.table import Table

        from jpmhc import layers

        if self.streams < 1:
            raise ValueError(f"--streams: expected at least 1, got {self.streams}")
        table = Table(box=None, pad_edge=False)
        for name in ("mixer", "set", "raw numbers", f"at n = {self.streams}", "exact", "n"):
            table.add_column(name, no_wrap=name == "mixer")
        for info in layers.mixers():
            smallest, largest = info.streams
            sizes = f"{smallest} and more" if largest is None else f"{smallest} to {largest}"
            sizes = str(smallest) if smallest == largest else sizes
            count = str(info.make(self.streams).n_coefficients) if info.supports(self.streams) else "-"
            table.add_row(info.name, info.set, info.coefficients, count, "yes" if info.exact else "no", sizes)
        Console().print(table)


@dataclass
class Doctor:
    """Print versions and devices, and check that the maps work here."""

    def __call__(self) -> None:
        """Run the command."""
        import torch

        from jpmhc import layers

        print(f"python     {platform.python_version()} on {platform.system()} {platform.machine()}")
        for name in _PACKAGES:
            try:
                print(f"{name:10} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                print(f"{name:10} not installed")
        print(f"threads    {torch.get_num_threads()}")
        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        failed = []
        for device in devices:
            name = torch.cuda.get_device_name(device) if device != "cpu" else "processor"
            worst = 0.0
            for info in layers.mixers():
                streams = 4 if info.supports(4) else info.streams[0]
                chart = info.make(streams).to(device)
                generator = torch.Generator().manual_seed(0)
                matrix = chart(torch.randn(64, chart.n_coefficients, generator=generator).to(device))
                residual = chart.residual(matrix).max().item()
                if info.exact:
                    worst = max(worst, residual)
                    if not residual < 1e-5:
                        failed.append(f"{info.name} on {device}: off its set by {residual:.1e}")
            print(f"{device:10} {name}: exact mixers within {worst:.0e} of their sets")
        if failed:
            raise RuntimeError("; ".join(failed))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake ends in one line on standard error."""
    try:
        import rich  # noqa: F401
        import tyro
    except ModuleNotFoundError as error:
        print(f"error: {error.name}: not installed; pip install jpmhc[cli]", file=sys.stderr)
        return 1
    command = tyro.extras.subcommand_cli_from_dict({"mixers": Mixers, "doctor": Doctor}, prog="jpmhc", args=arguments)
    try:
        command()
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
