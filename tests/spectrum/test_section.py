import pytest
import torch
from torch import nn

from jpmhc import layers, spectrum
from tests.spectrum.models import network


def test_one_layer_a_range_and_the_whole():
    model = network(depth=4)
    x = torch.randn(3, 6, dtype=torch.float64)
    inputs = [x]
    for layer in model:
        inputs.append(layer(inputs[-1]).detach())
    for i, j in ((0, 0), (2, 2), (1, 3), (0, 3)):
        law = spectrum.measure(model, x, start=str(i), stop=str(j))
        expected = spectrum.measure(model[i : j + 1], inputs[i])
        torch.testing.assert_close(law.singular_values, expected.singular_values)
    single = spectrum.measure_layers(model, x)
    assert list(single) == ["0", "1", "2", "3"]
    torch.testing.assert_close(single["2"].singular_values, spectrum.measure(model[2], inputs[2]).singular_values)
    composed = spectrum.measure_layers(model, x, ["1", "3"], composed=True)
    torch.testing.assert_close(composed["3"].singular_values, spectrum.measure(model[1:], inputs[1]).singular_values)


class Looped(nn.Module):
    """Integer tokens, one layer applied three times, the first time without gradients, results in a dict."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4, dtype=torch.float64)
        self.layer = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, tokens, *, scale):
        x = self.embed(tokens)
        with torch.no_grad():
            x = self.layer(x)
        for _ in range(2):
            x = scale * torch.tanh(self.layer(x))
        return {"x": x}


def test_sections_of_a_module_that_is_applied_repeatedly():
    torch.manual_seed(0)
    model = Looped()
    batch = {"tokens": torch.tensor([3]), "scale": 2.0}
    law = spectrum.measure(model, batch, start=("layer", 1), stop=("layer", 1))
    torch.testing.assert_close(law.singular_values[0].flip(0), torch.linalg.svdvals(model.layer.weight.detach()))
    law = spectrum.measure(model, batch, start=("layer", 1), stop=("layer", 2))
    x = model.layer(model.embed(batch["tokens"]))

    def two(x):
        return model.layer(2 * torch.tanh(model.layer(x)))

    torch.testing.assert_close(law.singular_values, spectrum.measure(two, x.detach()).singular_values)
    with pytest.raises(ValueError, match=r"start: 'layer' runs under torch.no_grad"):
        spectrum.measure(model, batch, start="layer", stop="layer")
    with pytest.raises(ValueError, match="start: 'layer' is called 3 times, there is no call 3"):
        spectrum.measure(model, batch, start=("layer", 3), stop="layer")
    with pytest.raises(ValueError, match="stop: call 0 of 'layer' ends before call 1 of 'layer' begins"):
        spectrum.measure(model, batch, start=("layer", 1), stop=("layer", 0))
    with pytest.raises(ValueError, match="stop: 'embed' is called 1 times, none of them ends after 'layer' begins"):
        spectrum.measure(model, batch, start=("layer", 1), stop="embed")
    with pytest.raises(ValueError, match="start: 'embed' takes no floating-point tensor"):
        spectrum.measure(model, batch, start="embed", stop="layer")
    with pytest.raises(
        ValueError, match="start: expected the name of a module, got 'head'; there are 'embed', 'layer'"
    ):
        spectrum.measure(model, batch, start="head", stop="layer")
    with pytest.raises(ValueError, match="layers: expected at least one"):
        spectrum.measure_layers(model, batch)


def test_layers_that_run_in_halves_name_what_can_be_measured():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    model = layers.convert(nn.TransformerEncoder(block, 2, enable_nested_tensor=False).eval())
    x = torch.randn(2, 3, 8)
    with pytest.raises(
        ValueError, match=r"start: 'layers.0.hyper_connections.0' runs in halves there, inside of 'layers.0'"
    ):
        spectrum.measure_layers(model, x)
    with pytest.raises(ValueError, match=r"stop: 'layers.1.hyper_connections.1' runs in halves"):
        spectrum.measure(model, x, start="layers.0", stop="layers.1.hyper_connections.1")
    laws = spectrum.measure_layers(model, x, ["layers.0", "layers.1"], batch_dims=1)
    assert all(law.edges[0] > 0 for law in laws.values())
    single = layers.SinglePass(layers.HyperConnection(8, nn.Linear(8, 8), layer_index=i) for i in range(2))
    with pytest.raises(ValueError, match=r"start: 'connections.0' runs in halves there, inside of the model"):
        spectrum.measure_layers(single, torch.randn(3, 4, 8))
