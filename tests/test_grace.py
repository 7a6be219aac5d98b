"""Coroutines that go on though they were cancelled, and the end of an event loop."""

import asyncio
import threading

import pytest

from rollcast.grace import Driven, run_to_the_end


async def goes_on(swallows=asyncio.CancelledError):
    while True:
        try:
            await asyncio.sleep(1000)
        except swallows:
            continue


async def awaits_all(kind):
    """Everything that a coroutine may await."""
    match kind:
        case "nothing":
            return kind
        case "sleep(0)":
            await asyncio.sleep(0)
        case "sleep":
            await asyncio.sleep(0.001)
        case "task":
            return await asyncio.create_task(awaits_all("nothing")) and kind
        case "gather":
            await asyncio.gather(awaits_all("sleep"), awaits_all("nothing"))
        case "thread":
            await asyncio.to_thread(lambda: None)
        case "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(1000)
        case "timeout of a task":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.create_task(asyncio.sleep(1000)), 0.001)
        case "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(awaits_all("sleep"))
        case "failing task":
            with pytest.raises(ZeroDivisionError):
                await asyncio.create_task(fails())
        case "failing future":
            future = asyncio.get_running_loop().create_future()
            future.set_exception(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await future
    return kind


async def fails():
    raise ZeroDivisionError


KINDS = [
    "nothing",
    "sleep(0)",
    "sleep",
    "task",
    "gather",
    "thread",
    "timeout",
    "timeout of a task",
    "group",
    "failing task",
    "failing future",
]


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_is_awaited_works_as_in_a_task(kind, limited):
    """Also if there is a limit of time, and so a future in between."""
    driven = Driven(awaits_all(kind))
    if limited:
        driven.let_go_after(600)
    assert await driven == kind
    assert driven.done
    assert asyncio.current_task().cancelling() == 0


async def test_what_it_raises_is_raised():
    """As it is."""
    with pytest.raises(ZeroDivisionError):
        await Driven(fails())


@pytest.mark.parametrize("kind", ["sleep(0)", "sleep", "task", "gather", "group"])
async def test_a_cancellation_is_passed_on(kind):
    """To whatever is awaited, once."""
    seen = []

    async def work():
        try:
            while True:
                await awaits_all(kind)
        except asyncio.CancelledError:
            seen.append(kind)
            raise

    task = asyncio.create_task(Driven(work()).run())
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [kind]


@pytest.mark.parametrize("swallows", [asyncio.CancelledError, BaseException])
async def test_what_is_let_go_of_is_over_at_once(swallows):
    """Whatever it swallows."""
    driven = Driven(goes_on(swallows))
    task = asyncio.create_task(driven.run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.001)
    assert not task.done()
    driven.let_go()
    async with asyncio.timeout(60):
        await asyncio.wait((task,))
    assert (task.cancelled(), driven.gone) == (True, True)


async def test_what_is_let_go_of_gives_its_locks_back():
    """Its `async with` is left."""
    lock = asyncio.Lock()

    async def work():
        async with lock:
            await goes_on()

    driven = Driven(work())
    driven.let_go_after(0.001)
    with pytest.raises(asyncio.CancelledError):
        await driven
    assert not lock.locked()


@pytest.mark.parametrize("swallows", [asyncio.CancelledError, BaseException])
@pytest.mark.parametrize("kind", ["task", "gather", "generator"])
def test_an_event_loop_ends_whatever_runs_in_it(kind, swallows, caplog):
    """One warning names the line."""

    async def generator():
        try:
            yield 1
        finally:
            await goes_on(swallows)

    async def main():
        if kind == "task":
            main.kept = asyncio.create_task(goes_on(swallows))
        elif kind == "gather":
            main.kept = asyncio.gather(goes_on(swallows), goes_on(swallows))
        else:
            main.kept = generator()
            await anext(main.kept)
        await asyncio.sleep(0)
        return 4

    assert run_to_the_end(main(), 0.01) == 4
    (record,) = caplog.records
    assert "is still running after it was cancelled, at test_grace.py:" in record.getMessage()


def test_what_ends_when_it_is_asked_to_is_waited_for(caplog):
    """A cleanup is finished, and nothing is said."""
    cleaned = []

    async def work():
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    async def main():
        main.kept = asyncio.create_task(work())
        await asyncio.sleep(0)

    run_to_the_end(main(), 600)
    assert cleaned
    assert not caplog.records


def test_a_thread_of_the_default_executor_is_not_waited_for():
    """`asyncio.run` would wait for it."""
    go_on = threading.Event()

    async def main():
        main.kept = asyncio.get_running_loop().run_in_executor(None, go_on.wait)

    run_to_the_end(main(), 0.01)
    assert not go_on.is_set(), "it came back while the thread still waited"
    assert main.kept.get_loop().is_closed()
    go_on.set()
