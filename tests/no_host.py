"""A mode in which nothing may ask the host for a value: what runs in it on tensors without data fits a CUDA graph."""

import importlib
import inspect
import pkgutil

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jpmhc import kernels
from jpmhc.kernels import elementary

# What torch hands to cuSOLVER, cuBLAS or MAGMA, not all of which can be captured in a CUDA graph.
FACTORISATIONS = {
    "linalg_qr",
    "geqrf",
    "linalg_householder_product",
    "linalg_inv_ex",
    "linalg_solve_ex",
    "_linalg_solve_ex",
    "linalg_lu_factor_ex",
    "linalg_lu_solve",
    "linalg_cholesky_ex",
    "cholesky_solve",
    "_linalg_slogdet",
    "_linalg_svd",
    "_linalg_eigh",
}


def pretend_to_capture(monkeypatch):
    """Let every device be one whose stream is captured, so that no factorisation of a library is called."""
    monkeypatch.setattr(elementary, "_is_capturing", lambda device: True)


def references():
    """The plain-PyTorch function behind every operation of `jpmhc.kernels`, by its name."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__):
        if not module.ispkg:
            home = vars(importlib.import_module(f"jpmhc.kernels.{module.name}"))
            found |= {
                name: home[name].__wrapped__ for name in kernels.operations() if hasattr(home.get(name), "__wrapped__")
            }
    return found


class NoHost(TorchDispatchMode):
    """Run the references of our operations, and refuse whatever reads a value or brings one from the host."""

    def __init__(self):
        super().__init__()
        self.references = references()
        self.ran, self.called = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func.name().split("::")
        self.called.add(name.split(".")[0])
        if space == "jpmhc":
            name = name.split(".")[0]
            self.ran.add(name)
            reference = self.references[name]
            first = next(iter(inspect.signature(reference, eval_str=True).parameters.values())).annotation
            with self:
                # Operations of many arguments take them in a named tuple.
                return reference(first(*args)) if issubclass(first, tuple) else reference(*args)
        if name.split(".")[0] in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select"}:
            raise RuntimeError(f"{func} reads a value")
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if "cpu" in devices:
            raise RuntimeError(f"{func} takes a tensor of the host")
        return func(*args, **(kwargs or {}))
