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
    """Return what a list holds, or what the lists in it hold; nothing where lists stand beside others."""
    children = _children(module, name)
    inner = [_members(child, key) for key, child in children if _is_container(child)]
    if not inner:
        return children
    return [*chain.from_iterable(inner)] if len(inner) == len(children) and all(inner) else []


def _children(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]


def _is_container(module: nn.Module) -> bool:
    """Whether a module is a list without code of its own that may add something."""
    return isinstance(module, KINDS) and type(module).forward in (nn.Module.forward, nn.Sequential.forward)


def is_nested(model: nn.Module, name: str) -> bool:
    """Whether a list has nothing but lists for members."""
    module = model.get_submodule(name)
    return isinstance(module, KINDS) and all(_is_container(child) for child in module.children())


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
