"""Lines about hints on the console."""

import io
import itertools

import msgspec
import pytest

from rollcast import EventFilter
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.hint_watch import HintChange
from rollcast.records.hints import Hint
from rollcast.terminal import ConsoleStreamObserver
from rollcast.terminal.event_rows import EventRows
from rollcast.terminal.hint_lines import HintRows
from rollcast.terminal.layout import UNICODE


class Run:
    """Events of a run with times of its own."""

    def __init__(self, run_id="run-0001"):
        self.run_id, self.at, self._seq = run_id, 1_000_000.0, itertools.count()
        self.events = [
            self("run_start", chains=99, groups=1, agent="a", model="m", backend="b", policy_version=0)
        ]

    def __call__(self, kind, chain_id="", **data):
        step = 1 if chain_id else None
        kind = StreamEventType(kind)
        return StreamEvent(kind, chain_id, self.at, data, step, step, next(self._seq), self.run_id, None)

    def chain(self, name, status="success", *, ends=True):
        """A chain that calls a tool for half a second and ends."""
        call = {"call_id": f"c{name}", "tool_name": "search"}
        self.events.append(self("chain_start", name, messages=[], tools=[], index=0, policy_version=0))
        self.events.append(self("tool_call_start", name, **call, arguments={}))
        if not ends:
            return
        self.at += 0.5
        self.events.append(
            self("tool_observation", name, **call, observation="x", partial=False, status=status)
        )
        self.events.append(self("tool_call_end", name, **call, status=status, duration_s=0.5))
        self.events.append(
            self(
                "chain_end", name, finish_reason="answered", final_response=name, reward=self.at % 1, metrics={}, steps=1,
                completion_tokens=1, duration_s=0.5,
            )
        )  # fmt: skip

    def chains(self, first, last, status="success"):
        for i in range(first, last):
            self.chain(f"chain_{i}", status)

    def over(self):
        self.events.append(
            self(
                "run_end",
                status="completed",
                chains=99,
                failed=0,
                mean_reward=0.5,
                completion_tokens=1,
                duration_s=2.0,
            )
        )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def printed(run, **options):
    """What a console prints to text in memory."""
    out = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=out, **options)
    await observer.on_batch(run.events)
    await observer.aclose()
    return out.getvalue().splitlines()


def about_hints(lines):
    return [line for line in lines if "│ ! " in line]


FAILS = (
    "run      │ ! The tool “search” failed in 13 of 13 calls (chain_0, chain_1, chain_2, chain_3 and 9 more)"
)
OVER = "run      │ ! no longer: The tool “search” failed in "


async def test_a_line_says_when_a_hint_appears_and_when_it_goes():
    """With the chains that show it; the hint is not said again meanwhile."""
    run = Run()
    run.chains(0, 20, "error")
    run.chains(20, 90)
    lines = about_hints(await printed(run))
    assert lines[0] == FAILS
    assert lines[1].startswith(OVER)
    assert len(lines) == 2


async def test_at_its_end_a_run_says_what_holds():
    """Above the line of its end, however short it was."""
    run = Run()
    run.chains(0, 9, "error")
    run.over()
    lines = await printed(run)
    (line,) = about_hints(lines)
    assert "failed in 9 of 9 calls" in line
    assert lines.index(line) == len(lines) - 2
    assert lines[-1].startswith("── completed")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"hints": False}, 0),
        ({"chain_filter": EventFilter(types=["tool_call_end", "chain_end"])}, 0),
        ({"chain_filter": [f"chain_{i}" for i in range(8)]}, 1),
        ({"chain_filter": "chain_0"}, 0),
    ],
)
async def test_hints_are_about_the_chains_that_are_shown(options, count):
    """A console of types of events has none, nor one that is told so, nor one of a single chain."""
    run = Run()
    run.chains(0, 9, "error")
    wanted = EventFilter.coerce(options.get("chain_filter"))
    run.events = [event for event in run.events if wanted.matches(event)]
    out = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=out, **options)
    await observer.on_batch(run.events)
    await observer.on_run_closed(run.run_id)
    lines = about_hints(out.getvalue().splitlines())
    assert len(lines) == count


