"""Live progress of one run or several: a bar with loss, accuracies and time left, or lines where there is no screen."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SMOOTHING = 0.1


class Display:
    """A bar for every run that has begun, and one for all of them.

    Parameters
    ----------
    runs : int
        Number of runs.
    steps : int
        Steps of each.
    console : Console, optional
        Where to write.
    """

    def __init__(self, runs: int, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.runs, self.steps = runs, steps
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.total: TaskID | None = None
        self.current: TaskID | None = None
        self.finished = 0

    def __enter__(self) -> Display:
        self.progress.start()
        if self.runs > 1:
            self.total = self.progress.add_task("all runs", total=self.runs * self.steps, measures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, name: str) -> None:
        """Start the bar of the next run."""
        self.name, self.smooth, self.said = name, {}, time.monotonic()
        self.current = self.progress.add_task(name, total=self.steps, measures="")

    def update(self, step: int, measures: dict[str, float]) -> None:
        """Show the measures of a step, smoothed over about ten."""
        for key in ("loss", "token_accuracy", "exact"):
            last = self.smooth.get(key, measures[key])
            self.smooth[key] = last + _SMOOTHING * (measures[key] - last)
        text = (
            f"loss {self.smooth['loss']:.3f}  tokens {self.smooth['token_accuracy']:.1%}  "
            f"exact {self.smooth['exact']:.1%}"
        )
        self.progress.update(self.current, completed=step, measures=text)
        if self.total is not None:
            self.progress.update(self.total, completed=self.finished * self.steps + step)
        if self.progress.disable and (step == self.steps or time.monotonic() - self.said > 10):
            self.said = time.monotonic()
            self.say(f"{self.name}: step {step}/{self.steps}  {text}")

    def end(self) -> None:
        """Close the bar of the present run."""
        self.finished += 1
        self.progress.update(self.current, completed=self.steps)
        if self.total is not None:
            self.progress.update(self.total, completed=self.finished * self.steps)

    def say(self, text: str) -> None:
        """Write a line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
