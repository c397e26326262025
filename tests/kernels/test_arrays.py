"""Tensors as arrays of NumPy."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")
from jpmhc.kernels.cpu import arrays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)])
def test_arrays_share_the_memory_of_their_tensors(shape, dtype):
    tensor = torch.randn(shape, dtype=dtype)
    array = arrays.array_of(tensor)
    assert array.shape == shape
    assert (torch.from_numpy(array) == tensor).all()
    array[...] = 2.0
    assert (tensor == 2.0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0, 2)])
def test_tensors_without_numbers_are_arrays_without_an_address(shape, monkeypatch):
    class Addressed:
        def __init__(self, tensor, shape):
            assert tensor.data_ptr(), "NumPy below 2.2 takes no address of zero"

    monkeypatch.setattr(arrays, "_Memory", Addressed)
    array = arrays.array_of(torch.empty(shape, dtype=torch.float64))
    assert (array.shape, array.dtype) == (shape, np.float64)


def test_zeros_that_are_nowhere_in_memory_become_numbers():
    array = arrays.array_of(torch._efficientzerotensor(2, 3, dtype=torch.float64))
    assert array.shape == (2, 3)
    assert not array.any()
