"""Conversion of existing models: the same function at the start, one that trains afterwards, and clear refusals."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from jpmhc import layers
from jpmhc.layers.adapters.checkpoint import load_converted
from jpmhc.layers.adapters.inputs import make_example
from jpmhc.layers.adapters.vector import ResidualVector
from jpmhc.layers.convert import convert

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0}
GROUPED = {**TEXT, "num_key_value_heads": 1}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 64}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
# Model, configuration, arguments, residual additions.
CAUSAL = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, 6),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "tie_word_embeddings": True}, 6),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, 6),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}, 6),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, 6),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, 6),
    "bert-decoder": ("BertLMHeadModel", "BertConfig", {**TEXT, "is_decoder": True}, 6),
    "gpt-neox-parallel": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, 3),
    "phi-parallel": ("PhiForCausalLM", "PhiConfig", TEXT, 3),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", TEXT, 6),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, 6),
}
OPT = {**{"hidden_size": 16, "vocab_size": 50}, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
OPT |= {"word_embed_proj_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0}
CAUSAL["opt"] = ("OPTForCausalLM", "OPTConfig", OPT, 4)
CAUSAL["opt-post-norm"] = ("OPTForCausalLM", "OPTConfig", {**OPT, "do_layer_norm_before": False}, 4)
OTHERS = {
    "bert": ("BertForMaskedLM", "BertConfig", TEXT, 6),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, 6),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**T5, "decoder_start_token_id": 0}, 10),
    "gpt2-cross": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "add_cross_attention": True}, 9),
}
FAMILIES = {**CAUSAL, **OTHERS}
SMALL = {"hidden_size": 16, "vocab_size": 50}
BART = {
    **{f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    **{"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50, "max_position_embeddings": 64},
}
# Families that the documentation lists as converted; tried when all tests run.
FURTHER = {
    "bart": ("BartForConditionalGeneration", "BartConfig", BART, 10),
    "bloom": ("BloomForCausalLM", "BloomConfig", {**SMALL, "n_layer": 2, "n_head": 2}, 4),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED, 3),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2Config", TEXT, 6),
    "dinov2": ("Dinov2Model", "Dinov2Config", IMAGE, 6),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
        4,
    ),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**TEXT, "embedding_size": 16}, 6),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**SMALL, "num_hidden_layers": 2, "num_attention_heads": 2}, 2),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED, 6),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED, 6),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT2, "rotary_dim": 4}, 3),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GROUPED, 6),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", TEXT, 6),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED, 6),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", TEXT, 6),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "image_size": 16, "patch_size": 2, "window_size": 4},
        8,
    ),
}
# Families that are refused, and the reason.
REFUSED = {
    "albert": ("AlbertModel", "AlbertConfig", {**TEXT, "embedding_size": 16}, "a block runs more than once"),
    "mamba": ("MambaForCausalLM", "MambaConfig", {**SMALL, "num_hidden_layers": 2}, r"residual\.to\(torch\.float32\)"),
}
MAIN = ["llama", "gpt2", "bert", "vit"]


def build(family, **changes):
    """A tiny model of that family whose weights are large enough for every branch to matter, in evaluation mode."""
    model, config, arguments, _ = {**FAMILIES, **FURTHER, **REFUSED}[family]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**{**arguments, **changes})).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def batch(family, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return {
            "pixel_values": torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype),
            "labels": torch.tensor([0, 1]),
        }
    ids = torch.randint(1, 50, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    if family == "gpt2-cross":
        inputs["encoder_hidden_states"] = torch.randn(2, 5, 16, generator=generator)
    return inputs


def spread(streams):
    return (streams - streams.mean(-2, keepdim=True)).norm() / streams.norm()


class Block(nn.Module):
    """The block of timm's vision transformers: layer scale and drop path on the branch."""

    def __init__(self, width=8):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.scale, self.drop = nn.Parameter(torch.full((width,), 0.5)), nn.Dropout(0.0)

    def forward(self, x, mask=None):
        x = x + self.drop(self.scale * self.attn(self.norm1(x)))
        return x + self.drop(self.scale * self.mlp(self.norm2(x)))


class Network(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def network(block=Block, depth=2):
    torch.manual_seed(0)
    return Network([block() for _ in range(depth)])


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


# --- training and what else a model must do ----------------------------------------------------------


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


def test_copies_and_pickles_compute_the_same():
    model = convert(build("bert"))
    inputs = batch("bert")
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(**inputs).logits, expected, atol=0, rtol=0)
        assert not set(layers.mixing_parameters(other)) & set(layers.mixing_parameters(model))


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


def test_a_mixer_instance_is_copied_for_every_connection():
    mixer = layers.Cayley(4, step=0.5)
    converted = convert(network(), mixer=mixer, example=torch.randn(1, 3, 8))
    mixers = {connection.mixer for block in converted.blocks for connection in block.hyper_connections}
    assert len(mixers) == 4
    assert mixer not in mixers


# --- refusals -----------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=rf"(?s)blocks\.0.*test_convert\.py:\d+ .*{line}.*HyperConnection.*Residual"):
        convert(model, example=torch.randn(1, 3, 8))
    assert not any(hasattr(module, "hyper_connections") for module in model.modules())


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


def test_importing_layers_does_not_import_transformers():
    code = "import sys, jpmhc.layers, jpmhc.layers.convert; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
