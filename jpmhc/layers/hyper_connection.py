"""The hyper-connection: a branch that reads from n mixed residual streams and writes to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from jpmhc.kernels import streams as passes
from jpmhc.layers.arguments import check_number, check_size
from jpmhc.layers.gates import make_gate
from jpmhc.layers.mixer import Mixer, make_mixer
from jpmhc.layers.outputs import replace_first_tensor
from jpmhc.layers.peers import from_peer

_NORMS = ("rms", "layer", "streams", None)
_PROJECTIONS = ("reduced", "published")
# Mixers that pack a skew matrix unless told otherwise.
_SKEW = ("cayley", "cayley-iterated")


class HyperConnection(nn.Module):
    """A residual connection with n streams ``x`` of shape (..., n, d) around a branch F.

    ::

        u  = sum_i pre_i x_i         read    pre  (..., n)
        y  = F(u)                    branch  once, on one vector
        x' = M x + post y^T          mix and write    M (..., n, n), post (..., n)

    ``M`` multiplies from the left and is never transposed: row j of M makes stream j. The raw numbers behind
    ``pre``, ``post`` and ``M`` are, in this order, ``static + scale * squash(projection norm(x))``: a parameter, a
    function of the token's own flattened streams, or both. They never see another token.

    At initialisation every layer computes ``x + F(x)`` on equal streams (the projection is zero, the read sums to one,
    the write is one, the rows of M sum to one), so a network between :func:`~jpmhc.layers.expand_streams` and
    :func:`~jpmhc.layers.reduce_streams` computes what the plain residual network computes. The read is uneven, towards
    another stream in each layer, so that this start is not a saddle.

    Parameters
    ----------
    dim : int
        Width d of one stream.
    branch : Callable, optional
        Module or function (..., d) -> (..., d). It may return a tuple, list or dict whose first tensor is that result;
        the rest is passed through. Leave it out to use :meth:`read` around code of your own.
    streams : int
        Number of streams n, at least 1.
    mixer : str or Mixer
        A name from :func:`~jpmhc.layers.mixers` or an instance, the chart of M.
    gate : str
        The map to ``pre`` and ``post``: ``"softmax"`` (JPmHC), ``"sigmoid"`` (mHC) or ``"tanh"`` (HC).
    norm : str or None
        Norm of the flattened streams (n d numbers) before the projection, without gain: ``"rms"``, ``"layer"``,
        ``"streams"`` (the RMS norm of every stream by itself) or None. The branch gets u as it is.
    projection : str
        ``"reduced"``: as many raw numbers as act, 2n + the mixer's. ``"published"``: 3 n^2 of them, JPmHC's three n x n
        matrices, for the softmax gate and a mixer made of n^2 numbers. A published layer can be everything that the
        reduced one is; with a Cayley mixer and static gates the converse holds too.
    dynamic, static : bool
        Whether the raw numbers depend on the token, on parameters, or on both; one of the two at least.
    layer_index : int
        Place of the layer in the network; the start of the read favours stream ``layer_index mod n``.
    eps : float
        Added to the mean square under the root of the norm.
    device, dtype
        Of the parameters; the mathematics of the coefficients runs in float32 at least, whatever they are.

    Attributes
    ----------
    branch : Callable or None
        The wrapped F.
    static : Parameter or buffer, shape (m,)
        Raw numbers in the order read, write, mixer; ``sizes`` has how many of each.
    projection : Parameter, shape (m, n d)
        Only if dynamic; zero at the start.
    scale : Parameter, shape (3,)
        Only if dynamic; of read, write and mixer; 0.01 at the start.
    last : tuple of (Tensor, Tensor, Tensor) or None
        ``pre``, ``post`` and ``M`` of the last eager forward, detached, for :func:`~jpmhc.layers.statistics`.

    Raises
    ------
    ValueError
        For sizes below one, unknown names, a mixer made for another n, a layer neither static nor dynamic, and a
        published projection where there is none.

    Notes
    -----
    Costs ``2 m n d`` floating-point operations a token for the projection to m = 2n + c numbers and
    ``2 n^2 d + 4 n d`` for mixing, read and write; m is 14 at n = 4 for ``cayley``, 24 for ``sinkhorn``.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> hc = layers.HyperConnection(8, torch.nn.Linear(8, 8), streams=4, mixer="cayley")
    >>> x = layers.expand_streams(torch.randn(2, 3, 8), 4)
    >>> hc(x).shape
    torch.Size([2, 3, 4, 8])
    >>> u, write = hc.read(x)              # the same in two halves
    >>> torch.equal(write(hc.branch(u)), hc(x))
    True
    """

    def __init__(
        self,
        dim: int,
        branch: Callable[..., Tensor] | None = None,
        *,
        streams: int = 4,
        mixer: str | Mixer = "cayley",
        gate: str = "softmax",
        norm: str | None = "rms",
        projection: str = "reduced",
        dynamic: bool = True,
        static: bool = True,
        layer_index: int = 0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("dim", dim)
        check_size("layer_index", layer_index, least=0)
        check_number("eps", eps, least=0.0)
        if branch is not None and (not callable(branch) or isinstance(branch, type)):
            raise TypeError(f"branch: expected a module or a function, got {branch!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating-point one, got {dtype}")
        if norm not in _NORMS:
            raise ValueError(f"norm: expected one of {_NORMS}, got {norm!r}")
        if not (dynamic or static):
            raise ValueError("dynamic, static: expected at least one to be True; layers.Residual has nothing to learn")
        self.dim, self.streams, self.norm, self.eps = dim, streams, norm, eps
        self.branch = branch
        self.last: tuple[Tensor, Tensor, Tensor] | None = None
        if projection not in _PROJECTIONS:
            raise ValueError(f"projection: expected one of {_PROJECTIONS}, got {projection!r}")
        published = projection == "published"
        unpacked = {"packed": False} if published and mixer in _SKEW else {}
        self.mixer = make_mixer(mixer, streams, **unpacked).to(device=device, dtype=dtype)
        self.gate = make_gate(gate, streams, layer_index, projection).to(device=device)
        self.sizes = [self.gate.n_read, self.gate.n_write, self.mixer.n_coefficients]
        if published and self.mixer.n_coefficients != streams**2:
            raise ValueError(
                f"projection: published takes a mixer of n^2 = {streams**2} raw numbers, {type(self.mixer).__name__} "
                f"has {self.mixer.n_coefficients}"
            )
        outputs = sum(self.sizes)
        start = torch.empty(outputs, device=device, dtype=dtype)
        if static:
            self.static = nn.Parameter(start)
        else:
            self.register_buffer("static", start)
        if dynamic:
            self.projection = nn.Parameter(torch.empty(outputs, streams * dim, device=device, dtype=dtype))
            self.scale = nn.Parameter(torch.empty(3, device=device, dtype=dtype))
        else:
            self.register_parameter("projection", None)
            self.register_parameter("scale", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the mixing parameters to the function-preserving start; the branch is left alone."""
        self.mixer.reset_parameters()
        with torch.no_grad():
            # The start is a matter of a few numbers, computed on the CPU even while parameters are made on "meta".
            with torch.device("cpu"):
                mixing = self.mixer.start()
            start = torch.cat([mixing.new_zeros(sum(self.sizes[:2])), mixing])
            self.static.copy_(start)
            if self.projection is not None:
                self.projection.zero_()
                self.scale.fill_(0.01)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``pre``, ``post`` and ``M`` for streams x.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams; only their leading shape matters where the layer is not dynamic.

        Returns
        -------
        pre, post : Tensor, shape (..., n), or (n,) where not dynamic
        matrix : Tensor, shape (..., n, n), or (n, n) where not dynamic
            float32, or float64 where the parameters are.
        """
        dtype = torch.promote_types(self.static.dtype, torch.float32)
        # Autocast would take the projection and the charts to half precision.
        with torch.autocast(x.device.type, enabled=False):
            raw = list(self.static.to(dtype).split(self.sizes))
            if self.projection is not None:
                read, write, mix = self._project(x, dtype).split(self.sizes, -1)
                dynamic = (self.gate.squash(read), self.gate.squash(write), self.mixer.squash(mix))
                raw = [s + scale * z for s, scale, z in zip(raw, self.scale.to(dtype), dynamic, strict=True)]
            pre, post = self.gate(raw[0], raw[1])
            return pre, post, self.mixer(raw[2])

    def _project(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x, weight = x.to(dtype), self.projection.to(dtype)
        flat = x.flatten(-2)
        if self.norm == "streams":
            normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
            return nn.functional.linear(normed.flatten(-2), weight)
        if self.norm == "layer":
            # Taking the mean out after the projection would cancel where it is large beside the spread.
            return nn.functional.linear(nn.functional.layer_norm(flat, flat.shape[-1:], eps=self.eps), weight)
        z = nn.functional.linear(flat, weight)
        if self.norm is None:
            return z
        # The norm is one number a token and the projection linear, so dividing afterwards saves a pass over the
        # streams.
        return z * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)

    def read(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the branch input and the function that writes a branch's result: the layer in two halves.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams.

        Returns
        -------
        u : Tensor, shape (..., d)
            Branch input, in the dtype of x.
        write : Callable
            ``write(y)`` takes the result (..., d) of the branch and returns the new streams (..., n, d).

        Raises
        ------
        ValueError
            If x does not end in (n, d), or y is not of the shape of u.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a floating-point tensor, got {got}")
        if x.shape[-2:] != (self.streams, self.dim):
            raise ValueError(
                f"x: expected shape (..., {self.streams}, {self.dim}), got {tuple(x.shape)}; call expand_streams first"
            )
        pre, post, matrix = self.coefficients(x)
        if not (torch.compiler.is_compiling() or is_functorch_wrapped_tensor(matrix)):
            self.last = (pre.detach(), post.detach(), matrix.detach())
        with torch.autocast(x.device.type, enabled=False):
            u = passes.read(x, pre).to(x.dtype)

        def write(y: Tensor) -> Tensor:
            if not isinstance(y, Tensor) or y.shape != u.shape:
                got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
                raise ValueError(f"branch: expected a result of shape {tuple(u.shape)}, got {got}")
            with torch.autocast(x.device.type, enabled=False):
                return passes.write(x, matrix, post, y).to(x.dtype)

        return u, write

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Mix the streams and write ``branch(u, *args, **kwargs)`` to them.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams.
        *args, **kwargs
            Passed on to the branch.

        Returns
        -------
        Tensor, shape (..., n, d)
            The new streams, in the dtype of x; in the place of its first tensor where the branch returns a tuple, list
            or dict.

        Raises
        ------
        ValueError
            As :meth:`read`.
        TypeError
            If there is no branch, or it returns no tensor.
        """
        if self.branch is None:
            raise TypeError("branch: this HyperConnection wraps none; use `u, write = hc.read(x)`")
        u, write = self.read(x)
        return replace_first_tensor(self.branch(u, *args, **kwargs), write)

    @classmethod
    def from_peer(cls, module: nn.Module, branch: Callable[..., Any] | None = None) -> HyperConnection:
        """Build the layer that computes what another project's module computes, with its weights.

        Parameters
        ----------
        module : Module
            Transformers' ``DeepseekV4HyperConnection`` or ``HYV4HyperConnection``, lucidrains' ``HyperConnections`` or
            ``mHCv2.ManifoldConstrainedHyperConnections`` (fractions, views and proposals of 1), Liger's ``LigerMHC``.
        branch : Callable, optional
            The branch; the module's own where it wraps one.

        Returns
        -------
        HyperConnection
            Outputs and gradients agree to 1e-5 in float32 where the module's sweeps have converged: the gradient of
            a Sinkhorn mixer is exact here and unrolled there. Small constants that peers add to sums and weights
            (1e-6) are left out.

        Raises
        ------
        TypeError
            For any other module.
        ValueError
            For an option of the module that has no equal here; the message names it.

        Notes
        -----
        lucidrains and Transformers apply the transpose of the matrix they name; here M is what multiplies the streams
        from the left. lucidrains' streams stand in the batch or before the tokens; here they are the last but one
        dimension.
        """
        return from_peer(cls, module, branch)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "last": None}

    def extra_repr(self) -> str:
        """Show the choices that the submodules do not show."""
        dynamic, static = self.projection is not None, isinstance(self.static, nn.Parameter)
        return f"dim={self.dim}, streams={self.streams}, norm={self.norm!r}, dynamic={dynamic}, static={static}"


