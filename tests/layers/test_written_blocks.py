"""Blocks as people write them: each computes after conversion what it computed before, or is refused by name."""

import copy

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.convert import convert
from tests.layers.families import Block, Network


class Written(nn.Module):
    """Two branches f and g; the subclasses say how they are added."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(8), nn.Linear(8, 8)
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.identity, self.factor = nn.Identity(), nn.Parameter(torch.rand(8))

    def f(self, x):
        return self.attn(self.norm1(x))

    def g(self, x):
        return self.mlp(self.norm2(x))


class Reversed(Written):
    def forward(self, x):
        x = self.f(x) + x
        return 0.5 * self.factor * self.g(x) + x


class InPlace(Written):
    def forward(self, x):
        y = self.f(x)
        y += x
        z = self.g(y)
        z += y
        return z


class Method(Written):
    def forward(self, x):
        x = self.f(x).add_(x)
        return torch.add(x, self.g(x))


class Repeated(Written):
    """The same result twice; both are one write."""

    def forward(self, x):
        y = self.f(x)
        x = x + y
        x = x + y
        return x + self.g(x)


class Interpolated(Written):
    def forward(self, x):
        x = x + self.factor * (self.f(x) - x)
        return x + self.g(x)


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


class Modules(Written):
    """An addition in a module, the residual through an identity."""

    def __init__(self):
        super().__init__()
        self.add = Sum()

    def forward(self, x):
        x = self.add(self.f(x), self.identity(x))
        return self.add(x, self.g(x))


class Attribute(Written):
    def forward(self, x):
        self.residual = x
        self.residual = self.residual + self.f(x)
        x = self.g(self.residual)
        return self.residual + x


class Dropped(Written):
    """A branch that is dropped for some samples in training."""

    def drop(self, y):
        return y * (torch.rand(len(y), 1, 1) > 0.5) if self.training else y

    def forward(self, x):
        x = x + self.drop(self.f(x))
        return x + self.drop(self.factor * self.g(x))


class Folded(Written):
    def forward(self, x):
        shape = x.shape
        x = x.view(-1, shape[-1])
        x = x + self.f(x)
        x = x.view(shape)
        return x + self.g(x)


class Checkpointed(Written):
    """A checkpoint around what does not read the residual vector itself."""

    def forward(self, x):
        x = x + torch.utils.checkpoint.checkpoint(self.attn, self.norm1(x), use_reentrant=False)
        return x + self.g(x)


ACCEPTED = [
    Reversed,
    InPlace,
    Method,
    Repeated,
    Interpolated,
    Modules,
    Attribute,
    Dropped,
    Folded,
    Checkpointed,
]


def made(block):
    torch.manual_seed(0)
    return Network([block() for _ in range(3)]).eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("block", ACCEPTED)
def test_results_and_gradients_are_those_of_the_original(block, training):
    original, x = made(block), torch.randn(3, 5, 8)
    converted = convert(copy.deepcopy(original), example=x[:1]).train(training)
    assert sum(isinstance(module, layers.HyperConnection) for module in converted.modules()) == 6
    found = []
    for model in (original.train(training), converted):
        torch.manual_seed(1)
        out = model(x)
        parameters = [p for name, p in model.named_parameters() if "hyper_connections" not in name]
        found.append((out, torch.autograd.grad(out.sin().sum(), parameters, allow_unused=True)))
    torch.testing.assert_close(*(out for out, _ in found), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*(gradients for _, gradients in found), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [InPlace, Method])
def test_additions_in_place_of_a_branch_are_compiled_whole(block):
    model, x = convert(made(block), example=torch.randn(1, 5, 8)), torch.randn(3, 5, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_a_norm_that_all_blocks_share_is_a_norm_of_each():
    class Post(Written):
        shared: nn.Module

        def forward(self, x):
            x = self.shared(x + self.f(x))
            return self.shared(x + self.g(x))

    model, x = made(Post), torch.randn(3, 5, 8)
    for block in model.blocks:
        block.shared = model.norm  # which normalises the result of the model too
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected, rtol=1e-5, atol=1e-5)


class Skipping(Network):
    def forward(self, x):
        first = self.blocks[0](x)
        return self.blocks[1](first) + first


def test_a_model_that_needs_the_vectors_between_its_blocks_is_refused_with_the_line():
    model = Skipping([Block(), Block()])
    said = r"model: with streams between its blocks it does not run, .*self\.blocks\[1\]\(first\) \+ first"
    with pytest.raises(ValueError, match=said):
        convert(model, example=torch.randn(2, 5, 8))
    assert not any(hasattr(module, "hyper_connections") for module in model.modules())
    assert model(torch.randn(2, 5, 8)).shape == (2, 5, 8)


def test_a_scripted_module_is_named_and_the_model_is_as_it_was():
    model = made(Reversed)
    model.blocks[1].mlp = torch.jit.script(model.blocks[1].mlp)
    with pytest.raises(ValueError, match=r"blocks\.1 has a module made by torch\.jit\.script"):
        convert(model, example=torch.randn(1, 5, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Keeping(Network):
    """Returns keys and values of one head, (batch, 1, tokens, d), and what its blocks returned."""

    def forward(self, x):
        x = self.norm(x)
        found, cache = (x,), []
        for block in self.blocks:
            x = block(x)
            found += (x,)
            cache.append(block.attn(self.norm(x)).unsqueeze(1) if block is self.blocks[-1] else x.new_ones(2, 1, 4, 8))
        return x, tuple(cache), found


def test_keys_and_values_are_not_taken_for_streams_whatever_the_number_of_tokens():
    torch.manual_seed(0)
    model = Keeping([Block(), Block(), Block()])
    for tokens in (4, 5):
        x = torch.randn(2, tokens, 8)
        expected = model(x)
        got = convert(copy.deepcopy(model), example=torch.randn(2, 3, 8), check=False)(x)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Between(Network):
    """Returns what some blocks returned, without what the first one takes or the last one returns."""

    def forward(self, x):
        kept = []
        for block in self.blocks:
            x = block(x)
            kept.append(x)
        return x, tuple(kept[:-1])


def test_vectors_between_blocks_are_those_of_the_original_whatever_stands_beside_them():
    model, x = Between([Block(), Block(), Block()]), torch.randn(2, 5, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)
