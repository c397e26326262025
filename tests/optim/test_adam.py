import copy
import io
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from jpmhc import manifolds, optim
from jpmhc.manifolds.peer import geoopt
from tests.optim.stacks import error, parameter, points, run, separate, set_gradients

MANIFOLDS = {
    "birkhoff": (manifolds.Birkhoff(), (4, 4)),
    "stiefel": (manifolds.Stiefel(), (5, 3)),
    "grassmann": (manifolds.Grassmann(), (5, 3)),
    "rotations": (manifolds.SpecialOrthogonal(), (4, 4)),
    "simplex": (manifolds.Simplex(), (6,)),
    "sphere": (manifolds.Sphere(), (6,)),
    "geoopt-canonical": (geoopt.CanonicalStiefel(), (5, 3)),
    "geoopt-euclidean": (geoopt.EuclideanStiefel(), (5, 3)),
    "geoopt-sphere": (geoopt.Sphere(), (6,)),
    "geoopt-spd": (geoopt.SymmetricPositiveDefinite(), (3, 3)),
    "geoopt-poincare": (geoopt.PoincareBall(torch.ones((), dtype=torch.float64)), (4,)),
    "geoopt-scaled": (geoopt.Scaled(geoopt.Sphere(), 2.0), (4,)),
}
every_manifold = pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS.values(), ids=list(MANIFOLDS))
sphere = geoopt.Sphere()


def mixed(dtype=torch.float64):
    """Three rotations, a vector on the sphere and two plain parameters."""
    rotations = manifolds.SpecialOrthogonal()
    plain = [torch.nn.Parameter(torch.linspace(-1, 1, n, dtype=dtype)) for n in (3, 5)]
    bound = separate(points(rotations, 3, 3, 3, dtype=dtype), rotations)
    return [*bound, parameter(points(sphere, 1, 4, dtype=dtype)[0], sphere), *plain]


@every_manifold
@pytest.mark.parametrize("amsgrad", [False, True])
def test_separate_parameters_move_as_one_stacked_one(manifold, shape, amsgrad):
    values = points(manifold, 6, *shape)
    many, one = separate(values, manifold), parameter(values, manifold)
    optimizers = [optim.RiemannianAdam(p, lr=0.05, amsgrad=amsgrad) for p in (many, [one])]
    for step in range(5):
        set_gradients(many, step)
        one.grad = torch.stack([p.grad for p in many])
        for optimizer in optimizers:
            optimizer.step()
    assert error(many, one) < 1e-12
    assert error(many, values) > 0.01


@every_manifold
def test_the_first_step_has_the_length_of_the_learning_rate(manifold, shape):
    # With bias corrections both moments are those of one gradient, so the direction is r / |r|.
    x = parameter(points(manifold, 1, *shape)[0], manifold)
    start = x.detach().clone()
    set_gradients([x], 0)
    gradient = manifold.egrad2rgrad(start, x.grad)
    optim.RiemannianAdam([x], lr=1e-3, eps=0.0).step()
    step = -1e-3 * gradient / manifold.inner(start, gradient, keepdim=True).sqrt()
    assert torch.allclose(x, manifold.retr(start, step), atol=1e-13)


@every_manifold
def test_points_stay_on_the_manifold_and_momenta_in_the_tangent_space(manifold, shape):
    many = separate(points(manifold, 3, *shape), manifold)
    optimizer = optim.RiemannianAdam(many, lr=0.02)
    run(optimizer, many, 30)
    for p in many:
        assert manifold.check_point_on_manifold(p.detach(), atol=1e-9)
        assert manifold.check_vector_on_tangent(p.detach(), optimizer.state[p]["exp_avg"], atol=1e-9)


@pytest.mark.parametrize("name", ["rotations", "stiefel", "grassmann", "birkhoff"])
def test_two_thousand_steps_in_float32_stay_feasible_without_stabilising(name):
    manifold, shape = MANIFOLDS[name]
    many = separate(points(manifold, 4, *shape, dtype=torch.float32), manifold)
    run(optim.RiemannianAdam(many, lr=0.01), many, 2000)
    assert manifold.point_error(torch.stack([p.detach() for p in many])).max() < 1e-5


def test_two_hundred_parameters_need_one_retraction(monkeypatch):
    manifold = manifolds.SpecialOrthogonal()
    many = separate(points(manifold, 200, 4, 4), manifold)
    calls = []
    original = manifolds.SpecialOrthogonal.retr_transp
    monkeypatch.setattr(manifolds.SpecialOrthogonal, "retr_transp", lambda *a: calls.append(a[1].shape) or original(*a))
    run(optim.RiemannianAdam(many), many, 1)
    assert calls == [(200, 4, 4)]


