"""A batched primitive: a plain function on tensors that tracing sees as one operation."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")


def _like_first(first: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return torch.empty_like(first, memory_format=torch.contiguous_format)


def primitive(
    name: str, fake: Callable[..., Tensor] = _like_first
) -> Callable[[Callable[Arguments, Tensor]], Callable[Arguments, Tensor]]:
    """Register a function as the operator ``jpmhc::name`` with a shape rule and a ``vmap`` rule.

    Parameters
    ----------
    name : str
        Name of the operator.
    fake : callable, optional
        Shape and dtype of the result, from arguments without data. The default suits a result like the first argument.

    Returns
    -------
    callable
        Decorator for a function of tensors that share their leading batch dimensions, floats, ints and None, which
        returns one new contiguous tensor; ``function.__wrapped__`` is the plain body.

    Notes
    -----
    The operator has no derivative on purpose: a backward pass through it raises, and forward mode sees a constant.
    `jpmhc.autodiff` holds the derivatives. Under ``torch.compile`` the body stays one node of the graph, so it may
    branch on data where that costs nothing. It runs with autocast off, so no product in it drops below its arguments'
    precision.
    """

    def register(body: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
        @wraps(body)
        def full_precision(*args: Arguments.args, **options: Arguments.kwargs) -> Tensor:
            device_type = next(value.device.type for value in args if isinstance(value, Tensor))
            if not torch.is_autocast_enabled(device_type):
                return body(*args, **options)
            with torch.autocast(device_type, enabled=False):
                return body(*args, **options)

        operator = torch.library.custom_op(f"jpmhc::{name}", full_precision, mutates_args=())
        operator.register_fake(fake)

        def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
            def front(value: Any, dim: int | None) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)

            return operator(*map(front, args, in_dims)), 0

        operator.register_vmap(batched)

        @wraps(body)
        def call(*args: Arguments.args, **options: Arguments.kwargs) -> Tensor:
            return operator(*args, **options)

        return call

    return register
