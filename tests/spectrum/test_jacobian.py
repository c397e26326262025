import pytest
import torch
from torch import nn

from jpmhc import spectrum
from jpmhc.spectrum.jacobian import Jacobian
from tests.spectrum.models import network


class Buffers(nn.Module):
    """Batch norm, a shared buffer, one that is not saved, one that is None, and a counter."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("factor", torch.linspace(1, 2, 5))
        self.register_buffer("twin", self.factor)
        self.register_buffer("hidden", torch.ones(5), persistent=False)
        self.register_buffer("none", None)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.count += 1
        self.hidden.mul_(1.0)
        return self.norm(x) * self.factor * self.twin * self.hidden


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("training", [True, False])
def test_buffers_stay_as_they_are(method, training):
    model = Buffers().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(8, 5)
    law = spectrum.measure(model, x, method)
    assert model.training == training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    reference = torch.autograd.functional.jacobian(lambda x: Buffers().train(training)(x), x).reshape(40, 40)
    values = torch.linalg.svdvals(reference.double())
    assert law.edges[1] == pytest.approx(float(values[0]), rel=1e-4)
    if method == "exact":
        torch.testing.assert_close(law.singular_values[0], values.sort().values, rtol=1e-3, atol=1e-5)


def test_dropout_is_refused_or_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 30), nn.Dropout(0.5))
    x = torch.randn(30)
    with pytest.raises(ValueError, match=r"it is random, so it has no Jacobian; call fn.eval\(\)"):
        spectrum.measure(model, x)
    state = torch.get_rng_state()
    exact = spectrum.measure(model, x, randomness="freeze", seed=3)
    again = spectrum.measure(model, x, randomness="freeze", seed=3)
    lanczos = spectrum.measure(model, x, "lanczos", randomness="freeze", seed=3, probes=30)
    other = spectrum.measure(model, x, randomness="freeze", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(exact.singular_values, again.singular_values)
    assert float(lanczos.moment(2)) == pytest.approx(float(exact.moment(2)), rel=1e-5)
    assert not torch.allclose(exact.singular_values, other.singular_values)
    # Half of the outputs are dropped, the others doubled.
    kept = 30 - int((exact.singular_values < 1e-6).sum())
    assert 8 <= kept <= 22
    evaluated = spectrum.measure(model.eval(), x)
    torch.testing.assert_close(evaluated.singular_values[0].flip(0), torch.linalg.svdvals(model[0].weight.double()))


def test_a_function_with_random_numbers_of_its_own_is_refused():
    generator = torch.Generator()

    def noisy(x):
        return x * torch.rand(3, generator=generator)

    with pytest.raises(ValueError, match="it is random"):
        spectrum.measure(noisy, torch.ones(3))
    with pytest.raises(ValueError, match="do not come from torch's global generators"):
        spectrum.measure(noisy, torch.ones(3), randomness="freeze")


class WrongForward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return Untransposed.apply(g)


class Untransposed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(g):
        return 2 * g

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, v):
        return 3 * v


def test_a_wrong_second_derivative_is_not_believed():
    x = torch.ones(4, dtype=torch.float64)
    assert spectrum.measure(WrongForward.apply, x).edges == pytest.approx((2.0, 2.0))
    with pytest.raises(RuntimeError, match="no way to multiply with its Jacobian from the right: <u, J v>"):
        spectrum.measure(WrongForward.apply, x, "lanczos")
    # A tall Jacobian is taken by rows then.
    tall = spectrum.measure(lambda x: WrongForward.apply(x).repeat(2), x)
    assert tall.edges == pytest.approx((8**0.5, 8**0.5))
    # In high dimensions a random pair of vectors would say nothing in float32.
    with pytest.raises(RuntimeError, match="no way to multiply"):
        spectrum.measure(WrongForward.apply, torch.ones(200_000), "lanczos")


class ForwardOnly(torch.autograd.Function):
    """A derivative that autograd cannot differentiate again, with a forward mode."""

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, v):
        return 2 * ctx.saved_tensors[0] * v

    @staticmethod
    def vmap(info, in_dims, x):
        raise RuntimeError("no batching rule")


def test_functions_without_second_derivative_use_forward_mode():
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    law = spectrum.measure(ForwardOnly.apply, x, "lanczos")
    assert law.edges == pytest.approx((2.0, 6.0))


def test_attention_has_both_products():
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    exact, lanczos = (spectrum.measure(attention, x, method, probes=40, steps=40) for method in ("exact", "lanczos"))
    torch.testing.assert_close(lanczos.moment(2), exact.moment(2), rtol=1e-8, atol=0)
    assert lanczos.edges == pytest.approx(exact.edges, rel=1e-4)


def test_products_are_adjoint():
    jacobian = Jacobian(network("sinkhorn"), torch.randn(3, 6, dtype=torch.float64))
    u, v = jacobian.probes(4, 18, 0), jacobian.probes(4, 18, 1)
    torch.testing.assert_close((jacobian.times(v) * u).sum(-1), (jacobian.transposed_times(u) * v).sum(-1))


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_functions_that_work_in_place_leave_the_point_alone(method):
    x = torch.tensor([1.0, -2.0, 3.0])
    for fn in (torch.nn.Sequential(torch.nn.ReLU(inplace=True)), lambda x: x.mul_(2) * (x > 0)):
        law = spectrum.measure(fn, x, method, probes=3)
        assert law.edges[0] == pytest.approx(0, abs=1e-7)
        assert float(law.mass_below(1e-6)) == pytest.approx(1 / 3, abs=1e-6)
    assert x.tolist() == [1, -2, 3]


@pytest.mark.parametrize("seed", range(8))
def test_autocast_is_no_wrong_derivative_and_sets_the_floor(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x = torch.randn(8)
    wanted = spectrum.measure(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        exact, lanczos = spectrum.measure(model, x), spectrum.measure(model, x, "lanczos")
        widened = spectrum.measure(lambda x: model(x).float(), x)
    for law in (exact, lanczos, widened):
        assert law.edges[1] == pytest.approx(wanted.edges[1], rel=0.05)
        assert law.floor == pytest.approx(wanted.floor * 2**16, rel=0.05)


def test_low_precision_inside_is_named_as_a_cause():
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def lowered(x):
        return (x.float() @ weight).double()

    with pytest.raises(
        RuntimeError, match="differ: an operation of fn has a wrong derivative, or runs in lower precision"
    ):
        spectrum.measure(lowered, torch.ones(6, dtype=torch.float64), "lanczos")


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_infinite_jacobians_are_named(method):
    with pytest.raises(ValueError, match="fn: its Jacobian at x holds NaN or infinity"):
        spectrum.measure(torch.sqrt, torch.tensor([0.0, 1.0, 2.0]), method)


def test_frozen_randomness_seeds_no_device_but_that_of_the_point(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeded.append(seed))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append(seed))
    spectrum.measure(nn.Dropout(0.5), torch.ones(4), randomness="freeze")
    assert not seeded


class Silent(nn.Module):
    """Runs without derivatives, in a way of one's own."""

    def __init__(self, context):
        super().__init__()
        self.layer, self.context = nn.Linear(4, 4), context

    def forward(self, x):
        with self.context():
            return self.layer(x)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_that_loses_its_derivative_is_refused(method, dtype):
    torch.manual_seed(0)
    message = "fn: its result depends on x but carries no derivative"
    model = nn.Sequential(nn.Linear(4, 4), Silent(torch.no_grad)).to(dtype)
    for fn, options in (
        (model, {}),
        (model, {"start": "1", "stop": "1"}),
        (lambda x: 2 * x.detach() + 1, {}),
    ):
        with pytest.raises(ValueError, match=message):
            spectrum.measure(fn, torch.ones(4, dtype=dtype), method, **options)
    with pytest.raises(ValueError, match=message):
        spectrum.measure(model, torch.ones(3, 4, dtype=dtype), method, batch_dims=1)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, -2.0, 1e4])
def test_derivatives_that_are_zero_are_no_lost_ones(method, place):
    x = torch.full((5,), place)
    for fn in (
        torch.round,
        torch.sign,
        lambda x: torch.ones(3),
        lambda x: 0 * x,
        lambda x: torch.relu(-x.abs()),
        lambda x: (x - place) ** 2,
        lambda x: (x - place) ** 3,
        lambda x: torch.relu(x - place),
        lambda x: (x > place).float(),
    ):
        law = spectrum.measure(fn, x, method)
        assert law.edges in ((0, 0), (pytest.approx(0, abs=1.0), pytest.approx(1, abs=1e-6)))


@pytest.mark.parametrize("steps", [lambda x: (x * 1e2).floor() / 1e2, lambda x: (x * 1e3).round() / 1e3])
def test_steps_have_a_jacobian_of_zero(steps):
    x = torch.randn(32, generator=torch.Generator().manual_seed(0))
    assert spectrum.measure(steps, x).edges == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_in_half_precision_have_a_jacobian_of_zero(dtype):
    x = torch.randn(32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert spectrum.measure(lambda x: (x * 4).round() / 4, x).edges == (0.0, 0.0)
