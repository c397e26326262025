"""Hyper-connections whose skip matrix lives on a manifold, with exact derivatives and measured Jacobians.

Sub-packages are loaded when first asked for: ``jpmhc.autodiff`` (maps defined by an equation, with their derivatives),
``jpmhc.kernels`` (the primitives beneath them), ``jpmhc.manifolds``, ``jpmhc.layers`` (hyper-connections),
``jpmhc.optim`` (Riemannian optimisers) and ``jpmhc.spectrum`` (spectra of Jacobians).
"""

import importlib
from types import ModuleType

__version__ = "0.1.0.dev0"

_ROOMS = ("autodiff", "kernels", "layers", "manifolds", "optim", "spectrum")

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, expected one of {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
