import pytest
import torch

from benchmarks.arc import checkpoint
from benchmarks.arc.arms import Arm
from benchmarks.arc.export import export, read_export
from benchmarks.arc.files import write_json
from benchmarks.arc.presets import preset
from benchmarks.arc.run import RunSpec


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "config.json", RunSpec(preset("smoke"), Arm.parse("cayley"), 0).to_json())
    weights = {"table": torch.randn(1000, 32), "head": torch.randn(12, 32), "label": torch.arange(5, dtype=torch.uint8)}
    checkpoint.save(folder / "checkpoints", 40, {"weights": weights, "training": weights}, {"step": 40})
    return folder, weights


def test_no_shard_is_larger_than_asked_and_all_come_back(run, tmp_path):
    folder, weights = run
    paths = export(folder, tmp_path / "out", max_shard_mib=0.03)
    assert len(paths) > 3
    assert all(path.stat().st_size <= 0.03 * 2**20 for path in paths)
    index, tensors = read_export(tmp_path / "out")
    assert (index["step"], index["run"]["residual"]) == (40, "cayley")
    assert tensors.keys() == weights.keys()
    for name, value in weights.items():
        assert tensors[name].equal(value)


def test_an_earlier_export_is_replaced(run, tmp_path):
    folder, weights = run
    export(folder, tmp_path / "out", max_shard_mib=0.03)
    paths = export(folder, tmp_path / "out", max_shard_mib=0.1)
    assert sorted(tmp_path.glob("out/*.safetensors")) == paths
    assert read_export(tmp_path / "out")[1]["table"].equal(weights["table"])


def test_half_precision_halves_the_files(run, tmp_path):
    folder, weights = run
    (path,) = export(folder, tmp_path / "out", dtype="bfloat16")
    assert path.name == "weights-00001-of-00001.safetensors"
    _, tensors = read_export(tmp_path / "out")
    assert tensors["table"].equal(weights["table"].bfloat16())
    assert tensors["label"].equal(weights["label"])


def test_sizes_and_dtypes_that_cannot_be_are_named(run, tmp_path):
    folder, _ = run
    with pytest.raises(ValueError, match=r"max_shard_mib: .+ MiB hold no row of"):
        export(folder, tmp_path / "out", max_shard_mib=0.0001)
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16, got 'int8'"):
        export(folder, tmp_path / "out", dtype="int8")
