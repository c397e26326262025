"""The colour of an arm, the same in every figure and every report, and legible on white and on black."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple


class Ink(NamedTuple):
    """A colour on a light and on a dark page."""

    light: str
    dark: str


class Style(NamedTuple):
    """How an arm is drawn: an entry of `INKS`, and SVG dashes in units of the line's width ("" is solid)."""

    ink: str
    dashes: str


# The hues of Okabe and Ito, told apart by colour-blind readers too, set darker on light paper and lighter on dark.
INKS = {
    "plain": Ink("#6a7079", "#a7adb8"),
    "identity": Ink("#b4568a", "#e59cc4"),
    "free": Ink("#007f5f", "#35c79f"),
    "sinkhorn": Ink("#cc5500", "#f39445"),
    "cayley": Ink("#0069a8", "#62b6ec"),
    "other-0": Ink("#8a6d00", "#e3c53d"),
    "other-1": Ink("#5b4bb5", "#ab9ff2"),
}
_OTHERS = tuple(name for name in INKS if name.startswith("other-"))
_DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")


def styles(arms: Sequence[str]) -> dict[str, Style]:
    """Give every arm its style.

    The colour depends on the mixer's name alone. Arms of one colour, such as ``cayley`` and ``cayley:step=0.1``, differ
    by their dashes, in the order given.

    Examples
    --------
    >>> styles(["cayley", "cayley:step=0.1"])["cayley:step=0.1"]
    Style(ink='cayley', dashes='5 2')
    """
    used: dict[str, int] = {}
    chosen = {}
    for arm in arms:
        name = arm.partition(":")[0]
        # Not `hash`, which differs from one process to the next.
        ink = name if name in INKS else _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]
        chosen[arm] = Style(ink, _DASHES[used.get(ink, 0) % len(_DASHES)])
        used[ink] = used.get(ink, 0) + 1
    return chosen
