"""Facts about calling a tool: whatever it does becomes a result."""

import asyncio
import contextlib
import contextvars
import functools
import logging
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from rollcast.errors import InputError, ToolError
from rollcast.rollout.context import ChainContext
from rollcast.tools import execution, tool


@tool
def guess(number: int, hint: str = "") -> str:
    """Guess."""
    return f"{number}{hint}"


@pytest.mark.parametrize(
    ("arguments", "observation"),
    [
        ({"number": 3}, "3"),
        ('{"number": 3, "hint": "x"}', "3x"),
        ({"n": 3}, "error: guess has no argument 'n'; its arguments: number (integer), hint (string)"),
        ({}, "error: guess needs the argument 'number' (integer)"),
        ("", "error: guess needs the argument 'number' (integer)"),
        ({"number": 3, "hint": 4}, "error: the argument 'hint' of guess: should be a valid string, found 4"),
        ("{", "error: bad json"),
        ("[" * 100_000, "error: bad json"),
        ("[1]", "error: the arguments of guess are not an object"),
        ({"number": float("nan")}, None),
        ({"x" * 10_000_000: 3}, None),
        ({"\ud800\n": 3}, None),
        ({"number": "9" * 10_000_000}, None),
        ({3: 4, "number": 1}, None),
    ],
)
async def test_arguments_are_checked(arguments, observation):
    """Wrong arguments are one short line for the model that says what was wrong."""
    result = await guess.invoke(arguments)
    if observation is not None:
        assert result.observation == observation
    assert result.status == ("error" if result.observation.startswith("error: ") else "success")
    assert len(result.observation) < 500
    assert "\n" not in result.observation
    result.observation.encode()


async def test_a_tool_without_arguments_says_so():
    """An argument for a tool that takes none is named."""

    @tool
    async def ping() -> str:
        return "pong"

    assert (await ping.invoke({})).observation == "pong"
    assert (await ping.invoke({"a": 1})).observation == "error: ping has no argument 'a'; it takes none"


async def test_a_validator_may_raise_anything():
    """A validator of the tool's own types that raises is an observation: its text for ValueError, else the type."""

    class Even(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def check(cls, value: int) -> int:
            if value < 0:
                raise KeyError(value)
            if value % 2:
                raise ValueError("odd\nnumber")
            return value

    @tool
    def halve(even: Even) -> float:
        return even.value / 2

    odd = await halve.invoke({"even": {"value": 3}})
    assert odd.observation == "error: the argument 'even.value' of halve: odd number, found 3"
    below = await halve.invoke({"even": {"value": -1}})
    assert below.observation == "error: halve cannot read its arguments: KeyError"


async def test_the_context_is_filled_in():
    """A parameter annotated with ChainContext gets the chain's, and the model cannot give it."""

    @tool
    def note(ctx: ChainContext, text: str) -> int:
        ctx.state.setdefault("notes", []).append(text)
        return len(ctx.state["notes"])

    ctx = ChainContext(chain_id="chain_0")
    assert (await note.invoke({"text": "a"}, ctx)).observation == "1"
    assert (await note.invoke({"text": "b"}, ctx)).observation == "2"
    assert ctx.state == {"notes": ["a", "b"]}
    assert "has no argument 'ctx'" in (await note.invoke({"text": "c", "ctx": {}}, ctx)).observation


async def test_a_missing_context_is_the_callers_mistake():
    """A tool that asks for a context which the call lacks raises, unless the parameter has a default."""

    @tool
    def strict(ctx: ChainContext) -> str:
        return ctx.chain_id

    @tool
    def lenient(ctx: ChainContext | None = None) -> bool:
        return ctx is None

    with pytest.raises(InputError, match="takes a ChainContext as its parameter 'ctx'"):
        await strict.invoke({})
    assert (await lenient.invoke({})).observation == "true"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    ("error", "observation"),
    [
        (ToolError("bad expression"), "error: bad expression"),
        (ToolError("error: said already"), "error: said already"),
        (ValueError("a\nb"), "error: ValueError: a b"),
        (KeyError("x"), "error: KeyError: 'x'"),
        (Mute(), "error: Mute"),
        (ValueError("\ud800"), "error: ValueError: \ufffd"),
        (StopIteration(3), "error: StopIteration: 3"),
        (SystemExit(1), "error: SystemExit: 1"),
        (TimeoutError(), "error: TimeoutError"),
        (asyncio.CancelledError(), "error: CancelledError"),
    ],
)
async def test_what_a_sync_tool_raises_is_observed(error, observation, inline):
    """Whatever a sync tool raises is an error observation: a ToolError's text alone, else type and text."""

    @tool(inline=inline)
    def broken() -> None:
        raise error

    result = await broken.invoke({})
    assert (result.observation, result.status) == (observation, "error")


