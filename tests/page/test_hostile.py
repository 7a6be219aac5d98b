"""Hostile output in every view and every field: no node is made of it, no request, nothing is hidden, and nothing freezes."""

import asyncio
import re

import pytest

from page.browser import needs_chromium, see, until
from page.hostile_runs import hostile_everywhere

pytestmark = needs_chromium

# Text nodes and attributes with a character that cannot be seen or reorders others. Line breaks and tabs may stand in text.
HIDDEN = r"""(() => {
  const unseen = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0]/u;
  const found = [];
  const look = (text, where) => { if (unseen.test(text.replace(/[\n\t]/g, ""))) found.push(`${where}: ${JSON.stringify(text.slice(0, 60))}`); };
  const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  for (let node = walker.currentNode; node; node = walker.nextNode()) {
    if (node.nodeType === 3) look(node.data, `text in ${node.parentElement.className || node.parentElement.tagName}`);
    else for (const { name, value } of node.attributes) look(value, `${name} of ${node.className || node.tagName}`);
  }
  look(document.title, "title");
  return found;
})()"""
# Elements that the page itself never makes, and addresses that lead elsewhere.
FOREIGN = """(() => [...document.querySelectorAll("#app script, img, iframe, object, embed, base, form[action], style, video, audio, [onerror], [onload], [srcdoc]")].map((e) => e.outerHTML.slice(0, 100))
  .concat([...document.querySelectorAll("#app [href]")].map((e) => e.getAttribute("href")).filter((href) => !href.startsWith("#"))))()"""


class Watched:
    """A page that shows what is hostile; `check` looks at all that it shows."""

    def __init__(self, one, stage):
        self.one, self.page = one, one.page
        self.place = f"127.0.0.1:{stage.server.port}"
        self.dialogs = []
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    def check(self, view):
        assert self.page.evaluate(FOREIGN) == [], view
        assert self.page.evaluate(HIDDEN) == [], view
        assert self.page.title() != "taken", view
        assert self.dialogs == [], view
        elsewhere = [url for url in self.one.requests if url.split("/")[2] != self.place]
        stolen = [url for url in self.one.requests if "stolen" in url or "evil" in url]
        assert (elsewhere, stolen) == ([], []), view
        size = self.page.evaluate("[document.querySelectorAll('*').length, document.body.textContent.length]")
        assert size[0] < 20_000, view
        assert size[1] < 2_000_000, view


@pytest.fixture
def watched(stage, tab):
    one = tab()
    watched = Watched(one, stage)
    one.open(stage.url)
    return watched


@pytest.mark.parametrize("over", [False, True])
def test_in_every_view(stage, watched, over):
    """While chains run, and when they are over."""
    page = watched.page
    stage.begin(hostile_everywhere(stage.manager, stage.goes_on))
    if over:
        stage.finish()
        see(page, ".figure", "0 of 4 running")
    see(page, ".question")
    until(page, "document.querySelectorAll('.question .cell').length === 4")
    watched.check("overview")
    page.keyboard.press("j")
    watched.check("question")
    page.keyboard.press("g")
    see(page, ".columns .call-line")
    watched.check("group")
    page.keyboard.press("t")
    see(page, ".columns .tokens")
    watched.check("tokens")
    page.keyboard.press("w")
    see(page, ".tree")
    watched.check("parts")
    page.keyboard.press("w")
    see(page, "[data-column]").click()
    see(page, ".transcript .call")
    for summary in page.locator(".call summary").all():
        summary.click()
    see(page, ".call[open] pre")
    for more in page.get_by_role("button", name=re.compile("more characters")).all()[:6]:
        more.click()
    page.keyboard.press("l")
    page.keyboard.press("ArrowRight")
    watched.check("chain")
    text = page.locator(".transcript").inner_text()
    assert [
        each for each in ("<script>", "\\x1b[31mred", "\\u202e", "\\x00", "\\U000e0041") if each not in text
    ] == []
    if over:
        page.keyboard.press("k")
        page.keyboard.press("k")
        page.keyboard.press("j")
        page.locator("nav a", has_text="Overview").click()
        see(page, ".cell.failed")
    page.evaluate(
        "location.hash = location.hash.split('?')[0].replace(/\\/(group|chain)\\/.*$/, '') + '/chains'"
    )
    see(page, "main a[href*=chain]")
    watched.check("chains")
    page.locator("nav a", has_text="Events").click()
    see(page, ".event-list")
    if over:
        see(page, ".event-row")
    watched.check("events")
    page.locator("nav a", has_text="Runs").click()
    see(page, "td a")
    watched.check("runs")
    page.keyboard.press("?")
    see(page, "dialog[open]")
    watched.check("keys")


