"""The mixers, one family a file."""

from jpmhc.layers.charts.cayley import Cayley, CayleyIterated, CayleyMean
from jpmhc.layers.charts.free import Free
from jpmhc.layers.charts.identity import Identity
from jpmhc.layers.charts.kronecker import Kronecker
from jpmhc.layers.charts.manifold import Grassmann, Manifold
from jpmhc.layers.charts.orthostochastic import Orthostochastic
from jpmhc.layers.charts.permutations import JPMHC_PERMUTATIONS, Permutations, search_permutations
from jpmhc.layers.charts.quaternion import Quaternion
from jpmhc.layers.charts.reflection import Reflection
from jpmhc.layers.charts.sinkhorn import Sinkhorn
from jpmhc.layers.charts.spectral import Spectral

__all__ = [
    "JPMHC_PERMUTATIONS",
    "Cayley",
    "CayleyIterated",
    "CayleyMean",
    "Free",
    "Grassmann",
    "Identity",
    "Kronecker",
    "Manifold",
    "Orthostochastic",
    "Permutations",
    "Quaternion",
    "Reflection",
    "Sinkhorn",
    "Spectral",
    "search_permutations",
]
