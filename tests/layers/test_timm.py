"""timm's own models, converted; its data pipeline, which wants torchvision, is left out.

The registry's torchvision is built for CUDA and does not import beside a torch without it (nor does Transformers
then). So timm alone is installed for the tests, and what it imports of torchvision is made up where that is missing.
"""

import importlib.util
import subprocess
import sys

import pytest

WORKER = """
import importlib.abc, importlib.machinery, sys, types
import torch


class Name(type):
    def __getattr__(cls, name):
        return name


class Empty(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


try:
    import torchvision
except Exception:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.meta_path.insert(0, Finder())

import timm
from jpmhc import layers

SIZE = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
STAGES = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}
MODELS = {  # model, arguments, residual additions
    "vit_tiny_patch16_224": (SIZE, 4),
    "deit3_small_patch16_224": (SIZE, 4),
    "beit_base_patch16_224": (SIZE, 4),
    "swin_tiny_patch4_window7_224": (STAGES, 8),
    "cait_xxs24_224": (SIZE, 4),
    "eva02_tiny_patch14_224": (SIZE, 4),
}
for name in sys.argv[1].split():
    arguments, additions = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 32, 32)
    expected, intermediate = model(images), model.forward_intermediates(images)
    converted = layers.convert(model)
    torch.testing.assert_close(converted(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(converted.forward_intermediates(images), intermediate, rtol=1e-5, atol=1e-4)
    found = sum(isinstance(module, layers.HyperConnection) for module in converted.modules())
    assert found == additions, (name, found)
    converted.train()
    converted(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layers.mixing_parameters(converted)), name

REFUSED = {  # model, arguments, what is said
    "resnet18": ({}, ("channels must come last", "Conv2d")),
    "convnext_atto": ({"depths": (1, 1, 1, 2), "dims": (8, 16, 16, 16)}, ("channels must come last", "Conv2d")),
}
for name in sys.argv[2:]:
    arguments, said = REFUSED[name]
    try:
        layers.convert(timm.create_model(name, pretrained=False, **arguments), example=torch.randn(2, 3, 64, 64))
    except ValueError as error:
        assert all(part in str(error) for part in said), error
    else:
        raise AssertionError(f"{name} has no streams")
"""


def assert_worker_passes(*arguments):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    command = [sys.executable, "-W", "ignore", "-c", WORKER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_models_of_timm_start_as_the_original_and_train_and_channels_first_are_refused():
    assert_worker_passes("vit_tiny_patch16_224 swin_tiny_patch4_window7_224", "convnext_atto")


@pytest.mark.slow
def test_further_models_of_timm_start_as_the_original_and_a_resnet_is_refused():
    models = "deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224 eva02_tiny_patch14_224"
    assert_worker_passes(models, "resnet18")
