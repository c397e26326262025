"""Saved Transformers models with hyper-connections, read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from jpmhc.layers.convert import convert

if TYPE_CHECKING:
    from os import PathLike

_KEY = re.compile(r"(?P<block>.*?)\.?\bhyper_connections\.(?P<rest>.*)")


def load_converted(
    factory: Any, directory: str | PathLike[str], *, options: dict[str, Any] | None = None, **arguments: Any
) -> Any:
    """Return the converted Transformers model that ``save_pretrained`` wrote to a directory.

    ``factory.from_pretrained`` reads the branches (and reports the mixing weights as unexpected), the model is
    converted with the options noted in its configuration, and the mixing weights are read from the same files.

    Parameters
    ----------
    factory : type
        A model class or an auto class of Transformers.
    directory : path
        With ``config.json`` and ``model.safetensors`` or its shards.
    options : dict, optional
        Arguments of :func:`~jpmhc.layers.convert` instead of or beside the noted ones; an option that was an instance
        (a mixer) must be given here, and an ``example`` where conversion needed one.
    **arguments
        Passed to ``from_pretrained``; ``variant`` also says which files hold the mixing weights.

    Returns
    -------
    Module
        The converted model, in evaluation mode as ``from_pretrained`` returns it; a tuple of it and the loading info
        with ``output_loading_info=True``.

    Raises
    ------
    ValueError
        If the configuration holds no note of a conversion, an option was an instance and is not given, or the files
        do not hold exactly the mixing weights of the model.
    """
    folder = Path(directory)
    loaded = factory.from_pretrained(folder, **arguments)
    model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
    saved = _saved(folder, arguments.get("variant"))
    noted = getattr(model.config, "hyper_connections", None)
    if noted is None and saved:
        raise ValueError(
            f"directory: {folder} has no note of a conversion in its configuration, but mixing weights "
            f"({min(saved)}, ...): parts of the model were converted; convert them as then and use load_state_dict"
        )
    if noted is None:
        raise ValueError(
            f"directory: {folder} holds a model without hyper-connections; use from_pretrained and convert"
        )
    options = {**noted, **(options or {})}
    for name, value in options.items():
        if isinstance(value, dict) and "instance" in value:
            raise ValueError(f"options: {name!r} was an instance of {value['instance']}; give it as {{{name!r}: ...}}")
    convert(model, **options)
    own = {name: tensor for name, tensor in model.state_dict().items() if _KEY.match(name)}
    _load(model, _match(saved, own), own)
    if not info:
        return model
    info[0]["unexpected_keys"] = {name for name in info[0]["unexpected_keys"] if not _KEY.match(name)}
    return model, info[0]


def _saved(folder: Path, variant: str | None) -> dict[str, Tensor]:
    from safetensors import safe_open

    part = "" if variant is None else f".{variant}"
    index = folder / f"model.safetensors.index{part}.json"
    whole = [f"model{part}.safetensors"]
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else whole
    found = {}
    for path in (folder / shard for shard in shards):
        if not path.exists():  # a plain model in files of another kind
            continue
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys() if _KEY.match(name)})  # noqa: SIM118
    return found


def _match(saved: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename saved weights to the model's names.

    Transformers writes some architectures under the block names of earlier versions. Where names differ, blocks
    correspond in their natural order; that is unambiguous for one chain of blocks.
    """
    ours, theirs = _blocks(own), _blocks(saved)
    if ours == theirs:
        return saved
    if len(ours) != len(theirs) or len({_stem(block) for block in ours}) > 1:
        raise ValueError(
            f"directory: the files hold mixing weights of {len(theirs)} blocks ({', '.join(theirs[:1])} ...), "
            f"the model has {len(ours)} ({', '.join(ours[:1])} ...)"
        )
    names = dict(zip(theirs, ours, strict=True))
    return {_rename(name, names): tensor for name, tensor in saved.items()}


def _load(model: nn.Module, saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    wrong = set(saved) ^ set(own) | {name for name in set(saved) & set(own) if saved[name].shape != own[name].shape}
    # Labels are compared in words by the layers; earlier versions wrote none.
    wrong = {name for name in wrong if not name.endswith(".label")}
    if wrong:
        raise ValueError(f"directory: mixing weights missing, unknown or of another shape: {', '.join(sorted(wrong))}")
    try:
        model.load_state_dict(saved, strict=False)
    except RuntimeError as error:
        raise ValueError(f"directory: {error}") from error


def _blocks(weights: dict[str, Tensor]) -> list[str]:
    names = {_KEY.match(name)["block"] for name in weights}  # type: ignore[index]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")])


def _stem(block: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in block.split("."))


def _rename(name: str, names: dict[str, str]) -> str:
    match = _KEY.match(name)
    assert match is not None
    return f"{names[match['block']]}.hyper_connections.{match['rest']}"
