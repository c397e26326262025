"""Maps and capturable steps never read the device: run on tensors of devices that have no numbers to read."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from jpmhc import manifolds as m
from jpmhc import optim
from tests.manifolds.cases import CASES, name

STEPS = [
    m.Stiefel(),
    m.Stiefel("euclidean"),
    m.SpecialOrthogonal(),
    m.Grassmann(),
    m.Birkhoff(),
    m.Simplex(),
    m.Sphere(),
]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_no_map_waits_for_the_device(case):
    manifold, shape = case
    with FakeTensorMode():
        x, y, u, v = (torch.empty(3, *shape, device="cuda") for _ in range(4))
        calls = {
            "proju": (x, u), "egrad2rgrad": (x, u), "ehess2rhess": (x, u, v, u), "inner": (x, u, v), "norm": (x, u),
            "retr": (x, u), "retr_transp": (x, u, v), "transp": (x, y, v),
        }  # fmt: skip
        parts = [part for part, _ in getattr(manifold, "parts", [(manifold, shape)])]
        if not any(isinstance(part, m.SpecialOrthogonal) for part in parts):
            calls["projx"] = (x,)
        if not isinstance(manifold, m.Birkhoff):
            calls |= {"expmap": (x, u), "dist": (x, y), "logmap": (x, y)}
        if isinstance(manifold, m.Stiefel | m.Product):
            calls.pop("logmap"), calls.pop("dist")  # sixty shots: the solver's own tests see to them
        for key, arguments in calls.items():
            result = getattr(manifold, key)(*arguments)
            assert (result[0] if isinstance(result, tuple) else result).device.type == "cuda"


@pytest.mark.parametrize("make", [optim.RiemannianAdam, optim.RiemannianSGD])
@pytest.mark.parametrize("manifold", STEPS, ids=str)
def test_a_capturable_step_never_reads_the_device_and_another_one_does(make, manifold):
    shape = (4,) * manifold.ndim
    options = {"momentum": 0.9} if make is optim.RiemannianSGD else {}
    for capturable in (True, False):
        x = m.Parameter(torch.empty(2, *shape, device="meta"), manifold)
        x.grad = torch.empty_like(x)
        optimizer = make([x], lr=0.1, capturable=capturable, **options)
        if capturable:
            optimizer.step()
            optimizer.step()
        else:
            with pytest.raises(RuntimeError, match="meta"):
                optimizer.step()
