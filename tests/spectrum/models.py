"""Networks that spectra are measured on."""

import torch
from torch import nn

from jpmhc import layers


def network(mixer="cayley", dtype=torch.float64, depth=3, width=6):
    torch.manual_seed(0)

    def branch():
        return nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    model = nn.Sequential(
        *(layers.HyperConnection(width, branch(), streams=3, mixer=mixer, layer_index=i) for i in range(depth))
    )
    with torch.no_grad():
        for parameter in layers.mixing_parameters(model):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)
