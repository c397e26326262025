"""Blocks in lists of lists, in lists inside modules that are never called, and beside lists."""

import copy
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


class Indexing(nn.ModuleList):
    def forward(self, x):
        return x + self[0](x)


class Named(nn.ModuleDict):
    def forward(self, x):
        return x + self["f"](x)


class Called(nn.Sequential):
    def forward(self, x):
        return x + self[0](x)


def test_a_block_that_is_a_list_with_code_of_its_own_is_converted():
    for block in (Indexing([Projection()]), Named({"f": Projection()}), Called(Projection())):
        model, x = nn.Sequential(block, copy.deepcopy(block)), torch.randn(2, 3, 8)
        expected = model(x)
        torch.testing.assert_close(convert(model, example=x)(x), expected)
        assert len(block.hyper_connections) == 1


def test_a_block_whose_code_goes_through_all_its_modules_is_refused():
    class Through(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = nn.Sequential(*(Through(Projection()) for _ in range(2)))
    with pytest.raises(ValueError, match=r"a list that runs all its modules one after the other has no place"):
        convert(model, example=torch.randn(2, 3, 8))
    assert not any(hasattr(module, "hyper_connections") for module in model.modules())


class Other(Block):
    """A block of a class that is in no chain."""


@pytest.mark.parametrize("first", ["sequences", "lists"])
@pytest.mark.parametrize(
    "stage",
    [
        lambda: [Other(), nn.Dropout()],
        lambda: [nn.LayerNorm(8), Other()],
        lambda: [Other(), Other(), nn.Linear(8, 8)],
        lambda: [Other(), nn.Identity()],
    ],
)
def test_additions_beside_leaves_are_not_passed_over_in_silence(stage, first):
    class Beside(Tailed):
        def make(self):
            kind = nn.ModuleList if first == "lists" else lambda members: nn.Sequential(*members)
            self.stages = nn.ModuleList([kind(stage()) for _ in range(2)])

        def body(self):
            return [module for stage in self.stages for module in stage] if first == "lists" else self.stages

    if first == "lists":  # which nothing calls
        with pytest.warns(UserWarning, match=r"did not run on the example: stages$"):
            convert(Beside(), example=torch.randn(2, 3, 8))
    else:
        with pytest.raises(ValueError, match=r"\n  stages: stages\.0"):
            convert(Beside(), example=torch.randn(2, 3, 8))


def test_one_leaf_among_lists_of_blocks_leaves_none_of_the_blocks_out():
    class Leaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(pairs())
            self.stages[1].append(nn.LayerNorm(8))

        def forward(self, x):
            for block in (block for stage in self.stages for block in stage):
                x = block(x)
            return x

    model, x = Leaf(), torch.randn(2, 3, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)
    assert sum(isinstance(module, layers.HyperConnection) for module in model.modules()) == 8


def test_modules_beside_lists_that_are_taken_out_of_a_list_are_named_if_they_add():
    class Beside(Uncalled):
        def make(self):
            super().make()
            for stage in self.stages:
                stage.before, stage.after = Projection(), Other()

        def body(self):
            return [m for stage in self.stages for m in (stage.before, *stage.blocks, stage.after)]

    with pytest.warns(UserWarning, match=r"not converted, though they .*: stages\.0\.after, stages\.1\.after$"):
        convert(Beside(), example=torch.randn(2, 3, 8))


def test_additions_around_the_members_of_lists_of_lists_are_named():
    class Around(Tailed):
        def make(self):
            self.layers = nn.ModuleList([nn.ModuleList([Projection(), Projection()]) for _ in range(2)])

        def forward(self, x):
            for f, g in self.layers:
                x = x + f(x)
                x = x + g(x)
            return self.tail[0](x)

    with pytest.warns(UserWarning, match=r"not converted, though they or the code around them .*: layers$"):
        convert(Around(), example=torch.randn(2, 3, 8))


class Head(nn.Module):
    """Adds; its result is of another size or not."""

    def __init__(self, size):
        super().__init__()
        self.inner, self.out = nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 3) if size else nn.Identity()

    def forward(self, x):
        x = x + self.inner(x)
        return self.out(x) if isinstance(self.out, nn.Linear) else x


@pytest.mark.parametrize("size", [None, 3])
def test_modules_by_name_of_which_one_runs_stay_plain_and_are_named(size):
    class Tasks(Tailed):
        def make(self):
            self.heads = nn.ModuleDict({"a": Head(size), "b": Head(size)})

        def forward(self, x):
            return self.heads["a"](self.tail[0](x))

    model, x = Tasks(), torch.randn(2, 3, 8)
    expected = model(x)
    with pytest.warns(UserWarning, match=r"not converted, though they or the code around them .*: heads\.a$"):
        convert(model, example=x)
    torch.testing.assert_close(model(x), expected)
    assert sum(isinstance(module, layers.HyperConnection) for module in model.modules()) == 2


def test_parts_by_name_that_are_no_chain_are_searched_one_by_one():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.blocks = nn.Parameter(torch.randn(3, 8)), pairs()[0]

        def forward(self, x):
            x = x + self.position
            for block in self.blocks:
                x = block(x)
            return x

    class Parts(Tailed):
        def make(self):
            self.parts = nn.ModuleDict({"encoder": Part(), "decoder": Part()})

        def body(self):
            return self.parts.values()

    model, x = Parts(), torch.randn(2, 3, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)
    assert sum(isinstance(module, layers.HyperConnection) for module in model.modules()) == 10


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
