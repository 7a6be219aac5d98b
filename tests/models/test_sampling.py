"""What can be sampled by."""

import pytest

from rollcast.errors import InputError
from rollcast.models.backend import Sampling


@pytest.mark.parametrize("seed", ["7", 7.0, -1, 2**63, 2**64, b"7", [7]])
def test_a_seed_that_no_backend_could_take_is_refused(seed):
    """Backends differ in what they make of it: one would ignore it, another die of it."""
    with pytest.raises(InputError) as refused:
        Sampling(seed=seed)
    assert str(refused.value) == f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1, or None"


@pytest.mark.parametrize("seed", [None, 0, 2**32, 2**63 - 1])
def test_seeds_have_63_bits(seed):
    """Or there is none."""
    assert Sampling(seed=seed).seed == seed
