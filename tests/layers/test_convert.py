"""Conversion of existing models: the same function at the start, and what a connection is."""

import copy

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.adapters.inputs import make_example
from jpmhc.layers.convert import convert
from tests.layers.families import CAUSAL, FAMILIES, FURTHER, MAIN, Block, Network, batch, build, network

# --- the same function at the start ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_hidden_states_are_those_of_the_original(family):
    original = build(family)
    expected = original(**batch(family), output_hidden_states=True)
    converted = convert(original, check=False)
    got = converted(**batch(family), output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=1e-5)
    name = "decoder_hidden_states" if family == "t5" else "hidden_states"
    torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)
    additions = sum(isinstance(module, layers.HyperConnection) for module in converted.modules())
    assert additions == FAMILIES[family][3]


@pytest.mark.slow
@pytest.mark.parametrize("family", FURTHER)
def test_further_families_start_as_the_original(family):
    original = build(family)
    _, call = make_example(original)
    expected = original(**call)[0]
    converted = convert(original)
    torch.testing.assert_close(converted(**call)[0], expected, atol=1e-5, rtol=1e-5)
    additions = sum(isinstance(module, layers.HyperConnection) for module in converted.modules())
    assert additions == FURTHER[family][3]


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_generation_with_a_cache_gives_the_same_tokens(family):
    original = build(family)
    prompt = {name: value for name, value in batch(family).items() if name != "labels"}
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}
    expected = original.generate(**prompt, **settings)
    assert torch.equal(convert(original).generate(**prompt, **settings), expected)


@pytest.mark.parametrize("family", [*MAIN, "gpt-neox-parallel", "t5"])
def test_gradients_of_the_branches_are_those_of_the_original(family):
    original = build(family).double()
    inputs = batch(family, torch.float64)
    original(**inputs).loss.backward()
    expected = {name: parameter.grad for name, parameter in original.named_parameters()}
    converted = build(family).double()
    convert(converted)(**inputs).loss.backward()
    for name, parameter in converted.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("mixer", ["cayley", "sinkhorn", "free", "identity"])
@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "tanh"])
def test_every_mixer_and_gate_starts_as_the_original(mixer, gate):
    original = build("llama")
    expected = original(**batch("llama")).logits
    converted = convert(original, streams=3, mixer=mixer, gate=gate)
    torch.testing.assert_close(converted(**batch("llama")).logits, expected, atol=1e-5, rtol=1e-5)


def test_one_stream_takes_the_uniform_gate():
    model, x = network(), torch.randn(2, 5, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, streams=1, gate="uniform", example=x)(x), expected)


def test_a_bfloat16_model_keeps_its_dtype_and_gets_float32_coefficients():
    original = build("llama").bfloat16()
    expected = original(**batch("llama")).logits
    converted = convert(original)
    got = converted(**batch("llama")).logits
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    assert {parameter.dtype for parameter in layers.mixing_parameters(converted)} == {torch.float32}


def test_coefficients_of_a_float64_model_are_float64():
    converted = convert(build("gpt2").double())
    assert {parameter.dtype for parameter in layers.mixing_parameters(converted)} == {torch.float64}


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_of_torch_with_padding(norm_first, batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=norm_first, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 3, nn.LayerNorm(16), enable_nested_tensor=not norm_first and batch_first)
    x = torch.randn((4, 5, 16) if batch_first else (5, 4, 16))
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[0, 3:] = True
    rows = ~padding if batch_first else ~padding.mT
    model.eval()
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        got = convert(model)(x, src_key_padding_mask=padding)
    torch.testing.assert_close(got[rows], expected[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_of_torch_has_three_connections_a_layer(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, norm_first=norm_first, batch_first=True)
    model = nn.TransformerDecoder(layer, 2)
    target, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    expected = model(target, memory)
    converted = convert(model)
    assert [len(layer.hyper_connections) for layer in converted.layers] == [3, 3]
    torch.testing.assert_close(converted(target, memory), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_one_layer_of_torch_is_converted_by_itself(norm_first):
    torch.manual_seed(0)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    for kind, inputs, additions in (
        (nn.TransformerEncoderLayer, (x,), 2),
        (nn.TransformerDecoderLayer, (x, memory), 3),
    ):
        layer = kind(16, 2, 32, dropout=0.0, norm_first=norm_first, batch_first=True)
        expected = layer(*inputs)
        converted = convert(layer)
        torch.testing.assert_close(converted(*inputs), expected, atol=1e-5, rtol=1e-5)
        assert len(converted.hyper_connections) == additions


def test_an_example_says_how_many_dimensions_vectors_have():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(5, 16)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"src: expected 2 dimensions that end in \(16,\), got \(5, 3, 16\)"):
        model(torch.randn(5, 3, 16))


def test_a_whole_transformer_of_torch_has_two_chains():
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True).eval()
    source, target = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    expected = model(source, target)
    converted = convert(model)
    torch.testing.assert_close(converted(source, target), expected, atol=1e-5, rtol=1e-5)
    assert [
        c.first for c in (converted.encoder.layers[0].hyper_connections, converted.decoder.layers[0].hyper_connections)
    ]


def test_a_single_block_is_converted_by_itself():
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 5, 8)
    expected = block(x)
    torch.testing.assert_close(convert(block, example=x)(x), expected)


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
def test_blocks_of_timm_form_with_an_example(container):
    model, x = network(), torch.randn(2, 5, 8)
    if container is nn.Sequential:
        model = nn.Sequential(*model.blocks)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)


