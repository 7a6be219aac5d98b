"""Debian's Chromium, in which the page is measured, and the processes that serve it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.helper import Helper
from benchmarks.measure import NotInstalledError

try:
    import psutil
    from playwright.sync_api import Browser, CDPSession, Page, sync_playwright
except ImportError as error:
    raise NotInstalledError(
        "the benchmark `page` needs Playwright and psutil; run: pip install 'playwright>=1.49' psutil"
    ) from error

__all__ = ["OpenCommand", "StageProcess", "Tab", "browser", "browser_seconds", "frames_of", "wait_until"]

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    raise NotInstalledError("the benchmark `page` needs Debian's Chromium; run: apt-get install chromium")
CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline", "devtools.timeline.frame"]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window, while the block runs."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work in a container; pages are loaded only from loopback.
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        yield started
        started.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Wait until a process that was asked to end has ended, and close its output."""
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


class StageProcess(Helper):
    """`page_stage.py` in a process of its own, so that its CPU time is that of the run and its server."""

    def __init__(self) -> None:
        super().__init__("benchmarks.page_stage")
        self.url: str = self.greeting["url"]


class OpenCommand:
    """`rollcast open` of a record."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rollcast", "open", str(path), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = ""
        for line in self._process.stdout:
            found = re.search(r"in a browser: (\S+)", line)
            if found:
                self.url = found[1]
                return
        raise RuntimeError(f"`rollcast open` ended with exit code {self._process.wait()}")

    def __enter__(self) -> OpenCommand:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGINT)
        _end(self._process)


class Transfer:
    """Counts what a tab loads.

    Attributes:
        answers: how many answers there were.
        wire: their bytes, with headers.
        bodies: the bytes of their bodies, compressed as sent.
    """

    def __init__(self, devtools: CDPSession) -> None:
        self.answers = self.wire = self.bodies = 0
        self._lengths: dict[str, int] = {}
        devtools.on("Network.responseReceived", self._answered)
        devtools.on("Network.loadingFinished", self._loaded)
        devtools.send("Network.enable")

    def _answered(self, event: dict[str, Any]) -> None:
        headers = {name.lower(): value for name, value in event["response"]["headers"].items()}
        self._lengths[event["requestId"]] = int(headers.get("content-length", 0))

    def _loaded(self, event: dict[str, Any]) -> None:
        self.answers += 1
        self.wire += int(event["encodedDataLength"])
        self.bodies += self._lengths.get(event["requestId"], 0)


class Tab:
    """A tab with an empty cache."""

    def __init__(self, browser: Browser, width: int = 1440, height: int = 900) -> None:
        self._browser = browser
        self._context = browser.new_context(viewport={"width": width, "height": height})
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(60_000)
        self.devtools = self._context.new_cdp_session(self.page)

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def transfer(self) -> Transfer:
        """Start to count what it loads."""
        return Transfer(self.devtools)

    def on_every_document(self, script: str) -> None:
        """Run a script before those of the page. The page's content security policy does not apply to it."""
        self.page.add_init_script(script)

    def go_to(self, route: str) -> None:
        """Change the address within the page, such as `#/run/ID/group/group_0`."""
        self.page.evaluate("route => { location.hash = route; }", route)

    def see(self, selector: str, text: str | None = None) -> None:
        """Wait until there is such an element."""
        place = self.page.locator(selector, has_text=text) if text else self.page.locator(selector)
        place.first.wait_for(state="attached")

    def hide(self) -> None:
        """Make the page believe that it is hidden. (A browser without a window never hides a tab by itself.)"""
        self.page.evaluate(
            "Object.defineProperty(document, 'hidden', {get: () => true}); document.dispatchEvent(new Event('visibilitychange'))"
        )

    def keep_busy(self, share: float) -> None:
        """Make the tab use this share of a core, a little in every 50 ms, on 8 MB of numbers."""
        self.page.evaluate(
            """share => {
              const numbers = new Float64Array(1e6);
              let at = 0;
              setInterval(() => {
                const end = performance.now() + 50 * share;
                while (performance.now() < end) for (let i = 0; i < 1e3; i++) numbers[at = (at + 7919) % 1e6] += 1;
              }, 50);
            }""",
            share,
        )

    @contextlib.contextmanager
    def traced(self) -> Iterator[list[dict[str, Any]]]:
        """The events of a trace of the block; the list is filled when the block ends."""
        events: list[dict[str, Any]] = []
        self._browser.start_tracing(page=self.page, categories=CATEGORIES)
        yield events
        events += json.loads(self._browser.stop_tracing())["traceEvents"]

    def memory(self) -> tuple[float, int]:
        """The heap in MiB and the number of DOM nodes, after garbage collection."""
        for _ in range(3):
            self.devtools.send("HeapProfiler.collectGarbage")
        self.devtools.send("Performance.enable")
        metrics = {m["name"]: m["value"] for m in self.devtools.send("Performance.getMetrics")["metrics"]}
        return metrics["JSHeapUsedSize"] / 2**20, int(metrics["Nodes"])


def browser_seconds() -> float:
    """The CPU seconds that all processes of the browser have spent so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
    return total


def wait_until(page: Page, condition: str, seconds: float = 60) -> None:
    """Wait until the expression is true. (Playwright's own `wait_for_function` needs `eval`, which the page's policy forbids.)

    Raises:
        TimeoutError: it was not, within that time.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        page.wait_for_timeout(20)


def frames_of(events: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """How long the page's main thread worked in each frame, and in each single task, in milliseconds of CPU.

    A frame lasts from one commit to the compositor to the next.
    """
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event.get("name") == "thread_name"
    }
    begins: dict[tuple[int, int], list[float]] = {}
    tasks: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for event in events:
        thread = (event["pid"], event["tid"])
        if names.get(thread) != "CrRendererMain":
            continue
        if event["name"] == "BeginCommitCompositorFrame":
            begins.setdefault(thread, []).append(event["ts"])
        elif event["name"] == "RunTask" and event["ph"] == "X":
            tasks.setdefault(thread, []).append((event["ts"], event["dur"], event["tdur"]))
    if not begins:
        return [], []
    thread = max(begins, key=lambda each: len(begins[each]))  # other tabs draw nothing
    edges = sorted(begins[thread])
    found = sorted(tasks.get(thread, []))
    work = [0.0] * max(len(edges) - 1, 0)
    at = 0
    for start, length, spent in found:
        while at + 1 < len(edges) and edges[at + 1] <= start + length / 2:
            at += 1
        if at < len(work) and start + length > edges[0]:
            work[at] += spent / 1000
    return work, [spent / 1000 for _, _, spent in found]
