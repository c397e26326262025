"""Maps of tensors on the CPU do not ask for the default device: here one whose tensors hold no numbers."""

import torch

from jpmhc import autodiff


def test_sinkhorn_with_forbidden_entries():
    logits = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 0] = -torch.inf
    expected = autodiff.sinkhorn(logits)
    with torch.device("meta"):
        assert torch.equal(autodiff.sinkhorn(logits), expected)
