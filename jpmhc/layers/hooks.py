"""Whether somebody wants to see a module called."""

from torch import nn


def watched(module: nn.Module) -> bool:
    """Whether a module has hooks or was compiled in place: its calls must stay calls of it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or module._compiled_call_impl is not None
