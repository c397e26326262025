"""Converted models train, compile, copy, save and load."""

import copy
import pickle

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.adapters.checkpoint import load_converted
from jpmhc.layers.convert import convert
from tests.layers.families import MAIN, Block, Network, batch, build, network, spread, transformers


@pytest.mark.parametrize("family", MAIN)
def test_a_converted_model_trains_and_its_streams_part(family):
    model = convert(build(family)).train()
    mixing = layers.mixing_parameters(model)
    inputs = batch(family)
    streams = []
    blocks = [module for module in model.modules() if hasattr(module, "hyper_connections")]
    blocks[1].register_forward_hook(lambda module, args, out: streams.append(spread(out.detach())))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses, largest = [], [0.0] * len(mixing)
    for _ in range(10):
        optimiser.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        largest = [max(old, float(p.grad.abs().max())) for old, p in zip(largest, mixing, strict=True)]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert streams[0] < 1e-6 < 1e-3 < streams[-1]
    assert all(value > 0 for value in largest)


def test_frozen_weights_stay_frozen_and_connections_train():
    model = build("llama").requires_grad_(False)
    convert(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".hyper_connections." in name}
    model(**batch("llama")).loss.backward()
    assert all(parameter.grad is not None for parameter in layers.mixing_parameters(model))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model = convert(build("llama")).train()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(**batch("llama")).loss, parameters)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model(**batch("llama")).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in parameters], list(expected))


def test_a_compiled_part_of_a_block_is_computed_again_in_the_backward_pass():
    model, x = convert(network(), example=torch.randn(1, 3, 8)).train(), torch.randn(2, 3, 8)
    expected = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    for block in model.blocks:
        block.norm1.compile(backend="aot_eager")
    for block in model.blocks:
        x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    # Compiled for the forward pass alone, so that the backward pass compiles again.
    torch._dynamo.reset()
    got = torch.autograd.grad(model.norm(x).sin().sum(), list(model.parameters()))
    torch.testing.assert_close(got, expected)


def test_weights_keep_their_names_and_those_of_the_original_load():
    original = build("bert")
    names = set(original.state_dict())
    weights = copy.deepcopy(original.state_dict())
    converted = convert(build("bert"))
    missing, unexpected = converted.load_state_dict(weights, strict=False)
    assert not unexpected
    assert names < set(converted.state_dict())
    assert all(".hyper_connections." in name for name in missing)


def test_conversion_is_in_place_and_keeps_ties_modes_and_classes():
    model = build("llama-tied").train()
    model.model.layers[1].eval()
    block = type(model.model.layers[0])
    assert convert(model) is model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for index, mode in enumerate([True, False, True]):
        assert {module.training for module in model.model.layers[index].modules()} == {mode}
    assert isinstance(model.model.layers[0], block)
    assert type(model.model.layers[0]).__name__ == block.__name__


def post_norm():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=False)
    return convert(nn.TransformerEncoder(block, 2, enable_nested_tensor=False)).eval()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrised_norm_on_the_residual_path_copies_and_refuses_to_be_pickled():
    model, x = post_norm(), torch.randn(2, 5, 8)
    before = model(x)
    nn.utils.parametrize.register_parametrization(model.layers[0].norm1, "weight", Doubled())
    expected = model(x)
    assert not torch.equal(expected, before)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model)
    nn.utils.parametrize.remove_parametrizations(model.layers[0].norm1, "weight", leave_parametrized=False)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), before)


class Remembering(Block):
    """A block that holds something which no pickle does, and says so."""

    def __init__(self):
        super().__init__()
        self.handle = (i for i in range(3))

    def __getstate__(self):
        return {**super().__getstate__(), "handle": None}


def test_what_a_block_leaves_out_of_its_pickles_is_left_out_after_conversion():
    model = convert(Network([Remembering(), Remembering()]), example=torch.randn(1, 3, 8))
    x = torch.randn(2, 3, 8)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.blocks[0].handle is None


def test_linear_maps_of_a_post_norm_model_are_quantised():
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    if not engines:
        pytest.skip("torch was built without quantised operations")
    model, x = post_norm(), torch.randn(2, 5, 8)
    torch.backends.quantized.engine = engines[0]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    torch.testing.assert_close(quantised(x), model(x), rtol=0.1, atol=0.1)


def test_copies_and_pickles_compute_the_same():
    model = convert(build("bert"))
    inputs = batch("bert")
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(**inputs).logits, expected, atol=0, rtol=0)
        assert not set(layers.mixing_parameters(other)) & set(layers.mixing_parameters(model))


