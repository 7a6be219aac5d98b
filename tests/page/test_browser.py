"""The page in a browser: Debian's Chromium, driven by Playwright, on a real server.

`see` waits for what it names and raises if that does not come: it is the assertion of most tests here.
"""

import os
import re
import signal
import subprocess
import sys

import pytest

from page.browser import PAGE, audit, needs_chromium, see, served, there_are, they_say, until
from page.staged_runs import QUESTION

pytestmark = needs_chromium


# -- views -------------------------------------------------------------------------------------------------------------------


def test_an_empty_server_says_that_it_waits(stage, tab):
    """Without a run the page says so, and shows one that begins."""
    page = tab().open(stage.url)
    see(page, ".empty", "There is no run yet")
    stage.begin(stage.guesses())
    see(page, ".question .cell.generating")
    stage.finish()
    see(page, ".question .mean", "0.63")


def test_the_overview_shows_states_and_then_rewards(stage, tab):
    """The wall has a row for the group, a cell for each chain, and figures above it."""
    page = tab().open(stage.url)
    stage.begin(stage.guesses())
    see(page, ".question")
    there_are(4, page.locator(".question .cell"))
    see(page, ".figure", "4 of 4 running")
    stage.finish()
    see(page, ".figure", "0 of 4 running")
    there_are(1, page.get_by_role("link", name="answer 12 , group_0, 4 of 4 over, mean reward 0.63"))


def test_a_group_is_aligned_by_turn_and_shows_where_chains_differ(stage, tab):
    """Calls stand in lines; what all did is quiet; what was unlikely has a ground; the best come first."""
    page = tab().open(stage.url)
    stage.begin(stage.guesses())
    see(page, ".question").click()
    see(page, ".column .say", "Well,")
    there_are(8, page.locator(".column .call-line"))
    see(page, ".turn-cell.shared .call-line", "guess(8)")
    there_are(4, page.locator(".shared"))
    stage.finish()
    see(page, ".column.best .reward", "1.00")
    they_say(page.locator(".column-head a"), ["chain_1", "chain_3", "chain_0", "chain_2"])
    see(page, ".call-line .value.u3", "12")
    see(page, ".pill", re.compile("[24] ×"))


def test_where_they_part_is_a_tree_whose_leaves_lead_to_chains(stage, tab):
    """The chains that did the same share a branch; one that went alone is a link."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, ".choice a", "Where they part").click()
    see(page, ".tree text", "guess(number=8) → higher")
    see(page, ".tree .count", "4 ×")
    see(page, ".tree a").click()
    see(page, ".transcript .block", QUESTION)
    assert re.search(r"/chain/chain_\d$", page.url)


def test_a_chain_is_shown_while_it_is_written(stage, tab):
    """Text appears before the generation is over; facts follow when it is."""
    stage.begin(stage.guesses(tail="the number is twelve"))
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, "[data-column]", "chain_1").click()
    see(page, ".tokens", "Well,")
    see(page, ".who", "generating")
    stage.finish()
    see(page, ".tokens", "Well, the number is twelve")
    see(page, "dd", "answered")
    see(page, "table td", '"12"')


def test_tokens_come_into_one_text_node(stage, tab):
    """A long generation makes no element for a token, and the end stays in sight until somebody scrolls up."""
    stage.begin(stage.stream(3_000))
    page = tab().open(stage.url)
    see(page, "[data-row]").click()
    see(page, ".tokens", "word2999")
    assert page.locator(".tokens").evaluate("e => [e.childNodes.length, e.childElementCount]") == [1, 0]
    until(page, "innerHeight + scrollY >= document.documentElement.scrollHeight - 40")
    stage.finish()


def test_a_turn_that_is_over_has_elements_for_the_tokens_that_stand_out(stage, tab):
    """So it costs nothing while others are written; the pointer finds each token, shaded or not."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, "[data-column]", "chain_1").click()
    see(page, ".tokens", "guess 12.")
    until(page, "document.querySelectorAll('.tokens')[1].childNodes.length === 3")
    second = page.locator(".tokens").nth(1)
    parts = second.evaluate(
        "e => [...e.childNodes].map((each) => [each.textContent, each.className ?? null])"
    )
    assert [part[0] for part in parts] == ["guess ", "12", "."]
    assert [part[1] for part in parts if part[1] is not None] == ["t3"]
    box = second.locator(".t3").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2)
    see(page, "[aria-live] dd", '"12"')
    page.mouse.move(box["x"] + box["width"] + 4, box["y"] + box["height"] / 2)
    see(page, "[aria-live] dd", '"."')


def test_the_cells_of_a_line_are_equally_high(stage, tab):
    """Whatever each chain wrote there; also after the columns have become wider."""
    stage.begin(stage.guesses(tail="found it after many words " * 12))
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, ".columns .tail")
    stage.let_go_on()
    see(page, ".columns .say", "many words")
    tops = """[...document.querySelectorAll('.column')].map((column) => [...column.querySelectorAll('.turn-cell')]
      .map((cell) => Math.round(cell.getBoundingClientRect().top)).join())"""
    until(page, f"new Set({tops}).size === 1 && document.querySelectorAll('.columns .say').length === 4")
    assert len(page.evaluate(tops)) == 5
    page.set_viewport_size({"width": 900, "height": 900})
    until(page, f"new Set({tops}).size === 1")
    stage.finish()


