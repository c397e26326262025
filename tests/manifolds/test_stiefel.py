import warnings

import pytest
import torch

from jpmhc.manifolds import Grassmann, SpecialOrthogonal, Sphere, Stiefel
from tests.manifolds.cases import material

CANONICAL, EUCLIDEAN = Stiefel(), Stiefel("euclidean")


@pytest.mark.parametrize("shape", [(7, 3), (4, 4), (5, 1), (40, 6)])
def test_cayley_step_is_the_rotation_of_the_dense_skew_matrix(shape):
    x, u, v, _ = material(CANONICAL, shape, length=1.5)
    half = u - x @ (x.mT @ u) / 2
    w = half @ x.mT - x @ half.mT
    eye = torch.eye(shape[0], dtype=torch.float64)
    rotation = torch.linalg.solve(eye - w / 2, eye + w / 2)
    y, moved = CANONICAL.retr_transp(x, u, v)
    torch.testing.assert_close(y, rotation @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(moved, rotation @ v, rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [0.1, 2.0, 12.0])
def test_canonical_exponential_is_that_of_the_dense_skew_matrix(length):
    x, u, _, _ = material(CANONICAL, (6, 2), length=length)
    normal = u - x @ (x.mT @ u)
    w = normal @ x.mT - x @ normal.mT + x @ (x.mT @ u) @ x.mT
    torch.testing.assert_close(CANONICAL.expmap(x, u), torch.linalg.matrix_exp(w) @ x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("manifold", [CANONICAL, EUCLIDEAN], ids=str)
def test_exponential_solves_the_geodesic_equation(manifold):
    x, u, _, _ = material(manifold, (5, 2), length=1.0)
    # x'' = -x x'^T x' (Euclidean) and x'' = -x' x'^T x - x ((x^T x')^2 + x'^T x') (canonical): Edelman et al., 1998.
    if manifold is EUCLIDEAN:
        acceleration = lambda x, u: -x @ (u.mT @ u)  # noqa: E731
    else:
        acceleration = lambda x, u: -u @ u.mT @ x - x @ ((x.mT @ u) @ (x.mT @ u) + u.mT @ u)  # noqa: E731
    y, w, h = x, u, 1 / 400
    for _ in range(400):
        k1 = w, acceleration(y, w)
        k2 = w + h / 2 * k1[1], acceleration(y + h / 2 * k1[0], w + h / 2 * k1[1])
        k3 = w + h / 2 * k2[1], acceleration(y + h / 2 * k2[0], w + h / 2 * k2[1])
        k4 = w + h * k3[1], acceleration(y + h * k3[0], w + h * k3[1])
        y, w = (a + h / 6 * (b + 2 * c + 2 * d + e) for a, b, c, d, e in zip((y, w), k1, k2, k3, k4, strict=True))
    torch.testing.assert_close(manifold.expmap(x, u), y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("manifold", [CANONICAL, EUCLIDEAN], ids=str)
@pytest.mark.parametrize("shape", [(6, 2), (8, 4), (3, 3)])
def test_logarithm_inverts_the_exponential_up_to_length_one(manifold, shape):
    x, u, _, _ = material(manifold, shape, batch=(4,), length=1.0)
    torch.testing.assert_close(manifold.logmap(x, manifold.expmap(x, u)), u, rtol=0, atol=1e-11)


@pytest.mark.parametrize("manifold", [CANONICAL, EUCLIDEAN], ids=str)
def test_one_column_is_a_sphere_and_a_square_one_a_group(manifold):
    x, y = manifold.random(2, 200, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sphere = Sphere().logmap(x.squeeze(-1), y.squeeze(-1))
    torch.testing.assert_close(manifold.logmap(x, y).squeeze(-1), sphere, rtol=0, atol=1e-14)
    x, y = SpecialOrthogonal().random(2, 200, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log = manifold.logmap(x, y)
    torch.testing.assert_close(log, SpecialOrthogonal().logmap(x, y))
    torch.testing.assert_close(manifold.dist(x, y), manifold.beta**0.5 * SpecialOrthogonal().dist(x, y))
    assert manifold.logmap(x, -x).isnan().all()


@pytest.mark.parametrize("manifold", [CANONICAL, EUCLIDEAN], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (3, 2), (6, 2)])
def test_logarithm_is_no_longer_than_a_way_that_is_known(manifold, shape):
    x, y = manifold.random(2, 300, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    length = manifold.dist(x, y)
    # First to the span of y in the straightest way, then a turn within it.
    left, _, right = torch.linalg.svd(x.mT @ y)
    turn = left @ right
    middle = y @ turn.mT
    inside = torch.linalg.eigvals(turn).angle().norm(dim=-1)
    weight = torch.where(torch.linalg.det(turn) > 0, manifold.beta**0.5, 1.0)
    way = Grassmann().dist(x, middle) + weight * inside
    assert length.isfinite().sum() > 30
    assert (length[length.isfinite()] <= 1.001 * way[length.isfinite()]).all()
    torch.testing.assert_close(way, manifold._way(x, y).squeeze((-2, -1)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2), (5, 3), (8, 4), (8, 6), (20, 5), (24, 12)])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_every_random_pair_has_a_canonical_logarithm(shape, dtype, tol):
    x, y = CANONICAL.random(2, 3, 40, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    u = CANONICAL.logmap(x, y)
    assert CANONICAL.check_vector_on_tangent(x[0, 0], u[0, 0], atol=tol)
    torch.testing.assert_close(CANONICAL.expmap(x, u), y, rtol=0, atol=tol)
    torch.testing.assert_close(CANONICAL.dist(x, y), CANONICAL.dist(y, x), rtol=2e-3, atol=0)


def test_no_turn_of_the_fibre_gives_a_shorter_geodesic_for_most_pairs():
    x, y = CANONICAL.random(2, 60, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    basis = torch.linalg.qr(torch.cat([x, y], -1)).Q
    w = basis.mT @ y
    begin = torch.cat([basis.mT @ x, torch.linalg.qr(basis.mT @ x, mode="complete").Q[..., 3:]], -1)
    begin[..., -1] *= torch.linalg.det(begin)[:, None]
    end = torch.cat([w, torch.linalg.qr(w, mode="complete").Q[..., 3:]], -1)
    end[..., -1] *= torch.linalg.det(end)[:, None]
    shortest = torch.full((60,), torch.inf, dtype=torch.float64)
    for turn in SpecialOrthogonal().random(
        20, 60, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ):
        for _ in range(60):  # plain gradient descent on the length
            log = SpecialOrthogonal().logmap(begin, torch.cat([end[..., :3], end[..., 3:] @ turn], -1))
            inside = (begin.mT @ log)[..., 3:, 3:]
            turn = turn @ torch.linalg.matrix_exp(-inside)
        length = SpecialOrthogonal().norm(begin, log) / 2**0.5
        settled = inside.abs().amax((-2, -1)) < 1e-3
        shortest = torch.where(settled, shortest.minimum(length), shortest)
    found = CANONICAL.dist(x, y)
    assert shortest.isfinite().all()
    assert (found <= shortest * (1 + 1e-4)).double().mean() >= 0.95
    assert (found <= 1.02 * shortest).all()


def test_one_column_less_leaves_one_rotation_and_its_length_is_the_distance():
    x, y = CANONICAL.random(2, 50, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def completed(x):
        last = torch.linalg.qr(x, mode="complete").Q[..., 4:]
        square = torch.cat([x, last], -1)
        return square * torch.linalg.det(square)[:, None, None].pow(torch.tensor([0, 0, 0, 0, 1]))

    want = SpecialOrthogonal().dist(completed(x), completed(y)) / 2**0.5
    torch.testing.assert_close(CANONICAL.dist(x, y), want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(5, 3), (20, 5), (50, 10)])
def test_derivatives_of_long_logarithms_are_right(shape):
    x, y = CANONICAL.random(2, 4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = CANONICAL.proju(y, x)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(CANONICAL.dist2(x, y).sum(), y)
    back = CANONICAL.logmap(y.detach(), x)  # the first variation of the length
    torch.testing.assert_close(CANONICAL.egrad2rgrad(y.detach(), gradient), -2 * back, rtol=0, atol=1e-9)
    y = y.detach()
    _, tangent = torch.func.jvp(lambda y: CANONICAL.logmap(x, y), (y,), (w,))
    h = 1e-5
    ahead, behind = (CANONICAL.logmap(x, CANONICAL.expmap(y, s * h * w)) for s in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=0, atol=1e-6 * tangent.abs().max().item())


def test_logarithms_of_a_batch_are_those_of_its_pairs_with_equal_and_unknown_ones_among_them():
    x, y = CANONICAL.random(2, 30, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y[3], y[7, 0, 0], x[9] = x[3], torch.nan, torch.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = CANONICAL.logmap(x, y)
    alone = torch.stack([CANONICAL.logmap(*pair) for pair in zip(x, y, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12, equal_nan=True)
    assert together.isnan().flatten(1).all(-1).nonzero().flatten().tolist() == [7, 9]
    assert not together[3].any()
    assert CANONICAL.logmap(x[:0], y[:0]).shape == (0, 6, 3)
    (gradient,) = torch.autograd.grad(CANONICAL.logmap(x, y.requires_grad_())[10:].sum(), y)
    assert gradient.isfinite().all()
    assert not gradient[:10].any()


@pytest.mark.parametrize("manifold", [CANONICAL, EUCLIDEAN], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, 2), (5, 3)])
def test_points_equal_up_to_round_off_have_a_logarithm_and_its_derivatives(manifold, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x, eps = manifold.random(80, *shape, dtype=dtype, generator=generator), torch.finfo(dtype).eps
    still = torch.zeros_like(x)
    signs = torch.randint(-1, 2, x.shape, generator=generator).to(dtype)
    near = [manifold.retr(x, still), manifold.expmap(x, still), manifold.projx(x), x * (1 + eps * signs)]
    x, y = x.repeat(5, 1, 1), torch.cat([*near, x * (1 + 30 * eps * signs)])
    w = manifold.proju(y, torch.randn(y.shape, generator=generator, dtype=dtype))
    log, moved = torch.func.jvp(lambda y: manifold.logmap(x, y), (y,), (w,))
    assert log.abs().max() <= 100 * eps
    torch.testing.assert_close(moved, w, rtol=0, atol=1e3 * eps)  # the identity at equal points
    end = y.clone().requires_grad_()
    distance = manifold.dist(x, end)
    torch.testing.assert_close(distance, manifold.norm(x, log), rtol=1e-3, atol=eps)
    (gradient,) = torch.autograd.grad(distance.sum(), end)
    length = manifold.norm(y, manifold.egrad2rgrad(y, gradient))
    torch.testing.assert_close(length, (distance.detach() > 0).to(dtype), rtol=0, atol=1e3 * eps)
    (gradient,) = torch.autograd.grad(manifold.dist2(x, end).sum(), end)
    assert gradient.abs().max() <= 1e3 * eps


def test_one_number_has_the_logarithm_of_a_square_matrix():
    one = torch.ones(1, 1, dtype=torch.float64)
    for manifold in (CANONICAL, EUCLIDEAN):
        assert manifold.logmap(one, one) == 0
        assert manifold.dist(one, one) == manifold.dist2(one, one) == 0
        assert manifold.logmap(one, -one).isnan()


@pytest.mark.slow
def test_logarithm_compiles_in_seconds_as_one_operation():
    x, u, _, _ = material(CANONICAL, (4, 2), batch=(2,), length=0.5)
    y = CANONICAL.expmap(x, u)
    torch._dynamo.reset()
    compiled = torch.compile(CANONICAL.logmap, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), u, rtol=0, atol=1e-12)
    assert compiled(x, -x).isnan().all()


@pytest.mark.slow
def test_gradient_of_the_compiled_logarithm_equals_the_eager_one():
    x, u, _, e = material(CANONICAL, (4, 2), batch=(2,), length=0.5)
    y = CANONICAL.expmap(x, u)

    def loss(x, y):
        return (CANONICAL.logmap(x, y) * e).sum()

    torch._dynamo.reset()
    both = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        arguments = x.clone().requires_grad_(), y.clone().requires_grad_()
        both.append(torch.autograd.grad(function(*arguments), arguments))
    torch.testing.assert_close(both[1], both[0], rtol=1e-9, atol=1e-11)


def test_logarithm_that_did_not_converge_is_nan_and_not_wrong():
    x = CANONICAL.origin(4, 4, dtype=torch.float64)
    flipped = x.clone()
    flipped[0, 0] = -1  # another component of the orthogonal group: no geodesic leads there
    assert CANONICAL.logmap(x, flipped).isnan().all()


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("retraction", ["cayley", "qr", "polar"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_thousand_steps_along_one_direction_leave_no_drift(retraction, sign, dtype, tol):
    manifold = Stiefel(retraction=retraction)
    x, _, _, constant = material(manifold, (8, 4), dtype=dtype)
    for _ in range(1000):
        u = manifold.proju(x, constant)
        x = manifold.retr(x, sign * 0.1 * u / manifold.norm(x, u, keepdim=True).clamp_min(1e-4))
    assert manifold.point_error(x).max() <= tol


def test_procrustes_optimum_is_critical_with_a_negative_definite_hessian():
    a = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimum = EUCLIDEAN.projx(a)  # maximises <a, x>: the polar factor
    for manifold in (CANONICAL, EUCLIDEAN):
        assert manifold.egrad2rgrad(optimum, a).abs().max() < 1e-13
        u = manifold.proju(optimum, torch.randn(50, 7, 3, dtype=torch.float64))
        bend = manifold.inner(optimum, manifold.ehess2rhess(optimum, a, torch.zeros_like(a), u), u)
        assert (bend < 0).all()
