"""What a layer is, written into its state dict, so that weights do not load into another layer of the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Labelled(nn.Module):
    """A module whose weights mean something only beside the choices it was made with.

    Raw numbers of a Sinkhorn mixer fit a free one in shape and in nothing else. A state dict therefore holds those
    choices under ``label``, as the bytes of a text; loading weights with another label is an error that names both,
    loading weights without one (written by an earlier version) is none.

    The buffer ``label`` is there for those who read the names of a state dict off a module. What averaging or
    ``to_empty`` made of it does not matter: state dicts are written and compared with the text.
    """

    label: Tensor
    static: Tensor

    def set_label(self, text: str) -> None:
        """Take a text for the label of this module."""
        self._text = text
        self.register_buffer("label", _encode(text).to(torch.empty(0).device))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}label"] = _encode(self._text).to(self.label.device)

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
            theirs = _decode(found)
            if theirs != self._text:
                error_msgs.append(
                    f"{prefix[:-1] or type(self).__name__}: weights of {theirs}, the layer is {self._text}"
                )
                return
        ours = self.label if self.label.is_meta else _encode(self._text)
        super()._load_from_state_dict(
            {**state_dict, key: ours}, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # Made on "meta" and given its weights with assign=True.
        if self.label.device != self.static.device:
            self.label = _encode(self._text).to(self.static.device)


def _encode(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")


def _decode(label: Tensor) -> str:
    # A state dict that was cast or averaged as a whole holds it as numbers of another type, not all of them whole.
    return bytes(label.double().round().to(torch.uint8).tolist()).decode(errors="replace")
