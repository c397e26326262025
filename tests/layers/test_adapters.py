"""Converted models under adapters, which train and save a copy of the modules that they are told to."""

import copy
import warnings

import pytest
import torch
from torch import nn

from jpmhc import layers
from tests.layers.families import batch, build


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            if not hasattr(parameter, "manifold"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


class Copied(nn.Module):
    """What stands in the place of a module: its attributes are those of a copy."""

    def __init__(self, original):
        super().__init__()
        self.original, self.copied = original, copy.deepcopy(original)
        original.requires_grad_(False)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.copied, name)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("mixer", ["cayley-mean", "manifold"])
def test_a_copy_in_the_place_of_the_connections_is_what_runs_and_trains(name, mixer):
    model = perturbed(layers.convert(build(name), mixer=mixer)).eval()
    inputs = batch(name)
    expected = model(**inputs).logits
    blocks = [module for module in model.modules() if hasattr(module, "hyper_connections")]
    for block in blocks:
        # Adapters leave out lists, which are not called.
        assert not isinstance(block.hyper_connections, nn.ModuleList)
        block.hyper_connections = Copied(block.hyper_connections)
    out = model(**inputs).logits
    assert torch.equal(out, expected)
    out.sin().sum().backward()
    for block in blocks:
        assert all(p.grad is None for p in block.hyper_connections.original.parameters())
    gradients = [p.grad for block in blocks for p in block.hyper_connections.copied.parameters()]
    assert sum(g is not None and bool(g.abs().max() > 0) for g in gradients) > len(gradients) / 2


def test_connections_of_a_block_read_like_a_list():
    model = layers.convert(build("llama"))
    connections = model.model.layers[0].hyper_connections
    assert len(connections) == 2
    assert list(connections) == [connections[0], connections[1]]
    assert connections[-1] is connections[1]
    assert isinstance(connections[0], layers.HyperConnection)


def test_a_model_that_has_adapters_already_is_told_what_they_will_not_save():
    model = build("llama")
    model.peft_config = {}
    with pytest.warns(UserWarning, match=r"adapters of PEFT.*modules_to_save=\[.hyper_connections.\]"):
        layers.convert(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers.convert(build("llama"))


@pytest.mark.parametrize(("name", "targets"), [("llama", ["q_proj"]), ("gpt2", ["c_attn"]), ("bert", ["query"])])
def test_adapters_and_mixing_come_back_from_one_directory(name, targets, tmp_path):
    peft = pytest.importorskip("peft")
    inputs = batch(name)
    options = peft.LoraConfig(
        r=2, target_modules=targets, modules_to_save=["hyper_connections"], init_lora_weights=False
    )
    model = peft.get_peft_model(layers.convert(build(name)), options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "adapters")
    back = peft.PeftModel.from_pretrained(layers.convert(build(name)), tmp_path / "adapters").eval()
    assert torch.equal(back(**inputs).logits, expected)
    merged = back.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = layers.load_converted(type(merged), tmp_path / "merged")
    torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
