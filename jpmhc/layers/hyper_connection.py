"""The hyper-connection: a branch that reads from n mixed residual streams and writes to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jpmhc.layers.halves import Halves
from jpmhc.layers.mixer import Mixer
from jpmhc.layers.outputs import replace_first_tensor
from jpmhc.layers.peers import from_peer
from jpmhc.layers.recipes import find_recipe


class HyperConnection(Halves):
    """A residual connection with n streams ``x`` of shape (..., n, d) around a branch F.

    ::

        u  = sum_i pre_i x_i         read    pre  (..., n)
        y  = F(u)                    branch  once, on one vector
        x' = M x + post y^T          mix and write    M (..., n, n), post (..., n)

    ``M`` multiplies from the left and is never transposed: row j of M makes stream j. The raw numbers behind
    ``pre``, ``post`` and ``M`` are, in this order, ``static + scale * squash(projection norm(x))``: a parameter, a
    function of the token's own flattened streams, or both. They never see another token. Those of a whole matrix come
    row by row, those of a skew one as its entries above the diagonal, row by row; Sinkhorn sweeps take the rows first
    and the columns last, so that columns sum to one exactly, unless ``Sinkhorn(n, last="rows")`` turns them round.

    At initialisation every layer computes ``x + F(x)`` on equal streams (the projection is zero, the read sums to one,
    the write is one, the rows of M sum to one), so a network between :func:`~jpmhc.layers.expand_streams` and
    :func:`~jpmhc.layers.reduce_streams` computes what the plain residual network computes. The read is uneven, towards
    another stream in each layer, so that this start is not a saddle.

    Parameters
    ----------
    dim : int
        Width d of one stream.
    branch : Callable, optional
        Module or function (..., d) -> (..., d), of ``reads`` such inputs. It may return a tuple, list or dict whose
        first tensor, that of its first item in nested ones, is that result; the rest is passed through. Only the order
        counts: return ``(y, (k, v))``, for of ``((k, v), y)`` k is taken, in silence where it has the shape of y. Leave
        it out to use :meth:`read` around code of your own.
    streams : int
        Number of streams n, at least 1.
    mixer : str or Mixer
        A name from :func:`~jpmhc.layers.mixers` or an instance, the chart of M.
    gate : str
        The map to ``pre`` and ``post``: ``"softmax"`` (JPmHC), ``"sigmoid"`` (mHC), ``"tanh"`` (HC) or ``"uniform"``
        (1/n and 1, nothing to learn).
    norm : str or None
        Norm before the projection, without gain: of the flattened streams (n d numbers) ``"rms"`` or ``"layer"``, of
        every stream by itself ``"streams"`` (RMS) or ``"streams-layer"``, or None. The branch gets u as it is.
    projection : str
        ``"reduced"``: as many raw numbers as act, 2n + the mixer's. ``"published"``: 3 n^2 of them, JPmHC's three n x n
        matrices, for the softmax gate and a mixer made of n^2 numbers. A published layer can be everything that the
        reduced one is; with a Cayley mixer and static gates the converse holds too. ``"shared"``: HC's, one map of a
        stream's d numbers that all streams share and from which each makes its own n + 2, for a mixer of n^2.
    dynamic, static : bool
        Whether the raw numbers depend on the token, on parameters, or on both; one of the two at least.
    layer_index : int
        Place of the layer in the network; the start of the read favours stream ``layer_index mod n``.
    reads : int
        Inputs of the branch. Each is a read of the streams with weights of its own, ``pre`` is (..., reads, n).
    fractions : int
        Parts m that d is cut into (Frac-Connections, arXiv 2503.14125). The mixer then acts on n m pieces of width
        d / m and must start at I; fraction f of the branch's result is written to piece f of every stream. With
        ``streams=1`` this mixes within the width of an ordinary residual vector.
    stream_embedding : bool
        Says that the streams come from a :class:`~jpmhc.layers.StreamEmbedding`. ``gate="uniform"`` needs it: streams
        that start equal would stay equal for ever.
    scale : float or None
        Start of the learned factors of the dynamic part; None leaves them out (a factor of 1).
    learn_mixer_scale : bool
        False keeps the mixer's factor where it starts, as oHC does.
    tie_mixer_scale : bool
        True leaves the mixer no factor of its own: the read's is also the mixer's, as HC's ``s_alpha`` is.
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
    projection : Parameter, shape (m, n d); shared (n + 2, d)
        Only if dynamic, with raw numbers to make; zero at the start.
    scale : Parameter, shape (3,), or (2,) if tied
        Only if dynamic; of read, write and mixer; tied, of read and mixer, and of write; 0.01 at the start.
    label : buffer
        The layer's choices as text, so that a state dict of another layer is refused. State dicts hold it as it was
        made, whatever averaging makes of the buffer.
    last : tuple of (Tensor, Tensor, Tensor) or None
        ``pre``, with which it read, ``post`` and ``M`` of the last eager forward, detached, for
        :func:`~jpmhc.layers.statistics`.

    Raises
    ------
    ValueError
        For sizes below one, unknown names, a mixer made for another n, a layer neither static nor dynamic, a
        projection that the gate or the mixer does not have, a mixer's factor both tied and fixed, and a start that is
        a saddle or not the plain network.

    Notes
    -----
    Costs ``2 m n d`` floating-point operations a token for the projection to m = 2n + c numbers and
    ``2 n^2 d + 4 n d`` for mixing, read and write; m is 14 at n = 4 for ``cayley``, 24 for ``sinkhorn``.

    Constants of the mixer and of the gate are neither parameters nor buffers: ``torch.func.stack_module_state`` does
    not stack them, so layers that are stacked have to agree in ``layer_index`` and in the mixer's options.

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
        branch: Callable[..., Any] | None = None,
        *,
        streams: int = 4,
        mixer: str | Mixer = "cayley",
        gate: str = "softmax",
        norm: str | None = "rms",
        projection: str = "reduced",
        dynamic: bool = True,
        static: bool = True,
        layer_index: int = 0,
        reads: int = 1,
        fractions: int = 1,
        stream_embedding: bool = False,
        scale: float | None = 0.01,
        learn_mixer_scale: bool = True,
        tie_mixer_scale: bool = False,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if branch is not None and (not callable(branch) or isinstance(branch, type)):
            raise TypeError(f"branch: expected a module or a function, got {branch!r}")
        if gate == "uniform" and streams != 1 and not stream_embedding:
            raise ValueError(
                "gate: with 'uniform' streams that start equal stay equal for ever, whatever the mixer; make them with "
                "layers.StreamEmbedding and pass stream_embedding=True, or choose another gate"
            )
        super().__init__(
            dim,
            streams=streams,
            mixer=mixer,
            gate=gate,
            norm=norm,
            projection=projection,
            dynamic=dynamic,
            static=static,
            layer_index=layer_index,
            reads=reads,
            fractions=fractions,
            scale=scale,
            learn_mixer_scale=learn_mixer_scale,
            tie_mixer_scale=tie_mixer_scale,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        self.branch = branch

    def read(self, x: Tensor) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """Return the branch input and the function that writes a branch's result: the layer in two halves.

        Parameters
        ----------
        x : Tensor, shape (..., n, d)
            Streams.

        Returns
        -------
        u : Tensor, shape (..., d)
            Branch input, in the dtype of x; a tuple of them with several reads.
        write : Callable
            ``write(y)`` takes the result (..., d) of the branch and returns the new streams (..., n, d).

        Raises
        ------
        ValueError
            If x does not end in (n, d), or y is not of the shape of u.
        RuntimeError
            If FSDP2 sharded the layer itself, and not the module that calls this, or its parameters are offloaded.
        """
        self._check_streams(x)
        if self.reads > 1 or self.fractions > 1:
            return self._read_parts(x)
        u, x, writing = self.enter(x)
        return u, self._writer(x, writing)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Mix the streams and write ``branch(u, *args, **kwargs)`` to them; with several reads ``branch(u1, u2, ...)``.

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
        inputs = u if self.reads > 1 else (u,)
        return replace_first_tensor(self.branch(*inputs, *args, **kwargs), write)

    @classmethod
    def from_peer(cls, module: nn.Module, branch: Callable[..., Any] | None = None) -> HyperConnection:
        """Build the layer that computes what another project's module computes, with its weights.

        Parameters
        ----------
        module : Module
            Transformers' ``DeepseekV4HyperConnection``, ``Glm5NextTextHyperConnection`` or ``HYV4HyperConnection``,
            lucidrains' ``HyperConnections`` or ``ManifoldConstrainedHyperConnections`` of either version (fractions,
            views and proposals of 1), Liger's ``LigerMHC``.
        branch : Callable, optional
            The branch; the module's own where it wraps one.

        Returns
        -------
        HyperConnection
            Outputs and gradients agree to 1e-5 in float32 where the module's sweeps have converged: the gradient of
            a Sinkhorn mixer is exact here and unrolled there. Of sweeps that have not, the same marginal is normalised
            last. Small constants that peers add to sums and weights (1e-6) are left out: without theirs the mixers
            of DeepSeek-V4 and GLM agree to 3e-7, with them at logits of standard deviation 1 to 1e-5, at 3 to 2e-4.

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
        dimension. The one factor of read and mixer in lucidrains' ``HyperConnections`` is one here too
        (``tie_mixer_scale``), so that both train alike.
        """
        return from_peer(cls, module, branch)

    @classmethod
    def from_recipe(
        cls,
        recipe: str,
        dim: int,
        branch: Callable[..., Any] | None = None,
        *,
        streams: int = 4,
        layer_index: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> HyperConnection:
        """Build a published layer, coefficient for coefficient, with the start and the choices of its authors.

        Parameters
        ----------
        recipe : str
            A name from :func:`~jpmhc.layers.recipes`, which also says where each comes from, how its streams are
            reduced, and what its authors leave open.
        dim : int
            Width d of one stream.
        branch, streams, layer_index, device, dtype
            As for the layer itself.

        Returns
        -------
        HyperConnection
            Published starts are not all function-preserving; that is part of the recipe.

        Raises
        ------
        ValueError
            For an unknown recipe, or a number of streams that it does not have.

        Examples
        --------
        >>> from jpmhc import layers
        >>> hc = layers.HyperConnection.from_recipe("jpmhc-cayley", 512)
        >>> hc.mixer.describe(), hc.projection.shape
        ('CayleyIterated(4, step=0.1, iterations=2, packed=False)', torch.Size([48, 2048]))
        """
        options = find_recipe(recipe).options(streams)
        layer = cls(dim, branch, streams=streams, layer_index=layer_index, device=device, dtype=dtype, **options)
        layer.recipe = recipe
        layer.reset_parameters()
        return layer
