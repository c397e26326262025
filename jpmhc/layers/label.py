"""What a layer is, written into its state dict, so that weights do not load into another layer of the same shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from jpmhc.layers.constants import ConstantModule


class Labelled(ConstantModule):
    """A module whose weights mean something only beside the choices it was made with.

    Raw numbers of a Sinkhorn mixer fit a free one in shape and in nothing else. The buffer ``label`` holds those
    choices as the bytes of a text; loading weights with another label is an error that names both, loading weights
    without one (written by an earlier version) is none.
    """

    label: Tensor
    static: Tensor

    def set_label(self, text: str) -> None:
        """Take a text for the label of this module."""
        self.register_constant("label", partial(_encode, text), persistent=True)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}label"
        found = state_dict.get(key)
        if found is not None and not found.is_meta:
            theirs, ours = _decode(found), _decode(self._constant("label"))
            if theirs != ours:
                error_msgs.append(f"{prefix[:-1] or type(self).__name__}: weights of {theirs}, the layer is {ours}")
                return
        state_dict = {**state_dict, key: self.label}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # Made on "meta" and given its weights (assign=True): no state dict holds the constants inside.
        if not self.static.is_meta:
            self.materialise_constants(self.static.device)


def _encode(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _decode(label: Tensor) -> str:
    # A state dict that was cast as a whole holds it as numbers of another type.
    return bytes(label.to(torch.uint8).tolist()).decode(errors="replace")
