"""Tasks that recolour squares of given sizes."""

import numpy as np

from benchmarks.arc.tasks import Pair, Task


def square(size, colour):
    return np.full((size, size), colour, dtype=np.uint8)


def task(name, *sizes, test=(2, 1)):
    """Recolour squares of these sizes; the test's input and output have sizes of their own."""
    demos = tuple(Pair(square(size, 1), square(size, 2)) for size in sizes)
    return Task(name, "training", demos, (Pair(square(test[0], 3), square(test[1], 4)),))
