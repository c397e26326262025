"""How contenders are timed on a GPU, here a made-up one: what is compared was timed alike, and nothing is lost."""

import pytest
import torch

from benchmarks.timing import Timed, check_device, ratio, replayed
from tests.benchmarks.fake_cuda import Device


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def test_graphs_of_ten_calls_are_replayed(device):
    times = replayed({"a": device.call(2), "b": device.call(3)}, 4, "cuda")
    assert device.replays == 8
    assert times["a"].row() == {"ms": 2, "captured": True}
    assert ratio(times["b"], times["a"]) == 1.5


def test_what_cannot_be_captured_says_so_and_has_no_ratio_to_what_was(device):
    times = replayed({"a": device.call(2), "b": device.call(3, captures=False)}, 4, "cuda")
    assert times["b"].row() == {"ms": 3, "captured": False, "not_captured": "OutOfMemoryError: out of memory"}
    assert ratio(times["a"], times["b"]) is ratio(times["b"], times["a"]) is None
    assert ratio(times["b"], times["b"]) == 1


def test_a_failed_capture_gives_the_stream_back(device):
    replayed({"a": device.call(2, captures=False)}, 1, "cuda")
    assert torch.cuda.current_stream() is device.default


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_who_fails_takes_nothing_from_the_others(where, device):
    times = replayed({"a": device.call(2, runs=False), "b": device.call(3)}, 2, where)
    assert times["a"].row() == {"error": "RuntimeError: an illegal size"}
    assert times["b"].ms is not None
    assert ratio(times["b"], times["a"]) is None


def test_who_fails_in_a_later_round_is_left_out_of_the_next(device):
    turns = []

    def failing():
        turns.append(device.capturing)
        if device.capturing or len(turns) > 6:
            raise RuntimeError("not again")

    times = replayed({"a": failing, "b": device.call(3)}, 9, "cuda")
    assert times["a"] == Timed(error="RuntimeError: not again")
    assert len(turns) == 7  # three before the capture, it, two rounds and the one that failed
    assert times["b"].row() == {"ms": 3, "captured": True}


def test_a_cpu_has_nothing_to_capture():
    times = replayed({"a": lambda: None}, 1, "cpu")
    assert list(times["a"].row()) == ["ms"]
    assert ratio(times["a"], times["a"]) == 1


def test_a_device_that_is_lost_is_found_out(device):
    check_device("cuda")
    device.lost = True
    check_device("cpu")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        check_device("cuda")
