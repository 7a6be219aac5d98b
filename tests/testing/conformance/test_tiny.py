"""The embedded backend keeps the contract, by a reference that is not its own, and the page says so."""

from pathlib import Path

import pytest
import pytest_asyncio

from conformance_subjects import tiny
from rollcast.testing.conformance import CHECKS, Bench, NotApplicable
from rollcast.testing.conformance.report import read_table

pytestmark = [pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

PAGE = Path(__file__).parents[3] / "docs/backends.md"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory):
    async with Bench(tiny(tmp_path_factory.mktemp("tiny"))) as bench:
        yield bench


@pytest.fixture(scope="module")
def published():
    return read_table(PAGE.read_text(encoding="utf-8"))["tiny"]


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_tiny_keeps_the_contract(check, bench, published):
    """All of it; what the page says of this check is what it finds."""
    found = "yes"
    try:
        await check(bench)
    except NotApplicable as reason:
        found = f"n/a: {reason}"
    assert published[check.fact] == found
