"""Which places of a computed distribution function are kept."""

import torch

from jpmhc.spectrum.rising import rising

LEVELS = torch.arange(1, 11, dtype=torch.float64) / 10
NONE = torch.zeros(10, dtype=torch.float64)


def changed(**values):
    cdf = LEVELS.clone()
    for name, value in values.items():
        cdf[int(name[1:])] = value
    return rising(cdf, NONE).tolist()


def test_all_of_a_rising_function_is_kept():
    assert changed() == list(range(10))


def test_a_place_that_is_too_high_is_left_out_and_one_within_its_error_kept():
    assert changed(_3=0.9) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    error = NONE.clone()
    error[3] = 0.5
    assert rising(LEVELS + torch.nn.functional.one_hot(torch.tensor(3), 10) * 0.5, error).tolist() == list(range(10))


def test_neighbours_that_are_too_low_take_no_right_ones_with_them():
    assert changed(_8=0.05, _9=0.05) == list(range(10))
