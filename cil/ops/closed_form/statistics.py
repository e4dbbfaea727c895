"""Statistics of features that a strategy carries: what the ledger counts as such, and symmetric matrices by half."""

from __future__ import annotations

from torch import Tensor, nn


class Statistics(nn.Module):
    """A part of a strategy whose buffers are statistics: matrices, means, projections.

    The ledger counts them as ``statistics``, except those named in ``head_buffers``, which score classes.

    Attributes:
        head_buffers: names of buffers that hold a row or a column for each class.
    """

    head_buffers: tuple[str, ...] = ()


def packed_size(n: int) -> int:
    """Numbers in the lower triangle of an n x n matrix, with its diagonal."""
    return n * (n + 1) // 2


def pack(matrix: Tensor) -> Tensor:
    """The lower triangle of a symmetric matrix, row by row: (M, M) -> (M (M + 1) / 2,). The upper one is not read."""
    out = matrix.new_empty(packed_size(len(matrix)))
    start = 0
    for i, row in enumerate(matrix):
        out[start : start + i + 1] = row[: i + 1]
        start += i + 1
    return out


def unpack(packed: Tensor) -> Tensor:
    """A lower triangle as a matrix with zeros above the diagonal: (M (M + 1) / 2,) -> (M, M).

    Raises:
        ValueError: no M fits the number of values.
    """
    n = int(((8 * len(packed) + 1) ** 0.5 - 1) / 2 + 0.5)
    if packed_size(n) != len(packed):
        raise ValueError(f"{len(packed)} numbers are no triangle")
    out = packed.new_zeros(n, n)
    start = 0
    for i in range(n):
        out[i, : i + 1] = packed[start : start + i + 1]
        start += i + 1
    return out


def symmetric_product(lower: Tensor, x: Tensor) -> Tensor:
    """S x for the symmetric S with this lower triangle and zeros above it: (M, M), (M, K) -> (M, K)."""
    return lower @ x + lower.T @ x - lower.diagonal()[:, None] * x


def mirror_(matrix: Tensor, block: int = 1024) -> Tensor:
    """Copy the lower triangle of (M, M) onto the upper one, in place."""
    for i in range(0, len(matrix), block):
        corner = matrix[i : i + block, i : i + block]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        matrix[i : i + block, i + block :] = matrix[i + block :, i : i + block].T
    return matrix


def add_gram_(matrix: Tensor, x: Tensor, block: int = 512) -> Tensor:
    """Add x^T x to the lower triangle of a matrix, in place: (M, M), (N, M). What is above the diagonal is undefined.

    Products are computed in the precision of ``x`` and added up in that of ``matrix``; only the blocks that touch the
    lower triangle are computed, which is little more than half of the work.
    """
    for i in range(0, x.shape[1], block):
        rows, left, right = matrix[i : i + block, : i + block], x[:, i : i + block].T, x[:, : i + block]
        if x.dtype == matrix.dtype:
            rows.addmm_(left, right)
        else:
            rows.add_((left @ right).to(matrix.dtype))
    return matrix
