"""The page and its connection: what it says when it is lost, frozen, refused or another one, and that nothing is missed or doubled."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from page.browser import audit, needs_chromium, see, served, there_are, they_say, until
from page.line import Line
from page.staged_runs import staged
from ports import kept_port
from rollcast.serve import Token

pytestmark = needs_chromium

WORDS = "word0 word1 "


@pytest.fixture
def line(stage):
    line = Line(stage.loop, stage.server.port)
    yield line
    line.close()


@pytest.fixture
def stage(request):
    """A server, whose heartbeat a test may name."""
    with staged(heartbeat_s=getattr(request, "param", 20)) as stage:
        yield stage


def words(page):
    """The numbers of the words that the chain's text has, in order."""
    return [int(number) for number in re.findall(r"word(\d+) ", page.locator(".tokens").first.inner_text())]


def open_chain(page):
    see(page, "[data-row]").click()
    see(page, ".tokens", "word")


@pytest.mark.parametrize("stage", [1], indirect=True, ids=["heartbeat"])
def test_a_frozen_line_is_noticed(stage, line, tab):
    """No byte comes and nothing is closed; then the text goes on where it was, without a hole or a double."""
    stage.begin(stage.stream(1_000_000, pause_s=0.002))
    one = tab()
    page = one.open(line.url)
    open_chain(page)
    see(page, ".status", "Live")
    line.freeze()
    see(page, ".status[data-word=reconnecting]")
    see(page, ".notice", "Not connected: the server does not answer. What is below is how it was")
    audit(page, "reconnecting")
    before = words(page)[-1]
    line.thaw()
    see(page, ".status", "Live")
    until(page, f"document.querySelector('.tokens').textContent.includes('word{before + 200} ')")
    told = words(page)
    assert told == list(range(told[0], told[-1] + 1))
    assert page.locator(".block.gap").count() == 0
    one.complaints.clear()  # the browser's own, about a connection that was closed before it was made


def test_a_connection_that_is_cut_in_the_middle_of_frames_loses_nothing(stage, line, tab):
    """Again and again, after odd numbers of bytes."""
    stage.begin(stage.stream(1_000_000, pause_s=0.002))
    one = tab()
    page = one.open(line.url)
    open_chain(page)
    for cuts, count in enumerate((1, 7, 130, 1_001, 5_003), 1):
        line.cut_after(count)
        while line.cuts < cuts:
            page.wait_for_timeout(20)
        last = words(page)[-1]
        until(page, f"document.querySelector('.tokens').textContent.includes('word{last + 50} ')")
    told = words(page)
    assert told == list(range(told[0], told[-1] + 1))
    one.complaints.clear()


def test_a_reload_in_the_middle_goes_on(stage, tab):
    """The text so far comes in a snapshot, and what is written then follows it."""
    stage.begin(stage.stream(1_000_000, pause_s=0.002))
    page = tab().open(stage.url)
    open_chain(page)
    before = words(page)[-1]
    page.reload()
    see(page, ".tokens", f"word{before} ")
    until(page, f"document.querySelector('.tokens').textContent.includes('word{before + 200} ')")
    told = words(page)
    assert told == list(range(told[0], told[-1] + 1))
    assert told[0] == 0


def test_how_long_it_is_away_is_counted_and_one_can_try_now(stage, line, tab):
    """The seconds are in the header, and when it tries again beside the reason."""
    one = tab()
    page = one.open(line.url)
    see(page, ".status", "Connected")
    server = line.to
    with kept_port() as nobody:
        line.to = nobody
        line.cut()
        see(page, ".status", re.compile(r"Reconnecting \(\d+ s\)"))
        see(page, ".notice", "Next attempt in")
        audit(page, "away")
        page.get_by_role("button", name="Try now").click()
        line.to = server
        see(page, ".status", "Connected")
    page.locator(".notice", has_text="Not connected").wait_for(state="detached")
    one.complaints.clear()


@pytest.fixture
def port():
    """Of one server, and of the one that comes after it."""
    with kept_port() as port:
        yield port


def test_a_server_that_is_started_anew_with_its_record_goes_on(tab, tmp_path, port):
    """Its cursors survive: nothing of the old run comes again, and all of the new one comes."""
    one = tab()
    with staged(port=port, record=tmp_path / "a") as stage:
        stage.begin(stage.guesses())
        stage.finish()
        stage.goes_on.clear()
        page = one.open(stage.url)
        see(page, ".question .mean", "0.63")
        page.locator("nav a", has_text="Events").click()
        see(page, ".event-row", "run_end")
        lines = page.locator(".event-row").all_inner_texts()
    see(page, ".status[data-word=reconnecting]")
    with staged(port=port, record=tmp_path / "b", parent=tmp_path / "a") as stage:
        see(page, ".status", "Connected")
        they_say(page.locator(".event-row"), lines)
        stage.begin(stage.searches(chains=2, ended=2))
        stage.finish()
        page.locator("nav a", has_text="Runs").click()
        see(page, "td a", "search")
        page.locator("td a", has_text="search").click()
        see(page, ".question .mean", "1.00")
        see(
            page, ".notice", "does not know a run that this page showed: guess"
        )  # queries know the new record alone
    one.complaints.clear()


