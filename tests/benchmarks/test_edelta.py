import pytest
import torch

from benchmarks.edelta import Edelta


def definition(raw, streams, bias):
    """The published definitions, written out for one matrix."""
    u, v, k = raw[:streams], raw[streams : 2 * streams], raw[2 * streams : 3 * streams]
    half = torch.log1p(torch.exp(raw[-2])) / 2
    eye = torch.eye(streams, dtype=raw.dtype)
    skew = torch.outer(u, v) - torch.outer(v, u)
    rotation = torch.linalg.solve(eye + half * skew, eye - half * skew)
    reflection = eye - 2 * torch.outer(k, k) / (k @ k)
    gate = 1 / (1 + torch.exp(-raw[-1] - bias))
    return gate * rotation + (1 - gate) * reflection, 4 * gate * (1 - gate)


@pytest.mark.parametrize("streams", [2, 4, 5])
def test_the_mixer_is_the_published_sum_of_rotation_and_reflection(streams):
    raw = torch.randn(3, 3 * streams + 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixer = Edelta(streams, bias=-0.5, weight=0.1)
    found = mixer(raw)
    expected, penalties = zip(*(definition(row, streams, -0.5) for row in raw), strict=True)
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)
    assert torch.allclose(mixer.penalty, 0.1 * torch.stack(penalties).mean(), atol=1e-12)


@pytest.mark.parametrize(("gate", "sign"), [(60.0, 1.0), (-60.0, -1.0)])
def test_both_ends_of_the_gate_are_orthogonal(gate, sign):
    mixer = Edelta(4)
    raw = torch.randn(14, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    raw[-1] = gate
    assert mixer.residual(mixer(raw)) < 1e-12
    assert torch.linalg.det(mixer(raw)).item() == pytest.approx(sign)


def test_every_raw_number_that_matters_has_a_gradient_at_the_start():
    mixer = Edelta(4)
    raw = mixer.start().requires_grad_()
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (weights * mixer(raw)).sum().backward()
    # u v^T - v u^T does not change when a multiple of one vector is added to the other.
    idle = torch.zeros(14, dtype=torch.bool)
    idle[1] = idle[4] = True
    assert torch.equal(raw.grad.abs() < 1e-6, idle)


def test_one_stream_is_refused():
    with pytest.raises(ValueError, match="streams: expected at least 2, got 1"):
        Edelta(1)
