"""A mark on traced code whose backward is not to be differentiated again."""

from typing import Any

import torch
from torch import Tensor

from jpmhc.kernels.bodies import leaves_the_library


def anchor(argument: Tensor) -> Tensor | None:
    """Return an empty tensor through which ``backward(create_graph=True)`` raises.

    Given to a traced ``autograd.Function`` beside its argument, it is reached by every backward that reaches the
    function. The rule that the tracer copied has constants in the place of what it saved, so a second backward would
    lack terms. ``torch.compile`` refuses one itself where it compiles the backward (``"inductor"``, ``"aot_eager"``),
    but the backend ``"eager"`` runs the copy as it is (torch 2.13).

    Parameters
    ----------
    argument : Tensor
        What the function is differentiated in.

    Returns
    -------
    Tensor, shape (0,), or None
        None in a program that shall hold none of this library's operators.
    """
    return None if leaves_the_library() else _anchored(argument)


@torch.library.custom_op("jpmhc::anchor", mutates_args=())
def _anchored(argument: Tensor) -> Tensor:
    return argument.new_empty(0)


@_anchored.register_fake
def _fake(argument: Tensor) -> Tensor:
    return argument.new_empty(0)


def _backward(ctx: Any, _gradient: Tensor) -> None:
    # A compiled backward is traced and run with gradients off, whether or not its caller creates a graph.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "backward with create_graph=True through a function compiled with backend='eager': a second derivative "
            "would be wrong; call the function uncompiled"
        )


_anchored.register_autograd(_backward)
