"""A synthetic load keeps its rate, says the same for the same seed, and leaves nothing open."""

import asyncio
import json
from collections import Counter

import pytest

from rollcast import InputError, StreamingManager
from rollcast.testing import EventCapture, capture_events
from rollcast.testing.load import Load, play_load, player
from rollcast.testing.load.__main__ import main

CHUNK = "llm_generation_chunk"
SMALL = {"chains": 12, "tokens_per_s": 50, "seconds": 4, "flat_out": True}


async def played(load, **options):
    """The report and the events of a play."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        report = await play_load(manager, load, **options)
    return report, capture


def told(event):
    """What an event says, apart from times and from the run's id."""
    return event.event_type, event.chain_id, event.group_id, event.step, _without_times(event.data)


def _without_times(data):
    return {name: value for name, value in data.items() if name not in ("duration_s", "ttft_s")}


async def test_every_chain_ends():
    """The events obey the grammar, each chain that began has ended with its reward, and so has each run."""
    report, capture = await played(Load(**SMALL))
    capture.check()
    types = Counter(capture.types())
    assert types["chain_start"] == types["chain_end"] == types["reward"] == report.chains > SMALL["chains"]
    assert types["run_start"] == types["run_end"] == report.runs > 1
    assert {event.data["finish_reason"] for event in capture.of("chain_end")} == {"answered"}


async def test_the_report_counts_what_there_was():
    """Each event by its type, and each token."""
    report, capture = await played(Load(**SMALL))
    types = Counter(capture.types())
    assert types.pop(CHUNK) == report.tokens
    assert types == report.events


async def test_the_same_load_says_the_same():
    """The events of two plays agree in all but times and the ids of runs, and in their order."""
    (_, first), (_, second) = await played(Load(**SMALL, seed=5)), await played(Load(**SMALL, seed=5))
    assert [told(event) for event in first.events] == [told(event) for event in second.events]


async def test_another_seed_says_something_else():
    """Its questions are others."""
    (_, first), (_, second) = await played(Load(**SMALL, seed=1)), await played(Load(**SMALL, seed=2))
    questions = [{e.data["messages"][0]["content"] for e in c.of("chain_start")} for c in (first, second)]
    assert questions[0].isdisjoint(questions[1])


