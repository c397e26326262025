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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caley", "arm 'caley': unknown, expected plain or one of cayley, free, identity, sinkhorn"),
        ("plain:step=1", "plain takes no arguments"),
        ("cayley:step", "expected argument=value, got 'step'"),
        ("cayley:speed=1", "arm 'cayley:speed=1': mixer: 'cayley' refused"),
    ],
)
def test_wrong_arms_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        Arm.parse(text)
