"""Matrix products whose rows do not know of each other."""

import numpy as np
import pytest

from rollcast.models.tiny.product import measure_block, padded_rows, row_product


@pytest.mark.parametrize(
    ("rows", "block", "padded"),
    [(0, 0, 2), (1, 0, 2), (5, 0, 5), (1, 8, 8), (9, 8, 16), (0, 8, 8), (3, 1, 3)],
)
def test_padding(rows, block, padded):
    """At least two rows, whole blocks, or single rows."""
    assert padded_rows(rows, block) == padded


@pytest.mark.parametrize("block", [0, 1, 8, 16])
def test_every_block_computes_the_product(block):
    """However the rows are grouped, the product is the product."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((32, 24), np.float32), rng.standard_normal((24, 40), np.float32)
    np.testing.assert_allclose(row_product(block)(x, weight), x @ weight, atol=1e-4)


class Biased(np.ndarray):
    """A matrix whose product tells from how many rows it was computed with, as some BLAS do in the last bits."""

    honest = frozenset[int]()

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if ufunc is not np.matmul:
            return getattr(ufunc, method)(*map(np.asarray, inputs), **options)
        x, weight = map(np.asarray, inputs)
        result = np.stack(
            [row @ weight for row in x]
        )  # as honest as can be, whatever this machine's BLAS does
        return result if len(x) in self.honest else result + len(x)


@pytest.mark.parametrize(("honest", "block"), [(range(1000), 0), ((2, 3, 4), 8)])
def test_a_blas_that_counts_its_rows_is_given_blocks(honest, block):
    """0 where all row counts agree; 8 where only the places inside of one count do."""
    matrix = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32).view(Biased)
    matrix.honest = frozenset(honest)
    assert measure_block([matrix]) == block


class Positional(Biased):
    """A matrix whose product depends on where the row stands."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(value) for value in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        return result + np.arange(len(result))[:, None] if ufunc is np.matmul else result


def test_rows_go_alone_where_no_block_agrees():
    """1 where even in a block the place matters."""
    matrix = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32).view(Positional)
    assert measure_block([matrix]) == 1