@pytest.mark.parametrize(
    ("error", "observation", "status"),
    [
        (ToolError("no"), "error: no", "error"),
        (ValueError("no"), "error: ValueError: no", "error"),
        (SystemExit(1), "error: SystemExit: 1", "error"),
        (TimeoutError("t"), "error: TimeoutError: t", "error"),
        (asyncio.CancelledError(), "error: broken was cancelled", "cancelled"),
    ],
)
async def test_what_an_async_tool_raises_is_observed(error, observation, status):
    """Whatever an async tool raises is an observation; cancelling itself has a status of its own."""

    @tool
    async def broken() -> None:
        raise error

    result = await broken.invoke({})
    assert (result.observation, result.status) == (observation, status)


async def test_output_is_truncated_with_a_note():
    """A result longer than `max_output` is cut there, with a note of its length."""

    @tool(max_output=100)
    def flood() -> str:
        return "x" * 10_000_000

    result = await flood.invoke({})
    assert len(result.observation) == 100
    assert result.observation.endswith("x… [truncated: 10000000 characters]")
    assert result.status == "success"


async def test_a_sync_coroutine_function_is_told_to_be_async():
    """A plain function that returns a coroutine is an error that says what to do, and leaks no coroutine."""

    async def inner() -> None: ...

    @tool
    def outer() -> Any:
        return inner()

    result = await outer.invoke({})
    assert result.observation == "error: the result is a coroutine; define the tool with `async def`"


async def test_context_variables_reach_tools():
    """Sync and async tools see the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("here")

    @tool
    def sync() -> str:
        return variable.get()

    @tool
    async def asynchronous() -> str:
        return variable.get()

    assert (await sync.invoke({})).observation == "here"
    assert (await asynchronous.invoke({})).observation == "here"


async def test_sync_tools_run_in_named_daemon_threads():
    """A sync tool's thread is a daemon named after the tool; an inline one has the event loop's."""

    @tool
    def where() -> list[Any]:
        thread = threading.current_thread()
        return [thread.name, thread.daemon]

    @tool(inline=True)
    def here() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert (await where.invoke({})).observation == '["rollcast-tool-where", true]'
    assert (await here.invoke({})).observation == "true"


@pytest.fixture
def gate():
    """An event that lets stuck threads go when the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_sync_tool_beyond_its_timeout_is_left_behind(gate, caplog):
    """A sync tool that ignores its timeout gives a timeout observation at once, and a warning names its thread."""

    @tool(timeout=0.01)
    def stuck() -> None:
        gate.wait()

    with caplog.at_level(logging.WARNING, "rollcast.tools"):
        result = await stuck.invoke({})
    assert (result.observation, result.status) == ("error: stuck timed out after 0.01 s", "timeout")
    assert "rollcast-tool-stuck still runs" in caplog.text


async def test_stuck_calls_do_not_starve_others(gate, monkeypatch):
    """With every place taken by stuck calls, the next call runs as soon as they are given up."""
    monkeypatch.setattr(execution, "RUNNING_LIMIT", 3)

    @tool(timeout=0.05)
    def stuck() -> None:
        gate.wait()

    @tool
    def quick() -> str:
        return "ran"

    *lost, ran = await asyncio.gather(*(stuck.invoke({}) for _ in range(7)), quick.invoke({}))
    assert {result.status for result in lost} == {"timeout"}
    assert ran.observation == "ran"


async def test_threads_are_bounded_and_reused(gate, monkeypatch):
    """No more than the limit run at a time, the others wait for a place, and all come through."""
    monkeypatch.setattr(execution, "RUNNING_LIMIT", 4)
    lock = threading.Lock()
    seen = {"now": 0, "most": 0}

    @tool
    def count(i: int) -> int:
        with lock:
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        with lock:
            seen["now"] -= 1
        return i

    results = await asyncio.gather(*(count.invoke({"i": i}) for i in range(200)))
    assert [result.observation for result in results] == [str(i) for i in range(200)]
    assert seen["most"] <= 4


async def test_a_cancelled_call_that_waits_for_a_thread_never_runs(gate, monkeypatch):
    """A call that is cancelled while it waits for a place is forgotten."""
    monkeypatch.setattr(execution, "RUNNING_LIMIT", 1)
    ran = []

    @tool
    def stuck() -> None:
        gate.wait()

    @tool
    def later() -> None:
        ran.append(1)

    first = asyncio.create_task(stuck.invoke({}))
    await asyncio.sleep(0)
    second = asyncio.create_task(later.invoke({}))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    await first
    assert ran == []


