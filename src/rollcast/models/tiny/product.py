"""Matrix products whose rows do not affect each other.

A BLAS may sum a row's terms in an order that depends on the number of rows and the row's place among them, so that the
same sequence would get different logits, in the last bits, in another batch. Which shapes are safe differs between
processors: with OpenBLAS's AVX-512 kernels all row counts from 2 agree; with its AVX2 kernels (Haswell, Zen) only
blocks of 8 do. So the machine is measured once, with the real matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_ROWS", "RowProduct", "measure_block", "padded_rows", "row_product"]

Array = NDArray[np.float32]
RowProduct = Callable[[Array, Array], Array]

MAX_ROWS = 320
"""The most rows of one product: `measure_block` tests up to this many."""

# Every remainder of the kernels' tile heights, and both sides of the sizes at which a BLAS changes its algorithm.
_FREE_COUNTS = (*range(2, 18), 23, 31, 32, 33, 48, 63, 64, 65, 97, 128, MAX_ROWS)
_BLOCKS = (8, 16)


def padded_rows(rows: int, block: int) -> int:
    """How many rows to multiply so that `rows` of them are exact: see `measure_block`."""
    if block == 0:
        return max(rows, 2)
    return -(-max(rows, 1) // block) * block


def row_product(block: int) -> RowProduct:
    """Make a product X (N, K) @ W (K, M) that computes each row alone, on a machine that needs this block.

    N is a count from `padded_rows`.
    """
    if block == 0:
        return np.matmul

    def by_blocks(x: Array, weight: Array) -> Array:
        rows, inner = x.shape
        product: Array = x.reshape(-1, block, inner) @ weight
        return product.reshape(rows, -1)

    return by_blocks


def measure_block(matrices: Sequence[Array]) -> int:
    """Measure how many rows at a time this machine's BLAS must be given so that a row's result depends on no other row.

    Returns:
        0: any number from 2 to MAX_ROWS; 8 or 16: blocks of that many; 1: one row at a time, exact by construction.
    """
    distinct = {matrix.shape: matrix for matrix in matrices}.values()
    if all(_agrees(matrix, _FREE_COUNTS) for matrix in distinct):
        return 0
    for block in _BLOCKS:
        if all(_agrees(matrix, (block,)) for matrix in distinct):
            return block
    return 1


def _agrees(matrix: Array, counts: Sequence[int]) -> bool:
    """Whether one row gives the same bits at every place among that many copies of itself."""
    row = np.random.default_rng(0).standard_normal(len(matrix), np.float32)
    copies = np.tile(row, (max(counts), 1))
    expected = (copies[: counts[0]] @ matrix)[0]
    return all(bool((copies[:count] @ matrix == expected).all()) for count in counts)
