"""Weights that others write to leave their manifolds: they are found, and brought back."""

import pytest
import torch

from jpmhc import manifolds as m
from jpmhc.manifolds.peer import geoopt

so = m.SpecialOrthogonal()


def averaged_model():
    module = torch.nn.Module()
    for name, manifold in (("so", so), ("sphere", m.Sphere()), ("peer", geoopt.Sphere())):
        kind = m.Parameter if isinstance(manifold, m.Manifold) else geoopt.ManifoldParameter
        setattr(module, name, kind(m.Sphere().origin(3) if manifold is not so else so.origin(3, 3), manifold))
    module.plain = torch.nn.Parameter(torch.ones(2))
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for name, manifold in (("so", so), ("sphere", m.Sphere()), ("peer", m.Sphere())):
            point = getattr(module, name).data
            point.copy_(manifold.random(*point.shape, generator=generator))
        averaged.update_parameters(module)
    return averaged


def test_averaged_weights_are_found_off_their_manifolds_and_projected():
    averaged = averaged_model()
    assert m.lost_parameters(averaged) == []
    assert m.lost_parameters(averaged, values=True) == ["module.so", "module.sphere", "module.peer"]
    means = {name: value.clone() for name, value in averaged.module.named_parameters()}
    kept = dict(averaged.module.named_parameters())
    m.project_(averaged)
    assert m.lost_parameters(averaged, values=True) == []
    left, _, right = torch.linalg.svd(means["so"].detach())
    signs = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(left @ right))]))
    torch.testing.assert_close(averaged.module.so.detach(), left @ signs @ right, rtol=0, atol=1e-5)
    for name in ("sphere", "peer"):
        torch.testing.assert_close(getattr(averaged.module, name), means[name] / means[name].norm())
    assert torch.equal(averaged.module.plain, means["plain"])
    assert all(getattr(averaged.module, name) is parameter for name, parameter in kept.items())


def test_weights_written_as_one_vector_are_projected():
    module = averaged_model()
    m.project_(module)
    vector = torch.nn.utils.parameters_to_vector(module.parameters())
    torch.nn.utils.vector_to_parameters(2 * vector, module.parameters())
    assert len(m.lost_parameters(module, values=True)) == 3
    m.project_(module)
    assert m.lost_parameters(module, values=True) == []


def test_nothing_is_written_where_one_parameter_has_no_nearest_point():
    averaged = averaged_model()
    averaged.module.sphere.data.zero_()
    before = averaged.module.so.detach().clone()
    with pytest.raises(ValueError, match=r"module\.sphere: expected values that have a nearest point on Sphere"):
        m.project_(averaged)
    assert torch.equal(averaged.module.so, before)
