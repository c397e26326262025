"""JSON files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give faults of the disk the name of the file: a full one says nothing but that it is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any, aside: str = ".partial") -> None:
    """Write a JSON file so that a reader finds the old one or the new one, never a part.

    Parameters
    ----------
    path : Path
    value : Any
        Of JSON, every number finite.
    aside : str
        Suffix of the file that is written first, in the place of the path's own.

    Raises
    ------
    OSError
        If the disk is full, say; the old file is untouched and the new one's beginning removed.
    """
    new = path.with_suffix(aside)
    try:
        with naming(path), new.open("w") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # an interrupt too
        new.unlink(missing_ok=True)
        raise
    new.replace(path)
