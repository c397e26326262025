"""Solutions and orthonormal columns by elementwise operations and products alone, which any CUDA graph may hold."""

from __future__ import annotations

import torch
from torch import Tensor


def is_captured(value: Tensor) -> bool:
    """Whether a CUDA graph is being captured where a tensor lies, so that no library may be asked to factorise it.

    cuSOLVER does not promise that it can be captured, MAGMA waits for the device, and which of them torch takes depends
    on its version and on the numbers of rows and matrices.
    """
    return not torch.compiler.is_compiling() and _is_capturing(value.device)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def eliminated(matrix: Tensor, right_sides: Tensor | None = None) -> Tensor:
    """Solve by Gauss and Jordan's elimination with row pivots, in 9 n launches.

    Parameters
    ----------
    matrix : Tensor, shape (..., n, n)
        Where one is singular there is infinity or NaN in its own result.
    right_sides : Tensor, shape (..., n, k), optional
        The identity, for the inverse, unless given. Batch dimensions are broadcast.

    Returns
    -------
    Tensor, shape (..., n, k)
        Contiguous.
    """
    n = matrix.shape[-1]
    place = torch.arange(n, device=matrix.device)
    if right_sides is None:
        right_sides = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    batch = torch.broadcast_shapes(matrix.shape[:-2], right_sides.shape[:-2])
    work = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (matrix, right_sides)], -1)
    for k in range(n):
        sizes = work[..., k].abs().masked_fill(place < k, -1.0)
        chosen = (place == sizes.argmax(-1, keepdim=True)).unsqueeze(-1)
        row = work.where(chosen, 0.0).sum(-2, keepdim=True)
        work = torch.where(chosen, work[..., k : k + 1, :], work)
        row = row / row[..., k : k + 1]
        work = torch.where((place == k).unsqueeze(-1), row, work - work[..., k : k + 1] * row)
    return work[..., n:].contiguous()


def gram_schmidt(matrix: Tensor) -> Tensor:
    """Orthonormalise columns (..., m, n) in their order, every one twice; NaN where one depends on those before it."""
    done = matrix[..., :0]
    for column in matrix.split(1, -1):
        for _ in range(2 if done.shape[-1] else 0):
            column = column - done @ (done.mT @ column)
        done = torch.cat([done, column / torch.linalg.vector_norm(column, dim=-2, keepdim=True)], -1)
    return done
