"""What maps and optimisers compute does not depend on the default dtype."""

import contextlib

import pytest
import torch

from jpmhc import manifolds as m
from jpmhc import optim
from tests.manifolds.cases import CASES, material, name


@contextlib.contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def maps(manifold, shape, dtype):
    x, u, v, e = material(manifold, shape, dtype=dtype)
    y, moved = manifold.retr_transp(x, u, v)
    found = {
        "projx": manifold.projx(x + 0.01 * e.abs()), "proju": manifold.proju(x, e), "retr": y, "moved": moved,
        "egrad2rgrad": manifold.egrad2rgrad(x, e), "ehess2rhess": manifold.ehess2rhess(x, e, e, u),
        "inner": manifold.inner(x, u, v), "norm": manifold.norm(x, u), "transp": manifold.transp(x, y, v),
        "point error": manifold.point_error(x), "tangent error": manifold.tangent_error(x, u),
        "random": manifold.random(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0)),
        "origin": manifold.origin(*shape, dtype=dtype),
    }  # fmt: skip
    if not isinstance(manifold, m.Birkhoff):
        found |= {"expmap": manifold.expmap(x, u), "carried": manifold.expmap_transp(x, u, v)[1]}
        found |= {key: getattr(manifold, key)(x, y) for key in ("logmap", "dist", "dist2")}
    if isinstance(manifold, m.Stiefel):
        found["way"] = manifold._way(x, y)
    return found


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_are_the_same_under_every_default_dtype(case, dtype):
    want = maps(*case, dtype)
    for other in (torch.bfloat16, torch.float64):
        with default(other):
            found = maps(*case, dtype)
        assert {key for key in want if not torch.equal(want[key], found[key])} == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adam_counts_its_steps_under_every_default_dtype(dtype):
    sphere = m.Sphere()
    with default(torch.bfloat16):
        point = m.Parameter(sphere.origin(3, dtype=dtype), sphere)
        optimizer = optim.RiemannianAdam([point])
        point.grad = torch.zeros(3, dtype=dtype)
        for _ in range(300):  # from 256 on a number of bfloat16 and one are that number
            optimizer.step()
    assert optimizer.state[point]["step"] == 300
