"""Laws are computed on the CPU, whatever the default device: here one whose tensors hold no numbers."""

import pytest
import torch

from jpmhc import layers, spectrum
from jpmhc.layers.adapters import inputs

GATES = {"read": torch.full((4,), 0.25), "write": torch.ones(4), "energy": 0.01}
ROTATIONS = torch.linalg.qr(torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))).Q
TOKENS = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(layers.HyperConnection(8, torch.nn.Linear(8, 8), mixer="cayley", layer_index=i) for i in range(3))
    )


CALLS = {
    "predict": lambda _: spectrum.predict(ROTATIONS, **GATES).quantile(0.5),
    "isometry gap": lambda _: spectrum.isometry_gap(ROTATIONS, **GATES),
    "propagate": lambda _: (
        spectrum.propagate(ROTATIONS, GATES["read"], GATES["write"], weight_variance=2.0, output_variance=0.1).energy
    ),
    "initial chain": lambda _: spectrum.initial_chain("sinkhorn", streams=4, depth=3)["mixers"],
    "branch": lambda _: spectrum.Branch(lambda f: (1 + f) ** -2).fourth_cumulant,
    "measure": lambda model: spectrum.measure(model, TOKENS).quantile(0.5),
    "measure, lanczos": lambda model: spectrum.measure(model, TOKENS, method="lanczos").cdf(1.0),
    "layers": lambda model: [law.mean_log for law in spectrum.measure_layers(model, TOKENS).values()],
    "energies": lambda model: spectrum.branch_energies(model, TOKENS, probes=4),
    "inspect": lambda model: spectrum.inspect(model, TOKENS, energy_probes=2)[0].forward_gain,
    "chain": lambda model: spectrum.inspect(model, TOKENS, energy_probes=2).chain()["energy"],
    "noise of a conversion": lambda model: inputs._noise(model, 2, 3),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_results_are_those_of_the_cpu(call, model):
    expected = call(model)
    with torch.device("meta"):
        found = call(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_law_answers_under_another_default_device():
    law = spectrum.predict(ROTATIONS, **GATES)
    expected = law.cdf(1.0), law.density(torch.tensor([0.9, 1.1])), law.edges
    places = torch.tensor([0.9, 1.1])
    with torch.device("meta"):
        assert (law.cdf(1.0), law.edges) == (expected[0], expected[2])
        assert torch.equal(law.density(places), expected[1])
