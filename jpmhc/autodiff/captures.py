"""Tensors that a function uses without being given them, found and turned into arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from jpmhc.autodiff.precision import raised
from jpmhc.autodiff.recording import Call, Outside, Recording, flatten, handed_on, version_of
from jpmhc.autodiff.stance import uncompiled


def carries_derivative(tensor: Tensor) -> bool:
    """Whether a derivative of any order or mode passes through ``tensor``."""
    while True:
        if tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None:
            return True
        if not _functorch.is_functorch_wrapped_tensor(tensor):
            return False
        tensor = _functorch.get_unwrapped(tensor)


def _constant(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _matters(tensor: Tensor) -> bool:
    """Whether a captured tensor may not stay as it is: derivative, mapped axis or low precision."""
    return (
        tensor.requires_grad
        or _functorch.is_functorch_wrapped_tensor(tensor)
        or forward_ad.unpack_dual(tensor).tangent is not None
        or raised(tensor) is not tensor
    )


class _Recorder(TorchFunctionMode):
    """Collects the tensors that enter a computation from outside and lets it use constants in their place."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(tensor): tensor for tensor in given}
        self._constants: dict[int, Tensor] = {}
        self.recording = Recording()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, build = flatten(args, kwargs or {})
        outside = [
            Outside(place, leaf, version_of(leaf))
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and id(leaf) not in self._known
        ]
        self.recording.calls.append(Call.of(func, kwargs or {}, leaves, outside))
        for place, tensor, _ in outside:
            leaves[place] = self._constant(tensor)
        args, kwargs = build(leaves)
        result = func(*args, **kwargs)
        # Holding every result keeps its id from being used again.
        self._known.update((id(leaf), leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def unmade(self, output: Any) -> list[int]:
        """Places among the leaves of the output of what no operation has made and may not stay as it is."""
        leaves = enumerate(pytree.tree_leaves(output))
        return [i for i, leaf in leaves if isinstance(leaf, Tensor) and id(leaf) not in self._known and _matters(leaf)]

    def _constant(self, tensor: Tensor) -> Tensor:
        if not _matters(tensor):
            return tensor
        if id(tensor) not in self._constants:
            self.recording.captured.append(tensor)
            self._constants[id(tensor)] = raised(tensor.detach())
        return self._constants[id(tensor)]


def find_captures(fn: Callable[..., Any], arguments: Sequence[Any], owner: Callable[..., Any]) -> tuple[Recording, Any]:
    """Record what ``fn(*arguments)`` uses without being given.

    ``owner`` is the function whose words name a capture in an error.

    Returns
    -------
    tuple
        The recording, and the output of ``fn`` with its arguments and captures held constant.

    Raises
    ------
    ValueError
        ``fn`` writes to its arguments; or a derivative enters through an operation that hides its inputs, a custom
        ``autograd.Function`` applied to a captured tensor, say.
    """
    # Version counters, which show what was written to, exist outside inference mode alone.
    with torch.inference_mode(False), torch.enable_grad():
        constants = pytree.tree_map_only(Tensor, _constant, tuple(arguments))
        tensors = [leaf for leaf in pytree.tree_leaves(constants) if isinstance(leaf, Tensor)]
        versions = [tensor._version for tensor in tensors]
        recorder = _Recorder(tensors)
        with uncompiled():
            with recorder:
                output = fn(*constants)
            places = recorder.unmade(output)
            if places:
                # What an operation makes that torch does not show is another tensor every time.
                others = pytree.tree_leaves(fn(*constants))
                places = [place for place in places if others[place] is pytree.tree_leaves(output)[place]]
            with recorder:
                output = handed_on(output, places)
        recorder.recording.returned = tuple(places)
    if versions != [tensor._version for tensor in tensors]:
        raise ValueError("fn: writes to its arguments in place, which the iteration still needs; return a new tensor")
    hidden = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and carries_derivative(leaf)]
    if hidden:
        name = _name_of_source(owner, hidden[0])
        raise ValueError(
            f"fn: captures {name}, which needs a gradient and is used where it cannot be replaced by an argument "
            "(by an autograd.Function or a scripted module); pass it through args: "
            "fixed_point(lambda z, weight: ..., z0, weight), or for a module "
            "fixed_point(lambda z, weights: torch.func.functional_call(module, weights, (z,)), z0, "
            "dict(module.named_parameters()))"
        )
    return recorder.recording, output


def _name_of_source(fn: Callable[..., Any], output: Tensor) -> str:
    """Name of a tensor at which the graph of ``output`` ends, as ``fn`` knows it."""
    names = {id(tensor): name for name, tensor in _reachable(fn, "")}
    pending, seen = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        source = getattr(node, "variable", None)
        if source is not None:
            shape = f"a tensor of shape {tuple(source.shape)}"
            return f"`{names[id(source)]}`, {shape}" if id(source) in names else shape
        pending.extend(following for following, _ in node.next_functions)
    return "a tensor"


def _reachable(holder: Any, name: str, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """Tensors that an object holds, with the path to them: closures, bound methods, partials, modules, containers."""
    if isinstance(holder, Tensor):
        yield name, holder
    elif isinstance(holder, nn.Module):
        for path, parameter in holder.named_parameters():
            yield f"{name}.{path}".strip("."), parameter
    if depth == 0 or isinstance(holder, Tensor | nn.Module):
        return
    inner: dict[str, Any] = {}
    if isinstance(holder, functools.partial):
        inner = {"": holder.func, **{str(i): value for i, value in enumerate(holder.args)}, **holder.keywords}
    elif inspect.ismethod(holder):
        inner = {"self": holder.__self__, "": holder.__func__}
    elif inspect.isfunction(holder):
        variables = inspect.getclosurevars(holder)
        inner = {**variables.globals, **variables.nonlocals}
    elif isinstance(holder, dict):
        inner = {str(key): value for key, value in holder.items()}
    elif isinstance(holder, list | tuple):
        inner = {str(i): value for i, value in enumerate(holder)}
    elif hasattr(holder, "__dict__") and not inspect.ismodule(holder) and not inspect.isclass(holder):
        inner = vars(holder)
    for key, value in inner.items():
        yield from _reachable(value, f"{name}.{key}".strip("."), depth - 1)
