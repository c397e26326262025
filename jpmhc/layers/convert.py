"""Conversion of an existing model: its residual additions become hyper-connections and it computes what it computed."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import nn

from jpmhc.layers.adapters.blocks import (
    Collector,
    Connections,
    ConvertedBlock,
    StreamNorm,
    generalise,
    read_before,
    specialise,
)
from jpmhc.layers.adapters.inputs import as_example, make_example
from jpmhc.layers.adapters.outputs import HiddenStates, largest_difference, shapes
from jpmhc.layers.adapters.record import Anatomy, where
from jpmhc.layers.adapters.trace import survey
from jpmhc.layers.hyper_connection import HyperConnection
from jpmhc.layers.mixer import Mixer

_Model = TypeVar("_Model", bound=nn.Module)
# Decided by conversion itself, for every layer its own.
_OWN = {"dim", "branch", "layer_index", "reads", "stream_embedding", "device", "dtype"}


def convert(
    model: _Model,
    streams: int = 4,
    mixer: str | Mixer = "cayley",
    gate: str = "softmax",
    *,
    example: Any = None,
    check: bool = True,
    **layer_options: Any,
) -> _Model:
    """Give an existing model hyper-connections, in place; at first it computes what it computed before.

    The model runs once on a small example while every residual vector is watched. Each ``x = x + branch(x)`` of each
    block becomes a :class:`~jpmhc.layers.HyperConnection`: the first block of a chain makes n streams, the last one
    takes their mean, and between them streams (..., n, d) go from block to block. The code of the blocks is not
    replaced; it runs on an object that stands for the residual vector, so caches, masks, keyword arguments, tuple
    results, dropout and gradient checkpointing work as before. Nothing is known about particular architectures.

    Pre-norm, post-norm and parallel blocks (attention and feed-forward added together are one connection) of
    Transformers, timm and ``torch.nn`` are converted. A norm on the residual path (post-norm) normalises every stream.
    Features must be the last dimension of residual vectors; models with channels before the tokens are refused.

    Parameters
    ----------
    model : Module
        With at least one list of blocks; or a single block. On a real device, not ``"meta"``.
    streams : int
        Number of streams n.
    mixer : str or Mixer
        Name, or an instance of which every connection gets a copy.
    gate : str
        As for :class:`~jpmhc.layers.HyperConnection`.
    example : Tensor, tuple or dict, optional
        Arguments that run the model once; made up for Transformers' text and image models and the modules of
        ``torch.nn``. It decides which path is converted: give a decoder its encoder states.
    check : bool
        Run the example before and after, and raise if the outputs differ by more than 1000 units of round-off
        relative to the largest output (at most a tenth).
    **layer_options
        Other arguments of :class:`~jpmhc.layers.HyperConnection` (``norm``, ``dynamic``, ``static``, ...).

    Returns
    -------
    Module
        The same object, in the same training mode.

    Raises
    ------
    ValueError
        For a model that was converted, is on the device ``"meta"``, does not say what it takes, has residual additions
        that streams cannot replace (they are named, with their line), does not run with streams between its blocks, or
        has an output that changed. The model is as it was.
    TypeError
        For anything but a module, and for options that are conversion's own: ``dim``, ``branch``, ``layer_index``,
        ``reads``, ``stream_embedding``, ``device``, ``dtype``.

    Warns
    -----
    UserWarning
        If a list of blocks did not run on the example, or a module of the class of converted blocks or one that adds to
        a residual vector stands in no chain, and therefore stays as it is, and if the model has adapters of PEFT
        already, which are saved without the mixing weights.

    Notes
    -----
    Names and values of the original's weights stay, so ``load_state_dict(original, strict=False)`` misses only the new
    keys ``BLOCK.hyper_connections.K.*``, K the addition's place in the block. New parameters are trainable, on their
    block's device and float32 (float64 in a float64 model) whatever the model's dtype is; those of the model keep
    ``requires_grad``. ``layer_index`` counts additions along a chain: attention 0, feed-forward 1, the next
    attention 2. ``layers.mixing_parameters(model)`` returns them, to be trained without weight decay.

    A model of Transformers notes the options in ``model.config.hyper_connections``. Its ``save_pretrained`` writes all
    weights; :func:`load_converted` reads them back, ``from_pretrained`` alone gives the plain model. Hidden
    states (``output_hidden_states=True``) are means over streams.

    Conversion takes one run of the example, with ``check`` three, without gradients. Features are what the norms run
    over that read residual vectors, and without norms what a contraction does. A block in which neither reads them is
    also called with vectors of twice the width, which only those without features in the last dimension take.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> block = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    >>> model = torch.nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    >>> x = torch.randn(1, 5, 16)
    >>> before = model(x)
    >>> torch.allclose(layers.convert(model, streams=4)(x), before, atol=1e-5)
    True
    >>> [name for name, _ in model.layers[1].named_parameters() if "hyper" in name][:2]
    ['hyper_connections.0.static', 'hyper_connections.0.projection']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, HyperConnection) for module in model.modules()):
        raise ValueError("model: it has hyper-connections already; convert the original")
    taken = sorted(_OWN & set(layer_options))
    if taken:
        raise TypeError(f"layer_options: {', '.join(taken)} cannot be set, conversion decides for every layer")
    if gate == "uniform" and streams != 1:
        raise ValueError(
            "gate: 'uniform' has no place in a converted model, whose streams start equal and would stay so for ever; "
            "take softmax, sigmoid or tanh"
        )
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.is_meta:
        raise ValueError("model: expected parameters on a real device; load or initialise the weights first")
    args, kwargs = make_example(model) if example is None else as_example(example)
    options = {"streams": streams, "mixer": mixer, "gate": gate, **layer_options}

    def call() -> Any:
        return model(*args, **kwargs)

    with _evaluation(model):
        before = call() if check else None
        found = survey(model, call)
        _refuse_patched(found.chains)
        connections = {name: _connections(chain, options) for name, chain in found.chains.items()}
        with ExitStack() as undo:
            for name, chain in found.chains.items():
                _attach(model, name, chain, connections[name], undo)
            if check:
                _compare(_run(call), before)
            undo.pop_all()
    for name, chain in found.chains.items():
        for anatomy, own in zip(chain, connections[name], strict=True):
            own.train(anatomy.block.training)
    if any(hasattr(module, "peft_config") for module in model.modules()):
        warnings.warn(
            "model: it has adapters of PEFT, whose save_pretrained leaves the mixing weights out; convert first and "
            'name them in modules_to_save=["hyper_connections"], or merge the adapters before you save',
            stacklevel=2,
        )
    if found.idle:
        warnings.warn(f"not converted, did not run on the example: {', '.join(found.idle)}", stacklevel=2)
    if found.aside:
        warnings.warn(
            "not converted, though of the class of blocks that are, in no list whose members hand a vector on: "
            f"{', '.join(found.aside)}",
            stacklevel=2,
        )
    if found.plain:
        warnings.warn(
            "not converted, though they or the code around them add to vectors, in no list whose members hand one on: "
            f"{', '.join(found.plain)}",
            stacklevel=2,
        )
    if hasattr(model, "save_pretrained"):
        config: Any = model.config
        config.hyper_connections = _note(options)
    return model


