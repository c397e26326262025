"""Tensors as arrays of NumPy, on the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = {torch.float32: "<f4", torch.float64: "<f8"}


class _Memory:
    """What NumPy asks of an owner of memory; it keeps the tensor as long as there is an array."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.dtype],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a contiguous array of a tensor's numbers, without a copy where the tensor is contiguous.

    ``Tensor.numpy`` would mark the storage as one that must not be resized, for good, and FSDP2 frees the parameters
    that it gathered by resizing them to nothing.
    """
    return np.asarray(_Memory(tensor.detach().contiguous()))
