"""Layers whose skip connection is a matrix on a manifold: read from n residual streams, mix them, write to them."""

from jpmhc.layers.adapters.checkpoint import load_converted
from jpmhc.layers.charts import (
    JPMHC_PERMUTATIONS,
    Cayley,
    CayleyIterated,
    CayleyMean,
    Free,
    Grassmann,
    Identity,
    Kronecker,
    Manifold,
    Orthostochastic,
    Permutations,
    Quaternion,
    Reflection,
    Sinkhorn,
    Spectral,
    search_permutations,
)
from jpmhc.layers.convert import convert
from jpmhc.layers.hyper_connection import HyperConnection, mixing_parameters
from jpmhc.layers.mixer import Mixer, MixerInfo, make_mixer, mixers, register_mixer
from jpmhc.layers.residual import Residual
from jpmhc.layers.statistics import ConstraintWarning, LayerStatistics, Statistics, statistics
from jpmhc.layers.streams import expand_streams, reduce_streams

__all__ = [
    "JPMHC_PERMUTATIONS",
    "Cayley",
    "CayleyIterated",
    "CayleyMean",
    "ConstraintWarning",
    "Free",
    "Grassmann",
    "HyperConnection",
    "Identity",
    "Kronecker",
    "LayerStatistics",
    "Manifold",
    "Mixer",
    "MixerInfo",
    "Orthostochastic",
    "Permutations",
    "Quaternion",
    "Reflection",
    "Residual",
    "Sinkhorn",
    "Spectral",
    "Statistics",
    "convert",
    "expand_streams",
    "load_converted",
    "make_mixer",
    "mixers",
    "mixing_parameters",
    "reduce_streams",
    "register_mixer",
    "search_permutations",
    "statistics",
]
