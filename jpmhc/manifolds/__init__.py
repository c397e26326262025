"""Manifolds, each a ``geoopt.Manifold``, and the contract that says whether one is right.

geoopt's ``Euclidean`` keeps that contract and is here too. Its other classes are not: `CanonicalStiefel`,
`BirkhoffPolytope`, `PoincareBall`, `PoincareBallExact`, `SphereProjection` and `SymmetricPositiveDefinite` fail it, and
`Lorentz` has no ``random`` to check it with; docs/manifolds.md says where they fail.
"""

import torch

from jpmhc.manifolds.base import Manifold
from jpmhc.manifolds.birkhoff import Birkhoff
from jpmhc.manifolds.checked import checked
from jpmhc.manifolds.checks import check_manifold
from jpmhc.manifolds.flat import Flat
from jpmhc.manifolds.grassmann import Grassmann
from jpmhc.manifolds.parameter import Parameter, lost_parameters, rebuild_parameter, unsharded_parameters
from jpmhc.manifolds.peer import geoopt
from jpmhc.manifolds.product import Product
from jpmhc.manifolds.projecting import project_
from jpmhc.manifolds.report import Law, Report
from jpmhc.manifolds.simplex import Simplex
from jpmhc.manifolds.special_orthogonal import SpecialOrthogonal
from jpmhc.manifolds.sphere import Sphere
from jpmhc.manifolds.stiefel import Stiefel

Euclidean = geoopt.Euclidean

# A file of weights may hold a parameter with its manifold: torch.load(weights_only=True) asks for the names.
torch.serialization.add_safe_globals(
    [rebuild_parameter, Birkhoff, Euclidean, Flat, Grassmann, Product, Simplex, SpecialOrthogonal, Sphere, Stiefel]
)

__all__ = [
    "Birkhoff",
    "Euclidean",
    "Grassmann",
    "Law",
    "Manifold",
    "Parameter",
    "Product",
    "Report",
    "Simplex",
    "SpecialOrthogonal",
    "Sphere",
    "Stiefel",
    "check_manifold",
    "checked",
    "lost_parameters",
    "project_",
    "unsharded_parameters",
]
