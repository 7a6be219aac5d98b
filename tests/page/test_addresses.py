"""Links and addresses: where they lead, and what is said of one that leads nowhere.

`see` waits for what it names and raises if that does not come: it is the assertion of most tests here.
"""

import pytest

from page import hard_cases
from page.browser import needs_chromium, see, until

pytestmark = needs_chromium


def hash_of(page):
    return page.evaluate("location.hash")


def go(page, place):
    page.evaluate("place => { location.hash = place; }", place)


@pytest.mark.parametrize("view", ["", "/chains", "/events", "/group/group_0", "/chain/chain_0"])
def test_a_run_that_the_server_does_not_have(stage, tab, view):
    """Every view says so and leads to the runs that there are."""
    stage.begin(stage.guesses())
    page = tab().open(f"{stage.url}#/run/nobody{view}")
    see(page, ".empty", "This server knows no run nobody.")
    see(page, ".empty a").click()
    see(page, ".runs a", "guess")
    stage.finish()


def test_a_step_a_group_and_a_chain_that_there_are_not(stage, tab):
    """Each view says which of them it is."""
    stage.begin(hard_cases.steps_in_flight(stage))
    page = tab().open(stage.url)
    see(page, "h2", "2 steps in flight")
    run = page.locator("nav a", has_text="Events").get_attribute("href").split("/")[2]
    for view in ("", "/chains", "/group/group_0", "/chain/chain_0"):
        go(page, f"#/run/{run}{view}?step=999")
        see(page, ".empty", "No chains of step 999 are known here.")
    go(page, f"#/run/{run}/group/nothing?step=48")
    see(page, ".empty", "There is no group nothing in this run.")
    go(page, f"#/run/{run}/chain/nothing?step=48")
    see(page, ".empty", "There is no chain nothing in this run.")
    stage.finish()


def test_an_event_of_a_training_leads_to_its_step(stage, tab):
    """The chain is shown as one of the training, with a way back to its step."""
    page = tab().open(stage.url)
    see(page, ".empty")
    stage.begin(hard_cases.steps_in_flight(stage))
    see(page, "h2", "2 steps in flight")
    run = page.locator("nav a", has_text="Events").get_attribute("href").split("/")[2]
    page.locator("nav a", has_text="Events").click()
    see(page, "h1", "Events")
    until(page, "document.querySelector('.event-list') !== null")
    stage.finish()
    see(page, ".event-row a").click()
    see(page, "h1", "chain_")
    assert hash_of(page).startswith(f"#/run/{run}/chain/chain_")
    assert "?step=4" in hash_of(page)
    see(page, ".crumb a", "step 4").click()
    see(page, "h2", "Step 4")


def test_a_rollout_that_is_addressed_by_itself_names_its_training(stage, tab):
    """The head of the page has the training and the step, and both are links."""
    stage.begin(hard_cases.steps_in_flight(stage))
    page = tab().open(stage.url)
    see(page, "h2", "2 steps in flight")
    rollout = next(run_id for run_id, run in stage.manager.fanout.runs.items() if run.parent_run_id)
    stage.finish()
    go(page, f"#/run/{rollout}/chain/chain_3")
    see(page, ".crumb a", "step 4")
    see(page, ".crumb a", "asynchronous").click()
    see(page, "h2", "Step 49")


def test_a_chosen_range_tells_how_many_chains_it_has(stage, tab):
    """Also one that the page would not offer by itself."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".question .mean", "0.63")
    run = page.locator("nav a", has_text="Events").get_attribute("href").split("/")[2]
    go(page, f"#/run/{run}/chains?reward=0..%3C0.5")
    see(page, ".filters summary", "2 of 4 chains")
    assert see(page, ".chip[aria-pressed=true]").inner_text() == "0.00 to 0.50 2"


def test_a_question_of_ten_chains_stands_on_one_line(stage, tab):
    """The columns of the wall are as wide as the largest group needs."""
    stage.begin(stage.guesses(chains=10))
    page = tab().open(stage.url)
    until(page, "document.querySelectorAll('.question .cell').length === 10")
    tops = page.locator(".question .cell").evaluate_all(
        "cells => cells.map((c) => c.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == 1
    stage.finish()


def test_on_a_phone_the_runs_and_the_keys_are_whole(stage, tab):
    """The list of runs needs no sideways scrolling, and the list of keys is shown from its beginning."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab(width=360, height=740).open(f"{stage.url}#/runs")
    see(page, ".runs td", "0.63")
    assert page.locator(".scroll-x").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    page.keyboard.press("?")
    see(page, ".help h1")
    until(page, "document.querySelector('.help h1').getBoundingClientRect().top > 0")
    assert page.evaluate("document.activeElement.id") == "help-title"
