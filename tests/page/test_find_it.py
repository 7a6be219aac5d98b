"""What the pictures of docs/find-it.md answer stands on the page: which chain hangs, which one hacked its reward, and which trends a training has."""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from page.browser import HERE, needs_chromium, see, there_are, they_say, until

pytestmark = needs_chromium
ROOT = HERE.parents[1]


@contextmanager
def example(name, folder):
    """The example while it serves: the page's address."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "examples" / f"{name}.py", "--serve", "0"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        line = process.stdout.readline()
        reading = threading.Thread(
            target=process.stdout.read, daemon=True
        )  # it is never held up by a full pipe
        reading.start()
        yield line.removeprefix("in a browser: ").strip()
    finally:
        process.terminate()
        process.wait(120)
        reading.join(120)
        process.stdout.close()


@pytest.mark.slow
def test_the_chain_that_hangs_is_named_with_its_tool_and_the_time(tab, tmp_path):
    """On the overview, in the group and in the chain; a sign stands on its column and on no other."""
    with example("find_the_hung_chain", tmp_path) as url:
        page = tab().open(url)
        said = "chain_5 is waiting for the tool “open_page” and has sent nothing for"
        look = see(page, ".look", said)
        assert re.search(
            r"for \d+ s; the median call of this run took \d+ ms\s+since \d\d:\d\d:\d\d", look.inner_text()
        )
        see(page, ".question").click()
        stuck = see(page, ".stuck li", "chain_5")
        assert re.search(
            r"in open_page\s+quiet for .+ since \d\d:\d\d:\d\d; the median call takes \d+ ms",
            stuck.inner_text(),
        )
        see(page, ".column-head .accent", "in open_page for")
        there_are(1, page.locator(".look-sign"))
        signed = page.locator(".column-head", has=page.locator(".look-sign"))
        assert signed.inner_text().startswith("chain_5")
        stuck.locator("a", has_text="chain_5").click()
        see(page, "h1", "chain_5")
        see(page, ".looks-about .look", said)
        see(page, ".side dd", "in open_page for")


def test_the_chain_that_hacked_its_reward_is_named_with_what_it_did(tab, tmp_path):
    """Its answer, the reference and its call stand in the group, and in the chain."""
    with example("find_the_chain_that_hacked_its_reward", tmp_path) as url:
        page = tab().open(url)
        said = "1 of 9 chains with a reward of 1 or more gave an answer without the reference, such as “The answer is 7.” instead of “391”"
        see(page, ".look", said)
        see(page, ".look .why", "chain_5")
        see(page, ".question").click()
        line = see(page, ".looks-about .look", said)
        column = page.locator(".column", has=page.locator(".look-sign"))
        column.locator(".call-line", has_text="write_file(path=expected.txt, text=7)").wait_for()
        assert column.locator(".column-head").inner_text().startswith("chain_5")
        they_say(column.locator(".reward"), ["1.00"])
        line.locator("a", has_text="chain_5").click()
        see(page, ".looks-about .look", said)
        for name, value in (("reward", "1.00"), ("answer", "The answer is 7."), ("reference", "391")):
            see(page, f".side dt:text-is('{name}') + dd", value)


async def training(stage, steps):
    """A training whose chains learn to answer one thing to every question, step by step."""
    async with stage.manager.run(chains=0, groups=0, agent="agent", model="staged") as run:
        for step in range(1, steps + 1):
            async with stage.manager.run(
                chains=8,
                groups=4,
                agent="agent",
                model="staged",
                parent_run_id=run.run_id,
                train_step=step,
                split="train",
            ) as rollout:
                for number in range(8):
                    messages = [{"role": "user", "content": "?"}]
                    with rollout.chain(messages, group_id=f"group_{number // 2}", index=number % 2) as chain:
                        learned = step > steps // 2
                        with chain.generation() as generation:
                            generation.chunk("yes" if learned else f"{number // 2}")
                        chain.reward(float(learned or number % 2))
        await stage.goes_on.wait()


def test_trends_of_a_training_are_among_the_hints(stage, tab):
    """From the twelfth step on; of an earlier step they are not told, since they were not there yet."""
    page = tab().open(stage.url)
    stage.begin(training(stage, steps=12))
    see(
        page,
        ".look",
        "while the answers became the same: for 100% of the questions the rewarded answer is now “yes”",
    )
    until(page, "document.querySelector('.steps a[aria-label=\"Step 11\"]') !== null")
    page.locator(".steps a[aria-label='Step 11']").click()
    see(page, ".panel-head h2", "Step 11")
    see(page, ".panel", "Needs a look")
    until(
        page,
        "![...document.querySelectorAll('.look')].some((each) => each.textContent.includes('became the same'))",
    )
    stage.finish()
