"""The pool of threads: ranges cover, errors surface, and neither a fork nor a second Python thread harms it."""

import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jpmhc.kernels import pool


@pytest.fixture
def threads(monkeypatch):
    # Not torch.set_num_threads, after which torch factorises large matrices wrongly.
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


@given(count=st.integers(0, 3000), grain=st.integers(1, 500), pieces=st.integers(1, 9))
def test_ranges_cover_everything_once_and_start_at_multiples_of_the_grain(count, grain, pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: pieces)
        ranges = pool.split(count, grain)
    assert len(ranges) <= pieces
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(count))
    assert all(start % grain == 0 and stop > start for start, stop in ranges)


def total_of_thirds(size=999):
    seen, names = [0] * size, set()

    def visit(weight, start, stop):
        names.add(threading.current_thread().name)
        for i in range(start, stop):
            seen[i] += weight * i

    pool.run(visit, [(0, size // 3), (size // 3, 2 * size // 3), (2 * size // 3, size)], 2)
    return sum(seen), names


def test_every_range_is_visited_once_and_the_caller_works_too():
    total, names = total_of_thirds()
    assert total == 999 * 998
    assert threading.current_thread().name in names
    pool.run(pytest.fail, [])


def test_threads_are_those_of_torch(threads):
    threads(1)
    assert pool.split(10) == [(0, 10)]
    threads(3)
    assert pool.split(10) == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("at", [0, 1])
def test_an_error_in_any_range_surfaces_after_all_have_ended(at):
    ended = []

    def fail(start, stop):
        if start == at:
            raise ArithmeticError(f"range {start}")
        ended.append(start)

    with pytest.raises(ArithmeticError, match=f"range {at}"):
        pool.run(fail, [(0, 1), (1, 2), (2, 3)])
    assert sorted(ended) == sorted({0, 1, 2} - {at})


def test_python_threads_share_it():
    totals = []
    workers = [threading.Thread(target=lambda: totals.extend(total_of_thirds()[0] for _ in range(50))) for _ in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert totals == [999 * 998] * 100


def test_a_forked_child_starts_its_own():
    total_of_thirds()
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    process = context.Process(target=lambda: child.send(total_of_thirds()[0]))
    process.start()
    assert parent.poll(30)
    assert parent.recv() == 999 * 998
    process.join()
    assert process.exitcode == 0
    assert total_of_thirds()[0] == 999 * 998


def test_a_thread_may_outlive_the_main_one():
    code = (
        "import threading, time, torch; from jpmhc.kernels import pool; "
        "pool.run(lambda a, b: None, [(0, 1), (1, 2)]); "
        "seen = []; late = lambda a, b: seen.append(a); "
        "work = lambda: (time.sleep(0.5), pool.run(late, [(0, 1), (1, 2)]), print(sorted(seen))); "
        "threading.Thread(target=work).start()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1]", done.stderr