@pytest.mark.parametrize("strict", [False, True])
def test_a_converted_model_is_exported_for_any_batch_and_length(strict):
    block = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    model = convert(torch.nn.TransformerEncoder(block, 2, enable_nested_tensor=False)).eval()
    free = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=100)}
    exported = torch.export.export(model, (torch.randn(2, 5, 16),), dynamic_shapes=(free,), strict=strict).module()
    for x in (torch.randn(3, 9, 16), torch.randn(50, 4, 16)):
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_a_converted_model_compiles_as_one_graph(family):
    model = convert(build(family))
    inputs = {name: value for name, value in batch(family).items() if name != "labels"}
    if family != "bert":
        inputs["use_cache"] = False
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("family", ["llama", "vit", "t5"])
def test_a_saved_model_comes_back_with_its_mixing(tmp_path, family):
    model = convert(build(family, num_layers=12) if family == "t5" else build(family, num_hidden_layers=12), streams=2)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = load_converted(type(model), tmp_path)
    torch.testing.assert_close(loaded(**batch(family)).logits, model(**batch(family)).logits)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}])
def test_a_variant_comes_back_and_says_what_was_missing(tmp_path, shards):
    model = convert(build("llama"), streams=2)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path, variant="fp16", **shards)
    loaded, info = load_converted(transformers.LlamaForCausalLM, tmp_path, variant="fp16", output_loading_info=True)
    torch.testing.assert_close(loaded(**batch("llama")).logits, model(**batch("llama")).logits)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


def test_blocks_that_were_converted_one_by_one_have_no_note_and_loading_says_so(tmp_path):
    model, calls = build("gpt2"), []
    hook = model.transformer.h[0].register_forward_pre_hook(lambda module, args: calls.append(args))
    model(**batch("gpt2"))
    hook.remove()
    convert(model.transformer.h[0], example=calls[0][0])
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"directory: .* no note .*transformer\.h\.0\.hyper_connections.*load_state_dict"
    ):
        load_converted(transformers.GPT2LMHeadModel, tmp_path)


def test_loading_refuses_what_it_cannot_restore(tmp_path):
    build("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"directory: .* without hyper-connections"):
        load_converted(transformers.LlamaForCausalLM, tmp_path / "plain")
    model = convert(build("llama"), mixer=layers.Cayley(4, step=0.5))
    model.save_pretrained(tmp_path / "instance")
    with pytest.raises(ValueError, match="options: 'mixer' was an instance of Cayley"):
        load_converted(transformers.LlamaForCausalLM, tmp_path / "instance")
    options = {"mixer": layers.Cayley(4, step=0.5)}
    loaded = load_converted(transformers.AutoModelForCausalLM, tmp_path / "instance", options=options)
    torch.testing.assert_close(loaded(**batch("llama")).logits, model(**batch("llama")).logits)
    with pytest.raises(ValueError, match="directory: mixing weights missing, unknown or of another shape"):
        load_converted(transformers.LlamaForCausalLM, tmp_path / "instance", options={**options, "dynamic": False})


@pytest.mark.parametrize("order", ["before conversion", "after"])
def test_hooks_of_others_on_modules_that_read_see_tensors(order):
    model, seen = build("llama").train(), []

    def look(module, args):
        with torch.no_grad():
            seen.append((type(args[0]), args[0].norm()))

    def watch():
        for layer in model.model.layers:
            layer.input_layernorm.register_forward_pre_hook(look)

    if order == "before conversion":
        watch()
    convert(model)
    if order == "after":
        watch()
    seen.clear()
    model(**batch("llama")).loss.backward()
    assert [kind for kind, _ in seen] == [torch.Tensor] * 3


class Collecting(Network):
    """Gathers what every block hands on beside its forward, as timm's models do for detectors."""

    def forward_intermediates(self, x):
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return self.norm(x), found


def test_intermediate_vectors_are_means_over_streams():
    torch.manual_seed(0)
    model, x = Collecting([Block() for _ in range(3)]), torch.randn(2, 5, 8)
    expected = model.forward_intermediates(x)
    convert(model, example=x)
    torch.testing.assert_close(model.forward_intermediates(x), expected)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            parameter.add_(0.3 * torch.randn_like(parameter))
    streams = []
    hooks = [block.register_forward_hook(lambda module, args, out: streams.append(out)) for block in model.blocks]
    expected = model(x)
    for hook in hooks:
        hook.remove()
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        result, found = other.forward_intermediates(x)
        assert torch.equal(result, expected)
        assert torch.equal(other(x), expected)
        assert torch.equal(found[0], streams[0].mean(-2))
        assert torch.equal(found[1], streams[1].mean(-2))
        assert torch.equal(found[2], streams[2])
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in layers.mixing_parameters(other))


def test_a_mixer_instance_is_copied_for_every_connection():
    mixer = layers.Cayley(4, step=0.5)
    converted = convert(network(), mixer=mixer, example=torch.randn(1, 3, 8))
    mixers = {connection.mixer for block in converted.blocks for connection in block.hyper_connections}
    assert len(mixers) == 4
    assert mixer not in mixers
