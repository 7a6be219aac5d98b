"""Cancelling in the page: chains, groups and runs, with a question before and what became of them after."""

import re

import pytest

from page.browser import audit, needs_chromium, see, there_are, until
from page.staged_runs import staged

pytestmark = needs_chromium


A_MINUTE_LATER = (
    "const now = Date.now.bind(Date); Date.now = () => now() + 60_000"  # so that chains are quiet at once
)


@pytest.fixture
def stage():
    with staged("rule", heartbeat_s=5) as stage:
        yield stage


def link(stage, to=""):
    """The link that may cancel."""
    return f"{stage.url}#token=rule{f'&to={to}' if to else ''}"


def open_chains(stage):
    return sum(len(run.chain_ids()) for run in stage.manager.fanout.runs.values())


def gone(page, selector):
    page.locator(selector).first.wait_for(state="detached")


def test_a_chain_is_cancelled_after_a_question(stage, tab):
    """By the keys alone; the focus is on the harmless answer, and Escape lets the chain run."""
    stage.begin(stage.searches())
    page = tab().open(link(stage))
    see(page, ".question").click()
    see(page, "[data-column]", "chain_6").click()
    see(page, ".transcript .call")
    page.keyboard.press("x")
    see(page, ".cancel", "End chain_6 now?")
    until(page, "document.activeElement.textContent === 'Let it run'")
    page.keyboard.press("Escape")
    gone(page, ".cancel .bad")
    page.keyboard.press("x")
    see(page, ".cancel .bad", "End it")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    see(page, ".cancel [role=status]", "It was cancelled.")
    see(page, "dd", "cancelled")
    assert open_chains(stage) == 2


def test_a_group_is_cancelled_and_counted(stage, tab):
    """Three of eight chains run; five are over and stay as they are."""
    stage.begin(stage.searches())
    page = tab().open(link(stage))
    see(page, ".question").click()
    see(page, ".pill", "5 of 8")
    page.get_by_role("button", name="Cancel this group …").click()
    see(page, ".cancel", "End the 3 chains of group_0 that run now?")
    audit(page, "question")
    page.get_by_role("button", name="End it").click()
    see(page, ".cancel [role=status]", "3 of 8 chains ended, 5 were over already.")
    there_are(3, page.locator(".column-head", has_text="cancelled"))
    audit(page, "answer")


def test_a_run_is_cancelled_and_its_end_is_told(stage, tab):
    """With the status that it ends with."""
    stage.begin(stage.searches())
    page = tab().open(link(stage))
    see(page, ".figure", "3 of 8 running")
    page.keyboard.press("x")
    see(page, ".cancel", "End this run now? All of its chains end.")
    page.get_by_role("button", name="End it").click()
    see(
        page,
        ".cancel [role=status]",
        "3 of 8 chains ended, 5 were over already. The run has ended: cancelled.",
    )
    see(page, ".figure", "0 of 8 running")


def test_where_it_is_stuck_is_told_with_a_button_beside_it(stage, tab):
    """The chains that hang in a tool, for how long, what is usual; one of them is cancelled from there."""
    stage.begin(stage.searches())
    one = tab()
    one.page.add_init_script(A_MINUTE_LATER)
    page = one.open(link(stage))
    item = see(page, ".stuck li", "chain_7")
    for told in ("in search", re.compile(r"quiet for (\d+ min|60)"), "the median call takes"):
        see(page, ".stuck li:has-text('chain_7')", told)
    audit(page, "stuck")
    item.get_by_role("button", name="Cancel … chain_7").click()
    item.get_by_role("button", name="End it").click()
    gone(page, ".stuck li:nth-child(3)")
    assert open_chains(stage) == 2


def test_what_was_over_before_is_said(stage, tab):
    """The server refuses to cancel what has ended meanwhile; the page says that it is over, and not in red."""
    stage.begin(stage.searches(chains=1, ended=0))
    page = tab().open(link(stage))
    see(page, ".cells a").click()
    see(page, ".transcript .call")
    page.keyboard.press("p")
    page.keyboard.press("x")
    see(page, ".cancel .bad", "End it")
    stage.finish()
    page.get_by_role("button", name="End it").click()
    page.keyboard.press("p")
    see(page, ".cancel [role=status]:not(.bad)", "It was over already.")


def test_a_page_that_may_only_watch_offers_nothing_to_cancel(tab):
    """And its list of keys says which link does."""
    with staged(heartbeat_s=5) as stage:
        stage.begin(stage.searches())
        page = tab().open(stage.url)
        see(page, ".figure", "3 of 8 running")
        page.keyboard.press("x")
        page.keyboard.press("?")
        see(page, "dialog[open] p", "This page may watch and not cancel.")
        assert page.locator(".cancel").count() == 0
