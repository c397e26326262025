"""Spectra of the Jacobian of a deep product of hyper-connections: predicted, measured and explained."""

from jpmhc.spectrum.compare import Comparison, compare
from jpmhc.spectrum.initial import initial_chain
from jpmhc.spectrum.inspect import inspect
from jpmhc.spectrum.law import Law
from jpmhc.spectrum.measure import ExtremesWarning, measure, measure_layers
from jpmhc.spectrum.measured import MeasuredLaw
from jpmhc.spectrum.report import LayerReport, Report

__all__ = [
    "Comparison",
    "ExtremesWarning",
    "Law",
    "LayerReport",
    "MeasuredLaw",
    "Report",
    "compare",
    "initial_chain",
    "inspect",
    "measure",
    "measure_layers",
]