class Windowed(Block):
    """The block of timm's Swin: pixels (B, H, W, d) for attention, tokens (B, H W, d) for the rest."""

    def forward(self, x):
        b, h, w, d = x.shape
        x = x + self.drop(self.attn(self.norm1(x)).roll(1, 2))
        x = x.reshape(b, -1, d)
        x = x + self.drop(self.mlp(self.norm2(x)))
        return x.reshape(b, h, w, d)


class Folded(Block):
    """A block that flattens with a function of torch, reads the folded vector in its own code, and norms it folded."""

    def forward(self, x):
        shape = x.shape
        x = torch.flatten(x, 0, -2)
        x = x + self.attn(torch.relu(x))
        x = self.norm1(x)
        x = x + self.mlp(x)
        return self.norm2(x).view(shape)


@pytest.mark.parametrize("block", [Windowed, Folded])
def test_blocks_that_fold_the_leading_shape(block):
    model, x = network(block), torch.randn(2, 3, 4, 8)
    expected = model(x)
    converted = convert(model, example=x)
    torch.testing.assert_close(converted(x), expected, atol=1e-5, rtol=1e-5)
    assert [len(b.hyper_connections) for b in converted.blocks] == [2, 2]
    with torch.no_grad():
        for parameter in layers.mixing_parameters(converted):
            parameter.add_(0.3 * torch.randn_like(parameter))
    if block is Windowed:  # the folded block computes what the block written without folding does
        block = converted.blocks[0]
        first, second = block.hyper_connections
        block.hyper_connections.last = False
        streams = layers.expand_streams(x, 4)
        u, write = first.read(streams)
        streams = write(block.attn(block.norm1(u)).roll(1, 2))
        u, write = second.read(streams)
        torch.testing.assert_close(block(x), write(block.mlp(block.norm2(u))))
    converted(x).sum().backward()
    assert all(p.grad is not None for p in layers.mixing_parameters(converted))


def test_a_fold_to_a_written_width_is_no_sign_of_channels_that_come_first():
    class Fixed(Block):
        def forward(self, x):
            shape = x.shape
            x = x.reshape(-1, 8)
            return (x + self.attn(torch.relu(x))).view(shape)

    model, x = network(Fixed), torch.randn(2, 5, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)


def test_blocks_called_by_keyword_with_tuple_results():
    class Named(Block):
        def forward(self, hidden, mask=None):
            return super().forward(hidden), mask

    class Calling(Network):
        def forward(self, x):
            for block in self.blocks:
                x, mask = block(mask=3, hidden=x)
            return self.norm(x) + mask

    torch.manual_seed(0)
    model, x = Calling([Named(), Named()]), torch.randn(2, 5, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, example={"x": x})(x), expected)


# --- what a connection is ---------------------------------------------------------------------------


def test_layer_index_counts_additions_over_the_network():
    converted = convert(build("llama"), streams=5)
    found = [module for module in converted.modules() if isinstance(module, layers.HyperConnection)]
    favourites = [int(layer.gate(torch.zeros(5), torch.zeros(5))[0].argmax()) for layer in found]
    assert favourites == [0, 1, 2, 3, 4, 0]


def test_converted_blocks_compute_the_written_out_recurrence():
    converted = convert(network(), example=torch.randn(1, 3, 8))
    block = converted.blocks[1]
    first, second = block.hyper_connections
    with torch.no_grad():
        for parameter in layers.mixing_parameters(converted):
            parameter.add_(0.3 * torch.randn_like(parameter))
    block.hyper_connections.last = False
    x = torch.randn(2, 5, 4, 8)
    u, write = first.read(x)
    middle = write(block.scale * block.attn(block.norm1(u)))
    u, write = second.read(middle)
    torch.testing.assert_close(block(x), write(block.scale * block.mlp(block.norm2(u))))


def test_a_norm_on_the_residual_path_normalises_every_stream():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = convert(Network([block, copy.deepcopy(block)]), example=torch.randn(1, 5, 8))
    block = model.blocks[1]
    block.hyper_connections.last = False
    x = torch.randn(2, 5, 4, 8)
    u, write = block.hyper_connections[0].read(x)
    attended = block.self_attn(u, u, u, need_weights=False)[0]
    middle = nn.functional.layer_norm(write(attended), (8,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    u, write = block.hyper_connections[1].read(middle)
    out = write(block.linear2(torch.relu(block.linear1(u))))
    out = nn.functional.layer_norm(out, (8,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
    torch.testing.assert_close(block(x), out)


def test_branches_added_one_after_the_other_to_one_read_are_one_connection():
    class Parallel(Block):
        def forward(self, x):
            return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))

    model, x = network(Parallel), torch.randn(2, 5, 8)
    expected = model(x)
    converted = convert(model, example=x)
    assert [len(block.hyper_connections) for block in converted.blocks] == [1, 1]
    torch.testing.assert_close(converted(x), expected)


@pytest.mark.parametrize("fold", [False, True])
def test_looking_at_dtype_and_device_of_a_sum_is_no_read(fold):
    class Casting(Block):
        def forward(self, x):
            shape = x.shape
            if fold:
                x = x.reshape(-1, 8)
            a, b = self.attn(self.norm1(x)), self.mlp(self.norm2(x))
            x = x + a
            return (x + b.to(x.dtype).to(x.device)).view(shape)

    model, x = network(Casting), torch.randn(2, 5, 8)
    expected = model(x)
    converted = convert(model, example=x)
    assert [len(block.hyper_connections) for block in converted.blocks] == [1, 1]
    torch.testing.assert_close(converted(x), expected)
