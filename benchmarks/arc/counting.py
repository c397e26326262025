"""The operations of a segment as torch's counter sees them, to stand beside those by hand."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arc import flops
from benchmarks.arc.arms import Arm
from benchmarks.arc.encode import VOCAB
from benchmarks.arc.model import ModelConfig, TinyRecursiveModel

# A sample of a longer sequence takes seconds on a CPU.
LONGEST = 256


def segment(config: ModelConfig, arm: Arm) -> int | None:
    """Return the operations of one segment of training on one sample, counted while it is computed on the CPU.

    The attention is the plain one, as the counter does not know the fused one of the CPU. Matrix products alone are
    seen, so reads, writes and maps are not. None for sequences longer than `LONGEST`.
    """
    if config.positions > LONGEST:
        return None
    generator = torch.Generator().manual_seed(0)
    model = TinyRecursiveModel(config, arm, seed=0)
    tokens = torch.randint(VOCAB, (1, config.side**2), generator=generator)
    # With gradient, as in training; without it one product of the first layer would be left out.
    puzzle = torch.randn(1, config.width, generator=generator).requires_grad_()
    counting = FlopCounterMode(display=False, custom_mapping=flops.COUNTER)
    with torch.enable_grad(), counting as counter, sdpa_kernel(SDPBackend.MATH):
        _, logits, halt = model(model.initial(1), tokens, puzzle)
        (logits.sum() + halt.sum()).backward()
    return int(counter.get_total_flops())
