"""Where the residual additions of a model are: one run on a small example in which every residual vector is watched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from jpmhc.autodiff.stance import uncompiled
from jpmhc.layers.adapters.axis import Axes, features_elsewhere, takes_any_size
from jpmhc.layers.adapters.blocks import swap_first, swap_result
from jpmhc.layers.adapters.lists import KINDS, Lists, block_lists, distinct, inner_lists, is_uncalled
from jpmhc.layers.adapters.record import Anatomy, Normed, Record, TracedVector, vectors, where


@dataclass
class Survey:
    """What a traced run found.

    Attributes
    ----------
    chains : dict of str to list of Anatomy
        Name of the list of blocks, and its blocks in the order in which they run.
    idle : list of str
        Lists of blocks that did not run on the example.
    aside : list of str
        Modules that are in no chain, of the class of blocks that are.
    plain : list of str
        Modules that are in no chain and add to residual vectors, and lists of lists around whose members the model may.
    """

    chains: dict[str, list[Anatomy]] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)


def survey(model: nn.Module, call: Callable[[], Any]) -> Survey:
    """Find the chains of residual blocks that ``call()``, a run of the model, goes through.

    A chain is a ``ModuleList``, ``ModuleDict`` or ``Sequential`` (or the model itself) whose members hand one vector a
    token from each to the next and add to it. Outer lists are tried before the lists inside their members, and a list
    of lists as one before each by itself.

    Raises
    ------
    ValueError
        If there is no chain, or one with an addition that streams cannot take the place of; names both and where
        they stand.
    """
    refused: dict[str, _Refusal] = {}
    adding: dict[nn.Module, None] = {}
    for candidates in (block_lists(model), {"": [("", model)]}):
        found = _search(model, candidates, call, refused, adding)
        if found.chains or any(refusal.adds for refusal in refused.values()):
            break
    # Lists that add nothing (a patch embedding, a head) are no reason to give up beside a chain.
    unplaced = {name: refusal.reason for name, refusal in refused.items() if refusal.adds or not found.chains}
    if unplaced or not found.chains:
        reasons = [f"\n  {name or type(model).__name__}: {reason}" for name, reason in unplaced.items()]
        raise ValueError(
            f"model: the residual additions of {type(model).__name__} could not be placed:{''.join(reasons)}\n"
            "In a model of your own, write each `x = x + branch(x)` as `x = layers.HyperConnection(dim, branch)(x)` "
            "between layers.expand_streams and layers.reduce_streams, with layers.Residual(branch) for the plain one."
        )
    _name_others(model, found, adding)
    return found


def _name_others(model: nn.Module, found: Survey, adding: Iterable[nn.Module]) -> None:
    """Put what is in no chain and did not stay out of the example either into ``found``."""
    blocks = [anatomy.block for chain in found.chains.values() for anatomy in chain]
    known = {module for block in blocks for module in block.modules()}
    known |= {module for name in found.idle for module in model.get_submodule(name).modules()}
    classes = {type(block) for block in blocks}
    for name, module in model.named_modules():
        if module in known:
            continue
        if type(module) in classes:
            found.aside.append(name)
        elif module in adding and (not isinstance(module, KINDS) or known.isdisjoint(module.modules())):
            found.plain.append(name)


def _search(
    model: nn.Module,
    candidates: Lists,
    call: Callable[[], Any],
    refused: dict[str, _Refusal],
    adding: dict[nn.Module, None],
) -> Survey:
    """Run with lists of blocks, and again with the lists inside those that are no chains, until all others are."""
    found, inside = Survey(), dict[str, list[str]]()
    while candidates:
        run = _Run(candidates)
        refusals = run.refusals(call, found)
        adding.update(run.adding())
        inner = {name: inner_lists(model, name) for name in refusals}
        for name, refusal in refusals.items():
            module = model.get_submodule(name)
            members = {block for blocks in inner[name].values() for _, block in blocks}
            if all(block in members for _, block in candidates[name]):
                # The lists in it are told from one another when together they are no chain.
                adding.update({module: None} if is_uncalled(module) else {})
            elif isinstance(module, nn.ModuleDict):
                # What goes by names need not run one after the other: heads, adapters of tasks.
                refused[name] = _Refusal(refusal.reason)
            else:
                refused[name] = refusal
        if not refusals:
            # A model may go through lists in the members of a list whose members it does not call.
            inner = {name: lists for name in found.idle if (lists := _covering(model, name, candidates[name]))}
            inside.update({name: list(lists) for name, lists in inner.items()})
            for name in inner:
                adding.update(_Run(_others(candidates[name], inner[name])).probe(call))
        if not inner:
            break
        candidates = distinct(
            {name: blocks for name, blocks in candidates.items() if name not in inner}, *inner.values()
        )
    found.idle = _outermost_idle(found.idle, inside)
    return found


def _covering(model: nn.Module, name: str, blocks: list[tuple[str, nn.Module]]) -> Lists:
    """Return the lists in a list if every member has some: else the additions of the others would stay plain."""
    lists = inner_lists(model, name)
    inside = {block for members in lists.values() for _, block in members}
    return lists if not any(inside.isdisjoint(block.modules()) for _, block in blocks) else {}


def _others(blocks: list[tuple[str, nn.Module]], inner: Lists) -> Lists:
    """Return the composite modules in the members of a list, each by itself, that hold none of the lists in them."""
    known = {block for members in inner.values() for _, block in members}
    children = [(f"{name}.{key}", child) for name, block in blocks for key, child in block.named_children()]
    return {
        name: [(name, child)]
        for name, child in children
        if known.isdisjoint(child.modules()) and next(child.children(), None) is not None
    }


def _outermost_idle(idle: list[str], inside: dict[str, list[str]]) -> list[str]:
    """Name a list instead of all lists in it where none of them ran."""
    result = idle
    for name, inner in reversed(inside.items()):
        if all(key in result for key in inner):
            result = [*(key for key in result if key not in inner), name]
    return result


@dataclass
class _Refusal:
    """Why a list of blocks is no chain, and whether its blocks add to residual vectors in code of their own."""

    reason: str
    adds: bool = False


class _Run:
    """One traced run over some lists of blocks."""

    def __init__(self, candidates: Lists) -> None:
        self.candidates = candidates
        self.current: tuple[str, Record] | None = None
        self.calls: dict[str, list[tuple[Record, Tensor, Any]]] = {name: [] for name in candidates}
        self.failed: dict[str, str] = {}
        self.axes = Axes()

    def refusals(self, call: Callable[[], Any], found: Survey) -> dict[str, _Refusal]:
        """Run, put chains and idle lists into ``found`` and return the lists that are no chain, with the reason."""
        found.chains.clear()
        found.idle.clear()
        scripted = self._scripted()
        if scripted:
            return scripted
        hooks = list(self._hooks())
        try:
            with uncompiled(), self.axes:
                call()
        except Exception as error:
            if self.current is None:
                raise
            name, record = self.current
            reason = f"{record.anatomy.name}: {error} at {where(error.__traceback__)}"
            # What the other lists would have done is not known yet: they run again without this one.
            return {name: _Refusal(reason, self._adds(name))}
        finally:
            for hook in hooks:
                hook.remove()
        found.idle.extend(name for name, calls in self.calls.items() if not calls)
        for name, calls in self.calls.items():
            # What may have been no sum for lack of features is told by those.
            elsewhere = features_elsewhere(record for record, _, _ in calls if record.additions)
            refusal = elsewhere or self.failed.get(name) or (self._gap(name) if calls else None)
            if refusal:
                self.failed[name] = refusal
            elif calls:
                found.chains[name] = [record.anatomy for record, _, _ in calls]
        return {name: _Refusal(reason, self._adds(name)) for name, reason in self.failed.items()}

    def probe(self, call: Callable[[], Any]) -> dict[nn.Module, None]:
        """Run only to find the modules that add."""
        if self.candidates:
            self.refusals(call, Survey())
        return self.adding()

    def _scripted(self) -> dict[str, _Refusal]:
        return {
            name: _Refusal(f"{key} has a module made by torch.jit.script, which takes no hooks; convert before", True)
            for name, blocks in self.candidates.items()
            for key, block in blocks
            if any(isinstance(module, torch.jit.ScriptModule) for module in block.modules())
        }

    def _adds(self, name: str) -> bool:
        return any(record.adds for record, _, _ in self.calls[name])

    def adding(self) -> dict[nn.Module, None]:
        """Return the modules in whose code something was added to a residual vector."""
        return {module: None for calls in self.calls.values() for record, _, _ in calls for module in record.adding}

    def _gap(self, name: str) -> str | None:
        calls = [(record.anatomy, x, out) for record, x, out in self.calls[name]]
        blocks = [anatomy.name for anatomy, _, _ in calls]
        missing = {block for block, _ in self.candidates[name]} - set(blocks)
        if missing:
            return f"{', '.join(sorted(missing))} did not run on the example"
        if len(set(blocks)) < len(blocks):
            return "a block runs more than once, with one set of weights at several depths"
        for (before, _, out), (after, x, _) in pairwise(calls):
            if out is not x:
                return f"the vectors are changed between {before.name} and {after.name}"
        if len({anatomy.shape[-1] for anatomy, _, _ in calls}) > 1:
            return "the width changes along the list"
        return None

    def _hooks(self) -> Iterator[Any]:
        for name, blocks in self.candidates.items():
            for key, block in blocks:
                yield block.register_forward_pre_hook(partial(self._enter, name, key), with_kwargs=True)
                for inner in block.modules():
                    if inner is not block:
                        yield inner.register_forward_pre_hook(self._push, with_kwargs=True)
                        yield inner.register_forward_hook(self._pop, with_kwargs=True)
                # Before the hooks of others, which know nothing of residual vectors.
                yield block.register_forward_hook(partial(self._leave, name), prepend=True, with_kwargs=True)

    def _enter(
        self, name: str, key: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        argument = next(iter(inspect.signature(block.forward).parameters), "")
        inner = {member for members in block_lists(block).values() for _, member in members}
        record = Record(Anatomy(key, block, argument), inner, self.axes)

        def wrap(x: Any) -> Any:
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
                return x
            record.anatomy.shape = x.shape
            self.current = (name, record)
            self.calls[name].append((record, x, None))
            self.axes.begin(record.stack)
            return TracedVector(x, record)

        if not args and argument not in kwargs:
            return args, kwargs
        return swap_first(argument, args, kwargs, wrap)

    def _leave(self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if self.current is None or self.current[1].anatomy.block is not block:
            self.failed.setdefault(name, "its members take no vectors")
            return result
        record = self.current[1]
        block_name = record.anatomy.name or "the model itself"

        def unwrap(out: Any) -> Any:
            if not isinstance(out, TracedVector):
                reason = f"{block_name}: its result is not the sum of the residual additions"
                lost = f"{reason}; placed: {'; '.join(record.additions)}; taken as plain vectors: {record.last_uses()}"
                self.failed.setdefault(name, lost)
                return out
            if type(block).forward is nn.Sequential.forward or (isinstance(block, KINDS) and not record.adds):
                self.failed.setdefault(
                    name, f"{block_name}: a list of modules has no place for connections beside them"
                )
            elif out.place == 0:
                self.failed.setdefault(name, f"{block_name} adds nothing")
            elif out.has_been_read():
                reason = f"{block_name}: reads the residual again after its last addition"
                self.failed.setdefault(name, f"{reason}: {record.last_uses()}")
            out.spend()
            x = out.streams()
            self.calls[name][-1] = (record, self.calls[name][-1][1], x)
            return x

        result = swap_result(result, unwrap)
        record.anatomise()
        record.readers = self.axes.readers
        self.axes.begin()
        if name not in self.failed and not record.readers:
            record.any_size = takes_any_size(self.calls[name][-1][1], partial(self._run_on, block, args, kwargs))
            self.axes.begin()
        self.current = None
        return result

    def _run_on(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> bool:
        """Run a block once more, on other vectors, and say whether they come out by as many residual additions."""
        name, record = self.current  # type: ignore[misc]
        other = Record(record.anatomy, record.inner, self.axes)
        self.current = (name, other)
        try:
            args, kwargs = swap_first(record.anatomy.argument, args, kwargs, lambda _: TracedVector(x, other))
            result = block.forward(*args, **kwargs)
            out = result[0] if type(result) in (list, tuple) else result
            return isinstance(out, TracedVector) and out.place == len(record.additions)
        finally:
            self.current = (name, record)

    def _push(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.current is not None:
            record = self.current[1]
            for vector in vectors([*args, *kwargs.values()]):
                record.received.append((module, tuple(record.stack), vector))
            record.stack.append(module)

    def _pop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if self.current is None:
            return None
        record = self.current[1]
        if next(vectors([result]), None) is not None:
            record.carriers.update(record.stack)
        record.stack.pop()
        single = len(args) == 1 and not kwargs and isinstance(args[0], TracedVector)
        if single and "norm" in type(module).__name__.lower() and isinstance(result, Tensor):
            before = args[0]
            return TracedVector(result, record, before.place, Normed(before, module, tuple(record.stack)))
        return None
