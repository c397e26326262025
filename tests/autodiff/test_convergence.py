import warnings
from pathlib import Path

import torch

from jpmhc import autodiff


def test_a_warning_points_at_the_call_and_comes_once_a_line():
    solver = autodiff.Picard(max_steps=3, tol=1e-12)
    adjoint = autodiff.Implicit(autodiff.Neumann(2))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for rate in (0.5, 0.6, 0.7):
            a = torch.full((4, 1), rate, requires_grad=True)
            value = autodiff.fixed_point(
                lambda z, a: a * z + 1, torch.zeros(4, 1), a, solver=solver, adjoint=adjoint, check="warn"
            ).value
            value.sum().backward()
    assert ["adjoint solve" in str(warning.message) for warning in found] == [False, True]
    assert all(warning.category is autodiff.ConvergenceWarning for warning in found)
    assert all(Path(warning.filename) == Path(__file__) for warning in found)
    lines = Path(__file__).read_text().splitlines()
    assert [lines[warning.lineno - 1].strip() for warning in found] == [
        "value = autodiff.fixed_point(",
        "value.sum().backward()",
    ]
