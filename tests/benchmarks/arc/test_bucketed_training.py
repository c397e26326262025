"""Training in buckets of grid sides: as sound as any, and without buckets what it was."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from benchmarks.arc import buckets, flops
from benchmarks.arc import run as running
from benchmarks.arc.arms import Arm
from benchmarks.arc.cli import main
from benchmarks.arc.dataset import build
from benchmarks.arc.encode import PAD
from benchmarks.arc.evaluation import Predictor
from benchmarks.arc.predict import predict
from benchmarks.arc.presets import Preset, preset
from benchmarks.arc.run import RunSpec
from benchmarks.arc.training import Trainer
from tests.benchmarks.arc.squares import task


@pytest.fixture(scope="module")
def tiny():
    """Six tasks up to 6 x 6 for the smoke preset's model: four samples of 14 in bucket 2, nine in 3, one in 6."""
    data = build(
        [
            *(task(f"low{n}", 1, 2) for n in range(2)),
            *(task(f"mid{n}", 3, 2, 1) for n in range(3)),
            task("high", 4),
        ],
        side=6,
        variants=2,
        seed=0,
    )
    return bucketed((2, 3, 6)), data


def bucketed(sides, **changes):
    smoke = preset("smoke")
    changes = {"batch": 7, "segments": 3, "exploration": 0.5, "steps": 12, "evaluate_every": 5, **changes}
    return dataclasses.replace(
        smoke,
        model=dataclasses.replace(smoke.model, side=6),
        train=dataclasses.replace(smoke.train, **changes, checkpoint_every=4),
        data=dataclasses.replace(smoke.data, max_side=6, limit=None, translate=True, buckets=sides),
    )


def test_a_grid_beyond_the_last_bucket_is_named(tiny):
    settings, data = tiny
    with pytest.raises(ValueError, match="buckets: task high has a grid of side 4, got 3 as the last"):
        Trainer(settings.changed(buckets=(2, 3)), Arm.parse("plain"), 0, data)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_shares_are_the_samples_of_an_epoch(tiny):
    settings, data = tiny
    trainer = Trainer(settings, Arm.parse("plain"), 0, data)
    # Two tasks with two pairs, three with three, one with one.
    assert trainer.shares == {2: 4 / 14, 3: 9 / 14, 6: 1 / 14}
    assert math.isclose(sum(trainer.shares.values()), 1.0)


def test_a_step_works_on_one_bucket_and_leaves_the_others_alone(tiny):
    settings, data = tiny
    trainer = Trainer(settings, Arm.parse("cayley"), 0, data)
    for _ in range(8):
        before = {carried.side: {k: v.clone() for k, v in carried.slots.items()} for carried in trainer.carried}
        side = trainer.step()["side"]
        assert trainer.slots["inputs"].shape == (7, side**2)
        for carried in trainer.carried:
            same = all(torch.equal(value, before[carried.side][name]) for name, value in carried.slots.items())
            assert same is (carried.side != side)
        sides = buckets.id_sides(data, (2, 3, 6))
        assert (sides[trainer.slots["ids"]] == side).all()
    assert trainer.probe()["gradient"]


def test_loss_falls_in_every_bucket(tiny):
    _, data = tiny
    trainer = Trainer(bucketed((2, 3, 6), batch=16), Arm.parse("cayley"), 0, data)
    measures = [trainer.step() for _ in range(80)]
    for side in (2, 3, 6):
        losses = [m["loss"] for m in measures if m["side"] == side]
        assert losses[-1] < 0.7 * losses[0]


def test_one_bucket_of_the_whole_square_is_training_without_buckets(tiny):
    settings, data = tiny
    one, two = (Trainer(settings.changed(buckets=sides), Arm.parse("cayley"), 0, data) for sides in ((), (6,)))
    for _ in range(6):
        measures = two.step()
        assert measures.pop("side") == 6
        assert one.step() == measures
    files, state = one.state()
    theirs, their_state = two.state()
    renamed = {name.replace("slots.6.", "slots."): value for name, value in theirs["training"].items()}
    assert renamed.keys() == files["training"].keys()
    assert all(torch.equal(renamed[name], value) for name, value in files["training"].items())
    assert all(torch.equal(theirs["weights"][name], value) for name, value in files["weights"].items())
    assert state == {**{k: v for k, v in their_state.items() if k != "streams"}, "stream": their_state["streams"]["6"]}


