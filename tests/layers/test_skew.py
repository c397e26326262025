"""Unpacking of triangles: by an index and by joining rows, which large batches and devices take."""

import pytest
import torch

from jpmhc.layers.charts import skew

WAYS = {"index": 10**9, "joined": 0}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("batch", [(), (3,), (0,), (2, 5)])
def test_numbers_stand_above_the_diagonal_row_by_row(n, batch, way, monkeypatch):
    monkeypatch.setattr(skew, "_MANY", WAYS[way])
    packed = torch.randn(*batch, n * (n - 1) // 2)
    expected = torch.zeros(*batch, n, n)
    row, column = torch.triu_indices(n, n, 1)
    expected[..., row, column] = packed
    assert torch.equal(skew.UpperTriangle(n)(packed), expected)


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_and_batches_of_both_ways(way, monkeypatch):
    monkeypatch.setattr(skew, "_MANY", WAYS[way])
    unpack = skew.UpperTriangle(4)
    packed = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def function(packed):
        return unpack(packed).sin()

    assert torch.autograd.gradcheck(function, packed, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, packed)
    assert torch.equal(torch.vmap(unpack)(packed), unpack(packed))


def test_a_number_that_is_not_one_stays_where_it_is():
    packed = torch.randn(skew._MANY, 6)
    packed[7, 2] = torch.nan
    assert skew.UpperTriangle(4)(packed).isnan().nonzero().tolist() == [[7, 0, 3]]
