"""The mixers, one family a file."""

from jpmhc.layers.charts.cayley import Cayley
from jpmhc.layers.charts.free import Free
from jpmhc.layers.charts.identity import Identity
from jpmhc.layers.charts.sinkhorn import Sinkhorn

__all__ = ["Cayley", "Free", "Identity", "Sinkhorn"]
