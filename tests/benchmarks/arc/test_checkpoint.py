import json
import pickle

import pytest
import torch

from benchmarks.arc import checkpoint
from benchmarks.arc.checkpoint import CheckpointError


def write(folder, step, keep=2):
    files = {"weights": {"a": torch.arange(3.0) + step}, "training": {"b": torch.tensor([step])}}
    return checkpoint.save(folder, step, files, {"step": step, "note": [1, "x"]}, keep)


def test_what_is_saved_comes_back(tmp_path):
    write(tmp_path, 7)
    step, files, state = checkpoint.load_step(tmp_path)
    assert (step, state) == (7, {"step": 7, "note": [1, "x"]})
    assert torch.equal(files["weights"]["a"], torch.arange(3.0) + 7)
    assert torch.equal(files["training"]["b"], torch.tensor([7]))


def test_equal_states_write_equal_bytes(tmp_path):
    a, b = write(tmp_path / "a", 3), write(tmp_path / "b", 3)
    assert {f.name: f.read_bytes() for f in a.iterdir()} == {f.name: f.read_bytes() for f in b.iterdir()}


def test_only_the_newest_are_kept_and_leftovers_are_cleared(tmp_path):
    (tmp_path / "step-00000009.partial").mkdir(parents=True)
    for step in (1, 2, 10):
        write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    assert checkpoint.steps(tmp_path) == [2, 10]


def test_a_restart_behind_damaged_checkpoints_keeps_what_it_writes(tmp_path):
    write(tmp_path, 30)
    write(tmp_path, 40)
    for step in (10, 20):
        assert write(tmp_path, step).is_dir()
    assert checkpoint.steps(tmp_path) == [10, 20]


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_found_and_the_last_good_step_named(tmp_path, name, damage):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002.*the last good step is 1"):
        checkpoint.load_step(tmp_path)
    good, faults = checkpoint.last_good(tmp_path)
    assert good == 1
    assert len(faults) == 1
    assert "step-00000002" in faults[0]
    if damage != "flip" or name != "manifest.json":  # a flipped digest shows in the file it belongs to
        assert name in faults[0]


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = write(tmp_path, 2)
    evil = pickle.dumps(Bomb())
    (path / "weights.safetensors").write_bytes(evil)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_step(tmp_path)


def test_a_manifest_without_the_weights_is_damage(tmp_path):
    path = write(tmp_path, 2) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["weights.safetensors"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged, lacks weights\.safetensors"):
        checkpoint.load_step(tmp_path)


def test_other_names_beside_checkpoints_are_left_alone(tmp_path):
    (tmp_path / "step-backupxx").mkdir()
    write(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [2]
    assert (tmp_path / "step-backupxx").is_dir()


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load_step(tmp_path)
    write(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3, expected one of \[2\]"):
        checkpoint.load_step(tmp_path, 3)


def test_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [1]
    assert json.loads((tmp_path / "step-00000001" / "state.json").read_text())["step"] == 1
    assert not list(tmp_path.glob("*.partial"))
