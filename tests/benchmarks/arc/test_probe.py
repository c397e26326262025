import dataclasses

import pytest
import torch

from benchmarks.arc import probe
from benchmarks.arc.arms import Arm
from benchmarks.arc.losses import stablemax_cross_entropy
from benchmarks.arc.model import Latents, ModelConfig, TinyRecursiveModel

CONFIG = ModelConfig(side=2, width=8, heads=2, inner=16, h_cycles=3, l_cycles=2, prefix=1, streams=3)


def segment(arm, **changes):
    torch.manual_seed(0)
    model = TinyRecursiveModel(dataclasses.replace(CONFIG, **changes), Arm.parse(arm), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Off the start, where all mixers are the identity.
            if name.endswith("static"):
                parameter.add_(0.5 * torch.randn_like(parameter))
    tokens = torch.randint(0, 12, (2, 4))
    return model, model.initial(2), tokens, torch.randn(2, 8), torch.randint(1, 12, (2, 4))


def test_the_gains_are_those_of_the_dense_product():
    torch.manual_seed(0)
    matrices = [torch.randn(4, 4, dtype=torch.float64) for _ in range(3)]
    centre = torch.eye(4, dtype=torch.float64) - 0.25
    product = matrices[2] @ matrices[1] @ matrices[0]
    values = torch.linalg.svdvals(centre @ product @ centre)
    assert probe.contrast_gains(matrices)[-1] == pytest.approx((values[0].item(), values[2].item()))


def test_all_mixers_of_a_segment_are_seen_in_order():
    model, latents, tokens, puzzle, _ = segment("cayley")
    found = probe.mixers_of(model, latents, tokens, puzzle)
    assert len(found["matrices"]) == 3 * 3 * 4
    assert found["residual"] < 1e-5
    # Layers alternate, and every net call applies all of them.
    first, again = found["matrices"][0], found["matrices"][4]
    torch.testing.assert_close(first, again, atol=0.05, rtol=0)
    assert (first - found["matrices"][1]).abs().max() > 0.1
    model(latents, tokens, puzzle)


def test_orthogonal_mixers_keep_differences_and_doubly_stochastic_ones_lose_them():
    gains = {
        arm: probe.contrast_gains(probe.mixers_of(*segment(arm)[:4])["matrices"]) for arm in ("cayley-mean", "sinkhorn")
    }
    assert gains["cayley-mean"][-1] == pytest.approx((1, 1), abs=1e-5)
    assert gains["sinkhorn"][-1][0] < 0.05
    assert gains["sinkhorn"][0][0] > gains["sinkhorn"][8][0] > gains["sinkhorn"][-1][0]


@pytest.mark.parametrize("arm", ["identity", "free", "sinkhorn", "cayley"])
def test_a_single_stream_has_no_differences_to_gain(arm):
    found = probe.describe(*segment(arm, streams=1))
    assert found["contrast_gains"] == []
    assert len(found["gradient"]) == CONFIG.h_cycles + 1


@pytest.mark.parametrize("arm", ["plain", "cayley"])
def test_the_gradient_along_the_recursion_is_that_of_finite_differences(arm):
    model, latents, tokens, puzzle, labels = segment(arm)
    model.double()
    latents, puzzle = Latents(latents.y.double(), latents.z.double()), puzzle.double()
    along = probe.gradient_along(model, latents, tokens, puzzle, labels)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def loss(y, z, cycles):
        for _ in range(cycles):
            y, z = model.cycle(y, z, model.embed_input(tokens, puzzle))
        return stablemax_cross_entropy(model.answer(y)[0], labels).sum()

    def gradient_norm(y, z, cycles):
        with torch.no_grad():
            size = torch.zeros((), dtype=torch.float64)
            for index in range(y.numel()):
                shift = torch.zeros(y.numel(), dtype=torch.float64)
                shift[index] = 1e-6
                shift = shift.view_as(y)
                size += ((loss(y + shift, z, cycles) - loss(y - shift, z, cycles)) / 2e-6) ** 2
        return float(size.sqrt())

    y, z = latents
    with torch.no_grad():
        for _ in range(2):
            y, z = model.cycle(y, z, model.embed_input(tokens, puzzle))
        end, scratch = model.cycle(y, z, model.embed_input(tokens, puzzle))
    # The last cycle alone: its start against its end.
    ratio = gradient_norm(y, z, 1) / gradient_norm(end, scratch, 0)
    assert sum(part**2 for part in along[2].values()) ** 0.5 == pytest.approx(ratio, rel=1e-5)
    assert sum(part**2 for part in along[3].values()) ** 0.5 == pytest.approx(1)
    assert len(along) == 4
