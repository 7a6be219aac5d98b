"""Measures the page in Debian's Chromium: first paint, delay, frames, memory, large records, and what it costs the run.

The server runs in one process, the browser in others; this one only measures. One part: `python -m benchmarks page.delay`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.page_browser import (
    Browser,
    OpenCommand,
    StageProcess,
    Tab,
    browser,
    browser_seconds,
    frames_of,
    wait_until,
)

__all__ = ["PARTS", "run"]

RUN = "01a22362-9796-7bd9-b031-b70bcfaca05b"  # of the record that page_stage.py writes

# Times of paint, of input, and of each token on screen, for a page whose chains write the time at which they wrote it.
_PROBE = """
  window.delays = []; window.inputs = []; window.arrivals = [];
  new PerformanceObserver(list => { for (const e of list.getEntries()) window.inputs.push([e.name, e.duration]); })
    .observe({type: "event", durationThreshold: 16, buffered: true});
"""
_DELAYS = """
  window.watchDelays = () => {
    const latest = new WeakMap();  // by place: the latest time that it has shown, since a text may be drawn anew
    let drawn = [];
    const shown = () => {
      const now = (performance.timeOrigin + performance.now()) % 1e8;
      for (const sent of drawn) window.delays.push(now - sent);
      drawn = [];
    };
    new MutationObserver(changes => {
      if (!drawn.length) requestAnimationFrame(shown);
      for (const {type, target, oldValue} of changes) {
        const place = target.parentNode;
        if (type !== "characterData" || !place) continue;
        const more = oldValue && target.data.startsWith(oldValue) ? target.data.slice(oldValue.length) : target.data;
        const times = more.split(" ").map(Number).filter(time => time > (latest.get(place) ?? 0));
        if (!times.length) continue;
        latest.set(place, times.at(-1));
        drawn.push(...times);
      }
    }).observe(document.querySelector("main"), {characterData: true, characterDataOldValue: true, subtree: true});
  };