def test_a_run_without_buckets_writes_what_it_wrote_before_there_were_any(tiny):
    settings, data = tiny
    trainer = Trainer(settings.changed(buckets=()), Arm.parse("plain"), 0, data)
    measures = trainer.step()
    files, state = trainer.state()
    names = {name for name in files["training"] if name.startswith("slots.")}
    assert names == {f"slots.{name}" for name in ("inputs", "labels", "ids", "y", "z", "segments", "halted")}
    assert state.keys() == {"step", "adam_steps", "stream"}
    assert state["stream"].keys() == {"data", "seed", "translate", "epoch", "position"}
    assert state["stream"]["data"] == data.sha256
    assert "side" not in measures
    old = settings.changed(buckets=()).to_json()
    del old["data"]["buckets"]
    assert Preset.from_json(json.loads(json.dumps(old))) == settings.changed(buckets=())
    assert Preset.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize("arm", ["plain", "cayley"])
def test_state_restores_every_bucket(tiny, arm):
    settings, data = tiny
    one = Trainer(settings, Arm.parse(arm), 0, data)
    for _ in range(7):
        one.step()
    files, state = one.state()
    files = {name: {key: value.clone() for key, value in tensors.items()} for name, tensors in files.items()}
    two = Trainer(settings, Arm.parse(arm), 0, data)
    two.load_state(files, json.loads(json.dumps(state)))
    assert one.probe() == two.probe()
    for _ in range(12):
        assert one.step() == two.step()
    for a, b in zip(one.state()[0].values(), two.state()[0].values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert one.state()[1] == two.state()[1]


def test_a_stopped_run_ends_bit_identical_once_resumed_and_states_its_mean_operations(tiny, tmp_path, monkeypatch):
    settings, data = tiny
    spec = RunSpec(settings, Arm.parse("cayley"), 0)
    quiet = {"data": data, "say": lambda text: None}
    result = running.train(spec, tmp_path / "straight", **quiet)
    step = Trainer.step

    def die(self):
        if self.step_number == 6:  # between two checkpoints
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", die)
    with pytest.raises(KeyboardInterrupt):
        running.train(spec, tmp_path / "killed", **quiet)
    monkeypatch.undo()
    running.train(spec, tmp_path / "killed", resume=True, **quiet)
    for folder in ("checkpoints/step-00000008", "checkpoints/step-00000012"):
        for path in (tmp_path / "straight" / folder).iterdir():
            assert path.read_bytes() == (tmp_path / "killed" / folder / path.name).read_bytes()
    name = "evaluation-00000012.json"
    assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    logged = [
        [(entry["step"], entry["side"], entry["loss"]) for entry in map(json.loads, lines) if entry["kind"] == "train"]
        for lines in ((tmp_path / f / "metrics.jsonl").read_text().splitlines() for f in ("straight", "killed"))
    ]
    assert logged[0] == logged[1]
    segment = {
        s: flops.segment(dataclasses.replace(settings.model, side=s), spec.arm, train=True) / 1e9 for s in (2, 3, 6)
    }
    assert result["segment_gflops"] == pytest.approx((4 * segment[2] + 9 * segment[3] + segment[6]) / 14)


def test_every_side_is_compiled_once(monkeypatch, tiny):
    settings, data = tiny
    graphs = []
    compile_ = torch.nn.Module.compile

    def backend(graph, inputs):
        graphs.append([value.shape for value in inputs if value.ndim == 4])
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compile_(module, backend=backend, **how))
    # As for eight sides under torch's own limit of eight graphs; not by monkeypatch, which would lose the setting.
    with torch._dynamo.config.patch(recompile_limit=3):
        trainer = Trainer(bucketed((2, 3, 6), compile=True), Arm.parse("plain"), 0, data)
        sides = {trainer.step()["side"] for _ in range(12)}
        first = len(graphs)
        eager = Trainer(settings, Arm.parse("plain"), 0, data)
        losses = [eager.step()["loss"] for _ in range(13)]
        assert trainer.step()["loss"] == pytest.approx(losses[-1], rel=1e-4)
    assert sides == {2, 3, 6}
    assert len(graphs) == first
    assert first == 2 * 3


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_given_in_the_bucket_of_the_task_or_of_a_larger_input():
    # The first task is trained up to 2 x 2 and asked for 3 x 3; the second is asked for less than it is trained on.
    data = build([task("up", 2, test=(3, 5)), task("down", 4, 3, test=(1, 1))], side=6, variants=1, seed=0)
    settings = bucketed((2, 3, 4, 6))
    sides = buckets.id_sides(data, settings.data.buckets)
    assert sides.tolist() == [2, 4]
    trainer = Trainer(settings, Arm.parse("cayley"), 0, data)
    trainer.step()
    weights = trainer.weights()
    answer = Predictor(settings, Arm.parse("cayley"), weights, sides=sides)
    cases = [data.variants_of(held) for held in data.held_out]
    inputs, ids = np.concatenate([c[0] for c in cases]), np.concatenate([c[2] for c in cases])
    tokens, scores = answer(inputs, ids)
    assert (tokens.shape, tokens.dtype, scores.shape) == ((2, 36), np.uint8, (2,))
    for row, side in enumerate((3, 4)):
        outside = np.ones((6, 6), dtype=bool)
        outside[:side, :side] = False
        assert (tokens[row].reshape(6, 6)[outside] == PAD).all()
        corner = inputs[row].reshape(6, 6)[:side, :side].reshape(1, -1)
        plain = Predictor(settings, Arm.parse("cayley"), weights)
        found, score = plain._answer(corner, ids[row : row + 1])
        np.testing.assert_array_equal(tokens[row].reshape(6, 6)[:side, :side].reshape(1, -1), found)
        assert scores[row] == pytest.approx(score[0])
    # Without sides the same weights answer on the whole square, as ever.
    assert plain(inputs, ids)[0].shape == (2, 36)


