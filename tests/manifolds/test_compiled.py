"""Every map of every class as one graph, and under nested and partly batched vmap."""

import pytest
import torch

from jpmhc import manifolds as m
from tests.manifolds.cases import CASES, material, name
from tests.manifolds.test_base import COMPILED

PRODUCT = m.Product((m.SpecialOrthogonal(), (2, 2)), (m.Simplex("softmax"), 3), (m.Euclidean(1), 2))
NAMED = [
    *((m.Stiefel(metric, retraction), (4, 2)) for metric in m.Stiefel.metrics for retraction in m.Stiefel.retractions),
    *((m.Grassmann(retraction), (4, 2)) for retraction in m.Grassmann.retractions),
    *((m.SpecialOrthogonal(retraction), (3, 3)) for retraction in m.SpecialOrthogonal.retractions),
    *((m.Birkhoff(retraction), (3, 3)) for retraction in m.Birkhoff.retractions),
    *((m.Simplex(retraction), (3,)) for retraction in m.Simplex.retractions),
    *((m.Sphere(retraction), (3,)) for retraction in m.Sphere.retractions),
    (PRODUCT, (9,)),
]
FIRST = [next(case for case in NAMED if type(case[0]) is kind) for kind in dict.fromkeys(type(c[0]) for c in NAMED)]


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("case", [case for case in NAMED if case[0] not in COMPILED], ids=name)
def test_steps_of_every_named_retraction_compile_as_one_graph(case):
    manifold, shape = case
    x, u, v, _ = material(manifold, shape)

    step = manifold.retr_transp  # which retracts
    torch.testing.assert_close(compiled(step)(x, u, v), step(x, u, v), rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", FIRST, ids=name)
def test_all_other_maps_compile_as_one_graph(case):
    manifold, shape = case
    x, u, v, e = material(manifold, shape)
    y = manifold.retr(x, u)
    # A compiled Stiefel logarithm has slow tests of its own.
    distances = [] if isinstance(manifold, m.Birkhoff | m.Stiefel) else [manifold.dist, manifold.dist2, manifold.logmap]

    def maps(x, u, v, e, y):
        found = [manifold.proju(x, e), manifold.transp(x, y, v), manifold.ehess2rhess(x, e, e, u)]
        found += [manifold.inner(x, u), manifold.inner(x, u, v, keepdim=True), manifold.norm(x, u)]
        found += [distance(x, y) for distance in distances]
        if not isinstance(manifold, m.Birkhoff):
            found += [manifold.expmap(x, u), *manifold.expmap_transp(x, u, v)]
        return found

    torch.testing.assert_close(compiled(maps)(x, u, v, e, y), maps(x, u, v, e, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [(m.Sphere(), (3,)), (m.Grassmann(), (4, 2)), (PRODUCT, (9,))], ids=name)
def test_gradients_through_compiled_maps_equal_eager_ones(case):
    manifold, shape = case
    x, u, v, e = material(manifold, shape)
    y = manifold.retr(x, u)

    def loss(x, u, v, y):
        moved = manifold.transp(x, y, v) + manifold.expmap(x, u)
        return (moved * e).sum() + manifold.inner(x, manifold.proju(x, e), v).sum() + manifold.dist(x, y).sum()

    both = []
    for function in (loss, compiled(loss)):
        arguments = [value.clone().requires_grad_() for value in (x, u, v, y)]
        both.append(torch.autograd.grad(function(*arguments), arguments))
    torch.testing.assert_close(both[1], both[0], rtol=1e-9, atol=1e-11)


def calls(manifold, shape, batch):
    """Maps with arguments, all of them of one batch, at one point."""
    x, _, _, e = material(manifold, shape, batch=batch)
    x = x[(0,) * len(batch)].expand_as(x).contiguous()
    u, v = (manifold.egrad2rgrad(x, value) for value in (e, e.roll(1, 0)))
    u, v = (0.05 * value / manifold.norm(x, value, keepdim=True) for value in (u, v))
    found = {
        "proju": (x, e), "egrad2rgrad": (x, e), "ehess2rhess": (x, e, e, u), "inner": (x, u, v), "retr": (x, u),
        "retr_transp": (x, u, v), "transp": (x, manifold.retr(x, u), v),
    }  # fmt: skip
    if not isinstance(manifold, m.Birkhoff):
        found |= {"expmap": (x, u), "expmap_transp": (x, u, v)}
        found |= {key: (x, manifold.expmap(x, u)) for key in ("logmap", "dist", "dist2")}
    return found


@pytest.mark.parametrize("case", CASES, ids=name)
def test_vmap_over_one_argument_is_a_loop(case):
    manifold, shape = case
    for key, arguments in calls(manifold, shape, (2,)).items():
        function = getattr(manifold, key)
        for place in range(len(arguments)):
            given = [value if i == place else value[0] for i, value in enumerate(arguments)]
            mapped = torch.func.vmap(function, tuple(0 if i == place else None for i in range(len(given))))(*given)
            loop = [function(*(value[k] if i == place else value for i, value in enumerate(given))) for k in range(2)]
            loop = tuple(map(torch.stack, zip(*loop, strict=True))) if isinstance(mapped, tuple) else torch.stack(loop)
            torch.testing.assert_close(mapped, loop, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_nested_vmap_is_a_batch_of_two_dimensions(case):
    manifold, shape = case
    for key, arguments in calls(manifold, shape, (2, 3)).items():
        function, want = getattr(manifold, key), getattr(manifold, key)(*arguments)
        torch.testing.assert_close(torch.func.vmap(torch.func.vmap(function))(*arguments), want, rtol=0, atol=1e-12)
        first, *others = arguments
        inner = torch.func.vmap(function, (None, *(0 for _ in others)))
        torch.testing.assert_close(torch.func.vmap(inner)(first[:, 0], *others), want, rtol=0, atol=1e-12)
