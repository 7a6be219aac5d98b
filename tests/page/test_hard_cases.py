"""The page where it is hard: very many chains, very long ones, large groups, several steps at once, and runs that lack something."""

import re

import pytest

from page import hard_cases
from page.browser import audit, needs_chromium, see, there_are, they_say, until
from page.staged_runs import staged

pytestmark = needs_chromium

SIZES = [(1440, "light"), (1440, "dark"), (360, "light"), (360, "dark")]


def hash_of(page):
    return page.evaluate("location.hash")


def open_run(page):
    """Wait until the page shows a run."""
    see(page, ".figures")


# -- the list of all chains ---------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tab, tmp_path):
    """A page that shows a run of 2,000 chains, of which a third goes on. The record has those that are over, however slow the page is."""
    with staged(record=tmp_path / "record") as stage:
        page = tab().open(stage.url)
        see(page, ".empty")
        stage.begin(hard_cases.many(stage))
        see(page, ".figure", "655 of 2,000 running")
        until(page, "document.querySelectorAll('.question .cell').length === 2000")
        see(page, ".figure", "1,345 over")
        yield page


def test_chains_are_filtered_and_sorted_in_the_address(many):
    """What is chosen on the wall holds in the list, is in the address, and comes back with it."""
    page = many
    page.locator(".filters summary").click()
    page.locator(".chip", has_text="failed").click()
    see(page, ".filters summary", "40 of 2,000 chains")
    there_are(40, page.locator(".question"))
    there_are(40, page.locator(".cell.failed:not(.dim):not(.legend *)"))
    page.locator("a", has_text="List of chains").click()
    see(page, "h1", "Chains")
    see(page, "p", "40 of 2,000 chains")
    assert "state=failed" in hash_of(page)
    page.locator(".chip", has_text="failed").click()
    page.locator(".heads button", has_text="reward").click()
    see(page, '[role=columnheader][aria-sort="descending"]', "reward")
    page.locator(".heads button", has_text="reward").click()
    see(page, '[role=columnheader][aria-sort="ascending"]', "reward")
    page.locator(".chip", has_text=re.compile(r"^0\.25 ")).click()
    see(page, ".chain-row .of-reward", "0.25")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    see(page, '.chip[aria-pressed="true"]', "0.25")
    see(page, '[role=columnheader][aria-sort="ascending"]', "reward")
    see(page, ".chain-row .of-reward", "0.25")
    until(
        page,
        "[...document.querySelectorAll('.all-rows .of-reward')].every((each) => each.innerText === '0.25')",
    )
    page.locator("button", has_text="Show all").click()
    see(page, "p", "2,000 chains")
    page.go_back()
    see(page, '.chip[aria-pressed="true"]', "0.25")


def test_the_list_is_reached_by_keys_and_draws_only_what_is_on_screen(many):
    """From the first row to the last one and back, and into a chain."""
    page = many
    page.locator("nav a", has_text="Chains").click()
    see(page, ".all-rows .chain-row")
    assert page.locator(".all-rows .chain-row").count() < 60
    see(page, '[role=table][aria-rowcount="2001"]')
    page.keyboard.press("j")
    until(page, "document.activeElement.textContent === 'chain_0'")
    page.keyboard.press("End")
    until(page, "document.activeElement.textContent === 'chain_1999'")
    assert page.locator(".all-rows .chain-row").count() < 60
    page.keyboard.press("ArrowUp")
    until(page, "document.activeElement.textContent === 'chain_1998'")
    page.keyboard.press("Home")
    until(page, "document.activeElement.textContent === 'chain_0'")
    page.keyboard.press("j")
    until(page, "document.activeElement.textContent === 'chain_1'")
    page.keyboard.press("Enter")
    see(page, "h1", "chain_1")


