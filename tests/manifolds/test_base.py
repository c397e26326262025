import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

from jpmhc import manifolds as m
from jpmhc.manifolds.peer import geoopt
from jpmhc.optim import RiemannianSGD
from tests.manifolds.cases import CASES, Scaled, material, name


@pytest.mark.parametrize("case", CASES, ids=name)
def test_manifolds_are_geoopt_manifolds_that_equal_their_copies(case):
    manifold, _ = case
    assert isinstance(manifold, geoopt.Manifold)
    for twin in (copy.deepcopy(manifold), pickle.loads(pickle.dumps(manifold))):
        assert twin == manifold
        assert hash(twin) == hash(manifold)


def test_different_options_are_different_manifolds():
    assert m.Stiefel() != m.Stiefel("euclidean")
    assert m.Grassmann() != m.Stiefel()
    assert len({m.Sphere(), m.Sphere(), m.Sphere("exp")}) == 2


class Named(Scaled):
    def _settings(self):
        return (self.c,)


class Switched(m.Sphere):
    c = 1.0


def through_weights(manifold):
    file = io.BytesIO()
    torch.save(m.Parameter(manifold.random(3), manifold), file)
    file.seek(0)
    kinds = [type(part) for part, _ in getattr(manifold, "parts", [(manifold, None)])]
    with torch.serialization.safe_globals(kinds):
        return torch.load(file, weights_only=True).manifold


@pytest.mark.parametrize("cls", [Scaled, Named, Switched], ids=lambda cls: cls.__name__)
def test_an_option_of_a_subclass_belongs_to_its_instance(cls):
    one, other = cls(), cls()
    assert one == other
    assert hash(one) == hash(other)
    other.c = 100.0
    assert one != other
    for copied in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), through_weights):
        assert copied(other).c == 100.0
        assert copied(other) == other
        assert copied(m.Product((other, 3))) == m.Product((other, 3)) != m.Product((one, 3))


def test_parameters_on_manifolds_of_different_options_are_moved_apart():
    moved = []
    for together in (True, False):
        points = [m.Parameter(torch.tensor([1.0, 0.0, 0.0]), Scaled(c)) for c in (1.0, 100.0)]
        for point in points:
            point.grad = torch.tensor([0.0, 1.0, 0.0])
        for taken in [points] if together else [points[:1], points[1:]]:
            RiemannianSGD(taken, lr=0.1).step()
        moved.append([point.detach() for point in points])
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0][0][1] < 10 * moved[0][1][1] < 0


def test_a_manifold_with_a_tensor_is_equal_to_itself_alone():
    one, other = Scaled(torch.ones(())), Scaled(torch.ones(()))
    assert one == one
    assert one != other
    assert copy.deepcopy(one).c == 1