def mixing_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that make read, write and mixer, of every hyper-connection inside a module.

    Weight decay pulls them towards raw = 0, which is no prior at all for most charts (it alone contracts a Sinkhorn
    mixer): give them to the optimiser without it. The parameters of the branches are not among them. They are found
    by walking the modules, so copying, moving or replacing parameters loses none.

    Parameters
    ----------
    module : Module
        Any module.

    Returns
    -------
    list of Parameter
        Each once, in the order of ``module.modules()``.

    Examples
    --------
    >>> import torch
    >>> from jpmhc import layers
    >>> model = torch.nn.Sequential(layers.HyperConnection(8, torch.nn.Linear(8, 8)))
    >>> mixing = set(layers.mixing_parameters(model))
    >>> groups = [
    ...     {"params": [p for p in model.parameters() if p not in mixing], "weight_decay": 0.1},
    ...     {"params": [p for p in model.parameters() if p in mixing], "weight_decay": 0.0},
    ... ]
    >>> [len(group["params"]) for group in groups]
    [2, 3]
    """
    found: dict[nn.Parameter, None] = {}
    for layer in module.modules():
        if isinstance(layer, HyperConnection):
            own = [p for p in layer._parameters.values() if p is not None]
            for parameter in [*own, *layer.mixer.parameters(), *layer.gate.parameters()]:
                found[parameter] = None
    return list(found)
