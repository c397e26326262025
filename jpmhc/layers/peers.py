"""Hyper-connections of other projects, read into this one's layer weight for weight."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jpmhc.layers.charts.sinkhorn import Sinkhorn

if TYPE_CHECKING:
    from jpmhc.layers.hyper_connection import HyperConnection

_Layer = Callable[..., "HyperConnection"]


def from_peer(make: _Layer, module: nn.Module, branch: Callable[..., Any] | None) -> HyperConnection:
    """Build the layer that computes what a peer's module computes; see ``HyperConnection.from_peer``."""
    for cls in type(module).__mro__:
        reader = _READERS.get((cls.__module__.partition(".")[0], cls.__name__))
        if reader is not None:
            return reader(make, module, branch)
    known = ", ".join(f"{package}'s {name}" for package, name in _READERS)
    raise TypeError(f"module: expected one of {known}, got {type(module).__module__}.{type(module).__name__}")


def _require(module: nn.Module, **expected: Any) -> None:
    for name, value in expected.items():
        actual = getattr(module, name)
        if actual != value:
            raise ValueError(
                f"module: {type(module).__name__} with {name}={actual!r} has no equal here, only {value!r}"
            )


@torch.no_grad()
def _fill(
    layer: HyperConnection, read: Tensor, write: Tensor, mix: Tensor, projection: Tensor, scale: list[Tensor]
) -> HyperConnection:
    # Peers give the whole raw numbers of the read; here its start is added by the gate.
    read = read - layer.gate.preference.to(read)
    layer.static.copy_(torch.cat([read, write, mix]))
    layer.projection.copy_(projection)
    layer.scale.copy_(torch.stack([s.reshape(()) for s in scale]))
    return layer


def _transposed(rows: Tensor, n: int) -> Tensor:
    """Reorder the n^2 rows of a matrix's raw numbers into those of its transpose."""
    return rows.unflatten(0, (n, n)).transpose(0, 1).flatten(0, 1)


def _deepseek(make: _Layer, module: Any, branch: Any) -> HyperConnection:
    """``comb`` is applied transposed, so that its columns, normalised last, are rows here.

    The 1e-6 (``hc_eps``) that it adds to ``pre``, to the first softmax and to every sum is left out.
    """
    n = module.hc_mult
    mixer = Sinkhorn(n, iterations=module.hc_sinkhorn_iters, last="rows")
    layer = make(
        module.fn.shape[1] // n,
        branch,
        streams=n,
        mixer=mixer,
        gate="sigmoid",
        eps=module.input_norm.eps,
        device=module.fn.device,
        dtype=module.fn.dtype,
    )
    read, write, mix = module.base.split([n, n, n * n])
    head, tail = module.fn.split([2 * n, n * n])
    projection = torch.cat([head, _transposed(tail, n)])
    return _fill(layer, read, write, _transposed(mix, n), projection, list(module.scale.unbind()))


def _hunyuan(make: _Layer, module: Any, branch: Any) -> HyperConnection:
    """No mixing; the 1e-6 that it adds to both weights is left out here."""
    _require(module, hc_post_magnitude=2.0)
    n = module.hc_mult
    layer = make(
        module.fn.shape[1] // n,
        branch,
        streams=n,
        mixer="identity",
        gate="sigmoid",
        eps=module.input_norm.eps,
        device=module.fn.device,
        dtype=module.fn.dtype,
    )
    read, write = module.base.split(n)
    return _fill(layer, read, write, read[:0], module.fn, [*module.scale.unbind(), module.scale[0]])


def _liger(make: _Layer, module: Any, branch: Any) -> HyperConnection:
    """Take the mixer as it is, not transposed, columns last; the 1e-6 that it adds to every sum is left out here."""
    _require(module, pre_eps=0.0, post_mult=2.0)
    n = module.hc
    layer = make(
        module.c,
        module.layer if branch is None else branch,
        streams=n,
        mixer=Sinkhorn(n, iterations=module.tmax),
        gate="sigmoid",
        eps=module.rms_eps,
        device=module.b.device,
        dtype=module.b.dtype,
    )
    read, write, mix = module.b.split([n, n, n * n])
    scale = [module.alpha_pre, module.alpha_post, module.alpha_res]
    return _fill(layer, read, write, mix, module.phi.mT, scale)


