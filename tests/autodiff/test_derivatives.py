import pytest
import torch

from jpmhc import autodiff
from tests.autodiff.equations import arguments, layer


@pytest.mark.parametrize("linear_solver", [autodiff.GMRES(tol=1e-14), autodiff.Dense()], ids=lambda s: type(s).__name__)
def test_finite_differences_agree_with_both_modes_and_their_mixtures(linear_solver):
    inputs = tuple(tensor.requires_grad_() for tensor in arguments(size=2, batch=2))
    solver, adjoint = autodiff.Newton(tol=1e-15, max_steps=12), autodiff.Implicit(linear_solver)

    def solve(weight, x, bias):
        z0 = torch.zeros_like(x)
        return autodiff.fixed_point(layer, z0, weight, x, bias, solver=solver, adjoint=adjoint, check="none").value

    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_an_order_is_as_exact_as_the_one_before():
    # z = a / z in Heron's form: z = sqrt(a), every derivative known.
    solver, adjoint = autodiff.Newton(tol=1e-15), autodiff.Implicit(autodiff.Dense())

    def root(a):
        return autodiff.fixed_point(
            lambda z, a: 0.3 * z + 0.7 * 0.5 * (z + a / z),
            torch.ones_like(a),
            a,
            solver=solver,
            adjoint=adjoint,
            batch_dims=0,
        ).value

    a = torch.tensor(2.0, dtype=torch.float64)
    reverse, forward, factor, power = root, root, 1.0, 0.5
    for _ in range(4):
        reverse, forward = torch.func.grad(reverse), torch.func.jacfwd(forward)
        factor, power = factor * power, power - 1
        expected = factor * a.item() ** power
        assert reverse(a).item() == pytest.approx(expected, rel=1e-11)
        assert forward(a).item() == pytest.approx(expected, rel=1e-11)
