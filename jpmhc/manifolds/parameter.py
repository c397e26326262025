"""A parameter that lives on a manifold and never loses it in silence."""

from __future__ import annotations

import copy
import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from jpmhc.kernels.precision import full_precision
from jpmhc.manifolds.arguments import POINT, check_dtype, check_shape, check_values
from jpmhc.manifolds.base import Manifold
from jpmhc.manifolds.peer import geoopt

_PLACE = "_manifold_keeper"  # among a module's attributes


class Parameter(geoopt.ManifoldParameter):
    """Points of a manifold as a module parameter.

    Parameters
    ----------
    data : Tensor
        float32 or float64, of a shape the manifold accepts.
    manifold : geoopt.Manifold
        Kept as ``parameter.manifold``.
    requires_grad : bool
        As for ``torch.nn.Parameter``.

    Raises
    ------
    TypeError, ValueError
        If the dtype or the shape does not fit, or if the values hold NaN or infinity or are off the manifold by more
        than 1e-5; values on the meta device are not looked at.

    Notes
    -----
    The manifold survives ``deepcopy``, pickle, ``torch.save`` and ``torch.load(weights_only=True)`` (which asks for
    geoopt's classes other than ``Euclidean`` in ``torch.serialization.add_safe_globals``), ``.to()``, DDP and
    ``load_state_dict``, whose values are checked; copies, files and ``.to()`` keep values and dtype as they are, and an
    optimiser checks them when it takes the parameter in. Where torch replaces a module's parameter by a plain one
    (``load_state_dict(assign=True)``, ``to_empty`` from the meta device, an assignment) the module it is registered in
    puts the manifold back; delete the attribute first to drop it on purpose. To see conversions, importing this wraps
    ``torch.nn.Module._apply``, which other modules pass through. FSDP2 replaces parameters without telling the module,
    FSDP1 flattens them into another: leave them out with `unsharded_parameters`. `lost_parameters` finds those that
    were not, and the optimisers of :mod:`jpmhc.optim` refuse what stands in their place.
    """

    manifold: geoopt.Manifold

    def __new__(cls, data: Tensor, manifold: geoopt.Manifold | None = None, requires_grad: bool = True) -> Parameter:
        """Check the value and make the parameter."""
        if manifold is None:
            # Other libraries make a parameter anew by its class alone.
            raise TypeError(
                "manifold: a parameter on a manifold is made with it; accelerate's dispatch and offload leave it out: "
                "use load_state_dict, and keep modules with such parameters out of them"
            )
        if not isinstance(manifold, geoopt.Manifold):
            raise TypeError(f"manifold: expected a geoopt.Manifold, got {type(manifold).__name__}")
        check_point("data", data, manifold)
        return _made(data, manifold, requires_grad, cls)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        if id(self) not in memo:
            data = self.data.clone(memory_format=torch.preserve_format)
            manifold = copy.deepcopy(self.manifold, memo)
            memo[id(self)] = _made(data, manifold, self.requires_grad, type(self))
        result: Parameter = memo[id(self)]
        return result

    def module_load(self, other: Tensor, assign: bool = False) -> Tensor:
        """Return what takes this parameter's place where torch swaps tensors (``torch.__future__``)."""
        data = other.detach() if assign else self.detach().clone().copy_(other)
        return _made(data, self.manifold, self.requires_grad, type(self))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return rebuild_parameter, (self.detach(), self.manifold, self.requires_grad)


def rebuild_parameter(data: Tensor, manifold: geoopt.Manifold, requires_grad: bool) -> Parameter:
    """Make the parameter that a file describes, with the values and the dtype it had, as a copy does.

    What is off its manifold, or in half precision, can still be read back and projected; an optimiser refuses it.
    """
    return _made(data, manifold, requires_grad, Parameter)


def unsharded_parameters(module: nn.Module) -> set[nn.Parameter]:
    """All manifold parameters of a module, for ``fully_shard(module, ignored_params=...)``.

    A shard of a matrix is not a point of a manifold, and 4 x 4 matrices are not worth sharding. FSDP1 takes them as
    ``FullyShardedDataParallel(module, ignored_states=list(...))``. Neither averages the gradients of what it leaves
    out; the training loop does, in the order of ``module.parameters()``: a set has another order on every process.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import manifolds
    >>> module = torch.nn.Linear(3, 3)
    >>> so = manifolds.SpecialOrthogonal()
    >>> module.weight = manifolds.Parameter(so.origin(3, 3), so)
    >>> [tuple(parameter.shape) for parameter in manifolds.unsharded_parameters(module)]
    [(3, 3)]
    """
    return {parameter for _, parameter in bound_parameters(module)}