def test_text_is_searched_in_rows(many):
    """In answers, errors and ids; the words are in the address."""
    page = many
    page.locator("nav a", has_text="Chains").click()
    page.get_by_role("searchbox").fill("chain_1999")
    page.keyboard.press("Enter")
    see(page, "p", "1 of 2,000 chains")
    they_say(page.locator(".all-rows .of-chain_id"), ["chain_1999"])
    assert "text=chain_1999" in hash_of(page)


def test_what_is_typed_stays_while_rows_come_in(many):
    """The list is drawn anew each time; and the words go with the address."""
    page = many
    page.locator("nav a", has_text="Chains").click()
    box = page.get_by_role("searchbox")
    box.fill("chain_1999")
    page.locator(".heads button, .heads a").first.click()  # another order: all is drawn anew
    until(page, "location.hash.includes('sort=')")
    assert box.input_value() == "chain_1999"
    box.press("Enter")
    see(page, "p", "1 of 2,000 chains")
    page.go_back()
    until(page, "document.querySelector('input[type=search]').value === ''")


# -- a large group --------------------------------------------------------------------------------------------------------------


def test_a_large_group_is_strips_that_open_to_columns(stage, tab):
    """A line a chain, a cell a turn; a choice of chains stands side by side, and is in the address."""
    stage.begin(hard_cases.large_group(stage))
    page = tab().open(stage.url)
    see(page, ".question").click()
    until(page, "document.querySelectorAll('.strip').length === 64")
    see(page, '.choice [aria-current="true"]', "Strips")
    until(page, "document.querySelectorAll('.strip .turn-mark').length > 60")
    assert page.locator(".columns").count() == 0
    see(page, ".strip .turn-mark.failed", "✕")
    see(page, ".strip .turn-mark.generating")
    page.locator(".chip", has_text="decision").click()
    see(page, ".strip .turn-mark.u3")
    page.locator(".chip", has_text="reward").click()
    see(page, ".strip .turn-mark.level")
    page.get_by_role("button", name="chain_3 side by side").click()
    see(page, ".column", "chain_3")
    page.get_by_role("button", name="chain_4 side by side").click()
    see(page, ".column", "chain_4")
    there_are(2, page.locator(".column:not(.numbers)"))
    address = page.url
    again = tab().open(address)
    until(again, "document.querySelectorAll('.column:not(.numbers)').length === 2")
    page.get_by_role("button", name="chain_3 side by side").click()
    until(page, "document.querySelectorAll('.column:not(.numbers)').length === 1")
    stage.finish()
    see(page, ".pill", "64 of 64")
    see(page, ".strip:first-child .strip-name", re.compile("^chain_1$"))  # the best come first
    page.keyboard.press("s")
    see(page, '.choice [aria-current="true"]', "Side by side")
    until(page, "document.querySelectorAll('.column:not(.numbers)').length === 64")


def test_a_cell_leads_to_its_turn(stage, tab):
    """The turn is in the address."""
    stage.begin(hard_cases.large_group(stage))
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, ".strip:first-child .turn-mark:nth-child(2)").click()
    see(page, "h1", "chain_0")
    assert hash_of(page).endswith("/turn/2")
    see(page, "#turn-2 .call", "guess")


def test_chips_choose_among_the_chains_of_a_group(stage, tab):
    """The others are not shown; figures are of all."""
    stage.begin(hard_cases.large_group(stage))
    page = tab().open(stage.url)
    see(page, ".question").click()
    until(page, "document.querySelectorAll('.strip').length === 64")
    page.locator(".filters summary").click()
    page.locator(".chip", has_text=re.compile("^search ")).click()
    see(page, ".filters summary", "of 64 chains")
    assert page.locator(".strip").count() < 20
    see(page, "h1", "64 chains")