def test_another_server_shows_its_run_and_says_that_the_old_one_is_gone(tab, port):
    """At the same port, without what the page knew; the address without a run leads to the new one."""
    one = tab()
    with staged(port=port) as stage:
        stage.begin(stage.guesses())
        page = one.open(stage.url)
        see(page, ".question .cell.generating")
        old = page.locator(".question").get_attribute("href")
    see(page, ".status[data-word=reconnecting]")
    with staged(port=port) as stage:
        stage.begin(stage.searches())
        see(page, ".figure", "3 of 8 running")
        see(
            page,
            ".notice",
            "The server was started anew, and does not know a run that this page showed: guess",
        )
        audit(page, "gone")
        page.locator(".notice a", has_text="guess").click()
        see(page, ".notice", "The server that answers now does not know this run.")
        see(page, ".cell.failed")
        there_are(4, page.locator(".question .cell"))
        page.locator(".notice a", has_text="Show what it has now").click()
        see(page, ".figure", "3 of 8 running")
        page.get_by_role("button", name="Close").click()
        page.locator(".notice", has_text="does not know").wait_for(state="detached")
        assert old
        stage.finish()
    one.complaints.clear()


def test_a_page_without_a_token_is_told_what_to_do(tab):
    """It asks for one; a wrong one is said to be wrong, a right one connects, and a reload keeps it."""
    with staged("secret") as stage:
        stage.begin(stage.guesses())
        one = tab()
        page = one.open(stage.url)
        see(page, ".status", "Refused")
        see(page, "[role=alert]", "This server needs a token, and this page has none.")
        audit(page, "refused")
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        see(page, "[role=alert]", "The server does not know the token of this page")
        page.get_by_label("Token").fill("secret")
        page.get_by_role("button", name="Connect").click()
        see(page, ".question")
        page.reload()
        see(page, ".question")
        assert "secret" not in page.url
        assert "secret" not in page.content()
        assert not [url for url in one.requests if "secret" in url]
        stage.finish()
        one.complaints.clear()


def test_a_new_link_in_the_same_tab_replaces_the_token(tab):
    """The address alone changes then, and the page is not loaded again; the token does not stay in the address."""
    with staged("secret") as stage:
        stage.begin(stage.guesses())
        one = tab()
        page = one.open(f"{stage.url}#token=old")
        see(page, "[role=alert]", "The server does not know the token of this page")
        page.evaluate("location.hash = '#token=secret&to=/runs'")
        see(page, "td a", "guess")
        assert page.evaluate("location.hash") == "#/runs"
        stage.finish()
        one.complaints.clear()


def test_a_token_that_expires_while_the_page_is_open(tab, monkeypatch):
    """The page says so, keeps what it shows, and goes on with a new token."""
    now = [time.time()]
    monkeypatch.setattr("rollcast.serve.server._now", lambda: now[0])
    tokens = (Token("short", ("read",), expires_at=now[0] + 3600), Token("long", ("read",)))
    with staged(tokens=tokens, heartbeat_s=1) as stage:
        stage.begin(stage.guesses())
        one = tab()
        page = one.open(f"{stage.url}#token=short")
        see(page, ".question .cell.generating")
        now[0] += 3600
        see(page, "[role=alert]", "The token of this page has expired.")
        there_are(4, page.locator(".question .cell"))
        page.get_by_label("Token").fill("long")
        page.keyboard.press("Enter")
        see(page, ".status", "Live")
        stage.finish()
        see(page, ".question .mean", "0.63")
        one.complaints.clear()


def test_what_waits_while_paused_is_counted_and_comes_then(stage, tab):
    """Nothing that is shown changes by itself, however long it lasts; the server keeps what is too much."""
    stage.begin(stage.stream(60_000, pause_s=0, first=1_000))
    page = tab().open(stage.url)
    open_chain(page)
    page.keyboard.press("p")
    see(page, ".status", "Paused")
    stage.let_write()
    shown = page.locator("main").inner_text()
    see(page, ".status", "waiting)")
    page.wait_for_timeout(500)
    assert page.locator("main").inner_text() == shown
    page.keyboard.press("o")
    see(page, ".figures")
    page.go_back()
    see(page, ".tokens", "word")
    page.keyboard.press("p")
    stage.let_go_on()
    see(page, ".tokens", "word")
    until(page, "document.querySelector('.status').dataset.word !== 'paused'")
    see(page, "dd", "answered")
    told = words(page)
    assert told == list(range(told[0], told[-1] + 1))


@pytest.mark.slow
def test_a_server_that_is_stopped_and_goes_on(tab, tmp_path):
    """A whole process that stands still, as under a debugger: the page says so by the heartbeat of 20 s, and goes on with it."""
    command = [sys.executable, "-m", "rollcast", "train", "--task", "guess", "--steps", "500", "--serve", "0"]
    environment = os.environ | {"ROLLCAST_RECORDS": str(tmp_path / "records")}
    one = tab()
    log = tmp_path / "said"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")],
            stdout=said,
            stderr=said,
            env=environment,
            cwd=tmp_path,
        ) as process,
    ):
        try:
            page = one.open(served(log))
            see(page, ".question .cell")
            until(page, "document.querySelector('.status').dataset.word === 'connected'")
            process.send_signal(signal.SIGSTOP)
            see(page, ".status[data-word=reconnecting]")
            see(page, ".notice", "Not connected: the server does not answer")
            process.send_signal(signal.SIGCONT)
            see(page, ".status", "Live")
            step = "Math.max(...[...document.querySelectorAll('h2')].map((e) => +(e.textContent.match(/Step (\\d+)/)?.[1] ?? 0)))"
            before = page.evaluate(step)
            until(page, f"{step} > {before}")
            process.send_signal(signal.SIGINT)
            process.wait(300)
        finally:
            process.kill()
    one.complaints.clear()
