"""The gradient of the streams is written once: autograd never adds, nor holds, several tensors of their size."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jpmhc import layers

TOKENS, N, D = 7, 4, 8
FORMS = [
    {},
    {"gate": "tanh", "norm": None},
    {"gate": "uniform", "stream_embedding": True},
    {"norm": "layer"},
    {"norm": "streams", "gate": "sigmoid"},
    {"norm": "streams-layer", "mixer": "sinkhorn"},
    {"projection": "published"},
    {"projection": "shared", "mixer": "free", "gate": "tanh"},
    {"projection": "shared", "mixer": "free", "norm": "streams-layer"},
    {"projection": "shared", "mixer": "free", "norm": "layer"},
    {"reads": 2},
    {"reads": 2, "dynamic": False},
    {"fractions": 2},
    {"fractions": 2, "gate": "tanh", "norm": "streams"},
    {"fractions": 2, "mixer": "free", "gate": "tanh", "projection": "reduced", "reads": 2, "norm": "layer"},
    {"dynamic": False},
    {"static": False, "scale": None, "norm": "layer"},
]


def layer(options, dtype=torch.float64, width=D):
    torch.manual_seed(0)
    branch = nn.Bilinear(width, width, width) if options.get("reads", 1) > 1 else nn.Linear(width, width)
    hc = layers.HyperConnection(width, branch, **options).to(dtype)
    with torch.no_grad():
        for parameter in layers.mixing_parameters(hc):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return hc


class Additions(TorchDispatchMode):
    """Count additions of two tensors of the streams' size into a new one; in place they hold nothing more."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor):
            sizes = [arg.numel() for arg in args[:2] if isinstance(arg, torch.Tensor)]
            self.count += sizes == [self.size, self.size] and func is torch.ops.aten.add.Tensor
        return result


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_autograd_adds_no_two_tensors_of_the_streams_size(options):
    hc = layer(options)
    x = torch.randn(TOKENS, N, D, dtype=torch.float64, requires_grad=True)
    loss = hc(x).sin().sum()
    with Additions(x.numel()) as counted:
        loss.backward()
    assert counted.count == 0


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_it_is_the_gradient_of_the_same_layer_in_plain_operations(options, carried):
    """Which `torch.func` goes through, and so does forward mode."""
    hc = layer(options)
    if carried and (hc.reads > 1 or hc.fractions > 1):
        return
    x, cotangent = (torch.randn(TOKENS, N, D, dtype=torch.float64) for _ in range(2))
    parameters = dict(hc.named_parameters())
    pre = torch.full((N,), 1 / N, dtype=torch.float64)

    class Carried(nn.Module):
        def __init__(self):
            super().__init__()
            self.hc = hc

        def forward(self, x):
            u, write, own = self.hc.carry(x, pre)
            return write(self.hc.branch(u)) * own.sum(-1)[..., None, None]

    model, prefix = (Carried(), "hc.") if carried else (hc, "")
    out = model(x.requires_grad_())
    found = torch.autograd.grad(out, [x, *parameters.values()], cotangent, allow_unused=True, materialize_grads=True)

    def run(x, parameters):
        return torch.func.functional_call(model, {prefix + name: p for name, p in parameters.items()}, (x,))

    expected_out, pull = torch.func.vjp(run, x.detach(), {name: p.detach() for name, p in parameters.items()})
    grad_x, grads = pull(cotangent)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(found, (grad_x, *grads.values()))


@pytest.mark.parametrize("options", [FORMS[3], FORMS[7], FORMS[10], FORMS[13]], ids=str)
def test_it_can_be_differentiated_again(options):
    hc = layer(options)
    x = torch.randn(2, N, D, dtype=torch.float64, requires_grad=True)
    weights = [p for name, p in hc.named_parameters() if "branch" not in name]
    chosen = weights[1][:1].detach().clone().requires_grad_()

    def run(x, row):
        projection = (
            torch.cat([row, hc.projection[1:]]) if chosen.shape[1:] == hc.projection.shape[1:] else hc.projection
        )
        with torch.nn.utils.parametrize.cached():
            return torch.func.functional_call(hc, {"projection": projection}, (x,))

    assert torch.autograd.gradgradcheck(run, (x, chosen), atol=1e-4)


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"projection": "published"}, {"reads": 2}], ids=str)
def test_nothing_of_the_streams_size_is_kept_but_the_streams(options):
    hc, kept = layer(options, torch.float32, 32), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    for dtype in (torch.float32, torch.bfloat16):
        kept.clear()
        x = torch.randn(100, N, 32, dtype=dtype, requires_grad=True)
        hc.branch.to(dtype)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = hc(x)
        known = {t.untyped_storage().data_ptr() for t in (x, *hc.parameters())}
        large = [t for t in kept if t.numel() >= x.numel() and t.untyped_storage().data_ptr() not in known]
        assert not large
        assert out.dtype == dtype


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_no_token_has_an_empty_gradient(options):
    hc = layer(options)
    x = torch.randn(0, N, D, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(hc(x).sum(), [x, *hc.parameters()], allow_unused=True, materialize_grads=True)
    assert found[0].shape == x.shape
    assert all((gradient == 0).all() for gradient in found)
