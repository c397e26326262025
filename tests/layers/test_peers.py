"""Outputs and gradients equal to those of the peers' own modules, which serve as oracles."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from jpmhc import layers


class Config:
    hc_mult, hc_sinkhorn_iters, hc_eps, hidden_size, rms_norm_eps, hc_magnitude = 4, 20, 1e-6, 8, 1e-6, 2.0


def shake(module, size=0.2):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(size * torch.randn_like(parameter))


def same(gradient):
    return gradient


def assert_agree(ours, theirs, x, weights):
    """Compare outputs, and gradients of the streams and of weights.

    A weight of ours stands beside those of the peer's that it was made from, and a function that makes its gradient
    from theirs: `same` if nothing else is given.
    """
    weights = [(own, peers if isinstance(peers, tuple) else (peers,), *make) for own, peers, *make in weights]
    streams = x.clone().requires_grad_()
    out, expected_out = ours(streams), theirs(streams)
    found = torch.autograd.grad(out.sin().sum(), [streams, *(own for own, *_ in weights)])
    of_peer = torch.autograd.grad(expected_out.sin().sum(), [streams, *(p for _, peers, *_ in weights for p in peers)])
    rest, expected = iter(of_peer[1:]), [of_peer[0]]
    for _, peers, *make in weights:
        expected.append((make[0] if make else same)(*(next(rest) for _ in peers)))
    for actual, target in zip((out, *found), (expected_out, *expected), strict=True):
        size = max(1.0, target.abs().max().item())
        torch.testing.assert_close(actual, target, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("streams", [4, 8])
@pytest.mark.parametrize(
    ("model", "name"),
    [("deepseek_v4", "DeepseekV4HyperConnection"), ("glm5_next", "Glm5NextTextHyperConnection")],
)
def test_transformers_deepseek_and_glm(model, name, streams):
    peer = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    torch.manual_seed(0)
    config = Config()
    config.hc_mult = streams
    theirs, branch = getattr(peer, name)(config), nn.Linear(8, 8)
    shake(theirs)

    def forward(x):
        post, comb, u = theirs(x)
        return post.unsqueeze(-1) * branch(u).unsqueeze(-2) + comb.mT @ x

    def transposed(rows):  # the peer applies the transpose of the matrix it names
        gates, mix = rows.split([2 * streams, streams**2])
        return torch.cat([gates, mix.unflatten(0, (streams, streams)).transpose(0, 1).flatten(0, 1)])

    ours = layers.HyperConnection.from_peer(theirs, branch)
    weights = [(ours.scale, theirs.scale), (ours.static, theirs.base, transposed)]
    weights += [(ours.projection, theirs.fn, transposed), (branch.weight, branch.weight)]
    assert_agree(ours, forward, torch.randn(2, 3, streams, 8), weights)


def comparable(name, module, class_name, sweeps):
    """A peer around the identity whose mixers are few sweeps from large logits, and its map of (..., n, d)."""
    peer = pytest.importorskip(module)
    torch.manual_seed(0)
    if module.startswith("transformers"):
        config = Config()
        config.hc_sinkhorn_iters = sweeps
        theirs = getattr(peer, class_name)(config)
        shake(theirs)
        with torch.no_grad():
            theirs.base.copy_(3 * torch.randn_like(theirs.base))

        def mixed(x):
            post, comb, u = theirs(x)
            return post.unsqueeze(-1) * u.unsqueeze(-2) + comb.mT @ x

        return theirs, mixed
    theirs = getattr(peer, class_name)(4, dim=8, branch=nn.Identity(), layer_index=1, sinkhorn_iters=sweeps)
    shake(theirs)
    with torch.no_grad():
        theirs.static_alpha.copy_(3 * torch.randn_like(theirs.static_alpha))
    if name == "the second":
        return theirs, theirs
    return theirs, lambda x: theirs(x.movedim(-2, 1).flatten(0, 1)).unflatten(0, (x.shape[0], 4)).movedim(1, -2)


PEERS = [
    ("deepseek", "transformers.models.deepseek_v4.modeling_deepseek_v4", "DeepseekV4HyperConnection", "rows"),
    ("glm", "transformers.models.glm5_next.modeling_glm5_next", "Glm5NextTextHyperConnection", "rows"),
    (
        "the first",
        "hyper_connections.manifold_constrained_hyper_connections",
        "ManifoldConstrainedHyperConnections",
        "columns",
    ),
    ("the second", "hyper_connections.mHCv2", "ManifoldConstrainedHyperConnections", "columns"),
]


@pytest.mark.parametrize("sweeps", [1, 2, 20])
@pytest.mark.parametrize(("name", "module", "class_name", "last"), PEERS, ids=[name for name, *_ in PEERS])
def test_the_marginal_normalised_last_is_the_peers(name, module, class_name, last, sweeps):
    theirs, mixed = comparable(name, module, class_name, sweeps)
    ours = layers.HyperConnection.from_peer(theirs, nn.Identity())
    x = torch.randn(32, 5, 4, 8)
    matrix = ours.coefficients(x)[2]
    exact, other = (-1, -2) if last == "rows" else (-2, -1)
    assert (matrix.sum(exact) - 1).abs().max() < 1e-6
    assert (matrix.sum(other) - 1).abs().max() > 1e-4
    # What is left is the 1e-6 that Transformers' modules add to everything, which every sweep amplifies.
    torch.testing.assert_close(ours(x), mixed(x), rtol=0, atol=1e-3 if last == "rows" else 1e-5)
    if last == "rows":
        theirs.hc_eps = 0.0
        torch.testing.assert_close(ours(x), mixed(x), rtol=0, atol=1e-5)


def test_transformers_hunyuan():
    peer = pytest.importorskip("transformers.models.hy_v4.modeling_hy_v4")
    torch.manual_seed(0)
    theirs, branch = peer.HYV4HyperConnection(Config()), nn.Linear(8, 8)
    shake(theirs)

    def forward(x):
        post, u = theirs(x)
        return post.unsqueeze(-1) * branch(u).unsqueeze(-2) + x

    ours = layers.HyperConnection.from_peer(theirs, branch)
    weights = [(ours.projection, theirs.fn), (ours.static, theirs.base), (branch.weight, branch.weight)]
    weights += [(ours.scale, theirs.scale, lambda scale: torch.cat([scale, torch.zeros(1)]))]  # there is no mixer's
    assert_agree(ours, forward, torch.randn(2, 3, 4, 8), weights)
    theirs.hc_post_magnitude = 1.5
    with pytest.raises(ValueError, match=r"module: HYV4HyperConnection with hc_post_magnitude=1\.5 has no equal here"):
        layers.HyperConnection.from_peer(theirs)


def lucidrains_weights(ours, theirs):
    """Their first column is the read, the others the mixer's transpose; the gain of their norm is in our projection."""

    def static(alpha, beta):
        return torch.cat([alpha[:, 0], beta.flatten(), alpha[:, 1:].mT.flatten()])

    def projection(alpha, beta):
        alpha = alpha.reshape(len(beta), -1)
        columns = torch.cat([alpha[:, :1], beta.reshape(-1, 1), alpha[:, 1:]], 1)
        return (columns / (theirs.norm.gamma.detach() + 1).unsqueeze(-1)).mT

    return [
        (theirs.branch.weight, theirs.branch.weight),
        (ours.static, (theirs.static_alpha, theirs.static_beta), static),
        (ours.projection, (theirs.dynamic_alpha_fn, theirs.dynamic_beta_fn), projection),
    ]


