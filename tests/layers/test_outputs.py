"""Branches that return more than their result: what is written, and what comes out beside it."""

from collections import namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from jpmhc import layers

Result = namedtuple("Result", ["y", "cache"])


class Branch(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, u):
        return self.wrap(u.sin())


@pytest.mark.parametrize("make", [lambda branch: layers.HyperConnection(4, branch, streams=2), layers.Residual])
@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        (lambda y: (y, "cache"), lambda out: (out[0], out[1])),
        (lambda y: [y, "cache"], lambda out: (out[0], out[1])),
        (lambda y: ("weights", y, "cache")[1:], lambda out: (out[0], out[1])),
        (lambda y: {"y": y, "cache": "cache"}, lambda out: (out["y"], out["cache"])),
        (lambda y: Result(y, "cache"), lambda out: (out.y, out.cache)),
        (lambda y: {"cache": "cache", "y": y}, lambda out: (out["y"], out["cache"])),
    ],
)
def test_the_first_tensor_is_written_and_the_rest_passed_through(make, wrap, parts):
    x = torch.randn(3, 2, 4)
    out = make(Branch(wrap))(x)
    assert type(out) is type(wrap(x))
    streams, rest = parts(out)
    torch.testing.assert_close(streams, make(Branch(lambda y: y))(x))
    assert rest == "cache"


@pytest.mark.parametrize("wrong", [None, (), {}, ("cache",), 3.0])
def test_an_output_without_a_tensor_is_refused(wrong):
    with pytest.raises(TypeError, match=f"branch: expected a tensor.*got {type(wrong).__name__}"):
        layers.HyperConnection(4, Branch(lambda y: wrong), streams=2)(torch.zeros(3, 2, 4))


@dataclass
class Held:
    y: object


@dataclass
class Unset:
    y: torch.Tensor = field(init=False)


@pytest.mark.parametrize("hold", [lambda y: Held([y]), lambda y: Held({"y": y}), lambda y: Held(Held(y))])
def test_a_result_deep_in_a_dataclass_is_refused_rather_than_what_follows_it(hold):
    with pytest.raises(TypeError, match=r"branch: expected its first tensor in a tuple.*got it in Held"):
        layers.HyperConnection(4, Branch(lambda y: (hold(y), AUXILIARY)), streams=2)(torch.zeros(3, 2, 4))


@pytest.mark.parametrize("empty", [Unset(), Unset, Held(None)])
def test_a_dataclass_without_a_tensor_is_no_obstacle_before_the_result(empty):
    x = torch.randn(3, 2, 4)
    out, expected = (layers.Residual(Branch(wrap))(x) for wrap in (lambda y: (empty, y), lambda y: y))
    assert out[0] is empty
    torch.testing.assert_close(out[1], expected)


def test_what_stands_before_the_result_is_taken_for_it_if_it_has_a_tensor():
    x, cache = torch.randn(3, 4), torch.randn(3, 4)
    out = layers.Residual(Branch(lambda y: ((cache, 2), y)))(x)
    torch.testing.assert_close(out[0][0], x + cache)
    torch.testing.assert_close(out[1], x.sin())


AUXILIARY = torch.full((3, 4), 7.0)
NESTED = [  # what a branch returns, and what is left of it without the result
    (lambda y: ((y, "cache"), AUXILIARY), (("cache",), AUXILIARY)),
    (lambda y: [("cache", [y, 3]), AUXILIARY], (("cache", (3,)), AUXILIARY)),
    (lambda y: {"a": {"y": y, "cache": 1}, "b": AUXILIARY}, {"a": {"cache": 1}, "b": AUXILIARY}),
    (lambda y: {"a": [y], "b": AUXILIARY}, {"a": (), "b": AUXILIARY}),
    (lambda y: (None, (), Result((y, "keys"), "cache"), AUXILIARY), (None, (), (("keys",), "cache"), AUXILIARY)),
    (lambda y: ((y, AUXILIARY),), ((AUXILIARY,),)),
]


def leaves(value):
    """Every item with its place and the types of all containers, so that nothing is lost in a comparison."""
    if isinstance(value, dict):
        return [type(value), *((key, leaves(item)) for key, item in value.items())]
    if isinstance(value, list | tuple):
        return [type(value), *map(leaves, value)]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [lambda branch: layers.HyperConnection(4, branch, streams=2), layers.Residual])
@pytest.mark.parametrize("wrap", [wrap for wrap, _ in NESTED])
def test_the_first_tensor_of_nested_items_is_written_and_the_rest_stays_in_its_place(make, wrap, compiled):
    layer, x = make(Branch(wrap)), torch.randn(3, 2, 4) if compiled else torch.randn(3, 2, 4, requires_grad=True)
    expected = wrap(make(Branch(lambda y: y))(x))
    out = (torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer)(x)
    assert leaves(out) == leaves(expected)


@pytest.mark.parametrize(("wrap", "rest"), NESTED)
def test_chains_hand_out_what_nested_items_hold_beside_the_result(wrap, rest):
    x = torch.randn(3, 2, 4)
    for chain in (layers.HyperStack, layers.SinglePass):
        made = [[layers.HyperConnection(4, Branch(w), streams=2) for w in (lambda y: y, wrap)] for _ in "ab"]
        made[1][1].branch = Branch(lambda y: y)
        found, rests = chain(made[0])(x)
        torch.testing.assert_close(found, chain(made[1])(x))
        assert rests[0] is None
        assert leaves(rests[1]) == leaves(rest)
    alone = layers.HyperConnection(4, Branch(wrap), streams=2)
    alone.register_forward_hook(lambda *_: None)  # this one runs by itself, in the same place
    assert leaves(layers.HyperStack([alone])(x)[1]) == leaves([rest])


def test_a_value_residual_in_a_pair_reaches_the_next_layer_and_its_gradient_comes_back():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Linear(4, 4)

        def forward(self, u, first=None):
            own = self.value(u)
            value = own if first is None else 0.5 * (own + first)
            return ((value.sin(), "cache"), own)

    made = [layers.HyperConnection(4, Attention(), streams=2, layer_index=i) for i in range(2)]
    x = torch.randn(3, 2, 4)
    (first, _), value = made[0](x)
    (found, _), _ = made[1](first, first=value)
    read, write = made[0].read(x)
    expected = write(made[0].branch.value(read).sin())
    torch.testing.assert_close(first, expected)
    assert torch.equal(value, made[0].branch.value(read))
    found.square().sum().backward()
    assert made[0].branch.value.weight.grad.abs().max() > 0


def test_a_result_in_a_dataclass_is_refused_rather_than_what_follows_it():
    @dataclass
    class Output:
        y: torch.Tensor

    layer = layers.HyperConnection(4, Branch(lambda y: (Output(y), AUXILIARY)), streams=2)
    with pytest.raises(TypeError, match=r"branch: expected its first tensor in a tuple, list or mapping.*in Output"):
        layer(torch.randn(3, 2, 4))


def test_outputs_of_transformers_keep_their_type():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    def wrap(y):
        return outputs.BaseModelOutput(last_hidden_state=y, attentions=(AUXILIARY,)), AUXILIARY

    x = torch.randn(3, 2, 4)
    out, rest = layers.HyperConnection(4, Branch(wrap), streams=2)(x)
    assert type(out) is outputs.BaseModelOutput
    torch.testing.assert_close(out.last_hidden_state, layers.HyperConnection(4, Branch(lambda y: y), streams=2)(x))
    assert out.attentions[0] is AUXILIARY
    assert rest is AUXILIARY
