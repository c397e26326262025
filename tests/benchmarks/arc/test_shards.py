"""Weights in shards: what each of two processes holds, and runs that go on with and without them.

That two such processes train, save and evaluate as one does is in `test_processes`.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as spawn
from torch._dynamo.testing import CompileCounter
from torch.distributed.tensor import DTensor

from benchmarks.arc import run as running
from benchmarks.arc import shards
from benchmarks.arc.arms import Arm
from benchmarks.arc.model import TinyRecursiveModel
from benchmarks.arc.presets import preset
from benchmarks.arc.run import RunSpec, build_data
from benchmarks.arc.training import Trainer, TrainingError
from jpmhc import layers, manifolds
from tests.benchmarks.arc.steady import steady

ARM = Arm.parse("grassmann")
SEED = 2  # one of those with which a gradient that is zero but for round-off changes its sign in shards


def settings(**changes):
    smoke = preset("smoke")
    # Seven samples do not divide evenly.
    changes = {"batch": 7, "segments": 3, "exploration": 0.5, "steps": 6, "checkpoint_every": 3, **changes}
    return dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, **changes))


def train(folder, data, *, shard=True, die_at=None):
    """Train a run to a step, or until it dies with nothing saved since its last checkpoint."""
    step = Trainer.step

    def die(self):
        if self.step_number == die_at:
            raise KeyboardInterrupt
        if self.step_number == 0:
            steady(self)
        return step(self)

    Trainer.step = die
    try:
        spec = RunSpec(settings(), ARM, SEED)
        return running.train(spec, folder, resume=True, data=data, say=lambda text: None, shard=shard)
    except KeyboardInterrupt:
        return None
    finally:
        Trainer.step = step


def work(rank, rendezvous, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        found = everything(Path(folder))
    finally:
        dist.destroy_process_group()
    torch.save(found, f"{folder}/found-{rank}.pt")


def everything(folder):
    data = build_data(settings())
    train(folder / "straight", data)
    train(folder / "killed", data, die_at=5)
    train(folder / "killed", data)
    train(folder / "left", data, die_at=5)
    train(folder / "joined", data)
    return {
        "held": held(data),
        "points": points(),
        "nan": stopped(data),
        "eager": losses(data),
        "compiled": compiled(data),
        "bfloat16": [losses(data, precision="bfloat16", shard=shard) for shard in (False, True)],
    }


def held(data):
    """Return the numbers that this process holds of every parameter, its moments and average, and of the whole."""
    trainer = Trainer(settings(), ARM, 0, data, shard=True)
    trainer.step()
    trainer.probe()
    trainer.weights()
    mixing = set(layers.mixing_parameters(trainer.model))
    sizes = {}
    for name, parameter in trainer.model.named_parameters():
        assert parameter is trainer.parameters[name]
        state = trainer.optimiser.state[parameter]
        tensors = (shards.local(parameter), state["mean"], state["square"], trainer.average.weights[name])
        assert parameter not in mixing or not isinstance(parameter, DTensor)
        sizes[name] = [tensor.numel() for tensor in tensors], parameter.numel()
    return sizes


def points():
    """Return how many base points there are; each must be one still."""
    model = TinyRecursiveModel(settings().model, Arm.parse("manifold"), 0)
    shards.shard(model)
    bases = [layer.mixer.base for layer in model.modules() if isinstance(layer, layers.HyperConnection)]
    assert all(isinstance(base, manifolds.Parameter) for base in bases)
    return len(bases)


def stopped(data):
    """Break the loss on one process; return what each says and whether its weights moved."""
    trainer = Trainer(settings(), ARM, 0, data, shard=True)
    trainer.step()
    if dist.get_rank() == 0:
        with torch.no_grad():
            trainer.model.head.weight[3] = float("nan")
    before = {name: shards.local(p.detach()).clone() for name, p in trainer.parameters.items()}
    with pytest.raises(TrainingError) as caught:
        trainer.step()
    same = all(torch.equal(shards.local(p).nan_to_num(), before[n].nan_to_num()) for n, p in trainer.parameters.items())
    return str(caught.value), same


def losses(data, *, shard=True, **changes):
    trainer = Trainer(settings(**changes), Arm.parse("plain"), 0, data, shard=shard)
    return [trainer.step()["loss"] for _ in range(4)]


def compiled(data):
    """Return the losses of a compiled net, and how many graphs it took."""
    graphs = CompileCounter()
    compile_ = torch.nn.Module.compile
    torch.nn.Module.compile = lambda module: compile_(module, backend=graphs)
    try:
        return losses(data, compile=True, checkpoint_calls=True), graphs.frame_count
    finally:
        torch.nn.Module.compile = compile_


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that two processes do, and one beside them."""
    folder = tmp_path_factory.mktemp("shards")
    data = build_data(settings())
    train(folder / "joined", data, shard=False, die_at=5)
    spawn.spawn(work, args=(f"{folder}/rendezvous", str(folder)), nprocs=2)
    train(folder / "left", data, shard=True)
    train(folder / "alone", data, shard=False)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)]


