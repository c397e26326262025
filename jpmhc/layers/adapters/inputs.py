"""A small input that runs a model once, for the models that say what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[tuple[Any, ...], dict[str, Any]]
TOKENS = 6


def as_example(example: Any) -> Example:
    """Return ``(args, kwargs)`` for an example that is a tensor, a tuple of arguments or a mapping of names to them."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple):
        return example, {}
    return (example,), {}


def make_example(model: nn.Module) -> Example:
    """Return the arguments ``(args, kwargs)`` of a small call.

    Known are Transformers models of text and images, the transformer modules of ``torch.nn``, and image models that
    carry ``patch_embed.img_size`` as those of timm do.

    Raises
    ------
    ValueError
        For any other model; it names the argument ``example``.
    """
    config, main = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is not None and main is not None:
        return (), _transformers(model, config, main)
    if isinstance(model, nn.Transformer):
        return (_vectors(model, model.d_model), _vectors(model, model.d_model)), {}
    layer = model.layers[0] if isinstance(model, nn.TransformerEncoder | nn.TransformerDecoder) else model
    if isinstance(layer, nn.TransformerEncoderLayer):
        return (_vectors(model, layer.self_attn.embed_dim),), {}
    if isinstance(layer, nn.TransformerDecoderLayer):
        return (_vectors(model, layer.self_attn.embed_dim), _vectors(model, layer.self_attn.embed_dim)), {}
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(embed, "img_size") and hasattr(embed, "proj"):
        return (_noise(model, 1, embed.proj.in_channels, *_pair(embed.img_size)),), {}
    raise ValueError(
        f"example: {type(model).__name__} does not say what it takes; pass a tensor, a tuple of arguments or a "
        "dictionary of keyword arguments that runs it once"
    )


def _transformers(model: nn.Module, config: Any, main: str) -> dict[str, Any]:
    if main == "pixel_values":
        if not hasattr(config, "image_size"):
            raise ValueError(f"example: {type(model).__name__} has no config.image_size; pass example={{...}}")
        return {main: _noise(model, 1, getattr(config, "num_channels", 3), *_pair(config.image_size))}
    if main != "input_ids":
        raise ValueError(f"example: no example is known for {main!r} of {type(model).__name__}; pass example={{...}}")
    device = next(model.parameters()).device
    text = config.get_text_config()
    # Distinct tokens in the middle of the vocabulary: special ones sit at its ends.
    start = max(0, text.vocab_size // 2 - TOKENS)
    ids = (torch.arange(start, start + TOKENS, device=device) % text.vocab_size).unsqueeze(0)
    inputs: dict[str, Any] = {main: ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    elif getattr(config, "add_cross_attention", False):
        inputs["encoder_hidden_states"] = _vectors(model, text.hidden_size)
    return inputs


def _pair(size: Any) -> tuple[int, int]:
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def _vectors(model: nn.Module, width: int) -> Tensor:
    return _noise(model, 1, TOKENS, width)


def _noise(model: nn.Module, *shape: int) -> Tensor:
    parameter = next(model.parameters())
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return noise.to(parameter.device, parameter.dtype)