def test_parameters_of_different_age_share_a_batch_and_keep_their_own_bias_correction():
    manifold = manifolds.Stiefel()
    values = points(manifold, 3, 5, 2)
    together, alone = separate(values, manifold), separate(values, manifold)
    shared = optim.RiemannianAdam(together, lr=0.1)
    own = [optim.RiemannianAdam([p], lr=0.1) for p in alone]
    for step in range(6):
        set_gradients(together, step)
        set_gradients(alone, step)
        for index, (p, q) in enumerate(zip(together, alone, strict=True)):
            if step % (index + 1):
                p.grad = q.grad = None
        shared.step()
        for optimizer in own:
            optimizer.step()
    assert [int(shared.state[p]["step"]) for p in together] == [6, 3, 2]
    assert error(together, torch.stack(list(alone))) < 1e-13


def test_the_second_moment_is_one_number_a_matrix():
    manifold = manifolds.SpecialOrthogonal()
    x = parameter(points(manifold, 7, 4, 4), manifold)
    optimizer = optim.RiemannianAdam([x])
    run(optimizer, [x], 1)
    assert optimizer.state[x]["exp_avg_sq"].shape == (7, 1, 1)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_without_manifold_get_adamw_to_the_last_bit(options, dtype):
    ours, theirs = mixed(dtype), mixed(dtype)[-2:]
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = optim.RiemannianAdam(ours, **settings, **options)
    reference = torch.optim.AdamW(theirs, **settings, **{"foreach": not options.get("fused"), **options})
    for step in range(20):
        set_gradients(ours, step)
        for p, q in zip(ours[-2:], theirs, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for p, q in zip(ours[-2:], theirs, strict=True):
        assert torch.equal(p, q)


def test_defaults_are_those_of_adamw():
    ours, theirs = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    ours.grad, theirs.grad = torch.arange(3.0), torch.arange(3.0)
    optim.RiemannianAdam([ours]).step()
    torch.optim.AdamW([theirs], foreach=True).step()
    assert torch.equal(ours, theirs)


def test_a_parameter_on_geoopts_euclidean_space_is_one_without_manifold():
    bound = geoopt.ManifoldParameter(torch.ones(3), manifold=geoopt.Euclidean(ndim=1))
    plain = torch.nn.Parameter(torch.ones(3))
    for p in (bound, plain):
        p.grad = torch.arange(3.0)
        optim.RiemannianAdam([p], weight_decay=0.5).step()
    assert torch.equal(bound, plain)


def test_weight_decay_leaves_points_alone():
    with_decay, without = mixed(), mixed()
    run(optim.RiemannianAdam(with_decay, weight_decay=0.9), with_decay, 5)
    run(optim.RiemannianAdam(without, weight_decay=0.0), without, 5)
    equal = [torch.equal(p, q) for p, q in zip(with_decay, without, strict=True)]
    assert equal == [True, True, True, True, False, False]


def test_maximising_is_minimising_the_negative():
    up, down = mixed(), mixed()
    ascent, descent = optim.RiemannianAdam(up, maximize=True), optim.RiemannianAdam(down)
    for step in range(5):
        set_gradients(up, step)
        for p, q in zip(up, down, strict=True):
            q.grad = -p.grad
        ascent.step()
        descent.step()
    for p, q in zip(up, down, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_never_written(maximize):
    # geoopt's Lorentz manifold writes to the gradient it is given.
    lorentz = geoopt.Lorentz(torch.ones((), dtype=torch.float64))
    parameters = [*mixed(), parameter(points(lorentz, 1, 4)[0], lorentz)]
    optimizer = optim.RiemannianAdam(parameters, weight_decay=0.3, maximize=maximize, stabilize=1)
    set_gradients(parameters, 0)
    before = [(p.grad, p.grad.clone(), p.grad._version) for p in parameters]
    optimizer.step()
    for p, (same, values, version) in zip(parameters, before, strict=True):
        assert p.grad is same
        assert p.grad._version == version
        assert torch.equal(p.grad, values)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("copied", [through_file, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_training_goes_on_from_a_state_dict_as_if_never_stopped(copied):
    through, first = mixed(), mixed()
    run(optim.RiemannianAdam(through, lr=0.02, amsgrad=True), through, 9)
    optimizer = optim.RiemannianAdam(first, lr=0.02, amsgrad=True)
    run(optimizer, first, 4)
    second = mixed()
    with torch.no_grad():
        for p, q in zip(second, first, strict=True):
            p.copy_(q)
    resumed = optim.RiemannianAdam(second, lr=0.7)
    run(resumed, [], 1)
    resumed.load_state_dict(copied(optimizer.state_dict()))
    run(resumed, second, 5, first=4)
    for p, q in zip(through, second, strict=True):
        assert torch.equal(p, q)


def test_a_state_of_torchs_adamw_can_be_taken_over():
    ours, theirs = mixed()[-2:], mixed()[-2:]
    reference = torch.optim.AdamW(theirs, lr=0.1, foreach=True)
    run(reference, theirs, 3)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    optimizer = optim.RiemannianAdam(ours)
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    for step in (3, 4):
        run(optimizer, ours, 1, first=step)
        run(reference, theirs, 1, first=step)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_a_loaded_state_is_not_shared_with_where_it_came_from():
    first, second = mixed(), mixed()
    source, target = optim.RiemannianAdam(first), optim.RiemannianAdam(second)
    run(source, first, 2)
    target.load_state_dict(source.state_dict())
    before = source.state[first[0]]["exp_avg"].clone()
    run(target, second[:3], 1)
    assert torch.equal(source.state[first[0]]["exp_avg"], before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_optimiser_goes_on_with_its_copied_parameters(copied):
    original = mixed()
    optimizer = optim.RiemannianAdam(original, lr=0.05)
    run(optimizer, original, 2)
    copies, twin = copied((original, optimizer))
    run(optimizer, original, 2, first=2)
    run(twin, copies, 2, first=2)
    for p, q in zip(original, copies, strict=True):
        assert p is not q
        assert torch.equal(p, q)


def test_a_state_that_was_replaced_or_cleared_is_respected():
    manifold = manifolds.Sphere()
    values = points(manifold, 4, 5)
    used, new = separate(values, manifold), separate(values, manifold)
    optimizer = optim.RiemannianAdam(used, lr=0.1)
    run(optimizer, used, 3)
    optimizer.state.clear()
    with torch.no_grad():
        for p, q in zip(used, new, strict=True):
            p.copy_(q)
    run(optimizer, used, 2)
    run(optim.RiemannianAdam(new, lr=0.1), new, 2)
    assert error(used, torch.stack(list(new))) == 0.0


def test_parameters_may_change_their_precision():
    manifold = manifolds.Sphere()
    many = separate(points(manifold, 2, 5, dtype=torch.float32), manifold)
    optimizer = optim.RiemannianAdam(many, lr=0.1)
    run(optimizer, many, 2)
    for p in many:
        p.data = p.data.double()
        p.grad = None
    run(optimizer, many, 2)
    assert optimizer.state[many[0]]["exp_avg"].dtype == torch.float64


def test_schedules_and_hooks_of_torch_work():
    parameters = mixed()
    optimizer = optim.RiemannianAdam(parameters, lr=0.1)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    schedule = CosineAnnealingLR(optimizer, 4)
    for step in range(4):
        run(optimizer, parameters, 1, first=step)
        schedule.step()
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 4


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_compiled_step_is_the_step(options):
    torch._dynamo.reset()
    compiled, eager = mixed(), mixed()
    optimizers = [optim.RiemannianAdam(p, lr=0.05, **options) for p in (compiled, eager)]
    steps = [torch.compile(optimizers[0].step, backend="eager"), optimizers[1].step]
    for seed in range(3):
        for parameters, step in zip((compiled, eager), steps, strict=True):
            set_gradients(parameters, seed)
            step()
    assert (
        max(error([a], b[None]) for a, b in zip(compiled, eager, strict=True)) < 1e-5
    )  # torch counts its steps in float32


def test_the_closure_is_called_with_gradients_on_and_its_value_returned():
    start = points(sphere, 1, 4)[0]
    x = parameter(start, sphere)
    optimizer = optim.RiemannianAdam([x])

    def closure():
        optimizer.zero_grad()
        loss = x.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(float(start.sum()))


def test_capturable_takes_a_tensor_rate_and_moves_points_alike():
    manifold = manifolds.Stiefel()
    values = points(manifold, 3, 4, 2)
    eager, captured = separate(values, manifold), separate(values, manifold)
    run(optim.RiemannianAdam(eager, lr=0.25), eager, 3)
    run(optim.RiemannianAdam(captured, lr=torch.tensor(0.25), capturable=True), captured, 3)
    assert error(eager, torch.stack(list(captured))) < 1e-14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: expected a finite number, at least 0.0, got -1.0"),
        ({"lr": float("nan")}, "lr: expected a finite number"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]: expected a finite number, at least 0.0 and below 1.0, got 1.0"),
        ({"betas": (0.9,)}, "betas: expected two numbers"),
        ({"eps": -1.0}, "eps: expected"),
        ({"weight_decay": -0.1}, "weight_decay: expected"),
        ({"stabilize": 0}, "stabilize: expected at least 1, got 0"),
        ({"check": "warn"}, "check: expected None, 'raise' or 'none', got 'warn'"),
        ({"capturable": True, "stabilize": 5}, "stabilize: expected None with capturable=True"),
        ({"capturable": True, "check": "raise"}, "check: expected None or 'none' with capturable=True"),
        ({"capturable": True, "lr": torch.ones(2)}, "lr: expected a tensor of one element"),
        ({"foreach": True, "fused": True}, "foreach, fused: expected at most one"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim.RiemannianAdam(mixed(), **options)
    with pytest.raises(ValueError, match=message):
        optim.RiemannianAdam([{"params": mixed(), **options}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "fast"}, "lr: expected a number, got str"),
        ({"lr": torch.tensor(0.1)}, "lr: expected a number, got a tensor"),
        ({"stabilize": 2.0}, "stabilize: expected an integer, got float"),
        ({"betas": 0.9}, "betas: expected two numbers, got 0.9"),
        ({"differentiable": True}, "differentiable"),
    ],
)
def test_types_that_are_wrong_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        optim.RiemannianAdam(mixed(), **options)


def test_capturable_is_refused_for_plain_parameters_on_the_cpu():
    parameters = mixed()
    optimizer = optim.RiemannianAdam(parameters, capturable=True)
    set_gradients(parameters, 0)
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['params'\]\[4\]: expected .* capturable=True, got cpu"):
        optimizer.step()
    for p, q in zip(parameters, before, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("index", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_raises_before_anything_moves(index, value):
    parameters = mixed()
    optimizer = optim.RiemannianAdam([(f"layer.{i}", p) for i, p in enumerate(parameters)])
    set_gradients(parameters, 0)
    parameters[index].grad.view(-1)[1] = value
    before = [p.detach().clone() for p in parameters]
    numbers = parameters[index].numel()
    with pytest.raises(ValueError, match=f"layer.{index}: expected a finite gradient, .* in 1 of {numbers} numbers"):
        optimizer.step()
    for p, q in zip(parameters, before, strict=True):
        assert torch.equal(p, q)


def test_the_check_of_gradients_can_be_left_out():
    x = parameter(points(sphere, 1, 4)[0], sphere)
    x.grad = torch.full_like(x, float("nan"))
    optim.RiemannianAdam([x], check="none").step()
    assert x.isnan().all()


def test_sparse_gradients_are_refused_by_name():
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = optim.RiemannianAdam(table.named_parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"weight: expected a dense gradient, got torch.sparse_coo"):
        optimizer.step()


def test_complex_and_half_precision_parameters_are_refused_by_name():
    plain = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['params'\]\[1\]: expected real .*, got torch.complex64"):
        optim.RiemannianAdam([torch.nn.Parameter(torch.ones(1)), plain])
    half = geoopt.ManifoldParameter(torch.eye(2, dtype=torch.bfloat16)[0], manifold=geoopt.Sphere())
    with pytest.raises(TypeError, match=r"x: expected float32 or float64 on a manifold, got torch.bfloat16"):
        optim.RiemannianAdam([("x", half)])


def test_a_refused_group_is_not_added():
    optimizer = optim.RiemannianAdam(mixed())
    with pytest.raises(TypeError, match=r"param_groups\[1\]\['params'\]\[0\]: expected real"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_that_lost_its_manifold_raises_by_name():
    x = parameter(points(sphere, 1, 4)[0], sphere)
    optimizer = optim.RiemannianAdam([("point", x)])
    run(optimizer, [x], 1)
    torch.utils.swap_tensors(x, torch.nn.Parameter(torch.ones(4, dtype=torch.float64)))
    x.grad = torch.ones(4, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"point: expected a parameter on Sphere manifold, got a plain Parameter"):
        optimizer.step()
