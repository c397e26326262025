"""Arguments in numbers of Python's, which are float64 whatever torch's default dtype is."""

import pytest
import torch

from jpmhc import spectrum


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_python_numbers_are_not_rounded_to_the_default_dtype(default):
    def results():
        mixers = [[[0.9, 0.1], [0.1, 0.9]]] * 3
        law = spectrum.predict(mixers, [0.3, 0.7], [1.1, 0.9], 0.3)
        drawn = spectrum.simulate(mixers, [0.3, 0.7], [1.1, 0.9], [0.1, 0.2, 0.3], width=8)
        found = spectrum.propagate(mixers, [0.3, 0.7], [1.1, 0.9], weight_variance=0.3)
        point = law.stieltjes(1.1 + 0.3j), spectrum.ScalarLaw(0.3).stieltjes(1.1 + 0.3j)
        return law.moment(2), law.mean_log, drawn.singular_values, found.energy, *point

    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        wanted = results()
        torch.set_default_dtype(default)
        found = results()
    finally:
        torch.set_default_dtype(before)
    for value, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