# --- command line ----------------------------------------------------------------------------------------------------


def test_buckets_are_a_flag_of_the_commands_that_train(tmp_path, capsys):
    out, extra = tmp_path / "run", tmp_path / "extra"
    extra.mkdir()
    pairs = [{"input": [[a, b]], "output": [[b, a]]} for a, b in ((1, 2), (3, 4), (5, 6), (7, 8), (1, 9))]
    (extra / "swap.json").write_text(json.dumps({"train": pairs[1:], "test": pairs[:1]}))
    arguments = ["train", "--preset", "smoke", "--steps", "9", "--extra-task-dirs", str(extra), "--out", str(out)]
    arguments.append("--buckets")
    assert main([*arguments, "2", "3"]) == 0
    assert json.loads((out / "config.json").read_text())["preset"]["data"]["buckets"] == [2, 3]
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {entry["side"] for entry in log if entry["kind"] == "train"} == {2, 3}
    before = (out / "evaluation-00000009.json").read_bytes()
    assert running.evaluate_run(out)["step"] == 9
    assert (out / "evaluation-00000009.json").read_bytes() == before
    known = running.build_data(preset("smoke")).tasks[0]
    pairs = [{"input": p.input.tolist(), "output": p.output.tolist()} for p in known.demos]
    path = tmp_path / "known.json"
    path.write_text(json.dumps({"train": pairs, "test": [{"input": known.tests[0].input.tolist()}]}))
    assert predict(path, out, tmp_path)["predictions"]
    with pytest.raises(ValueError, match="holds another run"):
        running.train(RunSpec(preset("smoke"), Arm.parse("cayley"), 0, (extra,)), out, resume=True)
    capsys.readouterr()
    for sides, message in (
        (["3", "2"], "buckets: expected integers of at least 1, each larger than the one before, got (3, 2)"),
        (["2", "4"], "buckets: expected none above the side of the square, 3, got (2, 4)"),
        (["1", "2"], "buckets: task "),
    ):
        arguments[-2] = str(tmp_path / "refused")
        assert main([*arguments, *sides]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
        assert not (tmp_path / "refused").exists()