def lost_parameters(module: nn.Module, *, values: bool = False) -> list[str]:
    """Names of parameters that were given a manifold when registered and now are plain tensors or shards.

    Parameters
    ----------
    module : Module
        Any.
    values : bool
        Also those that hold NaN or infinity, or are off their manifold by more than 1e-5: averaging weights, writing
        ``.data`` and ``torch.nn.init`` tell nobody. Reads the device once a parameter.

    Returns
    -------
    list of str
    """
    lost = []
    for prefix, child in module.named_modules():
        keeper = _keeper_of(child)
        if keeper is not None:
            lost += [
                f"{prefix}.{name}".lstrip(".") for name in keeper.manifolds if _replacement(child, name) is not None
            ]
    if values:
        lost += [name for name, parameter in bound_parameters(module) if name not in lost and _is_off(parameter)]
    return lost


def bound_parameters(module: nn.Module) -> list[tuple[str, geoopt.ManifoldParameter]]:
    """Return all parameters of a module that are on a manifold, geoopt's too, with their names."""
    named = module.named_parameters()
    return [(name, parameter) for name, parameter in named if isinstance(parameter, geoopt.ManifoldParameter)]


def _is_off(parameter: geoopt.ManifoldParameter) -> bool:
    try:
        check_point("", parameter.detach(), parameter.manifold)
    except (TypeError, ValueError):
        return True
    return False


def replacements() -> dict[int, str]:
    """Return the ids of all parameters that stand where a module had one on a manifold, with its place.

    An optimiser sees the parameters of a model and not the model, and asks here.
    """
    with _LOCK:
        keepers = list(_KEEPERS)
    return {
        id(replacement): f"{type(module).__name__}.{name}"
        for keeper in keepers
        if (module := keeper.module()) is not None
        for name in list(keeper.manifolds)
        if (replacement := _replacement(module, name)) is not None
    }


def _replacement(module: nn.Module, name: str) -> Tensor | None:
    """Return the parameter that moves in place of a point: a plain one, a shard, or one that swallowed it."""
    parameter = module._parameters.get(name)
    if parameter is None:
        # FSDP1 deletes what it flattens and leaves a view of the flat parameter.
        view = vars(module).get(name)
        whole = view._base if isinstance(view, Tensor) else None
        return whole if getattr(whole, "_is_flat_param", False) else None
    if isinstance(parameter, geoopt.ManifoldParameter) and parameter.manifold.check_point(parameter):
        return None
    return parameter


