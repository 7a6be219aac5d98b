"""The openai backend keeps the contract, the embedded model behind a server that speaks OpenAI, and the page says so."""

from pathlib import Path

import pytest
import pytest_asyncio

from conformance_subjects import openai
from rollcast.testing.conformance import CHECKS, Bench, NotApplicable
from rollcast.testing.conformance.report import read_table

PAGE = Path(__file__).parents[3] / "docs/backends.md"

pytestmark = pytest.mark.torch


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory):
    async with Bench(openai(tmp_path_factory.mktemp("openai"))) as bench:
        yield bench


@pytest.fixture(scope="module")
def published():
    return read_table(PAGE.read_text(encoding="utf-8"))["openai"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_it_keeps_the_contract(check, bench, published):
    """What the page says of this check is what it finds."""
    found = "yes"
    try:
        await check(bench)
    except NotApplicable as reason:
        found = f"n/a: {reason}"
    assert published[check.fact] == found
