import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from jpmhc import manifolds, optim
from tests.optim.stacks import error, parameter, points, run

OPTIMISERS = [optim.RiemannianAdam, lambda p, **o: optim.RiemannianSGD(p, momentum=0.9, weight_decay=0.1, **o)]
every_optimiser = pytest.mark.parametrize("make", OPTIMISERS, ids=["adam", "sgd"])
NUMBERS = [np.float32(0.125), np.float64(0.125), np.float16(0.125), Fraction(1, 8)]


def mixed(dtype=torch.float64):
    sphere = manifolds.Sphere()
    point = parameter(points(sphere, 1, 4, dtype=dtype)[0], sphere)
    return [point, torch.nn.Parameter(torch.linspace(-1, 1, 4, dtype=dtype))]


def assert_equal(left, right, tolerance=0.0):
    assert max(error([p], q[None]) for p, q in zip(left, right, strict=True)) <= tolerance


@every_optimiser
@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_a_rate_may_be_any_real_number_and_a_file_with_it_is_read_back(make, number):
    ours, grouped, reference = mixed(), mixed(), mixed()
    optimizer = make(ours, lr=number)
    for trained, by in [(ours, optimizer), (grouped, make([{"params": grouped, "lr": number}])), (reference, None)]:
        run(by or make(reference, lr=0.125), trained, 3)
    assert_equal(ours, reference)
    assert_equal(grouped, reference)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    make(mixed()).load_state_dict(torch.load(file, weights_only=True))


def test_every_option_takes_numbers_of_numpy():
    optimizer = optim.RiemannianAdam(
        mixed(), betas=(np.float32(0.5), np.float64(0.75)), eps=np.float32(0.25), stabilize=np.int64(3), amsgrad=True
    )
    group = optimizer.param_groups[0]
    assert [group[name] for name in ("betas", "eps", "stabilize", "amsgrad")] == [(0.5, 0.75), 0.25, 3, True]
    assert [type(group[name]) for name in ("eps", "stabilize", "amsgrad")] == [float, int, bool]
    closure = optim.RiemannianConjugateGradient(mixed(), max_iter=np.int32(5), tolerance_grad=np.float32(0.5))
    assert type(closure.param_groups[0]["max_iter"]) is int


@every_optimiser
@pytest.mark.parametrize("number", [np.float32("nan"), np.float32(-1), np.float64("inf"), Fraction(-1, 2)], ids=repr)
def test_a_rate_that_is_negative_or_not_finite_is_refused_whatever_its_type(make, number):
    with pytest.raises(ValueError, match="lr: expected a finite number, at least 0"):
        make(mixed(), lr=number)


@every_optimiser
@pytest.mark.parametrize("number", [True, np.bool_(True), 1j, np.complex64(1), "1", None], ids=repr)
def test_what_is_no_real_number_is_refused(make, number):
    with pytest.raises(TypeError, match="lr: expected a number, got"):
        make(mixed(), lr=number)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *((OPTIMISERS[0], options) for options in ({}, {"foreach": True}, {"foreach": False}, {"fused": True})),
        (OPTIMISERS[1], {}),
    ],
    ids=["adam", "foreach", "loop", "fused", "sgd"],
)
@pytest.mark.parametrize("rate", [torch.tensor(0.125), torch.tensor([0.125], dtype=torch.float64), np.float32(0.125)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_set_in_a_group_may_be_a_tensor_or_a_number_of_numpy(make, options, rate, dtype):
    ours, reference = mixed(dtype), mixed(dtype)
    optimizers = [make(parameters, lr=0.5, **options) for parameters in (ours, reference)]
    for optimizer, parameters, new in zip(optimizers, (ours, reference), (rate, 0.125), strict=True):
        run(optimizer, parameters, 2)
        optimizer.param_groups[0]["lr"] = new
        run(optimizer, parameters, 3, first=2)
    coarser = max(torch.finfo(kind).eps for kind in (dtype, torch.as_tensor(rate).dtype))
    assert_equal(ours, reference, 4 * coarser)
    assert [p.dtype for p in ours] == [dtype] * 2


@every_optimiser
@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        ({"lr": math.nan}, ValueError, "lr: expected a finite number, at least 0.0, got nan"),
        ({"lr": math.inf}, ValueError, "lr: expected a finite number, at least 0.0, got inf"),
        ({"stabilize": 0}, ValueError, "stabilize: expected at least 1, got 0"),
        ({"stabilize": 1.5}, TypeError, "stabilize: expected an integer, got float"),
    ],
    ids=str,
)
def test_what_is_set_in_a_group_and_cannot_be_is_refused_before_anything_moves(make, edit, error, words):
    parameters = mixed()
    optimizer = make(parameters, lr=0.5)
    run(optimizer, parameters, 1)
    before = [p.detach().clone() for p in parameters]
    optimizer.param_groups[-1].update(edit)
    with pytest.raises(error, match=words):
        run(optimizer, parameters, 1)
    assert_equal(parameters, before, 0.0)
