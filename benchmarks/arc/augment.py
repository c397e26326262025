"""The symmetries of ARC grids: eight rotations and reflections, and the permutations of the colours 1 to 9.

Colour 0 is the background of nearly every task and stays fixed. Translations are not here: they move a grid inside the
square that the model sees and leave the grid itself alone (`benchmarks.arc.dataset.Batches`).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.arc.tasks import COLOURS, Grid, Task

TRIES_PER_VARIANT = 5  # as the published recipe: 5000 tries for 1000 variants


@dataclass(frozen=True)
class Augmentation:
    """One symmetry: a dihedral map followed by a renaming of colours.

    Parameters
    ----------
    dihedral : int, 0 to 7
        ``d % 4`` counter-clockwise quarter turns, after a transposition if ``d >= 4``. 0 is the identity.
    colours : tuple of 10 int
        A permutation of 0 to 9 with ``colours[0] == 0``; colour ``c`` becomes ``colours[c]``.

    Examples
    --------
    >>> import numpy as np
    >>> turn = Augmentation(1, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
    >>> turn.apply(np.array([[1, 2, 3]], dtype=np.uint8)).tolist()
    [[3], [1], [2]]
    >>> str(turn), Augmentation.parse("d1-0213456789") == turn
    ('d1-0213456789', True)
    """

    dihedral: int
    colours: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dihedral not in range(8):
            raise ValueError(f"dihedral: expected an integer 0 to 7, got {self.dihedral!r}")
        if sorted(self.colours) != list(range(COLOURS)) or self.colours[0] != 0:
            raise ValueError(f"colours: expected a permutation of 0 to 9 that starts with 0, got {self.colours!r}")

    def apply(self, grid: Grid) -> Grid:
        """Return the augmented grid, a new array; its sides are swapped where the map turns rows into columns."""
        return np.array(self.colours, dtype=np.uint8).take(_turned(grid, self.dihedral))

    def invert(self, grid: Grid) -> Grid:
        """Return the grid that `apply` maps to this one."""
        turned = np.rot90(grid, -(self.dihedral % 4))
        return np.argsort(self.colours).astype(np.uint8).take(turned.T if self.dihedral >= 4 else turned)

    @property
    def is_identity(self) -> bool:
        """Whether this augmentation leaves every grid as it is."""
        return self == IDENTITY

    def __str__(self) -> str:
        return f"d{self.dihedral}-{''.join(map(str, self.colours))}"

    @classmethod
    def parse(cls, code: str) -> "Augmentation":
        """Read the code that ``str`` writes, such as ``"d3-0125346789"``."""
        match = re.fullmatch(r"d([0-7])-([0-9]{10})", code, re.ASCII)
        if match is None:
            raise ValueError(f"code: expected d, a digit 0 to 7, a dash and ten digits, got {code!r}")
        return cls(int(match[1]), tuple(map(int, match[2])))


IDENTITY = Augmentation(0, tuple(range(COLOURS)))


def variants(task: Task, count: int, seed: int) -> list[Augmentation]:
    """Draw augmentations under which a task looks different each time.

    Two augmentations are the same variant if they give the same demonstrations and test inputs. Test outputs are
    never looked at, so that nothing about the answer can show in the choice.

    Parameters
    ----------
    task : Task
    count : int
        How many are wanted, the identity included.
    seed : int
        The result depends on ``seed`` and on the task alone: not on other tasks, nor on the order of calls.

    Returns
    -------
    list of Augmentation
        The identity first, then distinct variants in the order drawn. Fewer than ``count`` where ``5 count`` draws
        did not find as many: a task whose grids are symmetric and of few colours has few variants. A larger
        ``count`` only appends.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    words = np.frombuffer(hashlib.sha256(task.id.encode()).digest(), dtype="<u4")
    rng = np.random.default_rng([seed, *words.tolist()])
    views = _views(task)
    chosen, seen = [IDENTITY], {_look(views, IDENTITY)}
    for _ in range(TRIES_PER_VARIANT * count):
        if len(chosen) == count:
            break
        candidate = Augmentation(int(rng.integers(8)), (0, *(1 + rng.permutation(COLOURS - 1)).tolist()))
        look = _look(views, candidate)
        if look not in seen:
            seen.add(look)
            chosen.append(candidate)
    return chosen


def same_up_to_symmetry(*grids: Grid) -> tuple[Any, ...]:
    """Return a key that lists of grids share if, and only if, one augmentation leads from one list to the other.

    Examples
    --------
    >>> one, two = np.array([[0, 3, 5]], dtype=np.uint8), np.array([[8], [1], [0]], dtype=np.uint8)
    >>> same_up_to_symmetry(one) == same_up_to_symmetry(two)
    True
    """
    # The background is put first, so that it has the first name in every pattern.
    background = np.zeros((1, 1), dtype=np.uint8)
    return min(_pattern([background, *(_turned(grid, d) for grid in grids)])[0] for d in range(8))


# A list of grids with its colours renamed in the order of their first appearance, and the colours in that order.
_Pattern = tuple[tuple[Any, ...], tuple[int, ...]]


def _pattern(grids: Sequence[Grid]) -> _Pattern:
    cells = np.concatenate([grid.ravel() for grid in grids])
    colours, first, place = np.unique(cells, return_index=True, return_inverse=True)
    order = np.argsort(first)
    names = np.empty(len(order), dtype=np.uint8)
    names[order] = np.arange(len(order))
    shapes = tuple(grid.shape for grid in grids)
    return (shapes, names[place].tobytes()), tuple(colours[order].tolist())


def _views(task: Task) -> list[_Pattern]:
    """Return the pattern of everything that is looked at in a task, under each of the eight dihedral maps."""
    grids = [grid for pair in task.demos for grid in (pair.input, pair.output) if grid is not None]
    grids += [pair.input for pair in task.tests]
    views = [_pattern([_turned(grid, d) for grid in grids]) for d in range(8)]
    # Small numbers, as these are compared thousands of times.
    number = {pattern: index for index, (pattern, _) in enumerate(views)}
    return [((number[pattern],), colours) for pattern, colours in views]


def _look(views: list[_Pattern], augmentation: Augmentation) -> tuple[Any, ...]:
    # Renaming colours one to one keeps the pattern, so two images are equal if their patterns are and the colours
    # that appear first, second and so on.
    pattern, colours = views[augmentation.dihedral]
    return pattern, tuple(augmentation.colours[colour] for colour in colours)


def _turned(grid: Grid, dihedral: int) -> Grid:
    return np.rot90(grid.T if dihedral >= 4 else grid, dihedral % 4)
