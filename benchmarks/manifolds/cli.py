"""The command ``python -m benchmarks manifolds``: maps of each manifold beside geoopt's, geotorch's and pymanopt's."""

from __future__ import annotations

from benchmarks import command
from benchmarks.manifolds import birkhoff, grassmann, rotations, stiefel


def main(arguments: list[str]) -> int:
    """Run one part for each manifold."""
    parts = {
        "Stiefel": stiefel.run,
        "SpecialOrthogonal": rotations.run,
        "Grassmann": grassmann.run,
        "Birkhoff": birkhoff.run,
    }
    return command.main("manifolds", parts, arguments)
