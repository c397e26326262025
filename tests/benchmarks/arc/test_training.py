import dataclasses

import pytest
import torch

from benchmarks.arc.arms import Arm
from benchmarks.arc.losses import correct_tokens, stablemax_cross_entropy
from benchmarks.arc.presets import preset
from benchmarks.arc.run import build_data
from benchmarks.arc.training import Trainer, TrainingError

ARMS = ["plain", "identity", "free", "sinkhorn", "cayley"]


@pytest.fixture(scope="module")
def smoke():
    settings = preset("smoke")
    return settings, build_data(settings)


def with_training(settings, **changes):
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, **changes))


def test_stablemax_cross_entropy_is_its_definition():
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 4, 5, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 0, 4], [0, 0, 0, 3]])  # 0 carries no loss
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    p = s / s.sum(-1, keepdim=True)
    expected = [
        -(p[0, 0, 1].log() + p[0, 1, 2].log() + p[0, 3, 4].log()) / 3,
        -p[1, 3, 3].log(),
    ]
    torch.testing.assert_close(stablemax_cross_entropy(logits, labels), torch.stack(expected))


def test_stablemax_cross_entropy_is_finite_where_it_could_not_be():
    logits = torch.tensor([[[1e30, -1e30, 0.0, -0.0]]], requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([[1]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert stablemax_cross_entropy(logits, torch.tensor([[0]])).item() == 0


def test_accuracy_counts_labelled_tokens_only():
    labels = torch.tensor([[2, 3, 0, 1], [2, 3, 0, 1]])
    share, exact = correct_tokens(torch.tensor([[2, 3, 9, 1], [2, 9, 9, 9]]), labels)
    assert share.tolist() == pytest.approx([1, 1 / 3])
    assert exact.tolist() == [True, False]


@pytest.mark.parametrize(
    "arm",
    [
        *ARMS,
        *("cayley:step=0.1", "cayley-iterated", "cayley-mean", "quaternion", "reflection", "grassmann"),
        *("jpmhc-cayley", "jpmhc-sinkhorn", "jpmhc-grassmann"),
    ],
)
def test_loss_falls(smoke, arm):
    settings, data = smoke
    # A quaternion turns four streams and no other number.
    settings = settings.changed(streams=4 if arm == "quaternion" else None)
    trainer = Trainer(settings, Arm.parse(arm), 0, data)
    losses = [trainer.step()["loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("arm", ARMS)
def test_three_tiny_tasks_are_learned(smoke, arm):
    settings, data = smoke
    trainer = Trainer(with_training(settings, lr=5e-3), Arm.parse(arm), 0, data)
    accuracy = [trainer.step()["token_accuracy"] for _ in range(300)]
    assert sum(accuracy[-20:]) / 20 > 0.7


def test_arms_with_one_seed_start_alike_and_see_the_same_samples(smoke):
    settings, data = smoke
    settings = with_training(settings, exploration=0.0)
    first, streams = [], []
    for arm in ARMS:
        trainer = Trainer(settings, Arm.parse(arm), 5, data)
        first.append(trainer.step()["loss"])
        trainer.step()
        trainer.step()
        streams.append(trainer.slots["inputs"].clone())
    assert first == pytest.approx([first[0]] * len(ARMS), abs=1e-5)
    assert all(torch.equal(streams[0], other) for other in streams)


def test_samples_stay_until_they_halt(smoke):
    settings, data = smoke
    settings = with_training(settings, segments=3, exploration=0.0)
    trainer = Trainer(settings, Arm.parse("cayley"), 0, data)
    trainer.step()
    before = {name: value.clone() for name, value in trainer.slots.items()}
    assert not before["halted"].any()  # the halting logit starts at -5
    trainer.step()
    assert torch.equal(trainer.slots["inputs"], before["inputs"])
    assert not torch.equal(trainer.slots["y"], before["y"])
    assert (trainer.slots["segments"] == 2).all()
    trainer.step()
    assert trainer.slots["halted"].all()
    trainer.step()
    assert (trainer.slots["segments"] == 1).all()


def test_a_confident_sample_halts_unless_it_explores(smoke):
    settings, data = smoke
    for exploration, halted in ((0.0, True), (1.0, False)):
        trainer = Trainer(with_training(settings, segments=16, exploration=exploration), Arm.parse("plain"), 0, data)
        with torch.no_grad():
            trainer.model.halt.bias.fill_(100.0)
        trainer.step()
        assert trainer.slots["halted"].all().item() is halted


def test_mixing_parameters_are_not_decayed(smoke):
    settings, data = smoke
    trainer = Trainer(with_training(settings, weight_decay=1.0), Arm.parse("sinkhorn"), 0, data)
    decays = {id(p): group["weight_decay"] for group in trainer.optimiser.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        mixing = name.rpartition(".")[2] in {"static", "projection", "scale"}
        assert decays[id(parameter)] == (0.0 if mixing else 1.0), name
    assert trainer.mixing_parameters == 4 * (8 * (2 * 32 + 1) + 3)


def test_warm_up_is_linear(smoke):
    settings, data = smoke
    trainer = Trainer(with_training(settings, warmup=4, lr=1.0), Arm.parse("plain"), 0, data)
    assert [trainer.step()["learning_rate"] for _ in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(smoke):
    settings, data = smoke
    trainer = Trainer(settings, Arm.parse("cayley"), 0, data)
    trainer.step()
    with torch.no_grad():
        trainer.model.embed[3] = float("nan")
    before = trainer.model.head.weight.clone()
    with pytest.raises(TrainingError, match="arm cayley: the loss is nan at step 2"):
        trainer.step()
    assert torch.equal(trainer.model.head.weight, before)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(smoke):
    settings, data = smoke
    trainer = Trainer(settings, Arm.parse("cayley"), 0, data)
    trainer.step()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    table = trainer.table.clone()
    trainer.model.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"arm cayley: the gradient is not finite at step 2 \(norm nan, loss"):
        trainer.step()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert torch.equal(trainer.table, table)


@pytest.mark.parametrize("arm", ["plain", "cayley"])
def test_state_restores_everything(smoke, arm):
    settings, data = smoke
    one = Trainer(settings, Arm.parse(arm), 0, data)
    for _ in range(5):
        one.step()
    files, state = one.state()
    files = {name: {key: value.clone() for key, value in tensors.items()} for name, tensors in files.items()}
    two = Trainer(settings, Arm.parse(arm), 0, data)
    two.load_state(files, state)
    for _ in range(5):
        assert one.step() == two.step()
    for a, b in zip(one.state()[0].values(), two.state()[0].values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_every_run_of_a_process_is_compiled(smoke, monkeypatch):
    # torch stops compiling after some graphs of one piece of code: the later runs of a comparison were not compiled.
    settings, data = smoke
    graphs = []

    def backend(graph, inputs):
        graphs[-1] += 1
        return graph.forward

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend=backend))
    # Not by monkeypatch, which leaves torch's settings without the limit.
    with torch._dynamo.config.patch(recompile_limit=2):
        for seed in range(2):
            graphs.append(0)
            Trainer(with_training(settings, compile=True), Arm.parse("plain"), seed, data).step()
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 2