"""


def run(quick: bool, only: str | None = None) -> Iterator[Figure]:
    """Measure all, or only one part."""
    with browser() as started:
        for name, part in PARTS.items():
            if only in (None, name):
                yield from part(started, quick)


def _paint(started: Browser, quick: bool) -> Iterator[Figure]:
    """A page of a run that goes on, with an empty cache."""
    paints: list[float] = []
    rows: list[float] = []
    with StageProcess() as stage:
        stage.do("long", turns=3, tokens=10, chains=16)
        for number in range(-1, 2 if quick else 15):
            with Tab(started) as tab:
                transfer = tab.transfer()
                began = time.perf_counter()
                tab.page.goto(stage.url)
                tab.see(".question")
                seen = time.perf_counter() - began
                painted = tab.page.evaluate(
                    "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
                )
                if number >= 0:
                    paints.append(painted)
                    rows.append(seen * 1e3)
        stage.do("ended")
    yield figure("page: first paint, cold, loopback", paints, "ms", "<= 300")
    yield figure("page: first rows of the wall after that page was opened", rows, "ms")
    yield figure("page: transfer, compressed", transfer.bodies / 1000, "kB", "<= 100")
    yield figure(f"page: the same with the headers of {transfer.answers} answers", transfer.wire / 1000, "kB")


def _delay(started: Browser, quick: bool) -> Iterator[Figure]:
    """Eight chains on screen, token by token: the time from `chunk` to the frame after the one that shows the token."""
    for rate, target in ((2_000, "<= 100"), (20_000, None)):
        with StageProcess() as stage, Tab(started, 2560, 1440) as tab:
            tab.on_every_document(_PROBE + _DELAYS)
            tab.page.goto(stage.url)
            stage.begin("stream", chains=8, rate=rate, seconds=6 if quick else 20)
            tab.see(".question")
            tab.page.locator(".question").first.click()
            tab.see(".choice a", "Tokens")
            tab.page.locator(".choice a", has_text="Tokens").click()
            tab.see(".foot", "8 chains, token by token")
            tab.page.evaluate("watchDelays()")
            tab.page.wait_for_timeout(
                1000 if quick else 2000
            )  # tokens from before the probe are not delays of the page
            tab.page.evaluate("window.delays = []")
            with tab.traced() as events:
                tab.page.wait_for_timeout(2000 if quick else 10_000)
                delays = sorted(tab.page.evaluate("window.delays"))
            stage.end()
        work, _ = frames_of(events)
        title = f"page: {rate:,} tokens/s, 8 chains on screen"
        yield figure(f"{title}: tokens shown", len(delays), "tokens")
        yield figure(f"{title}: delay to the glass, median", _share(delays, 0.5), "ms")
        yield figure(f"{title}: the same, 95th percentile", _share(delays, 0.95), "ms", target)
        yield figure(f"{title}: main thread, a frame, 95th percentile", _share(work, 0.95), "ms")


def _wall(started: Browser, quick: bool) -> Iterator[Figure]:
    """The wall with 2,000 chains that go on."""
    chains = 64 if quick else 2_000
    with StageProcess() as stage, Tab(started) as tab:
        tab.on_every_document(_PROBE)
        stage.begin(
            "wall", chains=chains, group=8, rate=1_000 if quick else 20_000, seconds=5 if quick else 25
        )
        tab.page.goto(stage.url)
        wait_until(tab.page, f"document.querySelectorAll('.wall .cell').length >= {min(chains, 400) * 0.9}")
        tab.page.wait_for_timeout(1000)
        with tab.traced() as events:
            tab.page.wait_for_timeout(1500 if quick else 8000)
        for _ in range(5 if quick else 40):
            tab.page.keyboard.press("j")
            tab.page.wait_for_timeout(60)
        tab.page.wait_for_timeout(300)
        inputs = [took for name, took in tab.page.evaluate("window.inputs") if name == "keydown"]
        stage.end()
    work, tasks = frames_of(events)
    title = f"page: {chains:,} chains on the wall"
    yield figure(f"{title}: main thread, a frame, median", _share(work, 0.5), "ms")
    yield figure(f"{title}: the same, 95th percentile", _share(work, 0.95), "ms", "<= 8")
    yield figure(f"{title}: the longest task", max(tasks, default=0), "ms")
    yield figure(
        f"{title}: from a key to the next frame, the longest", max(inputs, default=16), "ms", "<= 100"
    )


def _long(started: Browser, quick: bool) -> Iterator[Figure]:
    """A chain of 300 turns and 64,000 tokens that goes on, and a group of 64 chains of 30 turns."""
    turns, tokens = (20, 20) if quick else (300, 214)
    with StageProcess() as stage, Tab(started) as tab:
        run = stage.do("long", turns=turns, tokens=tokens)["run"]
        tab.page.goto(stage.url)
        tab.see("[data-row]")
        began = time.perf_counter()
        tab.go_to(f"#/run/{run}/chain/chain_0")
        tab.see(".transcript .tokens")
        seen = (time.perf_counter() - began) * 1e3
        work = _work_while_it_goes_on(stage, tab, 200, quick)
        stage.do("ended")
    title = f"page: a chain of {turns} turns and {turns * tokens:,} tokens"
    yield figure(f"{title}: until it is there", seen, "ms")
    yield figure(f"{title}: main thread, a frame, 95th percentile", _share(work, 0.95), "ms", "<= 8")
    chains, turns = (8, 5) if quick else (64, 30)
    for mode in ("side", "parts"):
        with StageProcess() as stage, Tab(started, 2560, 1440) as tab:
            run = stage.do("long", turns=turns, tokens=20, chains=chains)["run"]
            tab.page.goto(stage.url)
            tab.see("[data-row]")
            tab.go_to(f"#/run/{run}/group/group_0/{mode}")
            tab.see(".columns .turn-cell" if mode == "side" else ".tree text")
            work = _work_while_it_goes_on(stage, tab, 1_000, quick)
            stage.do("ended")
        name = {"side": "side by side", "parts": "where they part"}[mode]
        title = f"page: a group of {chains} chains of {turns} turns, {name}"
        yield figure(f"{title}: main thread, a frame, 95th percentile", _share(work, 0.95), "ms", "<= 8")


def _work_while_it_goes_on(stage: StageProcess, tab: Tab, rate: int, quick: bool) -> list[float]:
    """The main thread's work in each frame, while the open chains write."""
    stage.begin("say", rate=rate, seconds=3 if quick else 9)
    tab.page.wait_for_timeout(1000 if quick else 3000)
    with tab.traced() as events:
        tab.page.wait_for_timeout(1000 if quick else 5000)
    stage.end()
    return frames_of(events)[0]


