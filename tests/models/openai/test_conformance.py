"""The openai backend keeps the contract: the embedded model stands behind a server that speaks OpenAI."""

import pytest
import pytest_asyncio

from conformance_subjects import openai
from rollcast.testing.conformance import CHECKS, Bench

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory):
    async with Bench(openai(tmp_path_factory.mktemp("openai"))) as bench:
        yield bench


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_it_keeps_the_contract(check, bench):
    """Each check is a fact of the contract."""
    await check(bench)
