"""A browser, its tabs, and a stage for them."""

import pytest

from page.browser import CHROMIUM, Tab, sync_playwright
from page.staged_runs import staged


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        # A container has no sandbox of its own for it; the page is loaded from loopback alone.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """Makes tabs; none of them may have complained in the end."""
    tabs = []

    def make(**options):
        tabs.append(Tab(chromium, **options))
        return tabs[-1]

    yield make
    complaints = [each for one in tabs for each in one.complaints]
    for each in tabs:
        each.context.close()
    assert complaints == []


@pytest.fixture
def stage():
    with staged() as stage:
        yield stage
