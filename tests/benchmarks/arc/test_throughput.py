"""Speed of training: what is timed, and what the mean over buckets is the mean of."""

import dataclasses
import json

import pytest

from benchmarks.arc import flops, throughput
from benchmarks.arc.arms import Arm
from benchmarks.arc.cli import main
from benchmarks.arc.presets import preset
from benchmarks.arc.run import build_data
from benchmarks.arc.training import Trainer

ARMS = [Arm.parse("plain"), Arm.parse("cayley")]


def settings(*buckets):
    smoke = preset("smoke")
    smoke = dataclasses.replace(smoke, model=dataclasses.replace(smoke.model, side=6))
    return smoke.changed(batch=4, max_side=6, limit=40, variants=1, buckets=buckets or None)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps move: by one a column of the square, ten times that with streams, more at first."""
    clock = {"now": 0.0, "steps": {}}
    step = Trainer.step

    def timed(self):
        measures = step(self)
        side, key = self.stream.data.side, (self.arm.text, self.stream.data.side)
        clock["steps"][key] = clock["steps"].get(key, 0) + 1
        slow = 50 if clock["steps"][key] <= 3 else 1
        clock["now"] += side * slow * (10 if self.arm.has_streams else 1)
        return measures

    monkeypatch.setattr(Trainer, "step", timed)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock["now"])
    return clock


def test_one_side_has_a_row_an_arm(tmp_path, clock):
    rows = throughput.throughput(settings(), ARMS, tmp_path / "t.json", seconds=100)
    kept = json.loads((tmp_path / "t.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(rows))
    assert "shares" not in kept
    assert [(row["arm"], row["steps"]) for row in rows] == [("plain", 17), ("cayley", 2)]
    assert [row["steps_a_second"] for row in rows] == pytest.approx([1 / 6, 1 / 60])
    assert [row["ratio"] for row in rows] == pytest.approx([1, 10])
    assert all("bucket" not in row for row in rows)
    operations = flops.segment(settings().model, ARMS[0], train=True)
    assert rows[0]["gflop_a_sample"] == pytest.approx(operations / 1e9)
    assert rows[0]["tflops"] == pytest.approx(operations * 4 / 6 / 1e12)


# No task of these fits into 1 x 1.
@pytest.mark.parametrize("given", [(), (10, 10, 60)], ids=["data", "given"])
def test_buckets_are_timed_apart_and_averaged_over_the_steps_of_a_run(tmp_path, clock, given):
    chosen = settings(2, 3, 6) if given else settings(1, 3, 6)
    rows = throughput.throughput(chosen, ARMS, tmp_path / "t.json", seconds=100, shares=given)
    shares = {2: 1 / 8, 3: 1 / 8, 6: 6 / 8} if given else Trainer(chosen, ARMS[0], 0, build_data(chosen)).shares
    assert list(shares) == ([2, 3, 6] if given else [3, 6])
    kept = json.loads((tmp_path / "t.json").read_text())
    assert kept["shares"] == pytest.approx({str(side): share for side, share in shares.items()})
    assert kept["shares_from"] == (
        "the shares given" if given else "the buckets' shares of the preset's samples, without variants"
    )
    for arm, factor in (("plain", 1), ("cayley", 10)):
        *own, mean = (row for row in rows if row["arm"] == arm)
        assert [row["bucket"] for row in own] == list(shares)
        assert [row["share"] for row in own] == pytest.approx(list(shares.values()))
        assert [row["steps_a_second"] for row in own] == pytest.approx([1 / (factor * side) for side in shares])
        assert [row["ratio"] for row in (*own, mean)] == pytest.approx([factor] * len(rows[: len(rows) // 2]))
        assert mean["bucket"] == "mean"
        assert mean["steps"] == sum(row["steps"] for row in own)
        seconds = factor * sum(share * side for side, share in shares.items())
        assert mean["steps_a_second"] == pytest.approx(1 / seconds)
        assert mean["samples_a_second"] == pytest.approx(4 / seconds)
        operations = {
            side: flops.segment(dataclasses.replace(chosen.model, side=side), Arm.parse(arm), train=True)
            for side in shares
        }
        assert [row["gflop_a_sample"] for row in own] == pytest.approx([value / 1e9 for value in operations.values()])
        average = sum(share * operations[side] for side, share in shares.items())
        assert mean["gflop_a_sample"] == pytest.approx(average / 1e9)
        assert mean["tflops"] == pytest.approx(4 * average / seconds / 1e12)
        assert [row["peak_mib"] for row in own] == [None] * len(own)
        assert mean["peak_mib"] is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares", "1"], "shares: expected a positive number for each of the buckets (), got (1.0,)"),
        (["--buckets", "2", "3", "--shares", "1"], "shares: expected a positive number for each of the buckets (2, 3)"),
        (["--buckets", "2", "3", "--shares", "1", "0"], "shares: expected a positive number for each of the buckets"),
        (["--buckets", "2", "4"], "buckets: expected none above the side of the square, 3, got (2, 4)"),
        (["--buckets", "2"], "buckets: task "),
        (["--arms", "plain", "quaternion"], "arm 'quaternion' with 2 streams"),
    ],
)
def test_a_users_mistake_ends_in_one_line(arguments, message, tmp_path, capsys):
    out = tmp_path / "t.json"
    assert main(["throughput", "--preset", "smoke", *arguments, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not out.exists()


def test_the_table_says_what_its_mean_is(tmp_path, capsys):
    arguments = ["--preset", "smoke", "--batch", "4", "--buckets", "2", "3", "--seconds", "1e-9", "--arms", "plain"]
    assert main(["throughput", *arguments, "--out", str(tmp_path / "t.json")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "training at 3 x 3 in buckets, batch 4, cpu; mean step of a run with the buckets' shares of" in said
    assert "plain mean" in said