def saved(folder, step=6):
    return running.checkpoint.load(folder / "checkpoints" / f"step-{step:08d}")


def test_each_process_holds_half_of_the_matrices_and_all_that_is_small(found):
    for process in found:
        for name, (own, whole) in process["held"].items():
            in_shards = name.startswith("net.") and ".branch." in name
            assert own == [whole // 2 if in_shards else whole] * 4, name
    matrices = sum(whole for name, (_, whole) in found[0]["held"].items() if ".branch." in name)
    assert matrices == 2 * (4 * 32**2 + 3 * 32 * 64)


def test_base_points_stay_on_their_manifolds(found):
    assert [process["points"] for process in found] == [4, 4]


def test_a_killed_run_in_shards_ends_bit_identical_once_resumed(folder):
    for step in (3, 6):
        straight, killed = (folder / name / "checkpoints" / f"step-{step:08d}" for name in ("straight", "killed"))
        for path in straight.iterdir():
            assert path.read_bytes() == (killed / path.name).read_bytes(), path.name
    name = "evaluation-00000006.json"
    assert (folder / "straight" / name).read_bytes() == (folder / "killed" / name).read_bytes()


@pytest.mark.parametrize("name", ["straight", "left", "joined"])
def test_a_run_in_shards_ends_as_one_without_wherever_it_took_them_up_or_left_them(folder, name):
    (files, state), (expected, expected_state) = saved(folder / name), saved(folder / "alone")
    assert state == expected_state
    for part, bounds in (("weights", {"rtol": 1e-5, "atol": 2e-6}), ("training", {"rtol": 1e-4, "atol": 1e-5})):
        assert files[part].keys() == expected[part].keys()
        for key, value in expected[part].items():
            torch.testing.assert_close(files[part][key], value, **bounds, msg=key)
    result = json.loads((folder / name / "run.json").read_text())
    assert (result["processes"], result["sharded"]) == ((1, False) if name == "left" else (2, True))


def test_a_loss_that_is_not_finite_stops_all_processes_before_the_weights_change(found):
    for process in found:
        message, same = process["nan"]
        assert "arm grassmann: the loss is nan at step 2" in message
        assert same


def test_compiled_and_recomputed_calls_see_the_whole_weights(found):
    for process in found:
        compiled, graphs = process["compiled"]
        assert compiled == pytest.approx(process["eager"], rel=1e-5)
        assert graphs == 2  # with and without gradient
        whole, in_shards = process["bfloat16"]
        assert in_shards == pytest.approx(whole, rel=1e-3)


def test_one_process_has_nothing_to_shard(tmp_path):
    said = []
    spec = RunSpec(settings(steps=1), ARM, 0)
    assert running.train(spec, tmp_path, say=said.append, shard=True)["sharded"] is False
    assert said[0] == "one process holds the whole model, there is nothing to shard"
