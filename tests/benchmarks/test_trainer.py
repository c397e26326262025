import dataclasses

import pytest
import torch
from torch import nn

from benchmarks import residuals, trainer
from benchmarks.rotations import presets, trajectories
from benchmarks.rotations.sequences import NextVector
from benchmarks.trainer import Networks, Schedule
from benchmarks.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(width=8, heads=2, blocks=1, length=4, wiring="split")


def problem(**schedule):
    data = trajectories.constant(32, 4, trajectories.planes_rotation(4, 3.0), torch.Generator().manual_seed(0))
    options = {"steps": 6, "batch": 4, "warmup": 2} | schedule
    return NextVector("turn", CONFIG, Schedule(**options), data, data)


@pytest.mark.parametrize("arm", ["plain", "sinkhorn", "cayley", "mhc", "jpmhc-cayley", "edelta"])
def test_networks_side_by_side_compute_what_each_computes_alone(arm):
    task, arm = problem(), residuals.parse(arm)
    models = [task.build(arm, seed) for seed in (1, 2)]
    x = torch.stack([task.batch(torch.Generator().manual_seed(s))[0] for s in (1, 2)])
    alone = torch.stack([model(inputs) for model, inputs in zip(models, x, strict=True)])
    together, _ = Networks(models, "cpu", compiled=False)(x)
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.slow
def test_compiled_networks_compute_and_learn_the_same(monkeypatch):
    # Traced and differentiated as on a GPU; generating code would take minutes here.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend="aot_eager"))
    eager, compiled = (trainer.train(problem(), residuals.parse("plain"), [1, 2], compiled=c) for c in (False, True))
    for one, other in zip(eager, compiled, strict=True):
        assert one["scores"]["mse"] == pytest.approx(other["scores"]["mse"], rel=1e-3)


def test_a_seed_is_trained_as_a_plain_loop_would_train_it():
    task, arm, steps = problem(weight_decay=0.5, clip=0.1), residuals.parse("cayley"), 6
    model, generator = task.build(arm, 2), torch.Generator().manual_seed(2)
    mixing = {id(p) for layer in model.layers for n, p in layer.named_parameters() if not n.startswith("branch")}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in mixing]
    others = [p for p in model.parameters() if not any(p is q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = task.schedule.rate(step)
        x, target = task.batch(generator)
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
    with torch.no_grad():
        expected = nn.functional.mse_loss(model(task.held_out[0]), task.held_out[1]).item()
    found = trainer.train(task, arm, [1, 2])[1]["scores"]["mse"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_same_seeds_give_the_same_numbers_and_others_do_not():
    task, arm = problem(), residuals.parse("quaternion")
    first, second = (trainer.train(task, arm, [5, 6]) for _ in range(2))
    assert first == second
    assert first[0]["scores"] != first[1]["scores"]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    trainer.train(problem(), residuals.parse("mhc"), [5])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_that_diverges_says_where_and_spoils_no_other(monkeypatch):
    task = problem()
    loss = task.loss
    seen = []

    def diverge(output, target):
        seen.append(None)
        # Two networks a step: the second network of step 4.
        return loss(output, target) * (float("inf") if len(seen) == 8 else 1.0)

    monkeypatch.setattr(task, "loss", diverge)
    first, second = trainer.train(task, residuals.parse("plain"), [1, 2])
    assert "scores" in first
    assert second["fault"] == "the loss is inf at step 4"


def test_the_rate_rises_and_then_falls_to_its_last_value():
    schedule = Schedule(steps=100, batch=1, lr=1.0, final_lr=0.1, warmup=10)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_arms_of_one_seed_start_from_the_same_weights():
    models = [Transformer(CONFIG, residuals.parse(a), lambda w: nn.Linear(4, w), 4, 3) for a in ("identity", "mhc")]
    first, second = ({n: p for n, p in m.named_parameters() if "layers" not in n or "branch" in n} for m in models)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_a_causal_network_does_not_see_what_comes():
    model = Transformer(CONFIG, residuals.parse("jpmhc-cayley"), lambda w: nn.Linear(4, w), 4, 3)
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, 2:] += 1
    assert torch.allclose(model(x)[:, :2], model(later)[:, :2], atol=1e-6)
    assert not torch.allclose(model(x)[:, 2:], model(later)[:, 2:], atol=1e-3)


def test_copies_start_as_the_plain_network():
    config = dataclasses.replace(CONFIG, wiring="copies")
    x = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, mixed = (
        Transformer(config, residuals.parse(a), lambda w: nn.Linear(4, w), 4, 3)(x) for a in ("plain", "cayley")
    )
    assert torch.allclose(plain, mixed, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [({"heads": 3}, "width"), ({"wiring": "braid"}, "wiring")])
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_full_size_has_the_published_number_of_parameters(monkeypatch):
    full = presets.PRESETS["full"]().gyroscope
    for arm in ("plain", "identity", "mhc", "cayley"):
        with torch.device("meta"):
            model = Transformer(full.model, residuals.parse(arm), lambda w: nn.Linear(16, w), 16, 0)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.8e6, rel=0.12)
