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

    def __init__(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "shape": shape,
            "typestr": _TYPES[tensor.dtype],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def array_of(tensor: Tensor, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    """Return a contiguous array of a tensor's numbers, without a copy where the tensor is contiguous.

    ``Tensor.numpy`` would mark the storage as one that must not be resized, for good, and FSDP2 frees the parameters
    that it gathered by resizing them to nothing.

    Parameters
    ----------
    tensor : Tensor
        float32 or float64 on the CPU.
    shape : tuple of int, optional
        Of the array, its own by default.
    """
    if tensor.is_neg() or not tensor.is_contiguous():
        tensor = tensor.detach().resolve_neg().contiguous()
    shape = shape or tuple(tensor.shape)
    try:
        return memory_of(tensor, shape)
    except (RuntimeError, ValueError):  # what a transform left behind, or zeros that are nowhere in memory
        return memory_of(tensor.detach() + 0, shape)


def memory_of(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the memory of a tensor that was just made as an array, to be written to."""
    if not tensor.numel():
        # It may be nowhere, and NumPy below 2.2 takes no address of zero.
        return np.empty(shape, _TYPES[tensor.dtype])
    return np.asarray(_Memory(tensor, shape))
