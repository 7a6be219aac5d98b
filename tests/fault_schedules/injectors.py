"""What misbehaves as a plan says: a backend, tools, a reward, observers.

Everything that goes wrong is told to a `Stage`, so that it is known which chains had a fault of their own.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from rollcast.errors import BackendClosedError, BackendError
from rollcast.models.backend import Delta, GenerationRequest
from rollcast.records import EventFilter, StreamEvent
from rollcast.rollout import ChainContext, Reward, reward
from rollcast.stream import DeliveryMode, StreamObserver
from rollcast.stream.pump import FAILURES_TO_DETACH
from rollcast.testing.scripted import ScriptedBackend, tokens_of
from rollcast.tools import Tool, tool

__all__ = [
    "BackendFault",
    "BatchedFaultyObserver",
    "ChainPlan",
    "FaultyBackend",
    "FaultyObserver",
    "ObserverPlan",
    "RewardFault",
    "Stage",
    "Stint",
    "faulty_reward",
    "faulty_tools",
    "ticks",
]

BackendFault = Literal["fails", "hangs", "dies", "gives_rubbish", "cancels_itself"]
RewardFault = Literal["raises", "is_nan", "hangs", "gives_rubbish", "cancels_itself"]

SHORT_S = 0.01  # the timeout of what hangs for ever: its result is the same however long that is


async def ticks(n: int) -> None:
    """Let the event loop turn `n` times."""
    for _ in range(n):
        await asyncio.sleep(0)


@dataclass
class ChainPlan:
    """What one chain says, and what goes wrong in it.

    Attributes:
        turns: the text of each generation; the last one repeats.
        backend: step -> the token before which the fault comes, and which fault.
        shaped: deltas have no, one or several tokens, and the finish reason may be missing.
        reward_fault: None: its reward is good.
    """

    turns: list[str]
    backend: dict[int, tuple[int, BackendFault]] = field(default_factory=dict)
    shaped: bool = False
    reward_fault: RewardFault | None = None


class Stage:
    """What the injectors of one schedule share.

    Args:
        faults: False: nothing goes wrong, for a run to compare with.
        prompt_chars: how long the prompts are.

    Attributes:
        plans: (run id, chain id) -> its plan.
        touched: (run id, chain id) -> why the chain may differ from one without faults.
        hung: the chains in which something hangs until they are cancelled.
        released: set when the schedule is over, for tools that block their thread.
    """

    def __init__(self, *, faults: bool = True, prompt_chars: int = 0) -> None:
        self.faults = faults
        self.prompt_chars = prompt_chars
        self.plans: dict[tuple[str, str], ChainPlan] = {}
        self.touched: dict[tuple[str, str], str] = {}
        self.hung: list[tuple[str, str]] = []
        self.released = threading.Event()

    def touch(self, run_id: str, chain_id: str, why: str) -> None:
        """The chain has a fault of its own from here on."""
        self.touched.setdefault((run_id, chain_id), why)

    def hangs(self, run_id: str, chain_id: str, why: str) -> None:
        """Something in the chain hangs; somebody has to cancel it."""
        self.touch(run_id, chain_id, why)
        self.hung.append((run_id, chain_id))


class FaultyBackend(ScriptedBackend):
    """Says what the chains' plans say, and fails as they say.

    Args:
        stage: where the plans are.
        token_exact: whether tokens carry ids.
        cleanup: turns of the loop that ending a generation early takes.
    """

    name = "faulty"

    def __init__(self, stage: Stage, *, token_exact: bool = True, cleanup: int = 0) -> None:
        super().__init__(token_exact=token_exact, model_name="faulty")
        self.stage = stage
        self.dead = False
        self._cleanup = cleanup

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """See `Backend.generate`."""
        run_id, chain_id, step = request.request_id.rsplit("/", 2)
        plan = self.stage.plans[run_id, chain_id]
        at, fault = plan.backend.get(int(step), (-1, None))
        shapes = random.Random(f"{chain_id}/{step}") if plan.shaped and self.stage.faults else None
        tokens = tokens_of(plan.turns[min(int(step), len(plan.turns)) - 1])
        self.running.add(request.request_id)
        try:
            done = 0
            while done < len(tokens):
                if fault is not None and done >= at and self.stage.faults:
                    await self._go_wrong(fault, run_id, chain_id)
                    yield None  # type: ignore[misc]  # the rubbish
                await asyncio.sleep(0)
                if self.dead:
                    self.stage.touch(run_id, chain_id, "its backend is dead")
                    raise BackendClosedError("the backend died, as it was told to")
                if shapes is not None and shapes.random() < 0.2:
                    yield Delta("")
                count = shapes.choice((1, 1, 2, 3)) if shapes is not None else 1
                last = done + count >= len(tokens) and (shapes is None or shapes.random() < 0.5)
                yield self._several(tokens[done : done + count], "stop" if last else None)
                done += count
        finally:
            try:
                await ticks(self._cleanup)
            finally:
                self.running.discard(request.request_id)

    async def _go_wrong(self, fault: BackendFault, run_id: str, chain_id: str) -> None:
        """Do so. It returns if rubbish is to follow."""
        if fault == "hangs":
            self.stage.hangs(run_id, chain_id, "its backend hangs")
            await asyncio.Event().wait()
        self.stage.touch(run_id, chain_id, f"its backend {fault}")
        if fault == "dies":
            self.dead = True
            raise BackendClosedError("the backend dies, as it was told to")
        if fault == "fails":
            raise BackendError("the backend failed, as it was told to")
        if fault == "cancels_itself":
            raise asyncio.CancelledError

    def _several(self, tokens: list[str], finish_reason: str | None) -> Delta:
        deltas = [self._delta(token, None) for token in tokens]
        if not self.token_exact:
            return Delta("".join(tokens), finish_reason=finish_reason)
        return Delta(
            "".join(tokens),
            [i for delta in deltas for i in delta.token_ids or ()],
            [p for delta in deltas for p in delta.logprobs or ()],
            self.policy_version,
            finish_reason=finish_reason,
        )


def faulty_tools(stage: Stage) -> list[Tool]:
    """One tool of each kind. Each takes `n`, by which it takes longer; what it gives depends on nothing else."""
    return [*_async_tools(stage), *_sync_tools(stage)]


def _async_tools(stage: Stage) -> list[Tool]:
    @tool
    async def look(n: int) -> str:
        """Give a text."""
        await ticks(n)
        return f"saw {n}"

    @tool
    async def trip(n: int) -> str:
        """Raise."""
        await ticks(n)
        raise ValueError(f"tripped over {n}")

    @tool
    async def count(n: int) -> AsyncIterator[str]:
        """Give pieces."""
        for i in range(n):
            await asyncio.sleep(0)
            yield f"{i} "

    @tool
    async def mumble(n: int) -> Any:
        """Give something that has no text, or hardly."""
        circle: list[Any] = []
        circle.append(circle)
        return (b"\xff\xfe", "lone \ud800", circle, float("nan"), {"a": {1, 2}}, object)[n % 6]

    @tool
    async def give_up(n: int) -> str:
        """Cancel itself."""
        await ticks(n)
        raise asyncio.CancelledError

    @tool
    async def linger(n: int) -> str:
        """Take long, and take its time when it is cancelled."""
        try:
            await ticks(10 * n)
        finally:
            await ticks(5 * n)
        return "lingered"

    @tool(timeout=SHORT_S)
    async def stall(n: int) -> str:
        """Hang until its timeout."""
        try:
            await asyncio.Event().wait()
        finally:
            await ticks(n)
        return "never"

    @tool(timeout=None)
    async def hang(n: int, ctx: ChainContext) -> str:
        """Hang until it is cancelled."""
        await ticks(n)
        if stage.faults:
            stage.hangs(ctx.run_id, ctx.chain_id, "a tool hangs")
            await asyncio.Event().wait()
        return "never"

    @tool(terminal=True)
    async def answer(n: int) -> str:
        """End the chain."""
        return f"the answer is {n}"

    return [look, trip, count, mumble, give_up, linger, stall, hang, answer]


def _sync_tools(stage: Stage) -> list[Tool]:
    @tool
    def think(n: int) -> str:
        """Give a text, from a thread."""
        return f"thought {n}"

    @tool
    def crash(n: int) -> str:
        """Raise what ends a program, in a thread."""
        raise SystemExit(n)

    @tool
    def recite(n: int) -> Iterator[str]:
        """Give pieces, from a thread."""
        for i in range(n):
            yield f"line {i}\n"

    @tool(inline=True)
    def add(n: int) -> int:
        """Work in the event loop."""
        return n + n

    @tool(timeout=SHORT_S)
    def block(n: int) -> str:
        """Hold its thread until its timeout, and longer."""
        stage.released.wait()
        return "late"

    @tool(timeout=None)
    def seize(n: int, ctx: ChainContext) -> str:
        """Hold its thread until it is cancelled, and longer."""
        if stage.faults:
            stage.hangs(ctx.run_id, ctx.chain_id, "a tool holds its thread")
            stage.released.wait()
        return "late"

    return [think, crash, recite, add, block, seize]


def faulty_reward(stage: Stage) -> Reward:
    """A reward that fails in the chains whose plans say so."""

    @reward(timeout=SHORT_S)
    async def length(final_response: str, ctx: ChainContext) -> Any:
        fault = stage.plans[ctx.run_id, ctx.chain_id].reward_fault if stage.faults else None
        if fault is not None:
            stage.touch(ctx.run_id, ctx.chain_id, f"its reward {fault}")
        if fault == "raises":
            raise ZeroDivisionError("the reward raises, as it was told to")
        if fault == "hangs":
            await asyncio.Event().wait()
        if fault == "cancels_itself":
            raise asyncio.CancelledError
        if fault == "gives_rubbish":
            return {"score": "high"}
        return float("nan") if fault == "is_nan" else {"reward": float(len(final_response)), "words": 1}

    return length


@dataclass
class ObserverPlan:
    """How an observer behaves.

    Attributes:
        name: unique within its schedule.
        stalls: call (from 0) -> turns of the loop that it takes.
        hangs_at: the call from which on it hangs for ever; None: never.
        raises_at: the calls that raise.
        raises_always: every call raises.
        bad_hooks: `on_chain_closed`, `on_run_closed` and `aclose` raise.
    """

    name: str
    filter: EventFilter
    mode: DeliveryMode = "coalesce"
    threaded: bool = False
    batched: bool = False
    stalls: dict[int, int] = field(default_factory=dict)
    hangs_at: int | None = None
    raises_at: frozenset[int] = frozenset()
    raises_always: bool = False
    bad_hooks: bool = False


@dataclass
class Stint:
    """One stay of an observer with a manager.

    Attributes:
        joined: how many events had been emitted when it was added.
        wishes: how many had been when each filter came into force, and the filter.
        left: how many had been when it was removed; None: not yet.
        cut: it hung or was detached, so that what came after its last event says nothing.
        events: what it was given, in order.
    """

    joined: int
    wishes: list[tuple[int, EventFilter]]
    left: int | None = None
    cut: bool = False
    events: list[StreamEvent] = field(default_factory=list)


class FaultyObserver(StreamObserver):
    """Keeps what it gets by stint, and stalls, hangs and raises as its plan says.

    Whoever adds it appends a `Stint` to `stints`; what comes goes to the stint that began first and is not closed.
    """

    def __init__(self, plan: ObserverPlan, note: Callable[[str], None] = lambda _: None) -> None:
        self.plan = plan
        self.filter = plan.filter
        self.mode = plan.mode
        self.threaded = plan.threaded
        self.stints: list[Stint] = []
        self.closed = 0  # stints
        self.calls = 0
        self.hangs = False
        self.overlaps = 0  # calls that came while another was going on
        self.failures = 0  # in a row
        self._busy = False
        self._note = note

    @property
    def name(self) -> str:
        """As the plan says."""
        return self.plan.name

    @property
    def _stint(self) -> Stint:
        """The one that is being served."""
        return self.stints[min(self.closed, len(self.stints) - 1)]

    def _fail(self, error: Exception) -> NoReturn:
        self.failures += 1
        if self.failures >= FAILURES_TO_DETACH:
            self._stint.cut = True
        raise error

    async def on_event(self, event: StreamEvent) -> None:
        """Keep it, then misbehave."""
        await self.take([event])

    async def take(self, events: list[StreamEvent]) -> None:
        """Keep them, then misbehave."""
        call, self.calls = self.calls, self.calls + 1
        self.overlaps += self._busy
        self._busy = True
        try:
            self._stint.events += events
            if self.plan.hangs_at is not None and call >= self.plan.hangs_at:
                if not self.hangs:
                    self._note(f"{self.name} hangs")
                self.hangs = True
                await asyncio.Event().wait()
            await ticks(self.plan.stalls.get(call, 0))
            if self.plan.raises_always or call in self.plan.raises_at:
                self._fail(ValueError(f"{self.name} raises, as it was told to"))
            self.failures = 0
        finally:
            self._busy = False

    async def on_run_opened(self, run_id: str) -> None:
        """Do well."""
        self.failures = 0

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:
        """Raise, perhaps."""
        self._maybe_raise("on_chain_closed")

    async def on_run_closed(self, run_id: str) -> None:
        """Raise, perhaps."""
        self._maybe_raise("on_run_closed")

    async def aclose(self) -> None:
        """The stint is over."""
        self.closed += 1
        self.failures = 0
        if self.plan.bad_hooks:
            raise OSError(f"{self.name} raises in aclose, as it was told to")

    def _maybe_raise(self, hook: str) -> None:
        if self.plan.bad_hooks:
            self._fail(OSError(f"{self.name} raises in {hook}, as it was told to"))
        self.failures = 0


class BatchedFaultyObserver(FaultyObserver):
    """The same, taking events as they wait."""

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Keep them, then misbehave."""
        await self.take(list(events))