@pytest.mark.parametrize("layer_index", [0, 2])
def test_lucidrains_hyper_connections(layer_index):
    peer = pytest.importorskip("hyper_connections.hyper_connections")
    torch.manual_seed(0)
    theirs = peer.HyperConnections(4, dim=8, branch=nn.Linear(8, 8), layer_index=layer_index)
    shake(theirs, 0.5)

    def forward(x):  # streams stand in the batch there
        flat = x.movedim(-2, 1).flatten(0, 1)
        return theirs(flat).unflatten(0, (x.shape[0], 4)).movedim(1, -2)

    ours = layers.HyperConnection.from_peer(theirs)
    x = torch.randn(2, 3, 4, 8)
    assert_agree(ours, forward, x, lucidrains_weights(ours, theirs))
    (scale,) = torch.autograd.grad(ours(x).sin().sum(), ours.scale)
    peers = [theirs.dynamic_alpha_scale, theirs.dynamic_beta_scale]  # the first is of the read and of the mixer
    expected = torch.autograd.grad(forward(x).sin().sum(), peers)
    torch.testing.assert_close(tuple(scale), tuple(g.reshape(()) for g in expected))
    optimisers = [torch.optim.SGD([ours.scale], 0.5, momentum=0.9), torch.optim.SGD(peers, 0.5, momentum=0.9)]
    start = ours.scale.detach().clone()
    for _ in range(5):
        for optimiser, function in zip(optimisers, (ours, forward), strict=True):
            optimiser.zero_grad()
            function(x).sin().mean().backward()
            optimiser.step()
        torch.testing.assert_close(ours.scale, torch.stack(peers))
        torch.testing.assert_close(ours(x), forward(x))
    assert (ours.scale - start).abs().min() > 1e-2
    gated = peer.HyperConnections(4, dim=8, layer_index=0, depth_residual_fn=lambda y, x: 0.5 * y + x)
    with pytest.raises(ValueError, match=r"depth_residual_fn=.* has no equal here"):
        layers.HyperConnection.from_peer(gated)


