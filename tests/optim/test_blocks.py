import pytest
import torch

from jpmhc import manifolds
from jpmhc.manifolds.peer import geoopt
from jpmhc.optim.batch import Batch
from jpmhc.optim.blocks import Blocks
from tests.optim.problems import randn
from tests.optim.stacks import points, separate

EMBEDDED = {
    "sphere": (manifolds.Sphere(), (5,)),
    "stiefel-euclidean": (manifolds.Stiefel(metric="euclidean"), (5, 3)),
    "geoopt-sphere": (geoopt.Sphere(), (5,)),
    "geoopt-stiefel": (geoopt.EuclideanStiefel(), (5, 3)),
}
MANIFOLDS = {
    **EMBEDDED,
    "stiefel": (manifolds.Stiefel(), (5, 3)),
    "stiefel-qr": (manifolds.Stiefel(retraction="qr"), (5, 3)),
    "stiefel-polar": (manifolds.Stiefel(retraction="polar"), (5, 3)),
    "stiefel-exp": (manifolds.Stiefel(retraction="exp"), (5, 3)),
    "grassmann": (manifolds.Grassmann(), (5, 3)),
    "rotations": (manifolds.SpecialOrthogonal(), (4, 4)),
    "simplex": (manifolds.Simplex(), (5,)),
    "birkhoff": (manifolds.Birkhoff(), (4, 4)),
    "geoopt-canonical": (geoopt.CanonicalStiefel(), (5, 3)),
    "geoopt-birkhoff": (geoopt.BirkhoffPolytope(), (4, 4)),
    "geoopt-spd": (geoopt.SymmetricPositiveDefinite(), (3, 3)),
}


def blocks_of(manifold, shape, count=2):
    batch = Batch(manifold)
    for p in separate(points(manifold, count, *shape), manifold):
        batch.add(p, {})
    return Blocks([batch])


def tangent(blocks, x, seed):
    generator = torch.Generator().manual_seed(seed)
    ambient = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in x]
    return [0.1 * m.proju(p, a) for m, p, a in zip(blocks.manifolds, x, ambient, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS.values(), ids=list(MANIFOLDS))
def test_the_velocity_is_the_derivative_of_the_retraction(manifold, shape):
    blocks = blocks_of(manifold, shape)
    x = blocks.point()
    u = tangent(blocks, x, 1)
    end, slope = blocks.curve(x, u, 0.7)
    covector = torch.randn(end[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ahead, behind = (blocks.retract(x, [(0.7 + h) * p for p in u]) for h in (1e-5, -1e-5))
    assert torch.allclose(end[0], blocks.retract(x, [0.7 * p for p in u])[0], atol=1e-13)
    expected = float((covector * (ahead[0] - behind[0])).sum()) / 2e-5
    # geoopt's doubly stochastic projection stops at 1e-5, which differences see.
    assert slope([covector]) == pytest.approx(expected, abs=1e-3 if manifold.name == "BirkhoffPolytope" else 1e-8)


@torch.no_grad()
@pytest.mark.parametrize(("manifold", "shape"), EMBEDDED.values(), ids=list(EMBEDDED))
def test_the_hessian_is_the_second_derivative_along_geodesics(manifold, shape):
    blocks = blocks_of(manifold, shape)
    x = blocks.point()
    u = tangent(blocks, x, 1)
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = lambda p: (weight * p.pow(3)).sum() + p.sum().square()  # noqa: E731
    egrad = [torch.func.grad(loss)(x[0])]
    ehess = [torch.func.jvp(torch.func.grad(loss), (x[0],), (u[0],))[1]]
    quadratic = blocks.inner(x, u, blocks.hessian(x, egrad, ehess, u))
    h = 1e-4
    values = [loss(manifold.expmap(x[0], t * u[0])) for t in (-h, 0.0, h)]
    assert quadratic == pytest.approx(float(values[0] - 2 * values[1] + values[2]) / h**2, rel=1e-4)


def test_tensors_come_back_from_stacks_in_order():
    first, second = Batch(geoopt.Euclidean()), Batch(geoopt.Euclidean())
    parameters = [torch.full((n,), float(i)) for i, n in enumerate((2, 3, 2))]
    for p in parameters:
        (first if len(p) == 2 else second).add(p, {})
    blocks = Blocks([first, second])
    assert [len(p) for p in blocks.parameters] == [2, 2, 3]
    assert blocks.size == 7
    back = blocks.scatter(blocks.gather(blocks.parameters))
    assert all(torch.equal(p, q) for p, q in zip(back, blocks.parameters, strict=True))


def test_the_inner_product_of_a_batch_is_the_sum_over_its_points():
    ball = geoopt.PoincareBall()
    x, u = ball.expmap0(0.5 * randn(1, 3, 2)), randn(1, 3, 2, seed=1)
    single = sum(float(ball.inner(p, v, v, keepdim=True)) for p, v in zip(x[0], u[0], strict=True))
    batch = Batch(ball)
    batch.add(geoopt.ManifoldParameter(x[0], manifold=ball), {})
    assert Blocks([batch]).inner([x], [u], [u]) == pytest.approx(single)
