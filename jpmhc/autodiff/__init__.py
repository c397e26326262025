"""Derivatives of anything defined by an equation, exact at every order and in every mode of PyTorch."""

from jpmhc.autodiff.adjoints import Implicit, PhantomGradient, Unrolled
from jpmhc.autodiff.balanced import balanced, scaled
from jpmhc.autodiff.cayley import cayley
from jpmhc.autodiff.convergence import ConvergenceWarning, NotConvergedError
from jpmhc.autodiff.fixed_point import Solution, fixed_point
from jpmhc.autodiff.fused import fused
from jpmhc.autodiff.linear import GMRES, Dense, Neumann
from jpmhc.autodiff.polar import polar
from jpmhc.autodiff.quaternion import quaternion
from jpmhc.autodiff.residuals import cayley_contraction, orthogonality_residual, sinkhorn_residual
from jpmhc.autodiff.sinkhorn import sinkhorn
from jpmhc.autodiff.solvers import Anderson, Broyden, Newton, Picard

__all__ = [
    "GMRES",
    "Anderson",
    "Broyden",
    "ConvergenceWarning",
    "Dense",
    "Implicit",
    "Neumann",
    "Newton",
    "NotConvergedError",
    "PhantomGradient",
    "Picard",
    "Solution",
    "Unrolled",
    "balanced",
    "cayley",
    "cayley_contraction",
    "fixed_point",
    "fused",
    "orthogonality_residual",
    "polar",
    "quaternion",
    "scaled",
    "sinkhorn",
    "sinkhorn_residual",
]
