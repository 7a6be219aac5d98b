"""The vLLM backend keeps the contract, by a reference that is not its own."""

import pytest
import pytest_asyncio

from conformance_subjects import async_vllm
from rollcast.testing.conformance import CHECKS, Bench, NotApplicable

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Checks of which every part needs what it cannot.
NOT_APPLICABLE: set[str] = set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(environment, tmp_path_factory):
    async with Bench(async_vllm(tmp_path_factory.mktemp("vllm"))) as bench:
        yield bench


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_vllm_keeps_the_contract(check, bench):
    """All of it, but for what is listed above."""
    said = None
    try:
        await check(bench)
    except NotApplicable as reason:
        said = str(reason)
    assert (said is not None) == (check.name in NOT_APPLICABLE), f"{check.name} was not checked: {said}"
