"""What keeps the event loop is named."""

import threading
import time
from types import SimpleNamespace

import pytest

from rollcast import BaseAgent, tool
from rollcast.rollout import watchdog as module
from rollcast.testing import ScriptedBackend

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "blocks", "arguments": {}}</tool_call>'


@pytest.fixture
def quick(monkeypatch):
    """A watchdog that looks often, and has a thread of its own. A slow machine may hold the loop for a moment."""
    monkeypatch.setattr(module, "BLOCKED_S", 0.5)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "IDLE_LOOKS", 0)
    own = module._Watchdog()
    monkeypatch.setattr("rollcast.rollout.run.watchdog", own)
    yield own
    deadline = time.monotonic() + 60
    while own._running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not own._running


def agent_that_blocks(caplog):
    """Its tool keeps the loop until it is named."""

    @tool
    async def blocks() -> str:
        """x"""
        until = time.monotonic() + 60
        while "event loop is blocked" not in caplog.text and time.monotonic() < until:
            sum(range(10_000))
        return "4"

    return BaseAgent(backend=ScriptedBackend([CALL, CALL, "done"]), tools=[blocks])


def test_a_tool_that_blocks_the_event_loop_is_named_once(quick, caplog):
    """With its line, and what to do."""
    result = agent_that_blocks(caplog).run(4, HELLO, 2)
    assert [t.finish_reason for t in result] == ["answered", "answered"]
    (record,) = caplog.records
    text = record.getMessage()
    assert "with it: test_watchdog.py:" in text
    assert "make that function a plain `def`" in text


def test_a_plain_function_is_not_named(quick, monkeypatch, caplog):
    """However long it takes: it runs on a thread, and the loop answers meanwhile."""
    monkeypatch.setattr(module, "BLOCKED_S", 30.0)  # longer than a slow machine may hold the loop
    call_in, answers = module.call_in, []

    def asks(loop, function):
        call_in(loop, lambda: (function(), answers.append(1)))

    monkeypatch.setattr(module, "call_in", asks)

    @tool(timeout=None)
    def blocks() -> str:
        """x"""
        before, until = len(answers), time.monotonic() + 60
        while len(answers) < before + 10 and time.monotonic() < until:
            time.sleep(0.01)
        return f"{len(answers) - before >= 10}"

    chains = BaseAgent(backend=ScriptedBackend([CALL, "done"]), tools=[blocks]).run(4, HELLO, 2)
    assert [call.observation for chain in chains for call in chain.tool_calls] == ["True", "True"]
    assert not caplog.records


def test_the_thread_ends_after_the_last_run(quick, caplog):
    """The fixture waits for that."""
    BaseAgent(backend=ScriptedBackend("done")).run(1, HELLO)
    assert quick._watches == {}


def test_without_a_thread_a_run_goes_on(monkeypatch, caplog):
    """The system gives none."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    own = module._Watchdog()
    monkeypatch.setattr("rollcast.rollout.run.watchdog", own)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    (chain,) = BaseAgent(backend=ScriptedBackend("done")).run(1, HELLO)
    assert chain.finish_reason == "answered"


def test_a_process_that_stood_still_as_a_whole_blames_nobody(quick, caplog, monkeypatch):
    """As a laptop that slept, or a program that a debugger held: only its own looks count."""
    watch = module._Watch(FakeLoop())
    clock = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    watch.look()
    watch.look()
    assert not caplog.records
    for _ in range(round(module.BLOCKED_S / module.LOOK_S)):
        watch.look()
    assert "the event loop is blocked" in caplog.text


class FakeLoop:
    """It never answers."""

    def call_soon_threadsafe(self, function):
        """Nothing."""
