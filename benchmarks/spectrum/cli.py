"""The command ``python -m benchmarks spectrum``: predictions against drawn and measured Jacobians."""

from __future__ import annotations

from benchmarks import command
from benchmarks.extras import require
from benchmarks.spectrum import accuracy, figure1, speed, trained


def main(arguments: list[str]) -> int:
    """Run the parts; with ``--out FILE.json`` also draw the paper's first figure beside it, as FILE.png."""
    panels: list[figure1.Panel] = []
    parts = {
        "figure 1": lambda quick: figure1.run(quick, panels),
        "accuracy": accuracy.run,
        "speed": speed.run,
        "trained": trained.run,
    }
    status = command.main("spectrum", parts, arguments)
    options = require("tyro", "bench").cli(command.Options, args=arguments) if status == 0 else None
    if options is not None and options.out is not None and panels:
        figure1.figure(panels, options.out.with_suffix(".png"))
        print(f"wrote {options.out.with_suffix('.png')}")
    return status
