"""Riemannian optimisers that update many small parameters at once, for our manifolds and for geoopt's."""

from jpmhc.optim.adam import RiemannianAdam
from jpmhc.optim.conjugate_gradient import RiemannianConjugateGradient
from jpmhc.optim.groups import parameter_groups
from jpmhc.optim.sgd import RiemannianSGD
from jpmhc.optim.trust_region import RiemannianTrustRegion

__all__ = [
    "RiemannianAdam",
    "RiemannianConjugateGradient",
    "RiemannianSGD",
    "RiemannianTrustRegion",
    "parameter_groups",
]