@pytest.mark.parametrize("case", CASES, ids=name)
def test_random_is_decided_by_its_generator(case):
    manifold, shape = case
    first, second = (manifold.random(2, *shape, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_all_maps_run_under_vmap(case):
    manifold, shape = case
    x, u, v, e = material(manifold, shape)
    calls = {
        "projx": (x,), "proju": (x, e), "egrad2rgrad": (x, e), "ehess2rhess": (x, e, e, u), "inner": (x, u, v),
        "norm": (x, u), "retr": (x, u), "retr_transp": (x, u, v),
    }  # fmt: skip
    if not isinstance(manifold, m.Birkhoff):
        y = manifold.expmap(x, u)
        calls |= {"expmap": (x, u), "logmap": (x, y), "dist": (x, y), "dist2": (x, y), "transp": (x, y, v)}
    for key, arguments in calls.items():
        function = getattr(manifold, key)
        torch.testing.assert_close(torch.func.vmap(function)(*arguments), function(*arguments), rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_errors_and_products_are_one_number_a_point(case, batch):
    manifold, shape = case
    x, vector = manifold.random(*batch, *shape), torch.ones(shape)
    assert manifold.point_error(x).shape == batch
    assert manifold.tangent_error(x, torch.ones_like(x)).shape == batch
    assert manifold.inner(x, vector, vector).shape == manifold.norm(x, vector).shape == batch
    assert manifold.check_point_on_manifold(x)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_one_batched_argument_makes_a_batch(case):
    manifold, shape = case
    x, u, _, e = material(manifold, shape)
    one = x[0], u[0], e[0]
    y = manifold.retr(x, u)
    assert manifold.proju(x, one[2]).shape == manifold.egrad2rgrad(x, one[2]).shape == x.shape
    assert manifold.transp(x, y[0], one[1]).shape == x.shape
    assert manifold.transp(x[0], y, one[1]).shape == x.shape
    torch.testing.assert_close(manifold.transp(x, y[0], one[1])[0], manifold.transp(x[0], y[0], one[1]))


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("map_", ["retr_transp", "expmap_transp"])
def test_a_step_and_what_it_carries_have_the_batch_of_all_arguments(case, map_):
    manifold, shape = case
    if map_ == "expmap_transp" and isinstance(manifold, m.Birkhoff):
        return
    call, arguments = getattr(manifold, map_), material(manifold, shape)[:3]
    together = call(*arguments)
    for batched in range(3):
        given = [value if i == batched else value[0] for i, value in enumerate(arguments)]
        point, vector = call(*given)
        assert point.shape == vector.shape == (3, *shape)
        torch.testing.assert_close(point[0], together[0][0], rtol=0, atol=1e-13)
        torch.testing.assert_close(vector[0], together[1][0], rtol=0, atol=1e-13)
        torch.testing.assert_close(getattr(manifold, f"transp_follow_{map_[:-7]}")(*given), vector)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_bad_point_leaves_the_error_of_its_neighbours_alone(case):
    manifold, shape = case
    x = manifold.random(3, *shape, generator=torch.Generator().manual_seed(0))
    x[1] *= 2
    assert ((manifold.point_error(x) > 0.1) == torch.tensor([False, True, False])).all()


COMPILED = [m.Sphere(), m.Simplex(), m.Birkhoff(), m.SpecialOrthogonal(), m.Grassmann(), m.Stiefel()]


def shape_of(manifold):
    # Not 4 x 4 for subspaces: there is one alone, without a tangent vector to give a length.
    return (4, 2) if isinstance(manifold, m.Grassmann) else (4,) * manifold.ndim


@pytest.mark.parametrize("manifold", COMPILED, ids=str)
def test_steps_compile_as_one_graph(manifold):
    shape = shape_of(manifold)
    x, u, v, e = material(manifold, shape)

    def step(x, u, v, e):
        return (manifold.egrad2rgrad(x, e), manifold.projx(x), *manifold.retr_transp(x, u, v))

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, u, v, e), step(x, u, v, e), rtol=0, atol=1e-13)


@pytest.mark.parametrize("manifold", COMPILED, ids=str)
def test_gradients_through_a_compiled_retraction_equal_eager_ones(manifold):
    x, u, _, e = material(manifold, shape_of(manifold))

    def loss(x, u):
        return (manifold.retr(x, u) * e).sum()

    torch._dynamo.reset()
    both = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        arguments = x.clone().requires_grad_(), u.clone().requires_grad_()
        both.append(torch.autograd.grad(function(*arguments), arguments))
    torch.testing.assert_close(both[1], both[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_retractions_pass_gradcheck_twice(case):
    manifold, shape = case
    x, u, _, _ = material(manifold, shape, batch=(1,))

    def moved(u):
        return manifold.embed(manifold.retr(x, u)).square()

    u = u.requires_grad_()
    torch.autograd.gradcheck(moved, u, check_forward_ad=True, fast_mode=True, atol=1e-4)
    torch.autograd.gradgradcheck(moved, u, fast_mode=True, atol=1e-3, rtol=1e-2)


def test_importing_the_room_prints_no_warning_and_the_package_does_not_import_geoopt():
    code = (
        "import sys, jpmhc; assert 'geoopt' not in sys.modules; import jpmhc.manifolds; assert 'geoopt' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_empty_batches_pass_through():
    for manifold in (m.Sphere(), m.Simplex(), m.Stiefel(), m.Grassmann(), m.SpecialOrthogonal(), m.Birkhoff()):
        x = torch.empty(0, *(3,) * manifold.ndim)
        assert manifold.retr(x, x).shape == x.shape
        assert manifold.egrad2rgrad(x, x).shape == x.shape
