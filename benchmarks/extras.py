"""Optional dependencies: import one, or say in one line which extra brings it."""

import importlib
from types import ModuleType


class MissingExtra(ModuleNotFoundError):
    """An optional dependency is not installed; the message is one line that names the extra."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Parameters
    ----------
    module : str
        Dotted name, for example ``"matplotlib.figure"``.
    extra : str
        Extra of the distribution ``jpmhc`` that installs it.

    Returns
    -------
    ModuleType
        The module of that dotted name.

    Raises
    ------
    MissingExtra
        If it is not installed.

    Examples
    --------
    >>> require("json", "bench").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there and misses something of its own is another fault, with another remedy.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        message = f"{error.name}: not installed; pip install jpmhc[{extra}]"
        raise MissingExtra(message, name=error.name) from None