async def test_cancelling_a_sync_call_returns_at_once(gate):
    """Cancellation does not wait for a sync tool."""
    running = asyncio.Event()
    loop = asyncio.get_running_loop()

    @tool(timeout=None)
    def stuck() -> None:
        loop.call_soon_threadsafe(running.set)
        gate.wait()

    task = asyncio.create_task(stuck.invoke({}))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gate.is_set()


async def test_cancelling_an_async_call_reaches_the_tool():
    """Cancellation is a CancelledError in an async tool, and its cleanup is waited for."""
    running = asyncio.Event()
    events = []

    @tool
    async def wait() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            await asyncio.sleep(0)
            events.append("cleaned up")
            raise

    task = asyncio.create_task(wait.invoke({}))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["cancelled", "cleaned up"]


async def test_an_async_tool_times_out():
    """An async tool is cancelled at its timeout."""
    cancelled = asyncio.Event()

    @tool(timeout=0.01)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    result = await slow.invoke({})
    assert (result.observation, result.status) == ("error: slow timed out after 0.01 s", "timeout")
    assert cancelled.is_set()


async def test_an_async_tool_that_ignores_cancellation_is_left_behind(monkeypatch, caplog):
    """An async tool that swallows its cancellation is left behind after a grace, and a warning names it."""
    monkeypatch.setattr(execution, "GRACE_S", 0.01)
    let_go = asyncio.Event()

    @tool(timeout=0.01)
    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    result = await stubborn.invoke({})
    assert result.status == "timeout"
    assert "tool 'stubborn' is still running" in caplog.text
    let_go.set()
    await asyncio.wait(set(execution._leaving))


@pytest.mark.parametrize("kind", ["sync", "async", "inline"])
async def test_generators_stream_partial_output(kind):
    """What a generator yields arrives piece by piece; the observation is all of it."""
    if kind == "async":

        @tool(name="count")
        async def made(n: int):
            for i in range(n):
                yield f"{i} "
            yield None
            yield {"done": True}
    else:

        @tool(name="count", inline=kind == "inline")
        def made(n: int):
            for i in range(n):
                yield f"{i} "
            yield None
            yield {"done": True}

    pieces: list[str] = []
    result = await made.invoke({"n": 3}, None, pieces.append)
    assert pieces == ["0 ", "1 ", "2 ", '{"done": true}']
    assert (result.observation, result.status) == ('0 1 2 {"done": true}', "success")


async def test_a_generators_return_value_is_the_observation():
    """Where a sync generator returns something, that is the observation, and its pieces were partial."""

    @tool
    def work():
        yield "working"
        return {"result": 3}

    pieces: list[str] = []
    result = await work.invoke({}, None, pieces.append)
    assert pieces == ["working"]
    assert result.observation == '{"result": 3}'


async def test_partial_output_is_bounded():
    """A generator that floods delivers at most `max_output` characters, and its observation notes the length."""

    @tool(max_output=100)
    def flood():
        for _ in range(10_000):
            yield "0123456789"

    pieces: list[str] = []
    result = await flood.invoke({}, None, pieces.append)
    assert "".join(pieces) == "0123456789" * 10
    assert result.observation.endswith("… [truncated: 100000 characters]")
    assert len(result.observation) == 100


def endless(seconds, closed):
    @tool(timeout=seconds, max_output=100)
    def forever():
        try:
            while True:
                yield "."
        finally:
            closed.set()

    return forever


async def test_an_endless_generator_ends_at_its_timeout():
    """An endless sync generator is closed once nobody waits for it, and what it gave stands in the observation."""
    for seconds in (0.02, 0.2, 2, 20):  # within one of them its thread has its turn
        closed = threading.Event()
        result = await endless(seconds, closed).invoke({})
        assert result.status == "timeout"
        if "output so far" in result.observation:
            break
    assert result.observation.startswith(f"error: forever timed out after {seconds:g} s; output so far: .")
    assert len(result.observation) <= 100
    assert await asyncio.to_thread(closed.wait, 20)


async def test_a_generator_that_raises_keeps_its_output():
    """The observation of a failing generator has the error first, then what came before."""

    @tool
    async def half():
        yield "first half"
        raise ToolError("no second half")

    result = await half.invoke({})
    assert result.observation == "error: no second half; output so far: first half"
    assert result.status == "error"


async def test_no_piece_is_delivered_after_the_result(gate):
    """A tool that was left behind can no longer deliver."""
    pieces: list[str] = []
    done = threading.Event()

    @tool(timeout=0.01)
    def late():
        gate.wait()
        try:
            yield "too late"
        finally:
            done.set()

    result = await late.invoke({}, None, pieces.append)
    assert result.status == "timeout"
    gate.set()
    await asyncio.to_thread(done.wait, 60)
    await asyncio.sleep(0)
    assert pieces == []


