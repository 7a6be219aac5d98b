"""Facts about failures of the user's own code: the line is told where people look, and the traceback once."""

import logging
import re

import pytest

from rollcast import (
    BaseAgent,
    CallbackStreamObserver,
    EventFilter,
    InputError,
    StreamEvent,
    StreamEventType,
    StreamingManager,
    reward,
)
from rollcast.records import check_events
from rollcast.stream import StreamObserver
from rollcast.testing import ScriptedBackend, capture_events

HELLO = [{"role": "user", "content": "go"}]


def line_of(function, offset=1):
    return f"(test_own_code.py:{function.__code__.co_firstlineno + offset})"


def fails(*_, **__):
    raise KeyError("x")


@reward
def scored(final_response):
    return fails()


@reward
async def judged(final_response):
    return fails()


class Parses(BaseAgent):
    def parse(self, text):
        return fails()


class Says(BaseAgent):
    def final_response(self, text):
        return fails()


def look() -> str:
    """Look."""
    return ""


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: BaseAgent("m", backend=ScriptedBackend("a"), reward=scored), "reward"),
        (lambda: BaseAgent("m", backend=ScriptedBackend("a"), reward=judged), "reward"),
        (
            lambda: BaseAgent("m", backend=ScriptedBackend("a"), reward=reward(lambda: fails(), inline=True)),
            "reward",
        ),
        (lambda: Parses("m", backend=ScriptedBackend("a"), tools=[look]), "parser"),
        (lambda: Says("m", backend=ScriptedBackend("a")), "agent"),
    ],
)
async def test_the_line_is_in_the_event_and_in_the_trajectory(make, where, caplog):
    """Of each chain; and one traceback is in the log, however many chains fail there."""
    agent = make()
    with capture_events(agent.streaming_manager) as capture, caplog.at_level(logging.WARNING, "rollcast"):
        result = await agent.run_async(1, HELLO, 4, enable_streaming=True)
    place = line_of(fails)
    assert [event.data["where"] for event in capture.of("error")] == [where] * 4
    assert all(event.data["error"].endswith(place) for event in capture.of("error"))
    assert all(t.error.endswith(place) for t in result)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[0] is KeyError
    assert caplog.text.count("Traceback") == 1
    await agent.aclose()


async def test_chains_whose_reward_failed_are_unscored():
    """They keep their finish reason and say why; those that failed themselves are not among them."""
    agent = BaseAgent("m", backend=ScriptedBackend("a"), reward=scored)
    result = await agent.run_async(1, HELLO, 2)
    assert result.unscored == result.trajectories
    assert result.failed == []
    broken = BaseAgent("m", backend=ScriptedBackend("a", fail_at=0), reward=scored)
    result = await broken.run_async(1, HELLO)
    assert (len(result.failed), result.unscored) == (1, [])


async def test_an_observers_traceback_is_logged_once_for_each_cause(caplog):
    """Though it fails at every other event; the others are told the line."""

    class Sometimes(StreamObserver):
        calls = 0

        async def on_event(self, event):
            self.calls += 1
            if self.calls % 2:
                fails()

    manager = StreamingManager()
    observer = Sometimes()
    manager.add_observer(observer)
    with capture_events(manager) as capture, caplog.at_level(logging.WARNING, "rollcast"):
        for _ in range(20):
            manager.emit(StreamEvent.now(StreamEventType.TRAIN_STEP))
            await manager.drain()
    assert caplog.text.count("Traceback") == 1
    assert f"Sometimes failed on train_step: 'x' {line_of(fails)}" in caplog.text
    (told,) = capture.of("error")
    assert told.data["error"].endswith(line_of(fails))
    assert observer in manager.observers
    await manager.aclose()


async def test_a_callbacks_line_is_told(caplog):
    """A streaming callback is an observer too."""
    agent = BaseAgent("m", backend=ScriptedBackend("one two"))
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(1, HELLO, 1, True, fails)
    assert result["chain_0"].finish_reason == "answered"
    assert re.search(r"test_own_code.py:\d+", capture.of("error")[0].data["error"])


class Picky(EventFilter):
    """A filter with code of its own."""

    def wants(self, *place):
        return fails()


async def test_a_filter_that_fails_lets_nothing_pass_and_breaks_nothing(caplog):
    """Neither the run nor `emit` sees it; it is logged once with its line."""
    observer = CallbackStreamObserver(lambda text: None)
    observer.filter = Picky()
    agent = BaseAgent("m", backend=ScriptedBackend("one two"))
    agent.streaming_manager.add_observer(observer)
    with capture_events(agent.streaming_manager) as capture, caplog.at_level(logging.WARNING, "rollcast"):
        result = await agent.run_async(1, HELLO, 3, enable_streaming=True)
        agent.streaming_manager.emit(StreamEvent.now(StreamEventType.TRAIN_STEP))
    assert [t.finish_reason for t in result] == ["answered"] * 3
    assert caplog.text.count("Traceback") == 1
    assert f"failed on its filter: 'x' {line_of(fails)}" in caplog.text
    assert len(capture.of("chain_end")) == 3
    check_events(capture.events)  # the failure is told outside of a run that has not begun
    await agent.aclose()


@pytest.mark.parametrize("given", [None, "chain_0", lambda event: True, {"chains": "chain_0"}])
def test_a_filter_that_is_none_is_refused_when_the_observer_is_added(given):
    """With a sentence that says what was expected."""
    observer = CallbackStreamObserver(print)
    observer.filter = given
    with pytest.raises(
        InputError, match=r"the filter of CallbackStreamObserver is <.*>; expected an EventFilter"
    ):
        StreamingManager().add_observer(observer)