# -- a long chain ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_chain_of_300_turns_keeps_few_of_them_in_the_page(stage, tab):
    """64,000 tokens: turns far from the screen have no text; a number leads to a turn; keys go on from there."""
    stage.begin(hard_cases.long_chain(stage))
    page = tab().open(stage.url)
    see(page, "[data-row]").click()
    see(page, "#turn-300 .tokens", "word212")
    there_are(300, page.locator(".block[id^=turn]"))
    assert page.locator(".block .tokens").count() < 60
    until(page, "innerHeight + scrollY >= document.documentElement.scrollHeight - 40")
    page.get_by_role("spinbutton").fill("150")
    page.keyboard.press("Enter")
    until(
        page,
        "(() => { const box = document.getElementById('turn-150').getBoundingClientRect(); return box.top > 0 && box.top < 200 })()",
    )
    see(page, "#turn-150 .call", "look_up(page=150)")
    assert hash_of(page).endswith("/turn/150")
    until(page, "document.getElementById('turn-150').contains(document.activeElement)")
    page.keyboard.press("l")
    until(page, "document.getElementById('turn-151').contains(document.activeElement)")
    page.keyboard.press("h")
    page.keyboard.press("h")
    until(page, "document.getElementById('turn-149').contains(document.activeElement)")
    assert page.locator(".block .tokens").count() < 60
    address = page.url
    again = tab().open(address)
    until(
        again,
        "(() => { const box = document.getElementById('turn-149')?.getBoundingClientRect(); return box && box.top > 0 && box.top < 200 })()",
    )
    see(again, "#turn-149 .call", "look_up(page=149)")
    there_are(300, again.locator(".turn-marks .turn-mark:not(.legend *)"))


# -- several steps in flight ----------------------------------------------------------------------------------------------------


def test_steps_in_flight_are_shown_together(stage, tab):
    """A step is a property of a group: each has its wall, its policy and its links; the list has the chains of all."""
    stage.begin(hard_cases.steps_in_flight(stage))
    page = tab().open(stage.url)
    see(page, "h2", "2 steps in flight")
    until(page, "document.querySelectorAll('.question').length === 8")
    they_say(page.locator(".step-wall h3 a"), ["Step 48", "Step 49"])
    see(page, ".step-wall h3", "policy 46")
    see(page, ".figure", "24 of 32 running")
    page.locator(".step-wall", has_text="Step 48").locator(".question").first.click()
    see(page, ".pill", "step 48")
    see(page, ".column .call-line", "guess")
    assert "step=48" in hash_of(page)
    page.locator("nav a", has_text="Overview").click()
    see(page, "h2", "2 steps in flight")
    page.locator("nav a", has_text="Chains").click()
    see(page, "p", "32 chains of steps 48, 49")
    see(page, ".of-group_id a", "step 49 · group_0")
    stage.finish()
    page.locator("nav a", has_text="Overview").click()
    see(page, "h2", "Step 49")


def test_the_curve_is_read_by_keys_and_shows_other_metrics(stage, tab):
    """Arrow keys go from step to step, Enter shows the chains of one; what is shown is in the address."""
    stage.begin(hard_cases.steps_in_flight(stage))
    page = tab().open(stage.url)
    see(page, ".curve polyline.mean")
    page.locator(".curve").focus()
    page.keyboard.press("Home")
    see(page, ".reading", "step 1: mean reward 0.31")
    page.keyboard.press("ArrowRight")
    see(page, ".reading", "step 2: mean reward 0.32")
    page.locator(".panel-head select").select_option("entropy")
    page.wait_for_url("**metric=entropy")
    page.locator(".curve").focus()
    page.keyboard.press("Home")
    see(page, ".reading", "step 1: entropy 1.0000")
    page.keyboard.press("Enter")
    page.wait_for_url("**step=1")
    see(page, ".empty", "No chains of step 1 are known here.")


# -- tokens and segments ----------------------------------------------------------------------------------------------------------


