"""Spectra of the Jacobian of a deep product of hyper-connections: predicted, measured and explained."""

from jpmhc.spectrum.law import Law

__all__ = ["Law"]
