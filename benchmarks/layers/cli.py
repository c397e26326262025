"""The command ``python -m benchmarks layers``."""

from __future__ import annotations

from benchmarks import command
from benchmarks.layers import sublayer


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    return command.main("layers", {"sublayer": sublayer.run}, arguments)