def test_a_token_tells_the_version_of_its_own_turn_and_its_segment(stage, tab):
    """Weights changed from turn to turn; the third turn's prompt was rendered afresh."""
    stage.begin(hard_cases.forked(stage))
    stage.finish()
    page = tab().open(stage.url)
    see(page, "[data-row]").click()
    see(page, ".block.segment", "Segment 2 begins here: the prompt of turn 3 was rendered afresh")
    see(page, ".block.segment", "Sent: 48 tokens; the turn before ended at 55 tokens")
    see(page, ".side h2", "Sent, and trained on")
    for row in ("1 to 2\\t52\\t6", "3 to 4\\t59\\t5"):
        until(
            page, f"[...document.querySelectorAll('.side tbody tr')].some((row) => row.innerText === '{row}')"
        )
    facts = page.locator(".token-facts dl")
    for turn, version, segment in ((1, "7", "1"), (2, "8", "1"), (3, "9", "2")):
        page.locator(f"#turn-{turn} .tokens").focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        see(page, ".token-facts h2", f"turn {turn}")
        told = facts.inner_text().split("\n")
        assert told[told.index("policy version") + 1] == version
        assert told[told.index("mask") + 1] == "1: sampled"
        assert told[told.index("trained on in") + 1] == f"segment {segment}"
    # The pointer does the same.
    box = page.locator("#turn-2 .tokens").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2)
    see(page, ".token-facts h2", "turn 2")
    see(page, ".token-facts dd", '"guess "')


def test_a_chain_that_is_joined_late_knows_its_segment(stage, tab):
    """The snapshot's depth says where it began."""
    stage.begin(hard_cases.forked(stage))
    page = tab().open(stage.url)
    see(page, "[data-row]").click()
    see(page, ".block.segment", "begins here: the prompt of turn 3 was rendered afresh")
    stage.finish()
    see(page, ".side h2", "Sent, and trained on")


# -- runs that lack something -------------------------------------------------------------------------------------------------------


def test_a_failed_run_says_so_and_leads_to_its_chains(stage, tab):
    """The list shows those that failed with it."""
    stage.begin(hard_cases.failed(stage))
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".failure", "This run failed.")
    page.locator(".failure a", has_text="4 chains").click()
    see(page, "p", "4 chains")
    see(page, '.chip[aria-pressed="true"]', "failed")
    see(page, ".all-rows .of-state", "failed")


def test_an_empty_run_says_so(stage, tab):
    """No figure is invented."""
    stage.begin(hard_cases.empty(stage))
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".empty", "This run has no chains.")
    assert page.locator(".figure .value", has_text="NaN").count() == 0
    page.locator("nav a", has_text="Chains").click()
    see(page, ".empty", "This run has no chains.")


def test_a_run_without_rewards_groups_and_ids(stage, tab):
    """What is not there is not shown as zero."""
    stage.begin(hard_cases.lacking(stage, rewards=False, groups=False, ids=False))
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".cell.unscored")
    see(page, ".figure", "mean reward of 0 chains")
    page.locator("[data-row]").first.click()
    see(page, ".tokens.unknown", "There are 0.")
    see(page, "dd", "none")
    page.keyboard.press("l")
    see(page, ".token-facts dd", "not seen")
    told = page.locator(".token-facts dl").inner_text().split("\n")
    assert told[told.index("mask") + 1] == "not known"
    page.keyboard.press("j")
    see(page, "h1", "chain_1")


def test_rewards_that_are_equal_negative_or_absent(stage, tab):
    """The scale of the wall is told; a group in which all got the same says that there is nothing to learn."""
    stage.begin(hard_cases.rewarded(stage, -1.0, -1.0, -3.5, None, 0.0, 12.0))
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".legend", "reward −3.50")
    see(page, ".legend", "12.00")
    see(page, ".question").click()
    see(page, ".column.best", "12.00")
    they_say(page.locator(".column .reward"), ["12.00", "0.00", "−1.00", "−1.00", "−3.50", "–"])
    stage.begin(hard_cases.rewarded(stage, 0.1, 0.1, 0.1))
    stage.finish()
    page.locator(".mark").click()
    see(page, ".question .mean", "0.10").click()
    see(page, ".pill", "all the same reward: nothing to learn from")
    see(page, ".pill", "spread 0.00")


