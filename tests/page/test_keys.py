"""Everything by keyboard, in every view, for every reader: keys, focus, names, motion, forced colours."""

import re

import pytest

from page.browser import PAGE, needs_chromium, see, until
from page.staged_runs import staged

SOURCES = sorted(path for path in PAGE.rglob("*.js") if "vendor" not in path.parts)
NAME = r"\"[^\"]+\"|[a-z]+"


def in_braces(text, at):
    """What stands in the braces that open at this place."""
    depth = 0
    for place in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[at + 1 : place]
    raise AssertionError(text[at : at + 60])


def bound_keys():
    """The keys that the views and the frame bind, read from their source."""
    keys = set()
    for path in SOURCES:
        text = path.read_text("utf-8")
        for found in re.finditer(r"useKeys\((?:byKey \? )?\{|const common = \{", text):
            bound = in_braces(text, found.end() - 1)
            keys |= set(re.findall(rf"(?:^|[{{,\n])\s*({NAME}): \(", bound))
    return {key.strip('"') for key in keys}


def test_the_list_of_keys_has_every_key():
    """Whatever a view binds is told, and nothing else is."""
    helping = (PAGE / "views" / "help.js").read_text("utf-8")
    told = set()
    for names in re.findall(r"\[\[(.*?)\], \"", helping):
        told |= set(re.findall(r"\"(.+?)\"", names))
    of_the_browser = {"←", "→", "Enter", "Esc"}
    bound = bound_keys()
    assert {"j", "k", "g", "x", "?", "p", "o"} <= bound
    assert told - of_the_browser == bound


def test_nothing_is_done_by_mouse_alone():
    """Only elements that the keyboard reaches have something to press."""
    found = []
    for path in SOURCES:
        text = path.read_text("utf-8")
        for match in re.finditer(r"\bon(?:Click|MouseDown)=", text):
            before = text[: match.start()]
            element = max(re.finditer(r"<(\w+|\$\{\w+\})(?=[\s>])", before), key=lambda each: each.start())
            tag = before[element.start() :]
            around = text[max(element.start() - 400, 0) : match.start() + 400]  # it, or what it stands in
            if element[1] not in ("button", "a", "summary") and not (
                "tabindex" in around and "onKeyDown" in around
            ):
                found.append(f"{path.name}: {tag[:60]}")
    assert found == []


@pytest.fixture
def stage():
    with staged("rule", heartbeat_s=5) as stage:
        yield stage


def opened(stage, one, runs=None):
    stage.begin(runs or stage.searches(chains=3, ended=1, group="group_1"))
    page = one.open(f"{stage.url}#token=rule")
    see(page, ".question")
    return page


@pytest.mark.parametrize("view", ["overview", "group", "chain", "chains", "events", "runs"])
class TestInEveryView:
    """What the list of keys says holds in each view."""

    pytestmark = needs_chromium

    @pytest.fixture
    def page(self, stage, tab, view):
        page = opened(stage, tab())
        place = page.locator(".question").first.get_attribute("href")
        run = place.split("/group/")[0]
        chain = {
            "group": "/group/group_1",
            "chain": "/chain/chain_1",
            "chains": "/chains",
            "events": "/events",
        }
        page.evaluate(
            "place => { location.hash = place; }", "#/runs" if view == "runs" else run + chain.get(view, "")
        )
        see(
            page,
            {"group": ".columns", "chain": ".transcript .call", "runs": "td a", "events": ".event-list"}.get(
                view, "main a"
            ),
        )
        return page

    def test_pause_help_overview_runs(self, page, view):
        """The keys of every view."""
        page.keyboard.press("p")
        see(page, ".status", "Paused")
        page.keyboard.press("p")
        see(page, ".status:not([data-word=paused])")
        page.keyboard.press("?")
        see(page, "dialog[open] h1", "Keys")
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        page.keyboard.press("r")
        see(page, "h1", "Runs")
        if view != "runs":
            page.go_back()
            until(page, "document.querySelector('h1').textContent !== 'Runs'")
        page.keyboard.press("o")
        see(page, ".figures")

    def test_the_focus_is_never_lost(self, page, view):
        """From the address field Tab goes to the skip link, which leads to the content; a new view has the focus."""
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Tab")
        until(page, "document.activeElement.matches('a, button, main *, .skip')")
        page.evaluate("document.querySelector('.skip').focus()")
        page.keyboard.press("Enter")
        until(page, "document.activeElement.id === 'main'")
        page.keyboard.press("o")
        see(page, ".figures")
        page.keyboard.press("r")
        see(page, "h1", "Runs")
        until(page, "document.activeElement !== document.body")

    def test_cancel_asks_where_there_is_something_to_cancel(self, page, view):
        """The run, the group or the chain; elsewhere the key does nothing."""
        page.keyboard.press("x")
        asks = {
            "overview": "End this run now?",
            "group": "End the 2 chains of group_1",
            "chain": "End chain_1 now?",
        }
        if view in asks:
            see(page, ".cancel", asks[view])
            page.keyboard.press("Escape")
            until(page, "document.activeElement.matches('.cancel button')")
        else:
            page.wait_for_timeout(100)
            assert page.locator(".cancel .bad").count() == 0


AS_SOON_AS_IT_IS_DRAWN = """
  new MutationObserver((changes, observer) => {
    if (!document.querySelector(".columns")) return;
    observer.disconnect();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "t", bubbles: true, cancelable: true }));
  }).observe(document, { childList: true, subtree: true });
"""


class TestInTime:
    """Keys, and whoever presses them quickly."""

    pytestmark = needs_chromium

    def test_a_key_is_answered_as_soon_as_its_view_is_drawn(self, stage, tab):
        """One that comes before the next frame is not lost."""
        one = tab()
        one.page.add_init_script(AS_SOON_AS_IT_IS_DRAWN)
        page = opened(stage, one)
        page.keyboard.press("g")
        see(page, ".columns .tokens")


class TestReaders:
    """Who sees no motion, or other colours."""

    pytestmark = needs_chromium

    def test_reduced_motion(self, stage, tab):
        """Nothing moves that somebody asked not to move."""
        page = opened(stage, tab(reduced_motion="reduce"), stage.guesses())
        page.keyboard.press("g")
        see(page, ".column .say")
        assert (
            page.evaluate("document.getAnimations().filter((each) => each.playState === 'running').length")
            == 0
        )

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_forced_colours(self, stage, tab, theme):
        """States are told by more than a colour that the system replaces."""
        page = opened(stage, tab(forced_colors="active", theme=theme))
        see(page, ".cell.in-tool")
        looks = page.evaluate(
            "[...document.querySelectorAll('.legend .cell')].map((e) => { const s = getComputedStyle(e); return [s.backgroundImage, s.backgroundColor, s.boxShadow, s.outlineStyle, s.borderStyle].join(); })"
        )
        assert len(set(looks)) == len(looks)
