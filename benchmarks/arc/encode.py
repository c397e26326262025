"""Grids as the token sequences that the model reads and writes.

A grid stands in a square of ``side x side`` tokens. Colour ``c`` is token ``c + 2``; the row just below the grid and
the column just right of it are marked by `EOG` along the grid's extent, where they are still inside the square; all
else is `PAD`. The mark is how a model that predicts a whole square says how large its answer is. Tokens are flattened
row by row.
"""

import numpy as np
import numpy.typing as npt

from benchmarks.arc.tasks import COLOURS, MAX_SIDE, Grid

PAD = 0
EOG = 1  # end of grid
FIRST_COLOUR = 2
VOCAB = FIRST_COLOUR + COLOURS

Tokens = npt.NDArray[np.uint8]  # (side * side,), 0 to VOCAB - 1


def encode(grid: Grid, side: int, offset: tuple[int, int] = (0, 0)) -> Tokens:
    """Write a grid into a square of tokens.

    Parameters
    ----------
    grid : Grid, shape (h, w)
    side : int, 1 to 30
        Side of the square.
    offset : tuple of 2 int
        Row and column of the grid's top-left cell.

    Returns
    -------
    ndarray of uint8, shape (side * side,)

    Raises
    ------
    ValueError
        The array is no grid of colours, or the grid at this offset does not lie within the square.

    Examples
    --------
    >>> import numpy as np
    >>> encode(np.array([[7, 0]], dtype=np.uint8), side=3).reshape(3, 3)
    array([[9, 2, 1],
           [1, 1, 0],
           [0, 0, 0]], dtype=uint8)
    """
    _check_side(side)
    if grid.dtype != np.uint8 or grid.ndim != 2 or grid.size == 0 or grid.max() >= COLOURS:
        raise ValueError(f"grid: expected a uint8 array (h, w) of 0 to 9, got {grid.dtype} {grid.shape}: {grid}")
    (top, left), (height, width) = offset, grid.shape
    bottom, right = top + height, left + width
    if top < 0 or left < 0 or bottom > side or right > side:
        raise ValueError(f"grid: {height} x {width} at offset ({top}, {left}) does not fit in a square of side {side}")
    square = np.full((side, side), PAD, dtype=np.uint8)
    square[top:bottom, left:right] = grid + FIRST_COLOUR
    square[bottom : bottom + 1, left:right] = EOG
    square[top:bottom, right : right + 1] = EOG
    return square.reshape(-1)


def decode(tokens: npt.ArrayLike, side: int) -> Grid | None:
    """Read the largest grid that starts at the top-left corner of a square of tokens.

    The inverse of `encode` without offset. For any other square, such as a model's prediction, it is the published
    evaluator's rule: the rectangle of greatest area that contains the corner and no `PAD` or `EOG`; of several with
    that area, the one with the fewest rows.

    Parameters
    ----------
    tokens : array_like of int, shape (side * side,)
    side : int, 1 to 30

    Returns
    -------
    Grid, shape (h, w), or None
        None where the corner itself holds no colour: then there is no such rectangle and no prediction.
    """
    _check_side(side)
    array = np.asarray(tokens)
    if array.shape != (side * side,):
        raise ValueError(f"tokens: expected shape ({side * side},) for side {side}, got {array.shape}")
    if array.min() < 0 or array.max() >= VOCAB:
        raise ValueError(f"tokens: expected 0 to {VOCAB - 1}, got {array.min()} to {array.max()}")
    square = array.reshape(side, side)
    # A rectangle of r rows is as wide as the shortest run of colours that opens one of its rows.
    runs = np.logical_and.accumulate(square >= FIRST_COLOUR, axis=1).sum(axis=1)
    widths = np.minimum.accumulate(runs)
    height = int(np.argmax(widths * np.arange(1, side + 1))) + 1
    if widths[0] == 0:
        return None
    return (square[:height, : widths[height - 1]] - FIRST_COLOUR).astype(np.uint8)


def _check_side(side: int) -> None:
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(f"side: expected 1 to {MAX_SIDE}, got {side}")
