"""Models that conversion refuses, and what it says."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.adapters.vector import ResidualVector
from jpmhc.layers.convert import convert
from tests.layers.families import REFUSED, Block, Network, batch, build, network


class Scaled(Block):
    def forward(self, x):
        return 0.5 * x + self.mlp(self.norm2(x))


class Forked(Block):
    def forward(self, x):
        y = x + self.attn(self.norm1(x))
        return y + (x + self.mlp(self.norm2(y)))


class Weighted(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return torch.add(x, self.mlp(self.norm2(x)), alpha=0.5)


class InPlace(Block):
    def forward(self, x):
        x.add_(self.attn(self.norm1(x)))
        return x


class Reading(Block):
    def forward(self, x):
        x = super().forward(x)
        self.last = torch.relu(x)
        return x


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (Scaled, r"0\.5 \* x"),
        (Forked, r"\(x \+ self\.mlp"),
        (Weighted, r"alpha=0\.5"),
        (InPlace, r"x\.add_\("),
        (Reading, r"torch\.relu\(x\)"),
    ],
)
def test_an_addition_that_streams_cannot_replace_is_named_with_its_line(block, line):
    model = network(block)
    with pytest.raises(
        ValueError, match=rf"(?s)blocks\.0.*test_convert_refusals\.py:\d+ .*{line}.*HyperConnection.*Residual"
    ):
        convert(model, example=torch.randn(1, 3, 8))
    assert not any(hasattr(module, "hyper_connections") for module in model.modules())


class ChannelsFirst(nn.Module):
    """Images (B, C, H, W), as in ResNets, ConvNeXt and PoolFormer."""

    def __init__(self, reader, masked=False):
        super().__init__()
        self.reader, self.out, self.masked = reader, nn.Conv2d(8, 8, 3, padding=1), masked

    def forward(self, x):
        y = self.out(self.reader(x))
        return x + (y * torch.ones(16) if self.masked else y)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("reader", "name"),
    [
        (lambda: nn.Conv2d(8, 8, 3, padding=1), "Conv2d"),
        (lambda: nn.BatchNorm2d(8), "BatchNorm2d"),
        (lambda: nn.Sequential(nn.GroupNorm(1, 8), nn.ReLU()), "GroupNorm"),
    ],
)
def test_channels_before_the_tokens_are_refused_and_their_reader_is_named(reader, name, masked):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*(ChannelsFirst(reader(), masked) for _ in "ab"))
    )
    with pytest.raises(ValueError, match=rf"(?s)1\.0: channels must come last.*\(1, 8, 16, 16\).*{name}"):
        convert(model, example=torch.randn(1, 3, 16, 16))
    assert not any(hasattr(module, "hyper_connections") for module in model.modules())


def test_norms_over_channels_are_no_obstacle_for_single_vectors():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.linear(self.norm(x))

    model, x = nn.Sequential(Single(), Single()).eval(), torch.randn(5, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_converted_says_why(family):
    with pytest.raises(ValueError, match=REFUSED[family][3]):
        convert(build(family))


def test_a_model_without_residual_blocks_is_refused():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match=r"(?s)model: the residual additions .* could not be placed.*Residual"):
        convert(model, example=torch.randn(2, 8))


def test_a_list_that_is_residual_in_part_is_refused_beside_a_chain():
    class Plain(Block):
        def forward(self, x):
            return self.mlp(x)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.mixed = network(), Network([Plain(), Block()])

        def forward(self, x):
            return self.mixed(self.good(x))

    with pytest.raises(ValueError, match=r"mixed\.blocks: mixed\.blocks\.0 adds nothing|mixed\.blocks\.0: its result"):
        convert(Two(), example=torch.randn(1, 3, 8))


def test_a_single_block_with_lists_inside_its_branch_is_converted():
    block, x = Block(), torch.randn(2, 5, 8)
    block.mlp = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.GELU()))
    expected = block(x)
    converted = convert(block, example=x)
    assert len(converted.hyper_connections) == 2
    torch.testing.assert_close(converted(x), expected)


def test_weights_shared_over_depth_are_refused():
    block = Block()
    with pytest.raises(ValueError, match="a block runs more than once"):
        convert(Network([block, block]), example=torch.randn(1, 3, 8))


def test_a_model_that_changes_vectors_between_blocks_is_refused():
    class Between(Network):
        def forward(self, x):
            for block in self.blocks:
                x = 2 * block(x)
            return x

    with pytest.raises(ValueError, match=r"changed between blocks\.0 and blocks\.1"):
        convert(Between([Block(), Block()]), example=torch.randn(1, 3, 8))


def test_what_is_no_module_is_named():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        convert("gpt2")


def test_a_model_is_converted_once():
    model = convert(build("gpt2"))
    with pytest.raises(ValueError, match="model: it has hyper-connections already"):
        convert(model)


def test_an_unknown_call_asks_for_an_example():
    with pytest.raises(ValueError, match="example: Network does not say what it takes"):
        convert(network())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"streams": 0}, ValueError, "streams"),
        ({"mixer": "nonsense"}, ValueError, "mixer: unknown name"),
        ({"gate": "nonsense"}, ValueError, "gate"),
        ({"gate": "uniform"}, ValueError, "gate: 'uniform' .* start equal.*softmax, sigmoid or tanh"),
        ({"layer_index": 1}, TypeError, "layer_options: layer_index"),
        ({"unheard_of": 1}, TypeError, "unheard_of"),
    ],
)
def test_bad_arguments_leave_the_model_as_it_was(arguments, error, message):
    model = network()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        convert(model, example=torch.randn(1, 3, 8), **arguments)
    assert [type(module) for module in model.modules()] == classes


def test_a_failed_check_puts_the_model_back():
    class Doubling(layers.Free):
        def forward(self, raw):
            return 2 * super().forward(raw)

    model, x = network(), torch.randn(1, 3, 8)
    expected, state = model(x), set(model.state_dict())
    with pytest.raises(ValueError, match="model: its output on the example changed"):
        convert(model, mixer=Doubling(4), example=x)
    assert set(model.state_dict()) == state
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(x), expected, atol=0, rtol=0)


def test_streams_in_the_output_are_told_from_a_change_of_its_values():
    class Gathering(Network):
        def forward(self, x):
            found = []
            for block in self.blocks:
                x = block(x)
                found.append(x)
            return {"last": x, "all": found}

    model = Gathering([Block(), Block()])
    with pytest.raises(ValueError, match=r"(?s)model: .* shape \(1, 3, 4, 8\), not \(1, 3, 8\).*collects.*blocks"):
        convert(model, example=torch.randn(1, 3, 8))
    assert not any(hasattr(module, "hyper_connections") for module in model.modules())


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = network()
    with pytest.raises(ValueError, match="model: expected parameters on a real device"):
        convert(model, example=torch.randn(1, 3, 8))


def test_a_forward_patched_on_a_block_is_refused():
    model = network()
    model.blocks[1].forward = model.blocks[1].forward
    with pytest.raises(ValueError, match=r"blocks\.1 has a forward of its own"):
        convert(model, example=torch.randn(1, 3, 8))


def test_a_compiled_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model: the model itself has a forward of its own.*torch\.compile"):
        convert(torch.compile(Block(), backend="eager"), example=torch.randn(1, 3, 8))


def test_a_norm_that_was_replaced_after_conversion_is_named_as_a_cause():
    model = convert(build("bert"))
    model.bert.encoder.layer[0].attention.output.LayerNorm = nn.LayerNorm(16)
    with pytest.raises(RuntimeError, match=r"(?s)block: .*2 residual additions.*norm .* replaced after conversion"):
        model(**batch("bert"))


def test_lists_that_do_not_run_are_reported():
    model = network()
    model.unused = nn.ModuleList([Block()])
    with pytest.warns(UserWarning, match="did not run on the example: unused"):
        convert(model, example=torch.randn(1, 3, 8))


def test_dropping_layers_after_conversion_is_an_error():
    x = torch.randn(1, 5, 8)
    for keep, message in ((slice(1, None), "a converted block runs at its place"), (slice(0, 1), "did not run")):
        model = convert(network(), example=x)
        model.blocks = model.blocks[keep]
        with pytest.raises((ValueError, RuntimeError), match=message):
            model(x)


def test_another_path_than_the_converted_one_is_an_error():
    model = convert(build("gpt2-cross"))
    inputs = batch("gpt2-cross")
    del inputs["encoder_hidden_states"]
    with pytest.raises(RuntimeError, match="expected its 3 residual additions as at conversion, got 2"):
        model(**inputs)


def test_a_residual_vector_inside_a_custom_function_is_an_error():
    class Silent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.relu(x)

    vector = ResidualVector(torch.randn(3, 4, 8), [layers.HyperConnection(8)])
    with pytest.raises(RuntimeError, match="another gradient mode"):
        Silent.apply(vector)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_a_part_of_a_block_is_an_error_that_says_so(reentrant):
    class Checkpointed(Block):
        def part(self, x):
            return self.attn(self.norm1(x))

        def forward(self, x):
            if not self.training:
                return x + self.part(x)
            return x + torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=reentrant)

    model = convert(network(Checkpointed), example=torch.randn(1, 3, 8)).train()
    with pytest.raises(RuntimeError, match=r"residual vector is read .* checkpoint whole blocks"):
        model(torch.randn(2, 3, 8, requires_grad=True)).sum().backward()


def test_importing_layers_does_not_import_transformers():
    code = "import sys, jpmhc.layers, jpmhc.layers.convert; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