def _connections(chain: list[Anatomy], options: dict[str, Any]) -> list[Connections]:
    result, index = [], 0
    for anatomy in chain:
        weight = next(anatomy.block.parameters())
        layers = []
        for _ in anatomy.additions:
            own = {**options, "mixer": copy.deepcopy(options["mixer"])}
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            layers.append(
                HyperConnection(anatomy.shape[-1], layer_index=index, device=weight.device, dtype=dtype, **own)
                # The constants of a mixer and a gate are made on the CPU and follow by the move.
                .to(weight.device)
            )
            index += 1
        result.append(
            Connections(
                layers,
                first=anatomy is chain[0],
                last=anatomy is chain[-1],
                ndim=len(anatomy.shape),
                argument=anatomy.argument,
            )
        )
    return result


def _attach(model: nn.Module, name: str, chain: list[Anatomy], connections: list[Connections], undo: ExitStack) -> None:
    """Specialise the modules of a chain; ``undo`` collects what takes it back."""
    for anatomy, own in zip(chain, connections, strict=True):
        specialise(anatomy.block, ConvertedBlock)
        undo.callback(generalise, anatomy.block)
        anatomy.block.add_module("hyper_connections", own)
        undo.callback(delattr, anatomy.block, "hyper_connections")
        # A norm that several blocks share is specialised once.
        for norm in (norm for norm in anatomy.norms if not isinstance(norm, StreamNorm)):
            specialise(norm, StreamNorm)
            undo.callback(generalise, norm)
        for reader in anatomy.readers:
            # First, for the hooks that are there already know nothing of residual vectors.
            undo.callback(reader.register_forward_pre_hook(read_before, with_kwargs=True, prepend=True).remove)
    collect = HiddenStates(len(chain[0].shape), connections[0].streams, connections[0].width)
    for around in _around(model, name):
        undo.callback(around.register_forward_hook(collect).remove)
        if hasattr(around, "forward_intermediates") and not isinstance(around, Collector):
            specialise(around, Collector)
            undo.callback(generalise, around)
        if isinstance(around, nn.TransformerEncoder):
            # Its fast path packs padded batches into nested tensors, which have no place for streams.
            undo.callback(setattr, around, "use_nested_tensor", around.use_nested_tensor)
            around.use_nested_tensor = False


def _around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the modules that contain a list of blocks, outermost first; a single block is contained in none."""
    module = model
    for key in name.split(".") if name else []:
        yield module
        module = getattr(module, key)
    if isinstance(module, nn.Sequential):
        yield module


def _run(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise ValueError(
            f"model: with streams between its blocks it does not run, {error} at {where(error.__traceback__)}; "
            "what a block hands on goes to the next one alone"
        ) from error


def _compare(after: Any, before: Any) -> None:
    ours, theirs = shapes(after), shapes(before)
    for got, expected in zip_longest(ours, theirs):
        if got != expected:
            raise ValueError(
                f"model: its output on the example has a tensor of shape {got}, not {expected} as before; "
                "a model that collects what its blocks return collects streams"
            )
    difference, size, dtype = largest_difference(after, before)
    allowed = min(1000 * torch.finfo(dtype).eps, 0.1) * size
    if not difference <= allowed:
        raise ValueError(
            f"model: its output on the example changed by {difference:.2g}, more than {allowed:.2g}; "
            "the mixer or the options do not start as the plain residual, or the model is not deterministic"
        )


def _refuse_patched(chains: dict[str, list[Anatomy]]) -> None:
    for chain in chains.values():
        for anatomy in chain:
            if "forward" in vars(anatomy.block):
                raise ValueError(
                    f"model: {anatomy.name or 'the model itself'} has a forward of its own on the instance "
                    "(torch.compile, device placement hooks?); convert before it is put there"
                )


def _note(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as a configuration file can hold them: an instance is noted by the name of its class."""
    return json.loads(json.dumps(options, default=lambda value: {"instance": type(value).__name__}))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; put modes and random state back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
