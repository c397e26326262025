import pytest

from jpmhc import layers


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("cayley", "cayley", {}),
        ("cayley:step=0.1", "cayley", {"step": 0.1}),
        ("kronecker:factors=(2, 2)", "kronecker", {"factors": (2, 2)}),
        ("sinkhorn:iterations=20,clamp=None", "sinkhorn", {"iterations": 20, "clamp": None}),
    ],
)
def test_a_mixer_is_read_with_its_arguments(text, name, arguments):
    assert layers.parse_mixer(text) == (name, arguments)


@pytest.mark.parametrize("text", ["cayley:step", "cayley:step=x", "cayley:0.1", "cayley:step=1,step=2", "cayley:**{}"])
def test_what_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match=r"expected argument=value,\.\.\. with literal values"):
        layers.parse_mixer(text)