async def test_pacing_does_not_change_what_is_said(monkeypatch):
    """Paced by a clock that jumps, it says what it says flat out."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(player, "clock", lambda: next(ticks) * 0.07)
    monkeypatch.setattr(player, "TICK_S", 0)
    _, paced = await played(Load(**SMALL | {"flat_out": False}))
    monkeypatch.undo()
    _, flat_out = await played(Load(**SMALL))
    assert [told(event) for event in paced.events] == [told(event) for event in flat_out.events]


async def test_rates_are_those_that_were_given():
    """So many tokens for each chain that generates, and so many other events for all together."""
    load = Load(chains=10, tokens_per_s=30, events_per_s=0, seconds=2, flat_out=True)
    report, capture = await played(load)
    assert report.tokens == 10 * 30 * 2
    assert {len(capture.of(CHUNK, f"chain_{i}")) for i in range(10)} == {60}
    load = Load(chains=10, tokens_per_s=0, events_per_s=500, seconds=2, flat_out=True)
    report, capture = await played(load)
    begun_and_ended = Load(chains=10, tokens_per_s=0, events_per_s=0, seconds=2, flat_out=True)
    beside, _ = await played(begun_and_ended)
    assert report.tokens == 0
    assert 1000 <= sum(report.events.values()) - sum(beside.events.values()) <= 1000 + 40


async def test_as_many_chains_are_open_as_were_asked_for():
    """From the first steps to the last, except while one takes the place of another."""
    _, capture = await played(Load(**SMALL))
    open_now, most = 0, 0
    for event in capture.events:
        open_now += (event.event_type == "chain_start") - (event.event_type == "chain_end")
        most = max(most, open_now)
    assert most == SMALL["chains"]


async def test_chains_of_a_group_have_one_question():
    """And as many as were asked for are in it."""
    _, capture = await played(Load(**SMALL, group_size=4))
    questions = {}
    for event in capture.of("chain_start"):
        questions.setdefault(event.group_id, []).append(event.data["messages"][0]["content"])
    assert all(len(set(asked)) == 1 for asked in questions.values())
    assert {len(asked) for asked in list(questions.values())[:-1]} == {4}


async def test_runs_take_so_many_chains():
    """Each but the last has the number that was asked for."""
    _, capture = await played(Load(**SMALL, chains_per_run=5))
    counts = Counter(event.run_id for event in capture.of("chain_start"))
    assert list(counts.values())[:-1] == [5] * (len(counts) - 1)


async def test_tool_calls_and_rewards_can_be_left_out():
    """Then there are none."""
    report, capture = await played(Load(**SMALL, tool_calls=0, rewards=False))
    assert not {"tool_call_start", "reward"} & set(capture.types())
    assert not {"tool_call_start", "reward"} & set(report.events)


async def test_without_streaming_nothing_is_emitted():
    """The chains are there all the same."""
    report, capture = await played(Load(**SMALL), live=False)
    assert capture.events == []
    assert report.tokens > 0


async def test_a_load_that_is_late_says_so_and_catches_up(monkeypatch):
    """It plays all that was due, and tells how far it fell behind."""
    times = [0.0, 0.0, 3.5]  # the clock stands still until all have begun, and then jumps
    monkeypatch.setattr(player, "clock", lambda: times.pop(0) if len(times) > 1 else times[0])
    report, _ = await played(Load(chains=4, tokens_per_s=10, seconds=2))
    assert report.tokens + sum(report.events.values()) > 4 * 10 * 2
    assert report.behind_s == pytest.approx(1.5)
    assert report.most_behind_s >= 1.5


async def test_a_cancelled_load_ends_its_chains():
    """As cancelled, and its runs too."""
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    task = asyncio.create_task(play_load(manager, Load(chains=30, tool_calls=2, seconds=1e6)))
    while len(capture.of("tool_call_start")) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await manager.aclose()
    capture.check()
    assert manager.totals().open_runs == 0
    assert {event.data["status"] for event in capture.of("run_end")} == {"cancelled"}


@pytest.mark.parametrize("chain", [None, "chain_2"])
async def test_what_a_watcher_cancels_ends_and_others_begin(chain):
    """A whole run, or one chain; the load goes on with as many chains as before."""
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    load = Load(chains=6, tokens_per_s=20, events_per_s=0, seconds=1e6)
    task = asyncio.create_task(play_load(manager, load))
    while not capture.of(CHUNK, "chain_5"):
        await asyncio.sleep(0.01)
    manager.cancel(capture.events[0].run_id, chain)
    while len(capture.of("chain_start")) < (12 if chain is None else 7):
        await asyncio.sleep(0.01)
    assert manager.totals().open_chains == 6
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await manager.aclose()
    capture.check()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"chains": 0}, "chains is 0; expected a whole number from 1"),
        ({"turns": 1.5}, "turns is 1.5; expected a whole number from 1"),
        ({"tokens_per_s": -1}, "tokens_per_s is -1; expected a number from 0"),
        ({"seconds": float("inf")}, "seconds is inf; expected a number from 0"),
        ({"events_per_s": float("nan")}, "events_per_s is nan; expected a number from 0"),
        ({"tokens_per_s": 0}, "give events_per_s, or tokens_per_s above 0"),
        ({"chains_per_run": 0}, "chains_per_run is 0; expected a whole number from 1"),
    ],
)
def test_a_load_that_cannot_be_played_is_refused(wrong, sentence):
    """With a sentence that says what was expected."""
    with pytest.raises(InputError) as error:
        Load(**wrong)
    assert sentence in str(error.value)


def test_the_command_reports(capsys, monkeypatch):
    """As JSON if asked, with the numbers of the report."""
    arguments = ["load", "--chains", "3", "--seconds", "2", "--flat-out", "--json", "--no-streaming"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        main()
    report = json.loads(capsys.readouterr().out)
    assert report["events"]["chain_start"] == report["chains"] >= 3


@pytest.mark.parametrize("arguments", [["--chains", "0"], ["--tokens-per-s", "-1"], ["--serve", "70000"]])
def test_the_command_refuses_bad_input(capsys, monkeypatch, arguments):
    """With one sentence and exit code 2."""
    monkeypatch.setattr("sys.argv", ["load", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
