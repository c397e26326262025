"""Models to convert: tiny ones of many families with random weights, and networks of a written-out block."""

import pytest
import torch
from torch import nn

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
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32},
        "channels must come last",
    ),
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
