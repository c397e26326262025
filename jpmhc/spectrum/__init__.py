"""Spectra of the Jacobian of a deep product of hyper-connections: predicted, measured and explained."""

from jpmhc.spectrum.branches import Branch, Gaussian, Haar, Hidden
from jpmhc.spectrum.closed_forms import isometry_gap
from jpmhc.spectrum.compare import Comparison, compare
from jpmhc.spectrum.design import Design, branch_budget, design, design_table, diagonal_bias
from jpmhc.spectrum.energies import Propagation, branch_energies, propagate
from jpmhc.spectrum.initial import initial_chain
from jpmhc.spectrum.inspect import inspect
from jpmhc.spectrum.law import Law
from jpmhc.spectrum.measure import ExtremesWarning, measure, measure_layers
from jpmhc.spectrum.measured import MeasuredLaw
from jpmhc.spectrum.predicted import Points, PredictedLaw, predict
from jpmhc.spectrum.published import published
from jpmhc.spectrum.report import LayerReport, Report
from jpmhc.spectrum.scalar import ScalarLaw
from jpmhc.spectrum.simulate import simulate

__all__ = [
    "Branch",
    "Comparison",
    "Design",
    "ExtremesWarning",
    "Gaussian",
    "Haar",
    "Hidden",
    "Law",
    "LayerReport",
    "MeasuredLaw",
    "Points",
    "PredictedLaw",
    "Propagation",
    "Report",
    "ScalarLaw",
    "branch_budget",
    "branch_energies",
    "compare",
    "design",
    "design_table",
    "diagonal_bias",
    "initial_chain",
    "inspect",
    "isometry_gap",
    "measure",
    "measure_layers",
    "predict",
    "propagate",
    "published",
    "simulate",
]
