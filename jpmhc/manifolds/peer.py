"""geoopt, imported without the seventy deprecation warnings of its scripted functions."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    import geoopt

__all__ = ["geoopt"]
