import pytest
from torch import nn

from benchmarks import residuals
from jpmhc import layers


def test_an_unknown_arm_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"arm 'caley': unknown, expected one of plain, edelta.*cayley.*sinkhorn"):
        residuals.parse("caley")


def test_published_layers_take_no_arguments():
    with pytest.raises(ValueError, match="arm 'mhc:iterations=3': mhc is a published layer and takes no arguments"):
        residuals.parse("mhc:iterations=3")


def test_published_arms_are_the_library_s_recipes():
    layer = residuals.parse("jpmhc-cayley").residual(8, nn.Linear(8, 8), 4, 1)
    assert layer.recipe == "jpmhc-cayley"
    assert layers.recipes()
    for recipe in layers.recipes():
        assert residuals.parse(str(recipe)).text == str(recipe)


def test_an_arm_that_exists_for_four_streams_alone_is_known():
    quaternion = residuals.parse("quaternion")
    assert residuals.supports(quaternion, 4)
    assert not residuals.supports(quaternion, 8)
    assert residuals.supports(residuals.parse("plain"), 8)


def test_a_mixer_on_a_manifold_is_refused():
    with pytest.raises(ValueError, match="live on a manifold"):
        residuals.supports(residuals.parse("manifold"), 4)
