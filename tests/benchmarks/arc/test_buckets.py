"""Buckets of grid sides: what a crop is, which samples it holds, and that a bucketed run is as sound as any."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arc import buckets, flops
from benchmarks.arc import run as running
from benchmarks.arc.arms import Arm
from benchmarks.arc.batches import Batches
from benchmarks.arc.cli import main
from benchmarks.arc.dataset import build
from benchmarks.arc.encode import EOG, FIRST_COLOUR, PAD, encode
from benchmarks.arc.evaluation import Predictor
from benchmarks.arc.model import ModelConfig, TinyRecursiveModel
from benchmarks.arc.predict import predict
from benchmarks.arc.presets import DataConfig, Preset, preset
from benchmarks.arc.run import RunSpec
from benchmarks.arc.tasks import Pair, Task, load_arc_agi_1, subset
from benchmarks.arc.training import Trainer

SMALL = ModelConfig(side=6, width=16, heads=2, inner=32, h_cycles=2, l_cycles=2, prefix=3)


def square(size, colour):
    return np.full((size, size), colour, dtype=np.uint8)


def task(name, *sizes, test=(2, 1)):
    """Recolour squares of these sizes; the test's input and output have sizes of their own."""
    demos = tuple(Pair(square(size, 1), square(size, 2)) for size in sizes)
    return Task(name, "training", demos, (Pair(square(test[0], 3), square(test[1], 4)),))


@pytest.fixture(scope="module")
def small():
    return build(subset(load_arc_agi_1(), max_side=6), side=6, variants=3, seed=0)


@pytest.fixture(scope="module")
def tiny():
    """Six tasks up to 6 x 6 with the smoke preset's model: two sides that occur and one that does not."""
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


# --- model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["plain", "cayley"])
def test_a_crop_is_the_square_whose_other_tokens_nobody_attends_to(arm, monkeypatch):
    model = TinyRecursiveModel(SMALL, Arm.parse(arm), 0).double()
    whole, puzzle = torch.randint(0, 12, (2, 36)), torch.randn(2, 16, dtype=torch.float64)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[:4, :4] = True
    corner = whole[:, inside.flatten()]
    latents, logits, halt = model(model.initial(2, side=4), corner, puzzle)
    _, full, _ = model(model.initial(2), whole, puzzle)
    assert not torch.allclose(logits, full[:, inside.flatten()])

    seen = torch.cat((torch.ones(3, dtype=torch.bool), inside.flatten()))
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: attention(q, k, v, attn_mask=seen[None]))
    latents_masked, masked, halt_masked = model(model.initial(2), whole, puzzle)
    torch.testing.assert_close(masked[:, inside.flatten()], logits)
    torch.testing.assert_close(halt_masked, halt)
    torch.testing.assert_close(latents_masked.z[:, seen], latents.z)


def test_the_whole_square_is_the_largest_crop():
    model = TinyRecursiveModel(SMALL, Arm.parse("plain"), 0)
    tokens, puzzle = torch.randint(0, 12, (2, 36)), torch.randn(2, 16)
    one, two = (model(model.initial(2, side=side), tokens, puzzle) for side in (None, 6))
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("length", [0, 35, 49])
def test_tokens_that_are_no_corner_are_named(length):
    model = TinyRecursiveModel(SMALL, Arm.parse("plain"), 0)
    latents = model.initial(1)
    latents = type(latents)(*(torch.zeros(1, 3 + length, 16) for _ in latents))
    with pytest.raises(ValueError, match=f"tokens: expected a square of side 1 to 6, got {length} tokens"):
        model(latents, torch.zeros(1, length, dtype=torch.long), torch.zeros(1, 16))


# --- operations ------------------------------------------------------------------------------------------------------


def test_operations_of_a_crop_match_the_counter():
    model, arm = TinyRecursiveModel(SMALL, Arm.parse("cayley"), 0), Arm.parse("cayley")
    tokens, puzzle = torch.randint(0, 12, (1, 16)), torch.randn(1, 16, requires_grad=True)
    counting = FlopCounterMode(display=False, custom_mapping=flops.COUNTER)
    with counting as counter, sdpa_kernel(SDPBackend.MATH):
        _, logits, halt = model(model.initial(1, side=4), tokens, puzzle)
        (logits.sum() + halt.sum()).backward()
    crop = dataclasses.replace(SMALL, side=4)
    unseen = (crop.calls + 2 * crop.gradient_calls) * flops.residuals(crop, arm).read_write
    assert counter.get_total_flops() == flops.segment(crop, arm, train=True) - unseen
    mean = flops.mean_segment(SMALL, arm, {4: 0.75, 6: 0.25}, train=True)
    assert mean == 0.75 * flops.segment(crop, arm, train=True) + 0.25 * flops.segment(SMALL, arm, train=True)


def test_operations_of_the_published_model_in_buckets():
    """The reference page's 156 instead of 398 GFLOP a sample, by the share of the tasks of ARC-AGI-1."""
    largest = [task.max_side for task in load_arc_agi_1()]
    held = np.array((10, 15, 20, 30))[np.searchsorted((10, 15, 20, 30), largest)]
    shares = {side: float(np.mean(held == side)) for side in (10, 15, 20, 30)}
    assert [round(share, 2) for share in shares.values()] == [0.32, 0.25, 0.21, 0.22]
    mean = flops.mean_segment(ModelConfig(), Arm.parse("plain"), shares, train=True)
    assert mean / 1e9 == pytest.approx(156, abs=1)