def test_a_runs_name_and_tags_are_shown(stage, tab):
    """On its overview and in the list of runs."""

    async def played():
        async with stage.manager.run(
            chains=1,
            groups=1,
            agent="guess",
            model="staged",
            name="tuesday",
            tags=["<b>ablation</b>", "seed 3"],
        ) as run:
            with run.chain([{"role": "user", "content": QUESTION}]) as chain:
                chain.end("answered")

    stage.begin(played())
    stage.finish()
    page = tab().open(stage.url)
    see(page, '[aria-label="Tags"] .pill', "seed 3")
    they_say(page.locator('[aria-label="Tags"] .pill'), ["<b>ablation</b>", "seed 3"])
    see(page, ".crumb", "tuesday")
    page.keyboard.press("r")
    see(page, ".runs td", "tuesday")
    they_say(page.locator(".runs .pill"), ["<b>ablation</b>", "seed 3"])


def test_token_facts_on_focus(stage, tab):
    """Arrow keys go from token to token; text, id, probability and policy are told."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, "[data-column]", "chain_1").click()
    see(page, ".tokens", "guess 12.")
    page.keyboard.press("l")
    page.keyboard.press("l")
    page.keyboard.press("ArrowRight")
    for told in ('"12"', ".22", "112"):
        see(page, "[aria-live] dl", told)


def test_events_come_as_lines_and_kinds_can_be_chosen(stage, tab):
    """The choice is in the address, so that it can be sent."""
    page = tab().open(stage.url)
    see(page, ".empty")
    stage.begin(stage.guesses())
    see(page, ".question")
    page.locator("nav a", has_text="Events").click()
    see(page, ".event-list .empty")
    page.locator(".chip", has_text="rewards").click()
    page.wait_for_url("**types=rewards")
    see(page, '.chip[aria-pressed="true"]', "rewards")
    stage.finish()
    see(page, ".event-row .type", "reward")
    assert set(page.locator(".event-row .type").all_inner_texts()) == {"reward"}


def test_runs_are_listed(stage, tab):
    """Each with its status, and a link to its overview."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab().open(stage.url + "#/runs")
    see(page, "td", "completed")
    see(page, "td a", "guess").click()
    see(page, ".figures")


# -- addresses and keys --------------------------------------------------------------------------------------------------------


def test_an_address_leads_back_after_a_reload_and_back_works(stage, tab):
    """A deep link opens in a fresh tab."""
    stage.begin(stage.guesses())
    stage.finish()
    first = tab().open(stage.url)
    see(first, ".question").click()
    see(first, ".column")
    see(first, "[data-column]", "chain_2").click()
    see(first, ".transcript .call")
    address = first.url
    first.go_back()
    see(first, ".columns")
    first.go_back()
    see(first, ".wall")
    again = tab().open(address)
    see(again, ".transcript .call")
    again.reload()
    see(again, "h1", "chain_2")
    see(again, ".transcript .call")


