"""The openai backend keeps the contract on vLLM's own server."""

import pytest
import pytest_asyncio

from conformance_subjects import openai_vllm
from rollcast.testing.conformance import CHECKS, Bench

pytestmark = pytest.mark.timeout(600)

# The one that kills the server comes last, so that it starts once.
IN_ORDER = sorted(CHECKS, key=lambda check: "kill" in check.needs)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory, server):
    async with Bench(openai_vllm(tmp_path_factory.mktemp("openai"), server)) as bench:
        yield bench


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("check", IN_ORDER, ids=str)
async def test_it_keeps_the_contract(check, bench):
    """Each check is a fact of the contract."""
    await check(bench)
