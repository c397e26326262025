"""Modules with constants that a change of precision must not touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ConstantModule(nn.Module):
    """A module whose constants follow it from device to device and keep their dtype and value all the same.

    A buffer would be rounded by ``module.bfloat16()`` and lost by ``to_empty``: a basis rounded to bfloat16 makes a
    rotation that is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._makers: dict[str, Callable[[], Tensor]] = {}

    def register_constant(self, name: str, make: Callable[[], Tensor], *, persistent: bool = False) -> None:
        """Add the attribute ``name``, a tensor that ``make()`` returns whenever it is asked for it.

        Parameters
        ----------
        name : str
            Name of the attribute.
        make : Callable
            Picklable, without arguments.
        persistent : bool
            Whether it is part of the state dict.
        """
        self._makers[name] = make
        self.register_buffer(name, make(), persistent=persistent)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ConstantModule:
        super()._apply(fn, recurse)
        for name in self._makers:
            self._buffers[name] = self._constant(name).to(self._buffers[name].device)  # type: ignore[union-attr]
        return self

    def materialise_constants(self, device: torch.device) -> None:
        """Make the constants of this module and those inside it that are still on "meta"."""
        for module in self.modules():
            if isinstance(module, ConstantModule):
                for name in module._makers:
                    if module._buffers[name].is_meta:  # type: ignore[union-attr]
                        module._buffers[name] = module._constant(name).to(device)

    def _constant(self, name: str) -> Tensor:
        with torch.device("cpu"):
            return self._makers[name]()
