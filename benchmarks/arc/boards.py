"""The measures of a run as TensorBoard logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.extras import require

FOLDER = "tensorboard"


class Board:
    """A writer for the folder of a run; steps written again after a resume replace the old ones.

    Parameters
    ----------
    folder : Path
        Of the run; logs go to its subfolder ``tensorboard``.
    step : int
        Last step that counts: what was logged after it is purged.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        require("tensorboard", "bench")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / FOLDER, purge_step=step + 1)

    def __call__(self, step: int, measures: dict[str, float]) -> None:
        """Log the measures of a step."""
        for name, value in measures.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def scores(self, step: int, evaluation: dict[str, Any]) -> None:
        """Log the scores of an evaluation, without their errors."""
        for part in ("held_out", "train"):
            for name, value in evaluation[part].items():
                if f"{name}_se" in evaluation[part]:
                    self.writer.add_scalar(f"{part}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