def test_everything_is_reached_by_keys(stage, tab):
    """From the overview to a chain, its turns, its neighbours, its group, and the list of keys."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab().open(stage.url)
    see(page, ".question .mean", "0.63")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    see(page, ".columns")
    page.keyboard.press("w")
    see(page, ".tree")
    page.keyboard.press("w")
    see(page, ".columns .call-line")
    page.keyboard.press("t")
    see(page, ".columns .tokens")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    see(page, "h1", "chain_1")
    see(page, ".transcript .tokens")
    page.keyboard.press("k")
    see(page, "h1", "chain_0")
    page.keyboard.press("j")
    see(page, "h1", "chain_1")
    page.keyboard.press("g")
    see(page, "h1", "group_0")
    page.keyboard.press("?")
    see(page, "dialog[open] dt", "j")
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    page.keyboard.press("o")
    see(page, ".wall")


def test_pausing_holds_what_is_on_screen(stage, tab):
    """What comes meanwhile waits, is counted, and comes when one goes on."""
    stage.begin(stage.guesses())
    page = tab().open(stage.url)
    see(page, ".question").click()
    see(page, "[data-column]", "chain_1").click()
    see(page, ".tokens", "Well,")
    page.keyboard.press("p")
    see(page, ".status", "Paused")
    stage.finish()
    see(page, ".status", "waiting)")
    assert "Found it." not in page.locator(".transcript").inner_text()
    page.keyboard.press("p")
    see(page, ".tokens", "Well, Found it.")


# -- safety ------------------------------------------------------------------------------------------------------------------------


def test_hostile_output_is_text(stage, tab):
    """Markup, terminal codes and bidi controls are shown as text in every view: no node comes of them, and no request."""
    stage.begin(stage.hostile())
    stage.finish()
    one = tab()
    page = one.open(stage.url)
    see(page, "[data-row]")
    page.keyboard.press("g")
    see(page, ".columns .call-line")
    for mode in ("t", "t", "w"):
        page.keyboard.press(mode)
    see(page, ".tree a").click()
    see(page, ".transcript .tokens")
    page.locator(".call summary").first.click()
    see(page, ".call[open] pre")
    text = page.locator(".transcript").inner_text()
    assert [each for each in ("<script>", "\\x1b[31mred", "\\u202e") if each not in text] == []
    assert not re.search("[\x1b\u202e\u202c]", page.content())
    page.locator("nav a", has_text="Runs").click()
    see(page, "td b")
    assert page.title() != "taken"
    assert (
        page.evaluate(
            "document.querySelectorAll('#app script, #app img, [onerror], a[href^=\"javascript\"]').length"
        )
        == 0
    )
    assert {url.split("/")[2] for url in one.requests} == {f"127.0.0.1:{stage.server.port}"}


def test_a_line_of_a_million_characters_is_folded(stage, tab):
    """It does not make the page wide, and more of it comes when one asks."""
    stage.begin(stage.hostile())
    stage.finish()
    page = tab(width=360, height=740).open(stage.url)
    see(page, "[data-row]").click()
    see(page, ".call summary", "long()").click()
    more = see(page, ".call[open] button", "more characters")
    before = len(page.locator(".call[open]").inner_text())
    assert before < 10_000
    more.click()
    until(page, f"document.querySelector('.call[open]').innerText.length > {before + 10_000}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_policy_forbids_what_the_page_does_not_need(stage, tab):
    """No inline script or style, no markup from strings: the browser refuses them, and the page does without."""
    one = tab()
    page = one.open(stage.url)
    see(page, ".empty")
    assert (
        page.evaluate(
            "(() => { try { document.body.innerHTML = 'x'; return 'set' } catch { return 'refused' } })()"
        )
        == "refused"
    )
    one.complaints.clear()


def test_no_module_makes_markup_from_text():
    """None of the page's own modules uses the means for it."""
    means = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        'style="',
        "createContextualFragment",
    )
    own = [path for path in PAGE.rglob("*") if path.suffix in (".js", ".html") and "vendor" not in path.parts]
    assert len(own) > 20
    assert [f"{path.name}: {word}" for path in own for word in means if word in path.read_text("utf-8")] == []
    assert "dangerouslySetInnerHTML" not in "".join(path.read_text("utf-8") for path in own)


# -- reach ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_nothing(stage, tab, theme, width):
    """In every view, in both themes, on a phone and on a desk."""
    stage.begin(stage.guesses())
    stage.finish()
    page = tab(width=width, theme=theme).open(stage.url)
    see(page, ".question .mean", "0.63")
    audit(page, "overview")
    see(page, ".question").click()
    see(page, ".columns .call-line")
    audit(page, "group")
    page.keyboard.press("t")
    see(page, ".columns .tokens")
    audit(page, "tokens")
    page.keyboard.press("w")
    see(page, ".tree")
    audit(page, "parts")
    see(page, ".tree a").click()
    see(page, ".transcript .call")
    page.keyboard.press("l")
    audit(page, "chain")
    page.locator("nav a", has_text="Events").click()
    see(page, ".event-list")
    audit(page, "events")
    page.locator("nav a", has_text="Runs").click()
    see(page, "td a")
    audit(page, "runs")
    page.keyboard.press("?")
    see(page, "dialog[open]")
    audit(page, "keys")


@pytest.mark.slow
def test_views_while_a_training_streams(tab, tmp_path):
    """The command as a user types it: the overview moves, a group and a chain of it show what was sampled."""
    command = [
        sys.executable,
        "-m",
        "rollcast",
        "train",
        "--task",
        "guess",
        "--steps",
        "500",
        "--serve",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"ROLLCAST_RECORDS": str(tmp_path / "records")}
    with (
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(command, stdout=err, stderr=err, env=environment, cwd=tmp_path) as process,
    ):
        try:
            page = tab().open(served(tmp_path / "err"))
            see(page, ".question .cell.generating")
            see(page, ".curve polyline.mean")
            page.locator(".question", has=page.locator(".cell:not(.generating)")).first.click()
            see(page, ".columns .call-line .p")
            see(page, ".columns .reward", ".")
            see(page, "[data-column]").click()
            see(page, ".transcript .call")
            process.send_signal(signal.SIGINT)
            process.wait(300)
        finally:
            process.kill()


def test_what_a_browser_loads(stage, tab):
    """Seven files, whose size a test in tests/serve/test_page_source.py bounds."""
    opened = tab()
    page = opened.open(stage.url)
    see(page, ".empty", "There is no run yet")
    while len(opened.requests) < 5:
        page.wait_for_timeout(20)
    paths = sorted(each.removeprefix(stage.url) for each in opened.requests)
    assert paths == [
        "",
        "icon.svg",
        "main.js",
        "style.css",
        "vendor/preact_htm.js",
    ]
