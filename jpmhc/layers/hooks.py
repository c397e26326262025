"""Whether somebody wants to see a module called."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def watched(module: nn.Module) -> bool:
    """Whether a module, or all modules, have hooks, or it was compiled in place: its calls must stay calls of it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or module._compiled_call_impl is not None or _has_any_global_hook()
