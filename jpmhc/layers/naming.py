"""Mixers written with arguments, ``cayley:step=0.1``, as command lines take them."""

from __future__ import annotations

import ast
from typing import Any


def parse_mixer(text: str) -> tuple[str, dict[str, Any]]:
    """Read the name of a mixer with arguments, for :func:`~jpmhc.layers.make_mixer`.

    Parameters
    ----------
    text : str
        ``NAME`` or ``NAME:argument=value,...`` with values that are Python's literals.

    Returns
    -------
    name : str
        What stands before the colon; whether there is such a mixer is not looked up.
    arguments : dict
        By name.

    Raises
    ------
    ValueError
        For arguments that cannot be read, and the same one twice.

    Examples
    --------
    >>> from jpmhc import layers
    >>> layers.parse_mixer("kronecker:factors=(2, 2)")
    ('kronecker', {'factors': (2, 2)})
    """
    name, _, rest = text.partition(":")
    try:
        call = ast.parse(f"f({rest})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError(rest)
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        if len(arguments) < len(call.keywords):
            raise ValueError(rest)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"mixer {text!r}: expected argument=value,... with literal values, got {rest!r}") from error
    return name, arguments