def test_a_stuck_tool_does_not_hold_the_interpreter():
    """The interpreter exits though an abandoned tool still runs, and idle threads wait."""
    program = """
import asyncio, threading
from rollcast.tools import tool

@tool(timeout=0.01)
def stuck() -> None:
    threading.Event().wait()

@tool
def quick() -> str:
    return "ran"

async def main():
    print((await quick.invoke({})).observation, (await stuck.invoke({})).status)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "ran timeout\n"
    assert "rollcast-tool-stuck" in done.stderr


def test_tools_work_in_successive_event_loops():
    """Threads outlive the event loop that first used them."""

    @tool
    def quick() -> str:
        return "ran"

    for _ in range(3):
        assert asyncio.run(quick.invoke({})).observation == "ran"


def stored(error):
    def raises():
        raise error

    return raises


class Silent(Exception):
    def __str__(self) -> str:
        raise SystemExit


ANYTHING = [
    (KeyboardInterrupt(), "error: KeyboardInterrupt"),
    (SystemExit("bye"), "error: SystemExit: bye"),
    (GeneratorExit(), "error: GeneratorExit"),
    (StopAsyncIteration(), "error: StopAsyncIteration"),
    (MemoryError(), "error: MemoryError"),
    (RecursionError("too deep"), "error: RecursionError: too deep"),
    (Silent(), "error: Silent"),
    (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "error: ExceptionGroup: two (2 sub-exceptions): ValueError: a"),
    (BaseExceptionGroup("g", [KeyboardInterrupt()]), "error: BaseExceptionGroup: g (1 sub-exception): KeyboardInterrupt"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["thread", "inline", "async", "generator", "async generator"])
@pytest.mark.parametrize(("error", "observation"), ANYTHING, ids=lambda value: str(type(value).__name__))
async def test_whatever_a_tool_raises_is_one_observation(error, observation, kind):
    """Also what would stop a program is an observation if the tool's own code raises it, however the tool runs."""

    async def asynchronous() -> None:
        raise error

    def generator() -> Any:
        yield None
        raise error

    async def async_generator() -> Any:
        yield None
        raise error

    made = {
        "thread": tool(stored(error)),
        "inline": tool(stored(error), inline=True),
        "async": tool(asynchronous),
        "generator": tool(generator),
        "async generator": tool(async_generator),
    }[kind]
    if kind == "async generator" and isinstance(error, StopAsyncIteration):
        observation = "error: RuntimeError: async generator raised StopAsyncIteration"
    result = await made.invoke({})
    assert (result.observation, result.status) == (observation, "error")
    assert result.failure is not None


async def test_code_that_a_tool_runs_may_raise_anything():
    """`exec` of a model's code that raises KeyboardInterrupt is an observation, in the event loop too."""

    @tool(inline=True)
    def python(code: str) -> str:
        exec(code)
        return ""

    result = await python.invoke({"code": "raise KeyboardInterrupt('no')"})
    assert result.observation == "error: KeyboardInterrupt: no"


async def test_a_very_long_message_is_bounded():
    """The text of an exception is cut like every observation."""
    result = await tool(stored(ValueError("x" * 10_000_000))).invoke({})
    assert len(result.observation) < 500


@pytest.mark.parametrize("kind", ["inline", "async"])
@pytest.mark.parametrize(
    "handler", [signal.default_int_handler, lambda *_: sys.exit(3)], ids=["default", "own"]
)
def test_a_real_ctrl_c_is_not_the_tools_failure(kind, handler):
    """What a signal's handler raises while a tool runs in the event loop ends the program."""

    def inline() -> None:
        signal.raise_signal(signal.SIGINT)

    async def asynchronous() -> None:
        signal.raise_signal(signal.SIGINT)

    made = tool(inline, inline=True) if kind == "inline" else tool(asynchronous)
    loop = asyncio.new_event_loop()  # asyncio.run would have a handler of its own, which cancels
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            loop.run_until_complete(made.invoke({}))
    finally:
        signal.signal(signal.SIGINT, before)
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                loop.run_until_complete(task)
        loop.close()


async def test_a_wrapper_of_an_async_tool_is_awaited():
    """A plain decorator around an async function gives a coroutine, which runs in the event loop with the timeout."""

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @tool(timeout=0.01)
    @logged
    async def sleeps(on: bool) -> str:
        if on:
            await asyncio.Event().wait()
        return threading.current_thread().name

    assert (await sleeps.invoke({"on": False})).observation == threading.current_thread().name
    assert (await sleeps.invoke({"on": True})).status == "timeout"
