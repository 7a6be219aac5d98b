"""The page in a browser, for tests: tabs, and waiting for what they show."""

import re
import shutil
import time
from pathlib import Path

import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = shutil.which("chromium")
HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "src" / "rollcast" / "serve" / "page"
AXE = HERE / "vendor" / "axe.min.js"
WAIT_MS = 120_000

needs_chromium = [
    pytest.mark.skipif(sync_playwright is None, reason="needs Playwright (pip install playwright)"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's Chromium (apt-get install chromium)"),
]


class Tab:
    """A tab, what it said on its console, and where it sent requests."""

    def __init__(self, browser, width=1440, height=900, theme="light", **options):
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints = []
        self.requests = []
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url):
        self.page.goto(url)
        return self.page


def see(page, selector, text=None, timeout_s=WAIT_MS / 1000):
    """Wait until there is such an element, with this text in it."""
    place = page.locator(selector, has_text=text) if text else page.locator(selector)
    place.first.wait_for(state="attached", timeout=timeout_s * 1000)
    return place.first


def there_are(count, places):
    """Wait until the locator finds so many elements."""
    end = time.monotonic() + WAIT_MS / 1000
    while (found := places.count()) != count:
        assert time.monotonic() < end, f"{found} elements and not {count}: {places}"
        places.page.wait_for_timeout(50)


def they_say(places, texts):
    """Wait until the elements of the locator have these texts, in this order: each may be drawn in a frame of its own."""
    end = time.monotonic() + WAIT_MS / 1000
    while (said := places.all_inner_texts()) != texts:
        assert time.monotonic() < end, f"{said} and not {texts}: {places}"
        places.page.wait_for_timeout(50)


def until(page, condition):
    """Wait until it holds. (Playwright's own `wait_for_function` needs `eval`, which the page's policy forbids.)"""
    end = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def served(log, timeout_s=120):
    """The page's address, which a command has written to the file `log` when it serves."""
    end = time.monotonic() + timeout_s
    while not (found := re.search(r"(?:127\.0\.0\.1|localhost):(\d+)/", log.read_text())):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    return f"http://127.0.0.1:{found[1]}/"


def audit(page, view):
    """No rule of axe-core is broken, and nothing is wider than the screen. Skips the test where axe-core is not."""
    if not AXE.is_file():
        pytest.skip("the source distribution has no axe-core; the repository has")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text("utf-8") + "; undefined")
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 120)).slice(0, 3).join(' | ')}`))"
    )
    assert found == [], f"{view}: {found}"
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
