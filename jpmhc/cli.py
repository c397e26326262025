"""The command ``jpmhc``: what this installation offers and whether it works here."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            failed += self._check_bodies(device)
        if failed:
            raise RuntimeError("; ".join(failed))

    def _check_bodies(self, device: str) -> list[str]:
        """Print which bodies run on a device, and return those that do not give what the reference gives."""
        from jpmhc.kernels.bodies import interpreted
        from jpmhc.kernels.check import check_bodies

        failed = []
        for name in ("numba", "triton"):
            if name == "triton" and device == "cpu" and not interpreted():
                print(f"{name:10} on {device}: no GPU; TRITON_INTERPRET=1 runs its bodies in the interpreter")
                continue
            for checked in check_bodies(name, device):
                agrees = checked.error is None or checked.error < 1e-5
                told = checked.reason if checked.error is None else f"within {checked.error:.0e} of the reference"
                print(f"{name:10} on {device}: {checked.operation} {told}")
                if not agrees:
                    failed.append(f"{checked.operation}, {name} on {device}: {told}")
        return failed


@dataclass
class Spectrum:
    """Predict the singular values of the Jacobian of a stack of layers: print the numbers, write the plot."""

    mixer: str = "sinkhorn"
    """Name of the mixer, with arguments if it takes any: `cayley:step=0.1`; `jpmhc mixers` lists them."""
    layers: int = 24
    """Number of layers L, two a block of a transformer."""
    streams: int = 4
    """Number of streams n."""
    gate: str = "softmax"
    """Gate of reads and writes."""
    energy: float = 0.1
    """Mean squared singular value of a branch's Jacobian."""
    branch: str = "gaussian"
    """Law of a branch's Jacobian: gaussian, haar or relu; isotropic for noise on every stream, without gates."""
    spread: float = 0.0
    """Standard deviation of normal numbers added to the raw numbers of the start."""
    seed: int = 0
    """Of those numbers, and of the draw."""
    width: int = 0
    """Compare with one drawn Jacobian of this width; 0 for none."""
    out: Path = Path("spectrum.png")
    """Where the plot goes; the ending decides the format."""

    def __call__(self) -> None:
        """Run the command."""
        self._check()
        import torch

        from jpmhc import spectrum
        from jpmhc.layers import make_mixer, parse_mixer
        from jpmhc.spectrum import figures

        name, arguments = parse_mixer(self.mixer)
        try:
            mixer = make_mixer(name, self.streams, **arguments)
        except TypeError as error:  # an argument that it does not take
            raise ValueError(f"--mixer: {error}") from error
        chain = spectrum.initial_chain(mixer, self.streams, self.layers, self.gate, spread=self.spread, seed=self.seed)
        mixers = chain["mixers"]
        read, write = (None, None) if self.branch == "isotropic" else (chain["read"], chain["write"])
        law = spectrum.predict(mixers, read, write, self.energy, self.branch)
        smallest, largest = law.edges
        levels = (0.01, 0.1, 0.5, 0.9, 0.99)
        quantiles = law.quantile(torch.tensor(levels, dtype=torch.float64)).tolist()
        print(
            f"{self.mixer}: {self.layers} layers of {self.streams} streams, {self.branch} branches of {self.energy:g}"
        )
        print(f"singular values    {smallest:.4g} to {largest:.4g}, condition number {law.condition:.4g}")
        print(
            "quantiles          " + ", ".join(f"{100 * u:g} %: {q:.4g}" for u, q in zip(levels, quantiles, strict=True))
        )
        print(f"mean of log s      {float(law.mean_log):.4g}")
        print(f"isometry gap       {float(law.isometry_gap):.4g}")
        product = torch.linalg.svdvals(torch.linalg.multi_dot([*mixers.flip(0)]) if len(mixers) > 1 else mixers[0])
        print("mixers' product    " + ", ".join(f"{s:.4g}" for s in product.tolist()))
        drawn = None
        if self.width:
            drawn = spectrum.simulate(mixers, read, write, self.energy, self.branch, width=self.width, seed=self.seed)
            distance = spectrum.compare(law, drawn).kolmogorov
            print(f"one draw           width {self.width}, Kolmogorov distance {distance:.4f}")
        figures.prediction(law, mixers, drawn).savefig(self.out, dpi=150)
        print(f"wrote {self.out}")

    def _check(self) -> None:
        try:
            import matplotlib
            from matplotlib.backends.backend_agg import FigureCanvasAgg
        except ModuleNotFoundError as error:
            raise RuntimeError(f"{error.name}: not installed; pip install jpmhc[plot]") from None
        # Nothing is shown, so no display is needed.
        matplotlib.use("agg")
        for name, value, least in (("layers", self.layers, 1), ("streams", self.streams, 1), ("width", self.width, 0)):
            if value < least:
                raise ValueError(f"--{name}: expected at least {least}, got {value}")
        if not self.out.parent.is_dir():
            raise ValueError(f"--out: the folder {self.out.parent} does not exist")
        formats = sorted(FigureCanvasAgg.get_supported_filetypes())
        if self.out.suffix[1:].lower() not in formats:
            raise ValueError(f"--out: expected a name that ends in one of {', '.join(formats)}, got {self.out}")


def _show_warning(message: Warning | str, *_place: object, **_more: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake ends in one line on standard error, and so does an interrupt."""
    try:
        import rich  # noqa: F401
        import tyro
    except ModuleNotFoundError as error:
        print(f"error: {error.name}: not installed; pip install jpmhc[cli]", file=sys.stderr)
        return 1
    commands: dict[str, Callable[..., Any]] = {"spectrum": Spectrum, "mixers": Mixers, "doctor": Doctor}
    command = tyro.extras.subcommand_cli_from_dict(commands, prog="jpmhc", args=arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