def test_lucidrains_mhc():
    peer = pytest.importorskip("hyper_connections.mHCv2")
    torch.manual_seed(0)
    theirs = peer.ManifoldConstrainedHyperConnections(4, dim=8, branch=nn.Linear(8, 8), layer_index=1)
    shake(theirs, 0.3)
    ours = layers.HyperConnection.from_peer(theirs)
    scales = (theirs.pre_branch_scale, theirs.h_post_scale, theirs.residual_scale)
    weights = [(ours.scale, scales, lambda *found: torch.stack([scale.reshape(()) for scale in found]))]
    assert_agree(ours, theirs, torch.randn(2, 3, 4, 8), [*weights, *lucidrains_weights(ours, theirs)])
    gated = peer.ManifoldConstrainedHyperConnections(4, dim=8, layer_index=0, depth_residual_fn=torch.maximum)
    with pytest.raises(ValueError, match=r"depth_residual_fn=.* has no equal here"):
        layers.HyperConnection.from_peer(gated)
    fractional = peer.ManifoldConstrainedHyperConnections(4, dim=8, num_fracs=2, layer_index=0)
    with pytest.raises(ValueError, match="num_fracs=2 has no equal here"):
        layers.HyperConnection.from_peer(fractional)


def test_the_first_mhc_of_lucidrains():
    peer = pytest.importorskip("hyper_connections.manifold_constrained_hyper_connections")
    torch.manual_seed(0)
    theirs = peer.ManifoldConstrainedHyperConnections(4, dim=8, branch=nn.Linear(8, 8), layer_index=1)
    shake(theirs, 0.3)

    def forward(x):  # streams stand in the batch there
        flat = x.movedim(-2, 1).flatten(0, 1)
        return theirs(flat).unflatten(0, (x.shape[0], 4)).movedim(1, -2)

    ours = layers.HyperConnection.from_peer(theirs)
    assert_agree(ours, forward, torch.randn(2, 3, 4, 8), lucidrains_weights(ours, theirs))
    channels = peer.ManifoldConstrainedHyperConnections(4, dim=8, layer_index=1, channel_first=True)
    with pytest.raises(ValueError, match="channel_first"):
        layers.HyperConnection.from_peer(channels)


LIGER = """
import torch
from torch import nn
from liger_kernel.transformers.mhc import LigerMHC
from jpmhc import layers

for streams in (2, 4):
    torch.manual_seed(0)
    theirs = LigerMHC(nn.Linear(8, 8), hc=streams, c=8, phi_dtype=torch.float32, allow_fp32=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    ours = layers.HyperConnection.from_peer(theirs)
    x = torch.randn(3, streams, 8, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    weights = [ours.static, ours.projection, ours.scale]
    found = torch.autograd.grad(ours(x).sin().sum(), [x, theirs.layer.weight, *weights])
    weights = [theirs.b, theirs.phi, theirs.alpha_pre, theirs.alpha_post, theirs.alpha_res]
    *expected, b, phi, pre, post, res = torch.autograd.grad(theirs(x).sin().sum(), [x, theirs.layer.weight, *weights])
    expected += [b, phi.mT, torch.stack([alpha.reshape(()) for alpha in (pre, post, res)])]
    torch.testing.assert_close(found, tuple(expected), rtol=1e-5, atol=1e-5)

for sweeps in (1, 2, 20):  # large logits, which tell the marginal that is normalised last
    theirs = LigerMHC(nn.Identity(), hc=4, c=8, tmax=sweeps, sinkhorn_eps=0.0, phi_dtype=torch.float32, allow_fp32=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        theirs.b.copy_(3 * torch.randn_like(theirs.b))
    ours = layers.HyperConnection.from_peer(theirs)
    x = torch.randn(32, 4, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    matrix = ours.coefficients(x)[2]
    assert (matrix.sum(-2) - 1).abs().max() < 1e-6
    assert (matrix.sum(-1) - 1).abs().max() > 1e-4
"""


@pytest.mark.slow
def test_liger_under_the_interpreter():
    pytest.importorskip("liger_kernel")
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", LIGER], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_any_other_module_is_named():
    with pytest.raises(TypeError, match=r"module: expected one of transformers's Deep.*got torch\.nn.*Linear"):
        layers.HyperConnection.from_peer(nn.Linear(2, 2))