async def test_batches_make_no_difference():
    """Lines come at the same events, whether these come one by one or all at once."""
    run = Run()
    run.chains(0, 20, "error")
    run.chain("stuck", ends=False)
    run.chains(20, 90)
    run.over()
    out = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=out)
    for event in run.events:
        await observer.on_event(event)
    await observer.aclose()
    at_once = await printed(run)
    assert out.getvalue().splitlines() == at_once
    assert [line.split("│ ")[1][:12] for line in about_hints(at_once)] == [
        "! The tool “", "! stuck is w", "! no longer:", "! no longer:"
    ]  # fmt: skip


async def test_on_a_terminal_the_clock_tells_if_no_event_comes(make_terminal):
    """As it does not in a pipe, nor where a replay switched it off."""
    run = Run()
    run.chains(0, 12)
    run.chain("stuck", ends=False)
    for by_clock in (True, False):
        terminal = make_terminal(120)
        observer = ConsoleStreamObserver(show_timestamps=False, file=terminal)
        observer.hints_by_clock = by_clock
        observer._clock = clock = Clock()
        await observer.on_batch(run.events)
        for _ in range(40):
            clock.now += 1
            observer._on_timer()
        assert any("stuck is waiting for the tool “search”" in row for row in terminal.rows) is by_clock
        await observer.aclose()
    piped = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=piped)
    observer._clock = clock = Clock()
    await observer.on_batch(run.events)
    for _ in range(40):
        clock.now += 1
        observer._on_timer()
    assert about_hints(piped.getvalue().splitlines()) == []
    await observer.aclose()


@pytest.mark.parametrize("at", [float("nan"), float("inf"), 1e300, None, "now"])
async def test_an_impossible_time_does_no_harm(at):
    """Events made by hand may have any; the hints of the run come nevertheless."""
    run = Run()
    run.chains(0, 9, "error")
    run.over()
    run.events = [msgspec.structs.replace(event, timestamp=at) for event in run.events]
    run.at = 1_000_000.0
    out = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=out)
    await observer.on_batch(run.events)
    observer._hints.look_now(observer._attached.printer)
    await observer.aclose()
    assert len(about_hints(out.getvalue().splitlines())) == 1


async def test_two_runs_are_told_apart():
    """By the end of their ids, as chains are."""
    first, second = Run("run-aaaa"), Run("run-bbbb")
    for run in (first, second):
        run.chains(0, 9, "error")
    out = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=out)
    await observer.on_batch([*first.events, *second.events])
    await observer.on_run_closed("run-bbbb")
    (line,) = about_hints(out.getvalue().splitlines())
    assert line.startswith("bbbb run")
    await observer.aclose()


# -- few lines ---------------------------------------------------------------------------------------------------------------


def change(n, at, *, appeared=True):
    hint = Hint("alike_and_wrong", f"hint {n}", "r", ["chain_0"], 1, f"group_{n}")
    return HintChange(hint, appeared, at, f"id{n}")


def texts(rows):
    return ["".join(text for text, _ in row) for row, _, _ in rows]


def test_many_hints_get_few_lines():
    """Six at once and one in ten seconds; the others are counted, and at the end of a run all are."""
    rows, look = HintRows(), EventRows(UNICODE, None, 8, 600)
    assert len(texts(rows.of([change(n, 0.0) for n in range(40)], 0.0, look))) == 6
    assert texts(rows.of([change(50, 1.0)], 1.0, look)) == []
    assert texts(rows.of([], 11.0, look)) == ["! 35 more hints (35 alike_and_wrong)"]
    assert texts(rows.of([change(60, 12.0)], 12.0, look)) == []
    assert texts(rows.of([], 12.0, look, ended=True)) == ["! 1 more hint (1 alike_and_wrong)"]


def test_only_what_was_said_is_taken_back():
    """A hint that was only counted goes without a line."""
    rows, look = HintRows(), EventRows(UNICODE, None, 8, 600)
    list(rows.of([change(n, 0.0) for n in range(7)], 0.0, look))
    gone = [change(n, 5.0, appeared=False) for n in range(7)]
    assert texts(rows.of(gone, 5.0, look)) == [f"! no longer: hint {n}" for n in range(6)]
    assert texts(rows.of(gone, 5.0, look)) == []


def test_text_from_outside_is_shown_safely():
    """A sentence and ids of chains have no control characters, whatever a model called them."""
    hint = Hint("tool_fails", "x \x1b[2J", "r", ["a\x1b[31m\nb"], 1)
    (row,) = texts(HintRows().of([HintChange(hint, True, 0.0, "i")], 0.0, EventRows(UNICODE, None, 8, 600)))
    assert row.isprintable()