def test_a_failed_chain_says_its_error_as_text(stage, watched):
    """The traceback of a tool, or what a server answered, may be anything."""
    page = watched.page
    stage.begin(hostile_everywhere(stage.manager, stage.goes_on))
    stage.finish()
    see(page, ".cell.failed")
    page.evaluate(
        "location.hash = [...document.querySelectorAll('a.question')].at(-1).hash.replace(/\\/group\\/.*$/, '') + '/chains'"
    )
    page.locator("main a[href*=chain]", has_text=re.compile("^3 ")).first.click()
    see(page, ".block.error", "<script>")
    watched.check("error")


def test_megabytes_do_not_freeze_it(stage, watched):
    """A line of a million characters and ten thousand lines: a key is answered at once, in each view that shows them."""
    page = watched.page
    stage.begin(hostile_everywhere(stage.manager, stage.goes_on))
    stage.finish()
    see(page, ".cell.failed")
    page.locator(".question", has=page.locator(".cell.failed")).first.click()
    see(page, ".columns .say")  # a key that comes before the group is shown is meant for what was there
    for key, selector in (
        ("t", ".turn-cell .tokens"), ("w", ".tree"), ("w", ".columns .say"), ("j", ":focus[data-column]"), ("Enter", ".transcript .text"),
        ("j", "h1 >> text=/^3 /"), ("g", ".columns"), ("o", ".wall"), ("?", "dialog[open]"),
    ):  # fmt: skip
        page.keyboard.press(key)
        see(page, selector)
        watched.check(f"after {key}")


def test_a_long_line_is_bounded_while_it_is_written(stage, watched):
    """A generation of a million characters in one line, and then a call with all of it as argument."""
    page = watched.page

    async def endless():
        async with stage.manager.run(agent="long") as run:
            with run.chain([{"role": "user", "content": "x" * 300_000}]) as chain:
                with chain.generation() as generation:
                    for _ in range(100):
                        generation.chunk("y" * 10_000, token_ids=[1], logprobs=[-2.0])
                        await asyncio.sleep(0)
                    await stage.goes_on.wait()
                with chain.tool_call("long", {"text": "z" * 1_000_000}) as call:
                    call.observation("z" * 1_000_000)
                chain.end("answered", final_response="y" * 1_000_000)

    stage.begin(endless())
    see(page, ".cells a").click()
    see(page, ".tokens", "yyyy")
    watched.check("written")
    stage.finish()
    see(page, "dd", "answered")
    see(page, ".call summary").click()
    watched.check("over")
    page.keyboard.press("o")
    see(page, ".wall, .cells")


def test_a_hostile_address_leads_nowhere(stage, watched):
    """Whoever sends a link cannot make the page write or load anything."""
    page = watched.page
    stage.begin(stage.guesses())
    see(page, ".question")
    for place in (
        "#/run/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "#/run/x/group/%E2%80%AE%3Cimg%20src%3D%2Fstolen%3E",
        "#/run/x/chain/%00%1b/turn/99999999999",
        "#/run/__proto__/chain/constructor?step=%3Csvg%3E&__proto__=1&types=constructor",
        "#/run/%/events?types=%3Cb%3E&%=%",
        "#javascript:alert(1)",
        "#token=%00%E2%80%AE&to=javascript:alert(1)",
    ):
        page.evaluate("place => { location.hash = place; }", place)
        page.wait_for_timeout(50)
        see(page, "main")
        watched.check(place)
    page.keyboard.press("o")
    page.locator("nav a", has_text="Runs").click()
    see(page, "td a", "guess")
    stage.finish()
