"""Spectra of the Jacobian of a deep product of hyper-connections: predicted, measured and explained."""

from jpmhc.spectrum.law import Law
from jpmhc.spectrum.measure import ExtremesWarning, measure, measure_layers
from jpmhc.spectrum.measured import MeasuredLaw

__all__ = ["ExtremesWarning", "Law", "MeasuredLaw", "measure", "measure_layers"]
