"""Published layers against their equations, written out here from the publications."""

import math

import pytest
import torch
from torch import nn

from jpmhc import layers

N, D = 4, 6
EYE = torch.eye(N, dtype=torch.float64)
BRANCH = nn.Linear(D, D, dtype=torch.float64)


def build(name):
    return layers.HyperConnection.from_recipe(name, D, BRANCH, layer_index=1, dtype=torch.float64)


def streams(tokens=5):
    return torch.randn(tokens, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def published(hc, size=0.7):
    """Fill a layer with numbers of a size that matters; return projection, bias and factors as publications have them.

    Where the read starts is one of the numbers there; here it is added by the gate.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        hc.projection.copy_(size * torch.randn_like(hc.projection))
        if isinstance(hc.static, nn.Parameter):
            hc.static.copy_(size * torch.randn_like(hc.static))
        if hc.scale is not None:
            hc.scale.copy_(torch.tensor([0.7, 0.9, 1.1]))
    bias = hc.static.detach().clone()
    bias[: hc.sizes[0]] += hc.gate.preference.repeat(hc.sizes[0] // N)
    return hc.projection.detach(), bias, None if hc.scale is None else hc.scale.detach()


def rms(v, eps=1e-6):
    return v / (v.square().mean(-1, keepdim=True) + eps).sqrt()


def check(hc, x, coefficients):
    for t in range(len(x)):
        pre, post, matrix = coefficients(x[t])
        for actual, expected in zip(hc.coefficients(x[t]), (pre, post, matrix), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
        expected = matrix @ x[t] + post[:, None] * BRANCH(pre @ x[t])
        torch.testing.assert_close(hc(x)[t], expected, rtol=1e-9, atol=1e-11)


def jpmhc_gates(raw_pre, raw_post):
    """Equations 36, 37, 40 and 42: the mean over rows of the read, the row sums of the write."""
    return raw_pre.softmax(-1).mean(0), raw_post.softmax(0).sum(1)


def sinkhorn(logits, order, sweeps=20):
    """Sweeps that normalise the sums along each dimension in that order: along 1 those of the rows."""
    log = logits
    for _ in range(sweeps):
        for along in order:
            log = log - log.logsumexp(along, keepdim=True)
    return log.exp()


def test_jpmhc_cayley():
    hc = build("jpmhc-cayley")
    weight, bias, scale = published(hc)
    assert weight.shape == (3 * N * N, N * D)
    assert scale is None
    assert bias.abs().max() < 1e-15  # none in equation 35

    def coefficients(x):
        h_pre, h_post, h_res = (weight @ nn.functional.layer_norm(x.flatten(), (N * D,))).view(3, N, N)
        w = h_res - h_res.T
        y = EYE + 0.1 * w
        for _ in range(2):
            y = EYE + 0.05 * w @ (EYE + y)
        return *jpmhc_gates(h_pre, h_post), y

    check(hc, streams(), coefficients)


def test_jpmhc_sinkhorn_with_its_clamp():
    hc = build("jpmhc-sinkhorn")
    weight, bias, scale = published(hc, 4.0)

    def coefficients(x):
        z = weight @ rms(x.flatten())
        pre, post, mix = z[:N] * scale[0] + bias[:N], z[N : 2 * N] * scale[1] + bias[N : 2 * N], z[2 * N :] * scale[2]
        logits = mix + bias[2 * N :]
        assert logits.abs().max() > 10
        return pre.sigmoid(), 2 * post.sigmoid(), sinkhorn(logits.clamp(-10, 10).view(N, N), (1, 0))

    check(hc, streams(), coefficients)


def test_jpmhc_grassmann():
    hc = build("jpmhc-grassmann")
    weight, _, _ = published(hc, 0.2)
    assert weight.shape == (2 * N + 2 * N, N * D)
    base = torch.tensor([[0.5, 0.5**0.5], [0.5, -(0.5**0.5)], [0.5, 0.0], [0.5, 0.0]], dtype=torch.float64)

    def coefficients(x):
        z = weight @ nn.functional.layer_norm(x.flatten(), (N * D,))
        tangent = z[2 * N :].view(N, 2)
        tangent = tangent - base @ base.T @ tangent
        u, _, vh = torch.linalg.svd(base + tangent, full_matrices=False)  # polar: the nearest orthonormal frame
        return z[:N].softmax(0), N * z[N : 2 * N].softmax(0), (u @ vh) @ (u @ vh).T

    check(hc, streams(), coefficients)


def test_mhc():
    hc = build("mhc")
    weight, bias, scale = published(hc, 1.0)
    off = []

    def coefficients(x):
        z = weight @ rms(x.flatten())
        pre, post, mix = z.split([N, N, N * N])
        b = bias.split([N, N, N * N])
        logits = (scale[2] * mix + b[2]).view(N, N)
        assert logits.std() > 3
        matrix = sinkhorn(logits, (0, 1))  # equation 9, T_r(T_c(M)): the rows last
        off.append((matrix - sinkhorn(logits, (1, 0))).abs().max())
        return (scale[0] * pre + b[0]).sigmoid(), 2 * (scale[1] * post + b[1]).sigmoid(), matrix

    x = streams()
    check(hc, x, coefficients)
    assert max(off) > 1e-2  # where the order matters
    torch.testing.assert_close(hc.coefficients(x)[2].sum(-1), torch.ones(len(x), N, dtype=torch.float64))
    hc.reset_parameters()
    with torch.no_grad():
        hc.projection.zero_()
    pre, post, matrix = hc.coefficients(streams())
    torch.testing.assert_close(pre, torch.full_like(pre, 0.5))
    torch.testing.assert_close(post, torch.ones_like(post))
    torch.testing.assert_close(matrix, torch.full_like(matrix, 0.25))


def test_hc_with_one_map_for_all_streams():
    hc = build("hc")
    torch.manual_seed(0)
    dynamic_alpha, dynamic_beta = torch.randn(D, N + 1).double(), torch.randn(D).double()
    static_alpha, static_beta = torch.randn(N, N + 1).double(), torch.randn(N).double()
    s_alpha, s_beta = 0.3, 0.4
    with torch.no_grad():
        hc.projection.copy_(torch.cat([dynamic_alpha[:, :1].T, dynamic_beta[None], dynamic_alpha[:, 1:].T]))
        one = torch.zeros(N).double()
        one[1] = 1
        hc.static.copy_(torch.cat([static_alpha[:, 0] - one, static_beta - 1, static_alpha[:, 1:].T.flatten()]))
        hc.scale.copy_(torch.tensor([s_alpha, s_beta], dtype=torch.float64))

    def coefficients(h):  # the pseudocode of its appendix: column 0 makes the input, column 1 + j stream j
        norm_h = nn.functional.layer_norm(h, (D,))
        alpha = torch.tanh(norm_h @ dynamic_alpha) * s_alpha + static_alpha
        beta = torch.tanh(norm_h @ dynamic_beta) * s_beta + static_beta
        mix = alpha.T @ h
        torch.testing.assert_close(hc.read(h)[0], mix[0])
        return alpha[:, 0], beta, alpha[:, 1:].T

    check(hc, streams(), coefficients)
    hc.reset_parameters()
    pre, post, matrix = hc.coefficients(streams())
    assert torch.equal(pre, one.expand_as(pre))
    assert torch.equal(post, torch.ones_like(post))
    assert torch.equal(matrix, EYE.expand_as(matrix))


def test_ohc_and_its_frozen_factor():
    hc = build("ohc")
    weight, bias, scale = published(hc)

    def times(p, q):
        vector = p[0] * q[1:] + q[0] * p[1:] + torch.linalg.cross(p[1:], q[1:])
        return torch.cat([(p[0] * q[0] - p[1:] @ q[1:]).view(1), vector])

    def coefficients(x):
        z = weight @ rms(x.flatten())
        pre, post = (scale[0] * z[:N] + bias[:N]).sigmoid(), 2 * (scale[1] * z[N : 2 * N] + bias[N : 2 * N]).sigmoid()
        left, right = (scale[2] * z[2 * N :] + bias[2 * N :]).split(4)
        p, q = left + EYE[0], right + EYE[0]
        columns = [times(times(p / p.norm(), e), q / q.norm()) for e in EYE]
        return pre, post, torch.stack(columns, 1)

    check(hc, streams(), coefficients)
    assert "eps" in next(recipe for recipe in layers.recipes() if recipe.name == "ohc").open
    hc(streams()).square().sum().backward()
    assert hc.scale.grad[2] == 0
    assert hc.scale.grad[:2].abs().min() > 0


def test_hy_v4_starts_as_the_plain_network_up_to_its_random_projection():
    hc = build("hy-v4")
    weight, bias, scale = published(hc)

    def coefficients(x):
        z = weight @ rms(x.flatten())
        return (scale[0] * z[:N] + bias[:N]).sigmoid(), 2 * (scale[1] * z[N:] + bias[N:]).sigmoid(), EYE

    check(hc, streams(), coefficients)
    hc.reset_parameters()
    assert hc.projection.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(hc.scale, torch.full((3,), 0.01, dtype=torch.float64))
    with torch.no_grad():
        hc.projection.zero_()
    pre, post, _ = hc.coefficients(streams())
    torch.testing.assert_close(pre, torch.full_like(pre, 0.25))
    torch.testing.assert_close(post, torch.ones_like(post))


@pytest.mark.parametrize("name", [str(recipe) for recipe in layers.recipes()])
def test_every_recipe_runs_learns_and_says_what_it_leaves_open(name):
    recipe = next(r for r in layers.recipes() if r.name == name)
    assert recipe.reduction in {"mean", "sum", "head", "unstated"}
    assert recipe.open
    hc = layers.HyperConnection.from_recipe(name, D, nn.Linear(D, D), layer_index=2)
    x = layers.expand_streams(torch.randn(3, D), N)
    hc(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hc.parameters())
    with torch.device("meta"):
        twin = layers.HyperConnection.from_recipe(name, D, layer_index=2)
    twin.to_empty(device="cpu")
    torch.manual_seed(0)
    twin.reset_parameters()
    torch.manual_seed(0)
    hc.reset_parameters()
    for actual, expected in zip(twin.coefficients(x), hc.coefficients(x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["jpmhc-cayley", "jpmhc-grassmann", "hy-v4", "mhc"])
def test_published_starts_are_no_saddle_though_their_reads_are_even(name):
    """Their projections start at random, so tokens read unevenly and streams part."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layers.HyperConnection.from_recipe(name, D, nn.Linear(D, D), layer_index=i) for i in range(3))
    )
    x, target = torch.randn(2, 16, D)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        (layers.reduce_streams(model(layers.expand_streams(x, N))) - target).square().mean().backward()
        optimiser.step()
    out = model(layers.expand_streams(x, N))
    assert (out - out.mean(-2, keepdim=True)).norm() / out.norm() > 1e-3


def test_a_recipe_for_other_sizes_or_of_another_name_is_refused():
    with pytest.raises(ValueError, match="recipe: unknown name 'jpmhc', expected one of hc, hy-v4, jpmhc-cayley"):
        layers.HyperConnection.from_recipe("jpmhc", D)
    with pytest.raises(ValueError, match="streams: expected 4 for a quaternion, got 3"):
        layers.HyperConnection.from_recipe("ohc", D, streams=3)
    one = layers.HyperConnection.from_recipe("mhc", D, nn.Identity(), streams=1)
    assert one(torch.ones(2, 1, D)).isfinite().all()
    assert math.isclose(one.coefficients(torch.ones(1, D))[0].item(), 1.0)
