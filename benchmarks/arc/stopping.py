"""A user or a scheduler who asks a run to stop: heard at once, obeyed after the step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was asked to stop and has; ``result`` is its entry in a comparison."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


@contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether an interrupt or SIGTERM has come since; a second one interrupts at once.

    Only the main thread hears signals, so in another one nothing is ever asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        # Not by print, which a signal may have interrupted.
        os.write(2, b"stopping after this step; interrupt again to stop at once\n")

    previous = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
