"""The measures of a run, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.arc import processes
from benchmarks.arc.files import naming


class Log:
    """The file of a run's measures; of several processes only the first writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line.

        Raises
        ------
        OSError
            If the disk is full, say; the message names the file.
        """
        if processes.rank() > 0:
            return
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Bring what was written to the disk."""
        if processes.rank() > 0:
            return
        with naming(self.path), self.path.open("a") as file:
            os.fsync(file.fileno())

    def cut(self, step: int) -> None:
        """Drop what was logged after a step, and a last line that a crash left unfinished."""
        if processes.rank() > 0:
            return
        kept = [entry for entry in self._entries() if entry["step"] <= step]
        aside = self.path.with_suffix(".partial")
        with naming(aside):
            aside.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        aside.replace(self.path)

    def seconds(self) -> float:
        """Return the seconds of all training steps, compilation not counted."""
        return sum(entry["seconds"] for entry in self._entries() if entry["kind"] == "train")

    def _entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise ValueError(f"{self.path}: line {number} is damaged ({error})") from error
        return entries
