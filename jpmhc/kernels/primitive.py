"""A batched primitive: a plain function on tensors with faster bodies beside it, one operation for tracing."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.nn import Parameter

from jpmhc.kernels.bodies import Choice, choose, device_of, leaves_the_library
from jpmhc.kernels.precision import full_precision, lowered
from jpmhc.kernels.transforms import transform_depth

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", bound=Tensor | tuple[Tensor, ...])

_modules: dict[str, str] = {}  # of every operation, the file that holds its reference


def _like_first(first: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return torch.empty_like(first, memory_format=torch.contiguous_format)


def primitive(
    name: str,
    fake: Callable[..., Any] = _like_first,
    vmap: Callable[..., Any] | None = None,
    arguments: Any = None,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Register a function as the operator ``jpmhc::name`` with a shape rule and a ``vmap`` rule.

    Parameters
    ----------
    name : str
        Name of the operator.
    fake : callable, optional
        Shape and dtype of the result, from arguments without data. The default suits a result like the first argument.
    vmap : callable, optional
        ``vmap(operator, info, in_dims, *args)`` in place of the rule that puts the new dimension first in all tensors.
    arguments : NamedTuple class, optional
        For an operation of many arguments: its fields are the schema, and the reference, the bodies, `fake` and callers
        of the function take one of it in place of the arguments.

    Returns
    -------
    callable
        Decorator for the reference: a function of tensors that share their leading batch dimensions, floats, ints and
        None, which returns one new tensor or a tuple of them. The operator returns them contiguous.
        ``function.__wrapped__`` is the plain reference.

    Notes
    -----
    The function runs as it is or, where `jpmhc.kernels.backend` finds one, by a body of the same name in the file of
    the same name in ``kernels/cpu`` or ``kernels/cuda``, which is imported by the first call that could use it.

    The operator has no derivative on purpose: a backward pass through it raises, and forward mode sees a constant.
    `jpmhc.autodiff` holds the derivatives. Under ``torch.compile`` the body stays one node of the graph, so it may
    branch on data where that costs nothing. It runs in `full_precision`, so no product in it drops below its arguments'
    precision.
    """

    def register(reference: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        module = _modules[name] = reference.__module__.rpartition(".")[2]

        def run(*args: Any) -> Any:
            function: Callable[..., Any] = choose(module, name, args).body or reference
            result = function(*args) if arguments is None else function(arguments(*args))
            # Compiled code relies on it, and what torch makes of strided arguments is as strided, as a rule.
            return result.contiguous() if isinstance(result, Tensor) else tuple(part.contiguous() for part in result)

        @wraps(reference)
        def precisely(*args: Any) -> Any:
            device = device_of(args)
            if not lowered(device):
                return run(*args)
            with full_precision(device):
                return run(*args)

        if arguments is not None:
            result_type = inspect.signature(reference).return_annotation
            signature = inspect.signature(arguments).replace(return_annotation=result_type)
            precisely.__signature__ = signature  # type: ignore[attr-defined]
        operator = torch.library.custom_op(f"jpmhc::{name}", precisely, mutates_args=())
        operator.register_fake(fake if arguments is None else lambda *args: fake(arguments(*args)))

        def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            def front(value: Any, dim: int | None) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)

            result = operator(*map(front, args, in_dims))
            return result, 0 if isinstance(result, Tensor) else tuple(0 for _ in result)

        operator.register_vmap(batched if vmap is None else partial(vmap, operator))

        @wraps(reference)
        def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            if arguments is not None:
                (args,) = args  # type: ignore[assignment]
            if leaves_the_library():
                bound = inspect.signature(precisely).bind(*args, **options)
                bound.apply_defaults()
                plain: Result = precisely(*bound.args)
                return plain
            if not options and _nobody_listens(args):
                result: Result = precisely(*args)
                return result
            return operator(*args, **options)

        return call

    return register


def _nobody_listens(args: tuple[Any, ...]) -> bool:
    """Whether a call may skip torch's dispatcher and its 25 us: no tracer, transform, mode, subclass or gradient."""
    if torch.compiler.is_compiling() or transform_depth() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._get_tracing_state() is not None or _len_torch_dispatch_stack_pre_dispatch():
        return False
    graph, found = torch.is_grad_enabled(), False
    for value in args:
        if isinstance(value, Tensor):
            if (
                (type(value) is not Tensor and type(value) is not Parameter)
                or value.is_meta
                or value.is_neg()  # resolved by the dispatcher; kernels read what is stored
                or (graph and value.requires_grad)
                # Of ``torch.autograd.grad(is_grads_batched=True)``, whose batch no transform's stack shows.
                or is_legacy_batchedtensor(value)
            ):
                return False
            found = True
    return found


def repeated(operator: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Rule of ``vmap`` for operations that sum over their batch or share arguments over it: one call an entry."""
    calls = [
        operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    results = tuple(torch.stack(entries) for entries in zip(*calls, strict=True))
    return results, tuple(0 for _ in results)


def operations() -> list[str]:
    """Return the names of all operations, sorted."""
    return sorted(_modules)


def choice(operation: str, *args: Any) -> Choice:
    """Tell which body would run a call now, and why.

    Parameters
    ----------
    operation : str
        One of `operations`.
    *args
        The call's arguments, all of them, by position.

    Returns
    -------
    Choice
        With ``backend`` and ``reason``; ``str()`` shows both.

    Raises
    ------
    ValueError
        If there is no such operation.
    TypeError
        If there is no tensor among the arguments.
    """
    if operation not in _modules:
        raise ValueError(f"operation: expected one of {', '.join(operations())}, got {operation!r}")
    if not any(isinstance(value, Tensor) for value in args):
        raise TypeError(f"args: expected the arguments of {operation}, a tensor first, got {args}")
    return choose(_modules[operation], operation, args)