def test_what_is_held_out_has_no_part_in_the_choice_of_a_bucket():
    tasks = [task("up", 2, test=(1, 5)), task("down", 4, test=(5, 1))]
    data = build(tasks, side=6, variants=2, seed=0)
    assert buckets.task_sides(data, (2, 3, 4, 6)).tolist() == [2, 4]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_every_task_is_in_the_smallest_bucket_that_holds_its_training_grids(small):
    parts = buckets.divide(small, (3, 4, 6))
    assert list(parts) == [3, 4, 6]
    assert sum(len(part.ids) for part in parts.values()) == len(small.ids)
    groups = [set(part.group.tolist()) for part in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for (side, part), below in zip(parts.items(), (0, 3, 4), strict=True):
        for group in set(part.group.tolist()):
            largest = small.extent[small.group == group].max()
            assert below < largest <= side
        assert part.inputs.shape[1] == part.labels.shape[1] == side**2
        assert (part.num_ids, part.side) == (small.num_ids, side)


def test_a_crop_is_the_pair_encoded_at_its_side_with_the_mark_where_it_fits():
    data = build([task("a", 2, 3), task("b", 5)], side=6, variants=1, seed=0)
    part = buckets.divide(data, (3, 6))[3]
    expected = [encode(square(size, 1), 3) for size in (2, 3)]
    np.testing.assert_array_equal(part.inputs, expected)
    assert EOG in part.inputs[0]
    assert EOG not in part.inputs[1]
    np.testing.assert_array_equal(buckets.widen(buckets.crop(data.inputs[:1], 3), 6), data.inputs[:1])


def test_translation_keeps_every_grid_inside_its_bucket(small):
    part = buckets.divide(small, (5, 6))[5]
    batch = Batches(part, 400, seed=0, translate=True).next()
    assert batch["inputs"].shape == (400, 25)
    for name in ("inputs", "labels"):
        cells = (batch[name] >= FIRST_COLOUR).sum(1)
        rows = torch.from_numpy(getattr(part, name))[batch["rows"]]
        assert torch.equal(cells, (rows >= FIRST_COLOUR).sum(1))
    still = Batches(part, 400, seed=0, translate=False).next()
    assert not torch.equal(still["inputs"], batch["inputs"])


def test_a_bucket_without_samples_is_dropped(tiny):
    _, data = tiny
    assert list(buckets.divide(data, (2, 3, 5, 6))) == [2, 3, 5]
    assert list(buckets.divide(data, (6,))) == [6]
    assert buckets.divide(data, ()) == {6: data}


def test_a_grid_beyond_the_last_bucket_is_named(tiny):
    settings, data = tiny
    with pytest.raises(ValueError, match="buckets: task high has a grid of side 4, got 3 as the last"):
        Trainer(settings.changed(buckets=(2, 3)), Arm.parse("plain"), 0, data)


@pytest.mark.parametrize("sides", [(3, 2), (2, 2), (0, 3), (-1,), (2.5, 3), (True, 3)])
def test_buckets_that_do_not_rise_from_one_are_named(sides):
    with pytest.raises(ValueError, match="buckets: expected integers of at least 1, each larger than the one before"):
        DataConfig(buckets=sides)


def test_buckets_beyond_the_square_are_named():
    with pytest.raises(ValueError, match=r"buckets: expected none above the side of the square, 3, got \(2, 4\)"):
        preset("smoke").changed(buckets=(2, 4))


# --- steps -----------------------------------------------------------------------------------------------------------


def test_steps_are_divided_in_proportion_to_the_samples():
    shares, steps = [0.32, 0.25, 0.21, 0.22], 5000
    for seed in range(3):
        picked = np.array([buckets.pick(shares, seed, step) for step in range(1, steps + 1)])
        for index, share in enumerate(shares):
            so_far = np.cumsum(picked == index) - share * np.arange(1, steps + 1)
            assert np.abs(so_far).max() < 5
    assert {buckets.pick([1.0], 0, step) for step in range(100)} == {0}
    first, second = ([buckets.pick(shares, seed, step) for step in range(50)] for seed in (0, 1))
    assert first != second


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


@pytest.mark.parametrize(("height", "width", "side"), [(1, 1, 2), (2, 1, 2), (1, 3, 3), (4, 1, 6), (6, 6, 6)])
def test_the_smallest_bucket_that_holds_an_input(height, width, side):
    tokens = encode(np.zeros((height, width), dtype=np.uint8), 6)
    assert buckets.holding(tokens[None], (2, 3, 6)).tolist() == [side]


# --- command line ----------------------------------------------------------------------------------------------------


def test_buckets_are_a_flag_of_the_commands_that_train(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--preset", "smoke", "--steps", "3", "--out", str(out), "--buckets"]
    assert main([*arguments, "2", "3"]) == 0
    assert json.loads((out / "config.json").read_text())["preset"]["data"]["buckets"] == [2, 3]
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {entry["side"] for entry in log if entry["kind"] == "train"} <= {2, 3}
    assert running.evaluate_run(out)["step"] == 3
    known = running.build_data(preset("smoke")).tasks[0]
    pairs = [{"input": p.input.tolist(), "output": p.output.tolist()} for p in known.demos]
    path = tmp_path / "known.json"
    path.write_text(json.dumps({"train": pairs, "test": [{"input": known.tests[0].input.tolist()}]}))
    assert predict(path, out, tmp_path)["predictions"]
    with pytest.raises(ValueError, match="holds another run"):
        running.train(RunSpec(preset("smoke"), Arm.parse("cayley"), 0), out, resume=True)
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