@torch.no_grad()
def _lucidrains(
    make: _Layer, module: Any, branch: Any, mixer: Any, gate: str, scale: list[Tensor], **options: Any
) -> HyperConnection:
    if getattr(module.depth_residual_fn, "__name__", None) != "add":
        raise ValueError(
            f"module: {type(module).__name__} with depth_residual_fn={module.depth_residual_fn!r} has no equal here, "
            "only the sum"
        )
    n = module.num_residual_streams
    alpha, beta = module.dynamic_alpha_fn, module.dynamic_beta_fn
    width = beta.shape[0]
    layer = make(
        width,
        module.branch if branch is None else branch,
        streams=n,
        mixer=mixer,
        gate=gate,
        norm="streams",
        projection="shared",
        # Its norm divides by the length, at least 1e-12.
        eps=1e-24 / width,
        device=beta.device,
        dtype=beta.dtype,
        **options,
    )
    # Stream i of the input weighs alpha[i, 1 + j] in stream j of the result: row j, column i of the mixer. So the rows
    # that sweeps end with there are columns here.
    alphas = alpha.reshape(width, n + 1)
    columns = torch.cat([alphas[:, :1], beta.reshape(width, 1), alphas[:, 1:]], 1)
    projection = ((module.norm.gamma + 1).unsqueeze(-1) * columns).mT
    static = module.static_alpha
    write = module.static_beta.reshape(n) - (1.0 if gate == "tanh" else 0.0)
    return _fill(layer, static[:, 0], write, static[:, 1:].mT.flatten(), projection, scale)


def _lucidrains_hc(make: _Layer, module: Any, branch: Any) -> HyperConnection:
    _require(module, num_fracs=1, num_input_views=1, channel_first=False, add_branch_out_to_residual=True)
    if not isinstance(module.act, nn.Tanh) or module.dropout.p:
        raise ValueError("module: HyperConnections without tanh or with dropout has no equal here")
    # All of alpha has one factor: that of the read is that of the mixer.
    scale = [module.dynamic_alpha_scale, module.dynamic_beta_scale]
    return _lucidrains(make, module, branch, "free", "tanh", scale, tie_mixer_scale=True)


def _lucidrains_mhc(make: _Layer, module: Any, branch: Any) -> HyperConnection:
    _require(module, num_fracs=1, num_input_views=1, num_dynamic_alpha_proposals=1, add_branch_out_to_residual=True)
    constraint = module.residual_mix_constraint_fn
    named = isinstance(constraint, functools.partial) and constraint.func.__name__.endswith("sinkhorn_knopps")
    # The first version has no mix of streams before the norm, the second one no channels first.
    special = getattr(module, "maybe_mix_streams", None) is not None or getattr(module, "channel_first", False)
    plain = not special and isinstance(module.residual_transform, nn.Identity)
    if not named or not plain or module.dropout.p:
        raise ValueError(
            "module: ManifoldConstrainedHyperConnections has an equal here only with its Sinkhorn constraint, without "
            "dropout, residual_transform, mix_streams_before_norm and channel_first"
        )
    mixer = Sinkhorn(module.num_residual_streams, iterations=constraint.keywords["iters"])
    scale = [module.pre_branch_scale, module.h_post_scale, module.residual_scale]
    return _lucidrains(make, module, branch, mixer, "sigmoid", scale)


_READERS: dict[tuple[str, str], Callable[[_Layer, Any, Any], HyperConnection]] = {
    ("transformers", "DeepseekV4HyperConnection"): _deepseek,
    ("transformers", "Glm5NextTextHyperConnection"): _deepseek,
    ("transformers", "HYV4HyperConnection"): _hunyuan,
    ("liger_kernel", "LigerMHC"): _liger,
    ("hyper_connections", "HyperConnections"): _lucidrains_hc,
    ("hyper_connections", "ManifoldConstrainedHyperConnections"): _lucidrains_mhc,
}
