"""What the openai backend keeps of the contract on `transformers serve`, and that the page says so."""

from pathlib import Path

import pytest
import pytest_asyncio

from conformance_subjects import openai_transformers
from rollcast.testing.conformance import CHECKS, Bench, NotApplicable
from rollcast.testing.conformance.report import read_table

PAGE = Path(__file__).parents[3] / "docs/backends.md"

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

# Its seeds do not repeat among others, so what the random model says there is left to chance.
BY_CHANCE = {
    "many-at-once-get-their-own": pytest.mark.xfail(
        reason="the server fails if a text looks like a tool call and is none", strict=False
    )
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory, server):
    async with Bench(openai_transformers(tmp_path_factory.mktemp("subject"), server)) as bench:
        yield bench


@pytest.fixture(scope="module")
def published():
    return read_table(PAGE.read_text(encoding="utf-8"))["openai (transformers serve)"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "check", [pytest.param(check, marks=BY_CHANCE.get(str(check), ()), id=str(check)) for check in CHECKS]
)
async def test_it_keeps_what_the_page_says(check, bench, published):
    """What the page says of this check is what it finds."""
    await bench.prepare(fresh=False)  # what does not apply has the same reason in any order
    found = "yes"
    try:
        await check(bench)
    except NotApplicable as reason:
        found = f"n/a: {reason}"
    assert published[check.fact] == found


@pytest.mark.asyncio(loop_scope="module")
async def test_seeds_differ(bench):
    """Generations of other seeds differ, if the model's generation config says `do_sample`."""
    await bench.prepare(fresh=False)
    got = [await bench.generate(seed=seed, temperature=1.5) for seed in range(8)]
    assert len({one.text for one in got}) > 1


@pytest.mark.asyncio(loop_scope="module")
async def test_what_it_refuses_is_said(bench):
    """`top_k` would change what is sampled, so it is not left out."""
    await bench.prepare(fresh=False)
    with pytest.raises(AssertionError, match=r"Unexpected fields in the request: \{'top_k'\}"):
        await bench.generate(top_k=5)
