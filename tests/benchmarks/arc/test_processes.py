import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as spawn

from benchmarks.arc import processes
from benchmarks.arc.arms import Arm
from benchmarks.arc.buckets import id_sides
from benchmarks.arc.evaluation import Predictor
from benchmarks.arc.presets import preset
from benchmarks.arc.run import RunSpec, build_data, train
from benchmarks.arc.training import Trainer
from tests.benchmarks.arc.steady import steady

STEPS = 5


def settings(buckets=()):
    smoke = preset("smoke")
    if buckets:
        smoke = dataclasses.replace(smoke, model=dataclasses.replace(smoke.model, side=buckets[-1]))
        smoke = smoke.changed(buckets=buckets, max_side=buckets[-1], limit=20, translate=True)
    # Samples leave at different times, and seven do not divide evenly.
    changes = {
        "batch": 7,
        "segments": 3,
        "exploration": 0.5,
        "steps": STEPS,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    }
    return dataclasses.replace(smoke, train=dataclasses.replace(smoke.train, **changes))


def work(rank, world, rendezvous, out, arm, buckets, shard):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        values = processes.gather(torch.arange(rank + 1) == 0)
        assert values.tolist() == [place == 0 for size in range(1, world + 1) for place in range(size)]
        result = everything(Path(out), arm, buckets, shard)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        torch.save(result, f"{out}/result.pt")


def everything(folder, arm, buckets, shard):
    """Train, save, load and evaluate; return all there is to compare."""
    chosen, arm = settings(buckets), Arm.parse(arm)
    data = build_data(chosen)
    trainer = Trainer(chosen, arm, 0, data, shard=shard)
    steady(trainer)
    measures = [trainer.step() for _ in range(STEPS)]
    files, state = processes.from_first(trainer.state())
    again = Trainer(chosen, arm, 0, data, shard=shard)
    again.load_state(files, state)
    measures.append(again.step())
    cases = [data.variants_of(held) for held in data.held_out[:4]]
    inputs, ids = (np.concatenate([case[part] for case in cases]) for part in (0, 2))
    sides = id_sides(data, buckets)
    tokens, scores = Predictor(chosen, arm, trainer.weights(), sides=sides)(inputs, ids)
    quiet = {"data": data, "say": lambda text: None}
    run = train(RunSpec(chosen, Arm.parse("plain"), 0), folder / "run", shard=shard, **quiet)
    return {"measures": measures, "files": files, "state": state, "tokens": tokens, "scores": scores, "run": run}


# Three processes cannot share 32 and 128 rows evenly.
@pytest.mark.parametrize(
    ("world", "arm", "buckets", "shard"),
    [
        pytest.param(2, "cayley", (), False, id="whole"),
        pytest.param(2, "plain", (3, 5), False, id="buckets"),
        pytest.param(2, "reflection", (), True, id="shards"),
        pytest.param(3, "plain", (3, 5), True, id="uneven shards and buckets"),
    ],
)
def test_several_gloo_processes_equal_one(tmp_path, world, arm, buckets, shard):
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    several.mkdir()
    expected = everything(one, arm, buckets, shard)
    assert len({measures.get("side") for measures in expected["measures"]}) == max(1, len(buckets))
    with tempfile.TemporaryDirectory() as scratch:
        spawn.spawn(work, args=(world, f"{scratch}/rendezvous", str(several), arm, buckets, shard), nprocs=world)
    found = torch.load(several / "result.pt", weights_only=False)
    for mine, theirs in zip(expected["measures"], found["measures"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-5)
    assert found["state"] == expected["state"]
    for part in ("weights", "training"):
        for name, value in expected["files"][part].items():
            torch.testing.assert_close(found["files"][part][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert (found["tokens"] == expected["tokens"]).all()
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    own = {"seconds": 0, "peak_memory_mib": 0, "environments": []}  # a process here may have other threads
    assert {**found["run"], **own} == {
        **expected["run"],
        **own,
        "processes": world,
        "sharded": shard,
    }
    names = [sorted(p.name for p in (folder / "run").iterdir()) for folder in (one, several)]
    assert names[0] == names[1]


def test_shares_cover_everything_once():
    assert processes.share(5) == slice(0, 5)
    assert (processes.rank(), processes.world()) == (0, 1)
