"""The lists of a model that may be chains of blocks."""

from __future__ import annotations

from itertools import chain

from torch import nn

# Lists by name, with the names of their members.
Lists = dict[str, list[tuple[str, nn.Module]]]
KINDS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def block_lists(module: nn.Module, name: str = "") -> Lists:
    """Outermost lists of composite modules, by name, with the names of their members; lists of lists are one."""
    members = _members(module, name) if isinstance(module, KINDS) else []
    if members and all(next(child.children(), None) is not None for _, child in members):
        return {name: members}
    return distinct(*(block_lists(child, key) for key, child in _children(module, name)))


def _members(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return what a list holds; of a list of nothing but lists what those hold, where that is composite throughout."""
    children = _children(module, name)
    if is_nested(module):
        inner = [*chain.from_iterable(_members(child, key) for key, child in children)]
        if all(next(child.children(), None) is not None for _, child in inner):
            return inner
    return children


def _children(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]


def _is_container(module: nn.Module) -> bool:
    """Whether a module is a list without code of its own that may add something."""
    return isinstance(module, KINDS) and type(module).forward in (nn.Module.forward, nn.Sequential.forward)


def is_nested(module: nn.Module) -> bool:
    """Whether a list has nothing but lists for members."""
    return isinstance(module, KINDS) and len(module) > 0 and all(_is_container(child) for child in module.children())


def is_uncalled(module: nn.Module) -> bool:
    """Whether a list has lists for members that no code can call, so that their own additions are those around them."""
    return any(type(child).forward is nn.Module.forward for child in module.children())


def inner_lists(model: nn.Module, name: str) -> Lists:
    """Outermost lists inside the list of that name, or inside the model."""
    return distinct(*(block_lists(child, key) for key, child in _children(model.get_submodule(name), name)))


def distinct(*lists: Lists) -> Lists:
    """Join lists, without those that hold blocks of earlier ones under further names."""
    result, seen = Lists(), set[nn.Module]()
    for name, blocks in ((name, blocks) for some in lists for name, blocks in some.items()):
        if seen.isdisjoint(block for _, block in blocks):
            result[name] = blocks
            seen.update(block for _, block in blocks)
    return result
