"""Numbers for parameters that may be in shards."""

from __future__ import annotations

from torch import Tensor


def placed_like(target: Tensor, value: Tensor) -> Tensor:
    """Return a value in shards where its target is: FSDP2 shards modules made on "meta" before they get numbers."""
    if not hasattr(target, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(target.device, target.dtype)
    return distribute_tensor(value, target.device_mesh, target.placements)  # type: ignore[attr-defined]