@pytest.mark.parametrize("width", [360, 1440])
def test_long_names_and_right_to_left_text_keep_the_page_in_shape(stage, tab, width):
    """Nothing is wider than the screen, a fact keeps its line, and text that reads from the right does not turn its neighbours round."""
    stage.begin(hard_cases.extreme_texts(stage))
    stage.finish()
    page = tab(width=width, height=740).open(stage.url)
    see(page, ".question")
    audit(page, "overview")
    see(page, ".question").click()
    see(page, ".columns .call-line")
    audit(page, "group")
    page.locator("[data-column]").first.click()
    see(page, ".transcript .call")
    audit(page, "chain")
    heights = page.locator(".side dl:first-child dd").evaluate_all("all => all.map((dd) => dd.offsetHeight)")
    assert heights[0] < 30  # the state, which is a word
    page.locator("nav a", has_text="Chains").click()
    see(page, ".all-rows .chain-row")
    audit(page, "chains")


# -- evidence -------------------------------------------------------------------------------------------------------------------------


def test_a_hint_leads_to_the_call_that_failed(stage, tab):
    """One press: the chain, its turn, and the call, open."""
    stage.begin(hard_cases.failing_tool(stage))
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".look", "search").locator("a", has_text="chain_3").click()
    see(page, "h1", "chain_3")
    assert "look=tool_fails" in hash_of(page)
    see(page, "#turn-2.evidence .call[open].failed", "there is no such number")
    there_are(1, page.locator(".evidence"))


# -- reach ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), SIZES)
def test_axe_finds_nothing_in_hard_cases(stage, tab, width, theme):
    """Lists, chips, strips, steps in flight, segments: in both themes, on a phone and on a desk."""
    stage.begin(hard_cases.large_group(stage))
    page = tab(width=width, theme=theme).open(stage.url)
    see(page, ".question")
    page.locator(".filters summary").click()
    audit(page, "chips")
    page.locator("nav a", has_text="Chains").click()
    see(page, ".all-rows .chain-row")
    page.keyboard.press("j")
    audit(page, "chains")
    page.locator("nav a", has_text="Overview").click()
    see(page, ".question").click()
    see(page, ".strip .turn-mark")
    audit(page, "strips by tool")
    for by in ("decision", "reward"):
        page.locator(".chip", has_text=by).last.click()
        see(page, '.colour-by .chip[aria-pressed="true"]', by)
        audit(page, f"strips by {by}")
    page.get_by_role("button", name="chain_4 side by side").click()
    see(page, ".column")
    audit(page, "strips and columns")
    stage.finish()
    stage.begin(hard_cases.forked(stage))
    stage.finish()
    page.locator(".mark").click()
    see(page, ".figure", "0 of 1 running")
    see(page, "[data-row]").click()
    see(page, ".block.segment")
    page.keyboard.press("l")
    see(page, ".token-facts")
    audit(page, "segments")
    stage.begin(hard_cases.failed(stage))
    stage.finish()
    page.locator(".mark").click()
    see(page, ".failure")
    audit(page, "failed")


@pytest.mark.parametrize(("width", "theme"), [(1440, "dark"), (360, "light")])
def test_axe_finds_nothing_in_steps_in_flight(stage, tab, width, theme):
    """The walls of two steps, and a point of the curve that is read."""
    stage.begin(hard_cases.steps_in_flight(stage))
    page = tab(width=width, theme=theme).open(stage.url)
    see(page, "h2", "2 steps in flight")
    see(page, ".curve polyline.mean")
    page.locator(".curve").focus()
    page.keyboard.press("End")
    see(page, ".reading", "step 46")
    audit(page, "steps in flight")
