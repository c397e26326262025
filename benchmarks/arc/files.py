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


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader finds the old one or the new one, never a part.

    Raises
    ------
    OSError
        If the disk is full, say; the old file is untouched and the new one's beginning removed.
    """
    aside = path.with_suffix(".partial")
    try:
        with naming(path), aside.open("w") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)
