"""Layers beneath accelerate's hooks, which bring parameters to a module when it is called."""

import pytest
import torch
from torch import nn

from jpmhc import layers
from tests.layers.families import batch, build

accelerate = pytest.importorskip("accelerate")


def offloaded(model, how, folder):
    if how == "cpu":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("kind", [lambda made: nn.Sequential(*made), layers.HyperStack], ids=["sequential", "stack"])
def test_layers_that_are_called_get_their_parameters(tmp_path, how, kind):
    made = [layers.HyperConnection(8, nn.Linear(8, 8), mixer=mixer) for mixer in ("cayley", "sinkhorn")]
    model, x = kind(made), torch.randn(2, 5, 4, 8)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(offloaded(model, how, tmp_path)(x), expected)


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["converted", "single pass"])
def test_layers_that_are_read_say_that_their_parameters_are_elsewhere(tmp_path, how, family):
    if family == "converted":
        model, inputs = layers.convert(build("llama")), batch("llama")
    else:
        model, inputs = layers.SinglePass([layers.HyperConnection(8, nn.Linear(8, 8))]), {"x": torch.randn(5, 4, 8)}
    offloaded(model, how, tmp_path)
    with pytest.raises(RuntimeError, match=r'parameters: expected them on cpu, where x is, got "meta".*offload'):
        model(**inputs)


def test_base_points_are_not_offloaded_and_say_so():
    model = nn.Sequential(layers.HyperConnection(8, nn.Linear(8, 8), mixer="manifold"))
    with pytest.raises(TypeError, match=r"manifold: .*made with it; accelerate.*load_state_dict"):
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def test_streams_and_parameters_without_data_go_together():
    with torch.device("meta"):
        hc = layers.HyperConnection(8, nn.Linear(8, 8))
        assert hc(torch.randn(2, 4, 8)).shape == (2, 4, 8)
