import re

import pytest
from torch import nn

from benchmarks.arc.arms import Arm
from jpmhc import layers


def test_arms_are_read_as_they_are_written():
    assert Arm.parse("plain").mixer is None
    assert Arm.parse("identity") == Arm("identity", "identity", {})
    assert Arm.parse("cayley:step=0.1").arguments == {"step": 0.1}
    assert Arm.parse("cayley:step=0.1").folder == "cayley-step0.1"


def test_an_arm_wraps_a_branch():
    branch = nn.Linear(8, 8)
    assert isinstance(Arm.parse("plain").residual(8, branch, 4, 0), layers.Residual)
    hc = Arm.parse("cayley:step=0.1").residual(8, branch, 4, 3)
    assert (hc.streams, hc.mixer.step, hc.gate.favourite, hc.branch) == (4, 0.1, 3, branch)


@pytest.mark.parametrize("recipe", ["jpmhc-cayley", "jpmhc-sinkhorn", "jpmhc-grassmann"])
def test_published_recipes_are_arms_with_a_start_of_their_seed(recipe):
    arm = Arm.parse(recipe)
    assert (arm.recipe, arm.mixer, arm.has_streams, arm.reduction) == (recipe, None, True, "mean")
    arm.check(4)
    one, same, other = (arm.residual(8, nn.Linear(8, 8), 4, 0, seed=seed).projection for seed in (0, 0, 1))
    assert one.equal(same)
    assert not one.equal(other)
    with pytest.raises(ValueError, match="takes no arguments"):
        Arm.parse(f"{recipe}:step=0.1")


def test_a_recipe_keeps_its_own_reduction():
    assert Arm.parse("mhc").reduction == "sum"
    with pytest.raises(ValueError, match="arm 'hy-v4': it reduces its streams with a module of its own"):
        Arm.parse("hy-v4").check(4)


def test_options_of_the_layer_are_told_from_arguments_of_the_mixer():
    arm = Arm.parse("cayley:step=0.1,gate='sigmoid',norm='layer',dynamic=False")
    assert arm.arguments == {"step": 0.1}
    hc = arm.residual(8, nn.Linear(8, 8), 4, 0, dynamic=True)
    assert (hc.mixer.step, hc.norm, hc.projection, type(hc.gate).__name__) == (0.1, "layer", None, "SigmoidGate")
    published = Arm.parse("cayley:projection='published'").residual(8, nn.Linear(8, 8), 4, 0)
    assert published.sizes == [16, 16, 16]
    with pytest.raises(ValueError, match=r"arm \"cayley:gate='odd'\" with 4 streams: gate: unknown name 'odd'"):
        Arm.parse("cayley:gate='odd'").check(4)


def test_arguments_are_read_as_python_literals():
    assert Arm.parse("kronecker:factors=(2,2)").arguments == {"factors": (2, 2)}
    assert Arm.parse("sinkhorn:iterations=20").arguments == {"iterations": 20}


def test_every_mixer_is_an_arm_but_those_that_need_a_riemannian_optimiser():
    for info in layers.mixers():
        arm = Arm.parse(info.name)
        if info.name == "manifold":
            with pytest.raises(ValueError, match="arm 'manifold': its parameters live on a manifold"):
                arm.check(4)
        else:
            arm.check(4)
            assert arm.residual(8, nn.Linear(8, 8), 4, 0).streams == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caley", "arm 'caley': unknown, expected plain, a recipe (hc, hy-v4, jpmhc-cayley"),
        ("plain:step=1", "plain takes no arguments"),
        ("cayley:step", "expected argument=value,... with literal values, got 'step'"),
        ("cayley:step=x", "expected argument=value,... with literal values, got 'step=x'"),
        ("cayley:step=1,step=2", "expected argument=value,... with literal values"),
        ("cayley:streams=3", "the number of streams is the preset's"),
    ],
)
def test_arms_that_cannot_be_read_are_named(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Arm.parse(text)


@pytest.mark.parametrize(
    ("text", "streams", "message"),
    [
        ("quaternion", 2, "arm 'quaternion' with 2 streams: streams: expected 4 for a quaternion, got 2"),
        ("cayley:speed=1", 4, "arm 'cayley:speed=1' with 4 streams: mixer: 'cayley' refused"),
        ("cayley:step='a'", 4, "step: expected a number, got 'a'"),
    ],
)
def test_arms_that_cannot_be_made_are_named(text, streams, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Arm.parse(text).check(streams)
