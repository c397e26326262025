"""The commands beside train, evaluate and compare, on one short run."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch

from benchmarks import environment
from benchmarks.arc import checkpoint, run, tasks
from benchmarks.arc.answers import read_pooled
from benchmarks.arc.arms import Arm
from benchmarks.arc.cli import main
from benchmarks.arc.compare import compare
from benchmarks.arc.export import read_export
from benchmarks.arc.presets import PRESETS, Preset, preset
from benchmarks.arc.run import RunSpec, build_data, train
from benchmarks.arc.stopping import Stopped
from benchmarks.arc.training import Trainer, TrainingError


def short(**changes):
    return preset("smoke").changed(steps=6, evaluate_every=3, checkpoint_every=3, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    train(RunSpec(short(), Arm.parse("cayley"), 0), folder, say=lambda text: None, tensorboard=True)
    return folder


def known_task(folder, **changes):
    """A task of the run, without its answer, as a file."""
    task = build_data(short()).tasks[0]
    pairs = [{"input": p.input.tolist(), "output": p.output.tolist()} for p in task.demos]
    path = folder / "a1b2.json"
    path.write_text(json.dumps({"train": pairs, "test": [{"input": task.tests[0].input.tolist()}], **changes}))
    return path


def test_predict_answers_a_task_and_draws_it(finished, tmp_path, capsys):
    assert main(["predict", str(known_task(tmp_path)), "--run", str(finished), "--out", str(tmp_path)]) == 0
    assert "test 1, attempt 1" in capsys.readouterr().out
    (answer,) = json.loads((tmp_path / "a1b2-answer.json").read_text())["a1b2"]
    evaluated = json.loads((finished / "evaluation-00000006.json").read_text())["predictions"]
    mine = next(p for p in evaluated if p["task"] == build_data(short()).tasks[0].id and p["test"] == 0)
    assert answer["attempt_1"] == mine["candidates"][0]["grid"]
    assert "<svg" in (tmp_path / "a1b2-answer.svg").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [{"input": [[1]], "output": [[2]]}]}, "was not trained on these demonstrations"),
        ({"train": []}, "train: expected at least one demonstration, got none"),
        ({"test": [{"input": [[1] * 31]}]}, "1 x 31 is larger than 30 x 30"),
        ({"test": [{"input": [[1] * 9]}]}, "the run was trained up to side 3"),
    ],
)
def test_tasks_that_cannot_be_answered_are_named(finished, tmp_path, capsys, changes, message):
    assert main(["predict", str(known_task(tmp_path, **changes)), "--run", str(finished), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_evaluate_shows_pooled_votes_on_request_and_writes_a_submission(finished, capsys):
    assert main(["evaluate", "--run", str(finished), "--pool-votes"]) == 0
    out = capsys.readouterr().out
    assert "pooled over 2 evaluations: pass@1" in out
    evaluation = json.loads((finished / "evaluation-00000006.json").read_text())
    assert evaluation["pooled"] == read_pooled(finished, 6)
    answers = json.loads((finished / "submission-00000006.json").read_text())
    assert {(t, i) for t, tests in answers.items() for i in range(len(tests))} == {
        (p["task"], p["test"]) for p in evaluation["predictions"]
    }


def test_export_and_tensorboard_leave_their_files(finished, tmp_path, capsys):
    assert main(["export", "--run", str(finished), "--out", str(tmp_path / "e"), "--max-shard-mib", "0.03"]) == 0
    assert len(list((tmp_path / "e").glob("*.safetensors"))) > 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    evaluation = json.loads((finished / "evaluation-00000006.json").read_text())
    shown = events.Scalars("held_out/token_accuracy")
    assert [event.step for event in shown] == [3, 6]
    assert shown[-1].value == pytest.approx(evaluation["held_out"]["token_accuracy"])


def test_slices_go_on_and_export_what_there_is(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["slice", "--preset", "smoke", "--steps", "3", "--residual", "plain", "--out", str(out)]
    assert main([*command, "--dtype", "int8"]) == 1
    assert not out.exists()
    assert main([*command, "--seconds", "1e-9"]) == 0
    assert "no step was made, there is nothing to export" in capsys.readouterr().out
    for _ in range(2):
        assert main(command) == 0
        assert "step 3 of 3" in capsys.readouterr().out
        index, tensors = read_export(out / "weights")
        assert index["step"] == 3
        assert "table" in tensors


def test_matched_wall_clock_ends_every_run_by_its_seconds(tmp_path):
    found = compare(short(), [Arm.parse("plain")], 1, tmp_path, arm_seconds=1e-9)
    (result,) = found["runs"]
    assert (result["complete"], result["steps"], result["evaluation"]) == (
        True,
        1,
        "plain/seed-0/evaluation-00000001.json",
    )
    with pytest.raises(ValueError, match="compares other settings or data"):
        compare(short(), [Arm.parse("plain")], 1, tmp_path, resume=True)


def test_a_comparison_out_of_time_keeps_what_it_has(tmp_path):
    found = compare(short(), [Arm.parse("plain"), Arm.parse("identity")], 1, tmp_path, seconds=1e-9)
    assert found["runs"] == []
    found = compare(short(), [Arm.parse("plain"), Arm.parse("identity")], 1, tmp_path, resume=True)
    assert [(r["arm"], r["complete"]) for r in found["runs"]] == [("plain", True), ("identity", True)]


def test_a_comparison_that_goes_on_keeps_the_memory_and_the_machine_of_finished_runs(tmp_path, monkeypatch):
    arms = [Arm.parse("plain"), Arm.parse("cayley")]
    before = compare(short(), arms, 1, tmp_path)["runs"]
    assert all(run["peak_memory_mib"] > 0 for run in before)
    here, there = environment.describe(), {"git": "fedcba", "packages": {}, "machine": {"processor": "another"}}
    monkeypatch.setattr(environment, "describe", lambda: there)
    after = compare(short(), arms, 2, tmp_path, resume=True)
    kept = [run for run in after["runs"] if run["seed"] == 0]
    assert kept == before
    assert [run["environments"] for run in after["runs"]] == [[here], [here], [there], [there]]
    assert after["git"] == f"several: {here['git']}, fedcba"
    assert after["machine"]["processor"] == f"several: {here['machine']['processor']}, another"
    assert "several: " in json.loads((tmp_path / "comparison.json").read_text())["git"]


def test_a_run_that_goes_on_elsewhere_names_both_machines_and_the_larger_memory(tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = {"resume": True, "say": lambda text: None}
    spec = RunSpec(short(), Arm.parse("plain"), 0)
    monkeypatch.setattr(run, "asked", lambda: nullcontext(lambda: (out / "checkpoints" / "step-00000003").exists()))
    with pytest.raises(Stopped):
        train(spec, out, **options)
    monkeypatch.undo()
    path, here = out / "run.json", environment.describe()
    first = json.loads(path.read_text())
    path.write_text(json.dumps({**first, "peak_memory_mib": 1e9}))
    there = {"git": "fedcba", "packages": {}, "machine": {}}
    monkeypatch.setattr(environment, "describe", lambda: there)
    result = train(spec, out, **options)
    assert (first["steps"], result["steps"]) == (3, 6)
    assert result["peak_memory_mib"] == 1e9
    assert result["environments"] == [here, there]


def test_the_memory_of_an_arm_does_not_depend_on_its_place(tmp_path):
    arms = [Arm.parse(text) for text in ("plain", "cayley", "sinkhorn", "free")]
    peaks = []
    for index, order in enumerate((arms, arms[::-1])):
        runs = compare(short(width=128), order, 1, tmp_path / str(index))["runs"]
        peaks.append({run["arm"]: run["peak_memory_mib"] for run in runs})
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-3)
    assert peaks[0]["plain"] < 0.9 * min(peaks[0]["cayley"], peaks[0]["sinkhorn"])


def test_streams_in_half_precision_with_recomputed_calls_learn(tmp_path):
    chosen = preset("smoke").changed(precision="bfloat16", checkpoint_calls=True)
    trainer = Trainer(chosen, Arm.parse("cayley"), 0, build_data(chosen))
    losses = [trainer.step()["loss"] for _ in range(30)]
    assert trainer.slots["y"].dtype == torch.bfloat16
    assert trainer.model.head.weight.dtype == torch.float32
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    trainer.probe()


def test_recomputed_calls_change_no_gradient():
    data = build_data(preset("smoke"))
    norms = []
    for recompute in (False, True):
        trainer = Trainer(preset("smoke").changed(checkpoint_calls=recompute), Arm.parse("sinkhorn"), 0, data)
        norms.append([trainer.step()["gradient_norm"] for _ in range(3)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_settings_are_changed_by_name_and_checked():
    changed = preset("smoke").changed(steps=7, streams_scope="per_call", norm_placement=None)
    assert (changed.train.steps, changed.model.streams_scope, changed.model.norm_placement) == (7, "per_call", "post")
    # Twelve heads are too many for the width before, and the width too odd for the heads before.
    wide = preset("smoke").changed(width=72, heads=12).model
    assert (wide.width, wide.heads, wide.inner) == (72, 12, 64)
    for changes, message in (
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"precision": "float8"}, "precision: expected one of"),
        ({"norm_placement": "none"}, "norm_placement: expected one of"),
        ({"width": 72, "heads": 5}, "width: expected an even multiple of heads=5, got 72"),
        ({"depth": 3}, "depth: no setting of a preset"),
    ):
        with pytest.raises(ValueError, match=message):
            preset("smoke").changed(**changes)
    for name in PRESETS:
        assert Preset.from_json(json.loads(json.dumps(preset(name).to_json()))) == preset(name)


def test_weights_of_another_arm_or_size_are_refused(finished, tmp_path):
    for change in ({"residual": "sinkhorn"}, {"residual": "identity"}, {"width": 64}):
        config = json.loads((finished / "config.json").read_text())
        if "width" in change:
            config["preset"]["model"]["width"] = 64
        config["residual"] = change.get("residual", "cayley")
        copy = tmp_path / str(change).replace(" ", "")
        copy.mkdir()
        (copy / "config.json").write_text(json.dumps(config))
        (copy / "checkpoints").symlink_to(finished / "checkpoints")
        with pytest.raises(ValueError, match=r"step-00000006: the weights are not of arm"):
            run.evaluate_run(copy)


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(finished, tmp_path, monkeypatch, capsys):
    real, calls = checkpoint.save, []

    def full(folder, step, *rest):
        calls.append(step)
        if step > 3:
            raise OSError(28, "No space left on device", str(folder))
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    out = tmp_path / "run"
    arguments = ["train", "--preset", "smoke", "--steps", "6", "--out", str(out)]
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(short(), name="smoke"))
    assert main(arguments) == 1
    assert "No space left on device; the last good checkpoint is that of step 3" in capsys.readouterr().err
    assert checkpoint.steps(out / "checkpoints") == [3]
    monkeypatch.setattr(checkpoint, "save", real)
    assert main([*arguments, "--resume"]) == 0
    assert "going on from step 3" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_arm_step_and_last_good_checkpoint(tmp_path, monkeypatch):
    real = Trainer.step

    def spoil(self):
        if self.step_number == 4:
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return real(self)

    monkeypatch.setattr(Trainer, "step", spoil)
    with pytest.raises(
        TrainingError, match=r"arm cayley: the loss is nan at step 5; the last good checkpoint .* step 3"
    ):
        train(RunSpec(short(), Arm.parse("cayley"), 0), tmp_path / "run", say=lambda text: None)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [3]


def test_a_run_goes_on_where_its_extra_tasks_lie_elsewhere(tmp_path):
    known = known_task(tmp_path)
    content = {**json.loads(known.read_text()), "test": [{"input": [[1]], "output": [[2]]}]}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "extra.json").write_text(json.dumps(content))
    arm, out = Arm.parse("plain"), tmp_path / "run"
    train(RunSpec(short(), arm, 0, (tmp_path / "here",)), out, seconds=1e-9, say=lambda text: None)
    (tmp_path / "here" / "extra.json").unlink()
    assert train(RunSpec(short(), arm, 0, (tmp_path / "there",)), out, resume=True, say=lambda text: None)["complete"]
    assert run.evaluate_run(out)["step"] == 6
    (tmp_path / "there" / "extra.json").write_text(json.dumps({**content, "train": content["test"]}))
    with pytest.raises(ValueError, match="trained on data"):
        train(RunSpec(short(), arm, 0, (tmp_path / "there",)), out, resume=True, say=lambda text: None)


def test_extra_tasks_in_the_style_of_concept_arc(tmp_path):
    folder = run.Path(__file__).parents[4] / "shared" / "data" / "concept-arc"
    if not folder.is_dir():
        pytest.skip("no ConceptARC beside this checkout")
    found = tasks.load_task_dir(folder)
    assert (len(found), sum(len(t.demos) for t in found), sum(len(t.tests) for t in found)) == (160, 427, 480)
    full = dataclasses.replace(preset("full"), data=dataclasses.replace(preset("full").data, variants=1))
    split = build_data(full, [folder]).split
    # 960 groups; the published 3988 pairs less the one that is also held out.
    assert (split.tasks, split.pairs, split.held_out) == (960, 3987, 419)