class _Keeper:
    """The manifolds of a module's points, by name; it lies among the module's attributes and is copied with them.

    It holds the module weakly: a module is freed with its last name, without waiting for the collector.
    """

    def __init__(self, module: nn.Module | None, manifolds: dict[str, geoopt.Manifold]) -> None:
        self._watch(module, manifolds)

    def _watch(self, module: nn.Module | None, manifolds: dict[str, geoopt.Manifold]) -> None:
        self._module = None if module is None else weakref.ref(module)
        self.manifolds = manifolds
        with _LOCK:
            _KEEPERS.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module(), "manifolds": self.manifolds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._watch(**state)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Keeper:
        # A module that copies itself in its own way may not be known as copied yet, and would be copied without end.
        return _Keeper(memo.get(id(self.module())), copy.deepcopy(self.manifolds, memo))

    def module(self) -> nn.Module | None:
        """Return the module, while there is one."""
        return None if self._module is None else self._module()

    def __call__(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Convert a module as read from a file of an earlier version, whose ``_apply`` this is."""
        module = self.module()
        if module is None or vars(module).get("_apply") is not self:
            raise RuntimeError(
                "a shallow copy of a module that an earlier version saved cannot be converted: make it anew"
            )
        _keeper_of(module)
        return module._apply(fn, recurse)


def _keeper_of(module: nn.Module) -> _Keeper | None:
    """Return what watches over this module, if anything does."""
    attributes = vars(module)
    if isinstance(attributes.get("_apply"), _Keeper):
        attributes[_PLACE] = attributes.pop("_apply")
    keeper: _Keeper | None = attributes.get(_PLACE)
    if keeper is not None and keeper.module() is not module:
        # A shallow copy has all attributes of another module, and from here on a life of its own.
        keeper = attributes[_PLACE] = _Keeper(module, dict(keeper.manifolds))
    return keeper


def _on_registration(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Keep the manifold of a parameter that is replaced by a plain one; watch over modules that hold one."""
    keeper = _keeper_of(module)
    if isinstance(parameter, Parameter):
        if keeper is None:
            keeper = vars(module)[_PLACE] = _Keeper(module, {})
            module.register_load_state_dict_post_hook(_check_loaded)
        keeper.manifolds[name] = parameter.manifold
    elif keeper is not None and parameter is not None and name in keeper.manifolds:
        if isinstance(parameter, geoopt.ManifoldParameter):
            del keeper.manifolds[name]
        elif name in module._parameters:
            return Parameter(parameter.data, keeper.manifolds[name], parameter.requires_grad)
        elif not _is_piece(parameter):
            del keeper.manifolds[name]  # it was deleted on purpose
    return None


_torch_apply = nn.Module._apply


@functools.wraps(_torch_apply)
def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    # Only a method of the class is told which module is converted: an attribute of the module would be one of its
    # shallow copies too, and convert the other. Torch has no hook for conversions; all of them end here.
    keeper = _keeper_of(self) if _PLACE in vars(self) else None
    if keeper is None:
        return _torch_apply(self, fn, recurse)

    def plain(tensor: Tensor) -> Tensor:
        # Where nothing is to be converted fn returns the point itself, of which torch can make no other parameter.
        result = fn(tensor)
        return result.detach() if isinstance(result, geoopt.ManifoldParameter) else result

    try:
        return _torch_apply(self, plain, recurse)
    finally:
        for name, manifold in keeper.manifolds.items():
            parameter = self._parameters.get(name)
            # A shard is no plain parameter, and no point either.
            if type(parameter) is nn.Parameter:
                # In place: optimisers hold the parameter that torch converted by swapping tensors.
                restored: Any = parameter
                restored.__class__ = Parameter
                restored.manifold = manifold


def _is_piece(parameter: Tensor) -> bool:
    """Whether a parameter shows a part of a larger tensor, as those do that FSDP1 lends a module for a checkpoint."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False  # there is no FSDP1 without processes
    return parameter.layout is torch.strided and parameter.untyped_storage().nbytes() > parameter.nbytes


def _check_loaded(module: nn.Module, _: Any) -> None:
    for name, parameter in module._parameters.items():
        if isinstance(parameter, Parameter):
            check_point(name, parameter.detach(), parameter.manifold)


def check_point(name: str, data: Tensor, manifold: geoopt.Manifold) -> None:
    """Refuse what is not a point of the manifold; on the meta device values are not looked at."""
    check_dtype(name, data)
    if data.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {data.layout}")
    if not isinstance(manifold, Manifold):
        manifold.assert_check_point(data)
        if data.device.type != "meta" and not torch.isfinite(data).all():
            raise ValueError(f"{name}: holds NaN or infinity")
        if data.device.type != "meta":
            with full_precision(data.device):
                right, fault = manifold.check_point_on_manifold(data, explain=True)
            if not right:
                raise ValueError(f"{name}: not lying on {manifold}, {fault}; project it with projx")
        return
    check_shape(manifold, name, data.shape)
    if data.device.type != "meta":
        check_values(manifold, name, data, POINT, data)


def _made(data: Tensor, manifold: geoopt.Manifold, requires_grad: bool, cls: type[Parameter]) -> Parameter:
    """Make a parameter without a look at its values."""
    instance: Parameter = Tensor._make_subclass(cls, data.detach(), requires_grad)
    instance.manifold = manifold
    return instance


# The collector may free a module, or make one, while a thread holds the lock.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)
_KEEPERS: weakref.WeakSet[_Keeper] = weakref.WeakSet()
nn.Module._apply = _apply  # type: ignore[method-assign]
register_module_parameter_registration_hook(_on_registration)  # type: ignore[arg-type]  # it may return a tensor
