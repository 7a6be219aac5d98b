"""Checks of generations that end early: cancelled, left, stalled, killed, closed."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

from rollcast.errors import BackendClosedError, BackendError, InputError
from rollcast.models.backend import Backend
from rollcast.testing.conformance.bench import Bench, Generated
from rollcast.testing.conformance.check import Check, check

__all__ = ["LIFETIME_CHECKS"]

OTHERS = 3
AFTER = 3
"""Deltas after which a generation is interrupted."""


async def _interrupted(bench: Bench, how: Callable[[Generated, asyncio.Task[Any]], Any], what: str) -> None:
    """Interrupt the longest of several generations; it has to end, and the others have to go on unharmed.

    If the subject tells how many run, none may be left when the others have ended: the interrupted one would run for twice
    as long.
    """
    prompts = await bench.long_prompts(OTHERS + 1)
    tokens = bench.subject.long_tokens

    async def attempt() -> bool:
        others = [
            Generated(bench.request(prompt, temperature=0.0, max_tokens=tokens // 3))
            for prompt in prompts[1:]
        ]
        victim = Generated(bench.request(prompts[0], temperature=0.0, max_tokens=tokens))
        reading = [asyncio.create_task(bench.read(one)) for one in others]
        task = asyncio.create_task(bench.read(victim))
        try:
            await bench.until(
                lambda: victim.ended or (len(victim.deltas) >= AFTER and all(one.deltas for one in others)),
                f"{victim} gave no deltas",
            )
            made = how(victim, task)
            if inspect.isawaitable(made):
                await made
            await bench.until(lambda: victim.ended, f"{victim} did not end after {what}")
            await asyncio.gather(*reading)
            left = await _left(bench)
        finally:
            for each in (task, *reading):
                each.cancel()
            await asyncio.gather(task, *reading, return_exceptions=True)
        assert victim.error is None, (
            f"{victim} raised {victim.error!r} after {what}; expected its iterator to end"
        )
        await _check_others(bench, others, tokens // 3, what)
        return victim.reason is None and not left

    await bench.in_time(attempt, _not_let_go(bench, what))


def _not_let_go(bench: Bench, what: str) -> str:
    tokens = bench.subject.long_tokens
    return f"a generation of {tokens} tokens was not released after {what}: others, of {tokens // 3}, ended, and it went on"


async def _left(bench: Bench) -> int:
    """How many generations the engine holds, after a moment in which it may remove those that have just ended."""
    running = bench.subject.running
    if running is None or not bench.has("running"):
        return 0
    for _ in range(10):
        if not running(bench.backend):
            return 0
        await asyncio.sleep(0.001)
    return running(bench.backend)


async def _check_others(bench: Bench, others: list[Generated], tokens: int, what: str) -> None:
    for one in others:
        assert one.error is None, f"{one} raised {one.error!r} because another was ended by {what}"
        assert one.reason == "length", f"{one} ended with {one.reason!r} because another was ended by {what}"
        if bench.has("ids"):
            assert len(one.ids) == tokens, f"{one} has {len(one.ids)} tokens beside {what}; expected {tokens}"
        if bench.has("ids", "logprobs", "reference"):
            await bench.check_logprobs(one)


@check("max_tokens", "streams")
async def closing_the_iterator_ends_it(bench: Bench) -> None:
    """Closing the iterator ends the generation and frees its place, while the others go on."""
    prompts = await bench.long_prompts(OTHERS + 1)
    tokens = bench.subject.long_tokens

    async def attempt() -> bool:
        others = [
            Generated(bench.request(prompt, temperature=0.0, max_tokens=tokens // 3))
            for prompt in prompts[1:]
        ]
        victim = Generated(bench.request(prompts[0], temperature=0.0, max_tokens=tokens))
        await asyncio.gather(bench.read(victim, leave_after=AFTER), *map(bench.read, others))
        left = await _left(bench)
        assert victim.error is None, f"{victim} raised {victim.error!r} when it was closed; expected nothing"
        await _check_others(bench, others, tokens // 3, "closing it")
        return not left

    await bench.in_time(attempt, _not_let_go(bench, "closing its iterator"))


@check("cancel", "max_tokens", "streams")
async def cancel_ends_it(bench: Bench) -> None:
    """`cancel` ends the generation: its iterator ends without an error or a reason, and the others go on."""
    await _interrupted(bench, lambda victim, _: bench.backend.cancel(victim.request.request_id), "cancel(id)")


@check("max_tokens", "streams")
async def a_cancelled_reader_ends_it(bench: Bench) -> None:
    """Cancelling the task that reads ends the generation, and the others go on."""
    await _interrupted(bench, lambda _, task: task.cancel(), "cancelling its reader")


@check()
async def unknown_names_are_ignored(bench: Bench) -> None:
    """`cancel` of a request that never was, or has ended, does nothing."""
    await bench.backend.cancel("conformance/never was")
    got = await bench.generate(max_tokens=4)
    await bench.backend.cancel(got.request.request_id)
    await bench.generate(max_tokens=4)


@check("unique_ids", "max_tokens", "streams")
async def names_are_unique(bench: Bench) -> None:
    """A second request with the id of a running one is refused with InputError; afterwards the id is free."""
    (prompt,) = await bench.long_prompts(1)
    tokens = bench.subject.long_tokens

    async def attempt() -> bool:
        refused: list[Generated] = []

        async def again(got: Generated) -> None:
            if len(got.deltas) == 1:
                refused.append(await bench.read(Generated(bench.request(prompt, name=name, max_tokens=4))))

        first = await bench.read(
            Generated(bench.request(prompt, name=name, temperature=0.0, max_tokens=tokens)), again
        )
        assert first.error is None, f"{first} raised {first.error!r} because another of its name came"
        assert isinstance(refused[0].error, InputError), (
            f"a second request of the name {name!r}, which runs, gave {refused[0].error!r} and "
            f"{len(refused[0].deltas)} deltas; expected InputError"
        )
        return True

    name = "conformance/the same"
    await bench.in_time(attempt, "a second request of the same name could not be made in time")
    free = await bench.read(Generated(bench.request(prompt, name=name, max_tokens=4)))
    assert free.error is None, f"the name {name!r} is not free again: {free.error!r}"
    await bench.read(Generated(bench.request(prompt, name=name, max_tokens=tokens)), leave_after=2)
    free = await bench.read(Generated(bench.request(prompt, name=name, max_tokens=4)))
    assert free.error is None, (
        f"the name {name!r} is not free again after its iterator was closed: {free.error!r}"
    )


@check("max_tokens", "streams")
async def a_stalled_reader_stalls_nobody(bench: Bench) -> None:
    """A reader that does not take its deltas does not hold up others, and gets the rest when it goes on."""
    prompts = await bench.long_prompts(OTHERS + 1)
    tokens = bench.subject.long_tokens
    go_on = asyncio.Event()
    stalled = Generated(bench.request(prompts[0], temperature=0.0, max_tokens=tokens))
    task = asyncio.create_task(
        bench.read(stalled, lambda got: go_on.wait() if len(got.deltas) == 1 else None)
    )
    try:
        await bench.until(lambda: bool(stalled.deltas), f"{stalled} gave no delta")
        others = [bench.request(prompt, temperature=0.0, max_tokens=tokens) for prompt in prompts[1:]]
        await bench.together(others)
        go_on.set()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert stalled.error is None, f"{stalled} raised {stalled.error!r} because its reader stalled"
    assert stalled.reason == "length", f"{stalled} ended with {stalled.reason!r} after its reader stalled"
    assert not bench.has("ids") or len(stalled.ids) == tokens, (
        f"{stalled} has {len(stalled.ids)} tokens after its reader stalled; expected {tokens}"
    )


@check("threads")
async def other_loops_are_served(bench: Bench) -> None:
    """Requests from event loops in several threads are served at once, and each gets its own."""
    requests = [bench.request(bench.prompt(i), seed=i, max_tokens=32) for i in range(4)]
    expected = await bench.together(requests)
    got: dict[int, Generated] = {}

    def serve(index: int) -> None:
        got[index] = asyncio.run(bench.read(Generated(requests[index])))

    threads = [threading.Thread(target=serve, args=(i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    await bench.until(
        lambda: not any(thread.is_alive() for thread in threads),
        "requests from other event loops did not end",
    )
    for index, want in enumerate(expected):
        one = got.get(index)
        assert one is not None, f"the thread of {want} ended without a result"
        assert one.error is None, f"{one} raised {one.error!r} in another event loop"
        assert one.reason in {"stop", "length"}, f"{one} ended with {one.reason!r} in another event loop"
        if bench.has("deterministic", "seed"):
            assert (one.ids, one.text) == (want.ids, want.text), (
                f"{one} gave {one.ids or one.text} in another event loop; expected {want.ids or want.text}"
            )


async def _all_raise(bench: Bench, end: Callable[[Backend], Any], kind: type[Exception], what: str) -> None:
    """Start long generations and end the backend while all run; each has to raise, and so do later ones."""

    async def attempt() -> bool:
        prompts = await bench.long_prompts(OTHERS)
        requests = [bench.request(p, temperature=0.0, max_tokens=bench.subject.long_tokens) for p in prompts]
        running = [Generated(request) for request in requests]
        tasks = [asyncio.create_task(bench.read(one)) for one in running]
        try:
            await bench.until(
                lambda: all(one.deltas for one in running), "running generations gave no deltas"
            )
            made = end(bench.backend)
            if inspect.isawaitable(made):
                await made
            await bench.until(
                lambda: all(one.ended for one in running),
                f"running generations hang after {what}: they never end",
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        whole = [one for one in running if one.error is None and one.reason is not None]
        for one in running:
            assert isinstance(one.error, kind) or any(one is each for each in whole), (
                f"{one} ended with {one.error!r} after {what}; expected {kind.__name__}"
            )
        if whole:
            await bench.renew()
        return not whole

    await bench.in_time(attempt, f"generations ran to their end after {what}; expected {kind.__name__}")
    later = await bench.read(Generated(bench.request(bench.prompt(0))))
    assert isinstance(later.error, kind), (
        f"{later} gave {later.error!r} and {len(later.deltas)} deltas after {what}; expected {kind.__name__}"
    )
    # Whatever happened, it can still be closed, twice.
    await bench.backend.close()
    await bench.backend.close()


@check("kill", "max_tokens", "streams", fresh=True)
async def a_dead_engine_hangs_nobody(bench: Bench) -> None:
    """When the engine dies, running and later generations raise BackendError, and `close` returns."""
    assert bench.subject.kill is not None
    await _all_raise(bench, bench.subject.kill, BackendError, "the engine died")


@check("close", "max_tokens", "streams", fresh=True)
async def closing_ends_what_runs(bench: Bench) -> None:
    """`close` makes running and later generations raise BackendClosedError, and may be called twice."""
    await _all_raise(bench, lambda backend: backend.close(), BackendClosedError, "close")


@check(fresh=True)
async def an_unused_backend_closes(bench: Bench) -> None:
    """An unused backend can be closed, twice."""
    await bench.backend.close()
    await bench.backend.close()


LIFETIME_CHECKS: tuple[Check, ...] = (
    closing_the_iterator_ends_it,
    cancel_ends_it,
    a_cancelled_reader_ends_it,
    unknown_names_are_ignored,
    names_are_unique,
    a_stalled_reader_stalls_nobody,
    other_loops_are_served,
    a_dead_engine_hangs_nobody,
    closing_ends_what_runs,
    an_unused_backend_closes,
)
