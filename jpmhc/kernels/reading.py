"""Whether numbers may be looked at."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def can_read(value: Tensor) -> bool:
    """Whether a look at the numbers is possible here and waits for no device."""
    if torch.compiler.is_compiling() or not value.is_cpu or not value.numel():
        return False
    return not (isinstance(value, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(value))
