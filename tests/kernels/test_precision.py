"""Products of coefficients keep the precision of their factors, whatever torch is set to."""

import os
import threading
import warnings

import geoopt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jpmhc import autodiff, layers, optim
from jpmhc import manifolds as m
from jpmhc.kernels.precision import full_precision

LIBRARIES = ("mkldnn", "cuda")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot")
CPU = torch.device("cpu")
ONE_BLAS = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def settings():
    return [torch._C._get_fp32_precision_getter(library, "matmul") for library in LIBRARIES]


@pytest.fixture
def medium():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def by_library():
    """torch has a word for a setting of all libraries, and none for one of a single one."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield
    torch.set_float32_matmul_precision("highest")


class Watch(TorchDispatchMode):
    """Note how products are set whenever one is made."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            self.seen.append(settings()[0])
        return func(*args, **(kwargs or {}))


@ONE_BLAS
@pytest.mark.parametrize("mixer", [info.name for info in layers.mixers()])
def test_no_product_of_a_mixer_is_rounded(mixer, medium):
    layer = layers.HyperConnection(8, torch.nn.Identity(), mixer=mixer)
    chart = layer.mixer
    raw = torch.randn(5, chart.n_coefficients, generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        chart.residual(chart(raw))
        layer(torch.ones(3, 4, 8))
        layers.statistics(layer)[0].residual.max()
    assert set(watch.seen) <= {"ieee"}
    assert settings() == ["bf16", "tf32"]


@pytest.mark.parametrize("manifold", [m.Stiefel(), m.Grassmann(), m.SpecialOrthogonal(), m.Birkhoff()], ids=str)
def test_maps_of_a_manifold_are_those_of_the_highest_precision(manifold):
    shape = (24, 24) if isinstance(manifold, m.SpecialOrthogonal | m.Birkhoff) else (24, 6)
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(3, *shape, generator=generator)
    step = 0.1 * torch.randn(3, *shape, generator=generator)

    def maps():
        u = manifold.proju(x, step)
        y = manifold.retr(x, u)
        return [u, y, manifold.transp(x, y, u), manifold.egrad2rgrad(x, step), manifold.projx(x + step)]

    exact = maps()
    torch.set_float32_matmul_precision("medium")
    try:
        rounded = maps()
    finally:
        torch.set_float32_matmul_precision("highest")
    for value, expected in zip(rounded, exact, strict=True):
        assert torch.equal(value, expected)
    assert manifold.point_error(rounded[1]).max() < 1e-5


def test_rules_of_backward_are_those_of_the_highest_precision():
    raw = torch.randn(7, 24, 24, generator=torch.Generator().manual_seed(0))

    def gradients():
        leaf = raw.clone().requires_grad_()
        maps = autodiff.cayley(leaf), autodiff.polar(leaf), autodiff.sinkhorn(leaf)
        return [torch.autograd.grad(value.square().sin().sum(), leaf)[0] for value in maps]

    exact = gradients()
    torch.set_float32_matmul_precision("medium")
    try:
        rounded = gradients()
    finally:
        torch.set_float32_matmul_precision("highest")
    for value, expected in zip(rounded, exact, strict=True):
        assert torch.equal(value, expected)


@ONE_BLAS
def test_a_step_on_a_manifold_of_another_library_is_exact(medium):
    point = geoopt.ManifoldParameter(torch.eye(8)[:, :3].contiguous(), manifold=geoopt.EuclideanStiefel())
    point.grad = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        optim.RiemannianAdam([point], lr=0.1).step()
    assert watch.seen
    assert set(watch.seen) == {"ieee"}


def test_the_setting_is_put_back(medium):
    with full_precision(CPU):
        assert settings() == ["ieee", "ieee"]
        assert torch.get_float32_matmul_precision() == "highest"
        with full_precision(CPU), torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
            assert settings() == ["ieee", "ieee"]
            assert not torch.is_autocast_enabled("cpu")
        assert settings() == ["ieee", "ieee"]
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(KeyError), full_precision(CPU):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_setting_of_one_library_is_put_back(by_library):
    with full_precision(CPU):
        assert settings()[0] == "ieee"
    assert settings()[0] == "bf16"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = True
    with full_precision("cuda"):
        assert settings()[1] == "ieee"
    assert torch.backends.cuda.matmul.allow_tf32
    assert settings() == ["ieee", "tf32"]


def test_what_is_inherited_from_a_wider_setting_goes_on_being_so(by_library):
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.mkldnn.fp32_precision = "bf16"
    try:
        with full_precision(CPU):
            assert settings()[0] == "ieee"
        assert settings()[0] == "bf16"
    finally:
        torch.backends.mkldnn.fp32_precision = "none"
    assert settings()[0] == "none"


def test_a_thread_that_comes_later_is_not_left_with_a_rounded_product(medium):
    inside, outside = threading.Event(), threading.Event()
    seen = []

    def later():
        with full_precision(CPU):
            inside.set()
            outside.wait(30)
            seen.extend(settings())

    thread = threading.Thread(target=later)
    with full_precision(CPU):
        thread.start()
        assert inside.wait(30)
    outside.set()
    thread.join()
    assert seen == ["ieee", "ieee"]
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_has_the_setting_of_before_and_no_other_thread(medium):
    inside, over = threading.Event(), threading.Event()

    def stay():
        with full_precision(CPU):
            inside.set()
            over.wait(30)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(30)
    child = os.fork()
    if not child:
        right = torch.get_float32_matmul_precision() == "medium"
        with full_precision(CPU):
            right &= settings() == ["ieee", "ieee"]
        os._exit(0 if right and torch.get_float32_matmul_precision() == "medium" else 1)
    _, status = os.waitpid(child, 0)
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_compiled_code_says_that_it_follows_the_setting(medium):
    torch._dynamo.reset()
    stiefel = m.Stiefel()
    x = stiefel.origin(4, 2)
    retract = torch.compile(lambda x, u: stiefel.retr(x, u), fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match="set_float32_matmul_precision: products of float32 are set to bf16"):
        retract(x, torch.zeros(4, 2))
    torch._dynamo.reset()
    torch.set_float32_matmul_precision("highest")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retract(x, torch.zeros(4, 2))
