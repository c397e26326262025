"""Products of coefficients keep the precision of their factors, whatever torch is set to."""

import os
import signal
import threading
import warnings

import geoopt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jpmhc import autodiff, layers, optim
from jpmhc import manifolds as m
from jpmhc.kernels import precision
from jpmhc.kernels.precision import full_precision

LIBRARIES = ("mkldnn", "cuda")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot")
CPU = torch.device("cpu")
ONE_BLAS = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def settings():
    return [torch._C._get_fp32_precision_getter(library, "matmul") for library in LIBRARIES]


@pytest.fixture
def highest_again():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def medium(highest_again):
    torch.set_float32_matmul_precision("medium")


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


# Those whose charts multiply by torch.
WITH_PRODUCTS = {"cayley-mean", "grassmann", "kronecker", "permutations", "reflection", "spectral"}


@ONE_BLAS
@pytest.mark.parametrize("mixer", [info.name for info in layers.mixers()])
def test_no_product_of_a_mixer_is_rounded(mixer, medium):
    layer = layers.HyperConnection(8, torch.nn.Identity(), mixer=mixer)
    chart = layer.mixer
    raw = torch.randn(5, chart.n_coefficients, generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        matrix = chart(raw)
    assert bool(watch.seen) == (mixer in WITH_PRODUCTS)
    with watch:
        chart.residual(matrix)
        layer(torch.ones(3, 4, 8))
        layers.statistics(layer)[0].residual.max()
    assert set(watch.seen) <= {"ieee"}
    assert settings() == ["bf16", "tf32"]


@ONE_BLAS
@pytest.mark.parametrize("manifold", [m.Stiefel(), m.Stiefel("canonical", "qr"), m.Grassmann(), m.SpecialOrthogonal()])
def test_no_product_of_a_map_of_a_manifold_is_rounded(manifold, medium):
    shape = (80, 80) if isinstance(manifold, m.SpecialOrthogonal) else (80, 20)
    generator = torch.Generator().manual_seed(0)
    with Watch() as watch:
        x = manifold.random(*shape, generator=generator)
        u = manifold.proju(x, 0.01 * torch.randn(shape, generator=generator))
        y = manifold.retr(x, u)
        manifold.transp(x, y, u)
        manifold.inner(x, u)
        error = manifold.point_error(y)
    assert watch.seen
    assert set(watch.seen) == {"ieee"}
    assert error < 1e-5


@pytest.mark.parametrize("manifold", [m.Stiefel(), m.Grassmann(), m.SpecialOrthogonal(), m.Birkhoff()], ids=str)
def test_maps_of_a_manifold_are_those_of_the_highest_precision(manifold, highest_again):
    shape = (80, 80) if isinstance(manifold, m.SpecialOrthogonal | m.Birkhoff) else (80, 20)
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(3, *shape, generator=generator)
    step = 0.1 * torch.randn(3, *shape, generator=generator)

    def maps():
        u = manifold.proju(x, step)
        y = manifold.retr(x, u)
        return [u, y, manifold.transp(x, y, u), manifold.egrad2rgrad(x, step), manifold.projx(x + step)]

    exact = maps()
    torch.set_float32_matmul_precision("medium")
    assert all(map(torch.equal, maps(), exact))


def test_rules_of_backward_are_those_of_the_highest_precision(highest_again):
    raw = torch.randn(7, 24, 24, generator=torch.Generator().manual_seed(0))

    def gradients():
        leaf = raw.clone().requires_grad_()
        maps = autodiff.cayley(leaf), autodiff.polar(leaf), autodiff.sinkhorn(leaf)
        return [torch.autograd.grad(value.square().sin().sum(), leaf)[0] for value in maps]

    exact = gradients()
    torch.set_float32_matmul_precision("medium")
    assert all(map(torch.equal, gradients(), exact))


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


def test_a_fork_from_inside_leaves_both_sides_right(medium):
    with full_precision(CPU):
        child = os.fork()
        inside = settings() == ["ieee", "ieee"]
        if child:
            assert inside
    after = torch.get_float32_matmul_precision() == "medium"
    with full_precision(CPU):
        after &= settings() == ["ieee", "ieee"]
    after &= torch.get_float32_matmul_precision() == "medium"
    if not child:
        os._exit(0 if inside and after else 1)
    assert after
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_regions_in_one_another_set_once(medium, monkeypatch):
    calls = []
    set_precision = torch.set_float32_matmul_precision
    monkeypatch.setattr(
        torch, "set_float32_matmul_precision", lambda value: (calls.append(value), set_precision(value))
    )
    with full_precision(CPU), full_precision(CPU), full_precision(torch.device("cuda")):
        pass
    assert calls == ["highest", "medium"]


@pytest.mark.parametrize("place", ["_put_aside", "_restore"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_in_the_middle_is_mended_by_the_next_region(place, after, medium, monkeypatch):
    step = getattr(precision._Setting, place)
    interrupts = [KeyboardInterrupt]

    def interrupted(self, *args):
        if after:
            step(self, *args)
        if interrupts:
            raise interrupts.pop()
        if not after:
            step(self, *args)

    monkeypatch.setattr(precision._Setting, place, interrupted)
    with pytest.raises(KeyboardInterrupt), full_precision(CPU):
        pass
    with full_precision(CPU):
        assert settings() == ["ieee", "ieee"]
    assert torch.get_float32_matmul_precision() == "medium"
    assert not precision._SETTING.regions


def test_an_entry_whose_block_never_began_is_ended_by_the_next_region(medium):
    region = full_precision(CPU)
    region.__enter__()
    del region
    with full_precision(CPU):
        assert settings() == ["ieee", "ieee"]
    assert torch.get_float32_matmul_precision() == "medium"


def test_what_is_set_meanwhile_stays(medium):
    with full_precision(CPU):
        torch.set_float32_matmul_precision("high")
        with full_precision(CPU):
            assert settings() == ["ieee", "ieee"]
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal")
def test_a_handler_of_signals_may_compute(medium):
    stiefel = m.Stiefel()
    x = stiefel.origin(6, 3)
    errors = []

    def handler(*_):
        errors.append(stiefel.point_error(stiefel.retr(x, torch.zeros_like(x))))

    kept = signal.signal(signal.SIGALRM, handler)
    try:
        for k in range(100):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + k))
            with full_precision(CPU):
                assert settings() == ["ieee", "ieee"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert max(errors) < 1e-6
    assert torch.get_float32_matmul_precision() == "medium"


def test_compiled_code_says_that_it_follows_the_setting(medium, caplog, monkeypatch):
    monkeypatch.setattr(precision._SETTING, "is_told", False)
    torch._dynamo.reset()
    layer = layers.HyperConnection(8, torch.nn.Identity(), mixer="spectral")
    run = torch.compile(layer, fullgraph=True, backend="eager")
    with caplog.at_level("WARNING", "jpmhc"), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(torch.ones(3, 4, 8))
        run(torch.ones(5, 4, 8))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("jpmhc")]
    assert len(said) == 1
    assert "products of float32 are set to bf16" in said[0]
