"""Blocks in lists of lists, in lists inside modules that are never called, and beside lists."""

import warnings

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.convert import convert
from tests.layers.families import Block


class Tailed(nn.Module):
    """A body beside another list, which alone would be a chain."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.make()
        self.tail = nn.ModuleList([Block()])

    def forward(self, x):
        for block in (*self.body(), *self.tail):
            x = block(x)
        return x


def pairs():
    return [nn.ModuleList([Block(), Block()]) for _ in range(2)]


class Lists(Tailed):
    def make(self):
        self.stages = nn.ModuleList(pairs())

    def body(self):
        return [block for stage in self.stages for block in stage]


class Dictionary(Tailed):
    def make(self):
        self.layers = nn.ModuleDict({"a": Block(), "b": Block()})

    def body(self):
        return self.layers.values()


class Sequences(Tailed):
    def make(self):
        self.stages = nn.Sequential(*(nn.Sequential(*pair) for pair in pairs()))

    def body(self):
        return self.stages


class Running(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


class Runners(Sequences):
    def make(self):
        self.stages = nn.ModuleList([Running(pair) for pair in pairs()])


class Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks


class Uncalled(Lists):
    def make(self):
        self.stages = nn.ModuleList([Stage(pair) for pair in pairs()])

    def body(self):
        return [block for stage in self.stages for block in stage.blocks]


class TwiceNamed(Lists):
    def make(self):
        super().make()
        self.all = nn.ModuleList([block for stage in self.stages for block in stage])


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x):
        return self.inner(x)


class Mixed(Lists):
    def make(self):
        self.stages = nn.ModuleList([nn.ModuleList([Projection(), pair]) for pair in pairs()])

    def body(self):
        return [module for projection, pair in self.stages for module in (projection, *pair)]


class Between(Lists):
    """The vectors are changed where one list ends, so that together they are no chain."""

    def make(self):
        super().make()
        self.norm = nn.LayerNorm(8)

    def body(self):
        return [module for stage in self.stages for module in (*stage, self.norm)]


@pytest.mark.parametrize(
    ("model", "starts"),
    [
        (Lists, ["stages.0.0", "tail.0"]),
        (Dictionary, ["layers.a", "tail.0"]),
        (Sequences, ["stages.0.0", "tail.0"]),
        (Runners, ["stages.0.0", "stages.1.0", "tail.0"]),
        (Uncalled, ["stages.0.blocks.0", "stages.1.blocks.0", "tail.0"]),
        (TwiceNamed, ["stages.0.0", "tail.0"]),
        (Mixed, ["stages.0.1.0", "stages.1.1.0", "tail.0"]),
        (Between, ["stages.0.0", "stages.1.0", "tail.0"]),
    ],
)
def test_every_block_is_converted_wherever_its_list_stands(model, starts):
    model, x = model(), torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            convert(model, example=x)
        torch.testing.assert_close(model(x), expected)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Block)}
    assert all(len(block.hyper_connections) == 2 for block in blocks.values())
    assert [name for name, block in blocks.items() if block.hyper_connections.first] == starts


def test_a_list_whose_code_adds_around_its_members_is_refused_by_name():
    class Adding(nn.ModuleList):
        def forward(self, x):
            return x + self[0](x)

    model = nn.Sequential(*(Adding([Projection()]) for _ in range(2)))
    with pytest.raises(ValueError, match=r"0: a list of modules has no place for connections"):
        convert(model, example=torch.randn(2, 3, 8))


@pytest.mark.parametrize(("used", "named"), [((), "stages"), ((1,), r"stages\.0")])
def test_of_lists_in_lists_those_that_did_not_run_are_named(used, named):
    class Partial(Lists):
        def body(self):
            return [block for index in used for block in self.stages[index]]

    with pytest.warns(UserWarning, match=rf"did not run on the example: {named}$"):
        model = convert(Partial(), example=torch.randn(2, 3, 8))
    assert sum(isinstance(module, layers.HyperConnection) for module in model.modules()) == 2 + 4 * len(used)


def test_blocks_that_are_in_no_list_are_named_beside_a_chain():
    class Attributes(Tailed):
        def make(self):
            self.first, self.second = Block(), Block()

        def body(self):
            return self.first, self.second

    with pytest.warns(UserWarning, match="not converted, .* in no list whose members .*: first, second$"):
        convert(Attributes(), example=torch.randn(2, 3, 8))
