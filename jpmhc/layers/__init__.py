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
from jpmhc.layers.checks import check_mixer
from jpmhc.layers.convert import convert
from jpmhc.layers.heads import StreamEmbedding, StreamHead
from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.mixer import Mixer, MixerInfo, make_mixer, mixers, register_mixer
from jpmhc.layers.naming import parse_mixer
from jpmhc.layers.parameters import mixing_parameters
from jpmhc.layers.recipes import Recipe, recipes
from jpmhc.layers.residual import Residual
from jpmhc.layers.single_pass import SinglePass
from jpmhc.layers.stack import HyperStack
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
    "HyperStack",
    "Identity",
    "Kronecker",
    "LayerStatistics",
    "Manifold",
    "Mixer",
    "MixerInfo",
    "Orthostochastic",
    "Permutations",
    "Quaternion",
    "Recipe",
    "Reflection",
    "Residual",
    "SinglePass",
    "Sinkhorn",
    "Spectral",
    "Statistics",
    "StreamEmbedding",
    "StreamHead",
    "check_mixer",
    "convert",
    "expand_streams",
    "load_converted",
    "make_mixer",
    "mixers",
    "mixing_parameters",
    "parse_mixer",
    "recipes",
    "reduce_streams",
    "register_mixer",
    "search_permutations",
    "statistics",
]