def _memory(started: Browser, quick: bool) -> Iterator[Figure]:
    """Eight chains on screen at ten times the pace: the tab's memory after garbage collection."""
    rate, seconds, samples = (2_000, 6, 3) if quick else (20_000, 100, 9)
    found: list[tuple[float, float, int]] = []
    with StageProcess() as stage, Tab(started, 2560, 1440) as tab:
        stage.begin("turnover", chains=8, rate=rate, seconds=seconds)
        tab.page.goto(stage.url)
        tab.see("[data-row]")
        began = time.monotonic()
        for number in range(1, samples + 1):
            tab.page.wait_for_timeout(
                max((number * seconds / (samples + 1) - (time.monotonic() - began)) * 1e3, 0)
            )
            found.append((time.monotonic() - began, *tab.memory()))
        said = stage.end()["tokens"]
    late = found[len(found) // 3 :]
    slope = statistics.linear_regression([at for at, _, _ in late], [heap for _, heap, _ in late]).slope
    nodes = statistics.linear_regression([at for at, _, _ in late], [count for _, _, count in late]).slope
    title = f"page: {said:,} tokens in {seconds} s, groups of 8 on screen one after another"
    yield figure(f"{title}: JavaScript heap at most", max(heap for _, heap, _ in found), "MiB")
    yield figure(f"{title}: the heap's slope, a minute", slope * 60, "MiB", "<= 1")
    yield figure(f"{title}: DOM nodes at most", max(count for _, _, count in found), "nodes")
    yield figure(f"{title}: their slope, a minute", nodes * 60, "nodes", "<= 500")


def _record(started: Browser, quick: bool) -> Iterator[Figure]:
    """A record of a million events, by `rollcast open`."""
    chains, events = (16, 1_000) if quick else (2_000, 1_000_000)
    lists: list[float] = []
    opened: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rollcast-page-") as folder:
        path = Path(folder) / "large"
        with StageProcess() as stage:
            count = stage.do("record", path=str(path), chains=chains, events=events)["events"]
        for number in range(-1, 1 if quick else 7):
            with OpenCommand(path) as command, Tab(started) as tab:
                began = time.perf_counter()
                tab.page.goto(command.url)
                tab.see(".wall .cell")
                if number >= 0:
                    lists.append((time.perf_counter() - began) * 1e3)
                chain = (number + 2) * 241 % chains
                began = time.perf_counter()
                tab.go_to(f"#/run/{RUN}/chain/chain_{chain}")
                tab.see(".transcript .call")
                if number >= 0:
                    opened.append((time.perf_counter() - began) * 1e3)
    title = f"page: a record of {count:,} events and {chains:,} chains"
    yield figure(f"{title}: from its address to the wall", lists, "ms", "<= 1000")
    yield figure(f"{title}: from there to any chain", opened, "ms", "<= 2000")


def _cost(started: Browser, quick: bool) -> Iterator[Figure]:
    """What an open page costs the process whose run it shows: runs that are all sampling, and a training."""
    runs, chains, steps, rounds = (1, 8, 1, 1) if quick else (8, 384, 4, 15)
    kinds: list[tuple[str, str, bool, dict[str, int]]] = [
        ("a run", "play", False, {"chains": chains, "runs": runs}),
        ("a training", "train", True, {"steps": steps}),
        ("a training without a record", "train", False, {"steps": steps}),
    ]
    for whose, what, recorded, numbers in kinds:
        with tempfile.TemporaryDirectory() as directory, StageProcess() as stage:
            options = numbers | ({"record": directory} if recorded else {})
            stage.do("play", chains=8)
            results = paired(_watched(started, stage, what, options), rounds)
        cpu = {name: [result["cpu"] for result in values] for name, values in results.items()}
        browsers = {name: [result["browser"] for result in values] for name, values in results.items()}
        digests = {result["digest"] for values in results.values() for result in values}
        title = f"page: CPU of {whose}"
        yield figure(f"{title}, no page", cpu["none"], "s")
        yield figure(
            f"{title}, the overview open / no page", ratios(cpu["overview"], cpu["none"]), "×", "<= 1.02"
        )
        openings = [result["opening"] for result in results["overview"]]
        yield figure(
            f"{title}, once for a page that is opened after the runs of all rounds before", openings, "s"
        )
        yield figure(f"{title}, a busy page of nobody's / no page", ratios(cpu["busy"], cpu["none"]), "×")
        yield figure(
            f"{title}, the overview open / a page of nobody's that is as busy",
            ratios(cpu["overview"], cpu["busy"]),
            "×",
            "<= 1.02",
        )
        yield figure(f"{title}: the browser's share of a core", browsers["overview"], "")
        yield figure(f"{title}: a share of the busy page's browser", browsers["busy"], "")
        yield figure(f"{title}, a hidden tab / no page", ratios(cpu["hidden"], cpu["none"]), "×", "<= 1.02")
        yield figure(f"{title}: results that differ by a byte", len(digests) - 1, "", "<= 0")


def _watched(
    started: Browser, stage: StageProcess, what: str, options: dict[str, Any]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The same work without a page, with the overview open, with a hidden tab, and beside a page that has nothing to do with it.

    The last is the control: it uses as much of a core as the overview's browser did the last time, so it shows what any
    busy program beside a run does to the CPU time of that run.
    """
    share = 0.3

    def work() -> dict[str, Any]:
        began = browser_seconds()
        result = stage.do(what, **options)
        return result | {"browser": (browser_seconds() - began) / result["wall"]}

    def settle() -> float:
        """Wait until the process does nothing any more: what a page that was opened asks first. Returns the CPU seconds of that."""
        began = before = stage.cpu_s
        while True:
            time.sleep(0.4)
            if (now := stage.cpu_s) - before < 0.03:
                return now - began
            before = now

    def closed() -> dict[str, Any]:
        while stage.do("clients")["clients"]:
            time.sleep(0.05)
        return work()

    def overview() -> dict[str, Any]:
        nonlocal share
        with Tab(started) as tab:
            tab.page.goto(stage.url)
            tab.see("main .panel")
            opening = settle()
            result = work() | {"opening": opening}
            share = min(result["browser"], 1)
            return result

    def hidden() -> dict[str, Any]:
        with Tab(started) as tab:
            tab.page.goto(stage.url)
            tab.see("main .panel")
            tab.hide()
            while stage.do("clients")["clients"]:
                tab.page.wait_for_timeout(200)
            return work()

    def busy() -> dict[str, Any]:
        while stage.do("clients")["clients"]:
            time.sleep(0.05)
        with Tab(started) as tab:
            tab.keep_busy(share)
            return work()

    return {"none": closed, "overview": overview, "hidden": hidden, "busy": busy}


def _share(values: list[float], share: float) -> float:
    """The value below which this share of the values lies; they need not be sorted."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


PARTS: dict[str, Callable[[Browser, bool], Iterator[Figure]]] = {
    "paint": _paint,
    "delay": _delay,
    "wall": _wall,
    "long": _long,
    "memory": _memory,
    "record": _record,
    "cost": _cost,
}
