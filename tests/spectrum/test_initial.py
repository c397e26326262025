import pytest
import torch

from jpmhc import layers, spectrum


@pytest.mark.parametrize("mixer", [info.name for info in layers.mixers()])
def test_the_start_is_that_of_the_layers(mixer):
    chain = spectrum.initial_chain(mixer, streams=4, depth=3)
    assert not any(tensor.requires_grad for tensor in chain.values())
    for index in range(3):
        layer = layers.HyperConnection(5, streams=4, mixer=mixer, layer_index=index).double()
        pre, post, matrix = layer.coefficients(torch.randn(4, 5, dtype=torch.float64))
        torch.testing.assert_close(chain["read"][index], pre.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(chain["write"][index], post.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(chain["mixers"][index], matrix.detach(), rtol=1e-6, atol=1e-6)


def test_a_spread_moves_every_layer_another_way_and_stays_on_the_set():
    chain = spectrum.initial_chain("cayley", streams=4, depth=3, spread=0.5, seed=1)
    again = spectrum.initial_chain("cayley", streams=4, depth=3, spread=0.5, seed=1)
    M = chain["mixers"]
    assert torch.equal(M, again["mixers"])
    torch.testing.assert_close(M @ M.mT, torch.eye(4).double().expand(3, 4, 4))
    assert (M[0] - M[1]).abs().max() > 0.05


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="depth: expected at least 1"):
        spectrum.initial_chain("cayley", 4, 0)
    with pytest.raises(ValueError, match="spread: "):
        spectrum.initial_chain("cayley", 4, 2, spread=-1.0)
