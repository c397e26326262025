"""As much of ``torch.cuda`` as timing asks for, without a GPU: a graph replays the calls that it captured."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch


class Device:
    """The state that a test looks at, and what shall go wrong."""

    def __init__(self, monkeypatch):
        self.now, self.replays, self.capturing, self.lost = 0.0, 0, False, False
        self.default = self.current = SimpleNamespace(name="default", wait_stream=lambda other: None)
        self.side = SimpleNamespace(name="side", wait_stream=lambda other: None)
        self.capture = SimpleNamespace(name="capture")
        for name, value in {
            "Stream": lambda: self.side,
            "current_stream": lambda: self.current,
            "set_stream": self.set_stream,
            "stream": self.stream,
            "Event": self.event,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": self.graph,
            "synchronize": self.synchronize,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self, ms, captures=True, runs=True):
        """A call of so many milliseconds."""

        def call():
            if not runs:
                raise RuntimeError("an illegal size\nand more of it")
            if self.capturing and not captures:
                raise torch.OutOfMemoryError("out of memory\nby a lot")
            self.now += ms

        return call

    def set_stream(self, stream):
        self.current = stream

    @contextmanager
    def stream(self, stream):
        self.current, before = stream, self.current
        yield
        self.current = before

    def event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    @contextmanager
    def graph(self, graph):
        self.current, before, begin = self.capture, self.current, self.now
        self.capturing = True
        try:
            yield
            self.current = before  # as torch does, not after an error
        finally:
            self.capturing = False
            graph.ms = self.now - begin
            graph.replay = lambda: self.replay(graph.ms)

    def replay(self, ms):
        self.replays += 1
        self.now += ms

    def synchronize(self):
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
