"""Modules with constants that nothing done to a model's parameters and buffers may touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor


class ConstantModule(nn.Module):
    """A module whose constants follow it from device to device and keep their dtype and value all the same.

    They are tensors that the module holds, and no buffers. Buffers are rounded (``module.bfloat16()``, FSDP's
    ``buffer_dtype``), averaged, and made anew without their values where a model is built without data
    (``to_empty``, ``from_pretrained`` of Transformers): a basis rounded to bfloat16 makes a rotation that is none.
    """

    _constants: tuple[str, ...] = ()

    def register_constant(self, name: str, make: Callable[[], Tensor]) -> None:
        """Add the attribute ``name``, the tensor that ``make()`` returns.

        It has data even in a module that is made on "meta", which may be given weights but never constants.
        """
        with torch.device("cpu"):
            made = make()
        setattr(self, name, made)
        self._constants = (*self._constants, name)
        self._move(name, torch.empty(0).device)

    def constant(self, name: str, device: torch.device) -> Tensor:
        """Return the constant of that name on the device where it is needed.

        Sharding and offloading move parameters and buffers one by one, not the module; the first use that
        comes upon a constant elsewhere moves it for good.
        """
        held: Tensor = getattr(self, name)
        if not torch.compiler.is_compiling() and type(held) is Tensor:
            fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
            if fake is not None:
                held = fake.from_tensor(held)
        if held.device == device:
            return held
        if device.type == "meta":
            return torch.empty(held.shape, dtype=held.dtype, device=device)
        if torch.compiler.is_compiling():
            return held.to(device)
        # A tensor made in inference mode could never again be part of a graph.
        with torch.inference_mode(False):
            moved = held.to(device)
        # What belongs to a transformation ends with it.
        if type(moved) is Tensor and not is_functorch_wrapped_tensor(moved):
            setattr(self, name, moved)
        return moved

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ConstantModule:
        super()._apply(fn, recurse)
        for name in self._constants:
            self._move(name, fn(getattr(self, name).new_empty(0)).device)
        return self

    def _move(self, name: str, device: torch.device) -> None:
        # On "meta" nothing would be left of it.
        if device.type != "meta":
            setattr(self, name, getattr(self, name).to(device))
