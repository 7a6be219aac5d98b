"""Seeded fault schedules: everything goes wrong at once, in a way that a seed repeats.

    outcome = FaultSchedule(7).play(observers=[MyObserver()])
    check_invariants(outcome)

`make soak SEEDS=0:1000` plays many and prints those that break something. What happens is
ordered by turns of the event loop and by tokens, not by time; threads are what is left to chance.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fault_schedules.deaf_client import deaf_client
from fault_schedules.hostile import FOR_EVER, HostileWatcher
from fault_schedules.injectors import (
    BatchedFaultyObserver,
    FaultyBackend,
    FaultyObserver,
    Stage,
    Stint,
    faulty_reward,
    faulty_tools,
    ticks,
)
from fault_schedules.invariants import Outcome, Reading, RunOutcome, Subscriber, check_invariants
from fault_schedules.schedule import (
    Action,
    ObserverPlace,
    Plan,
    ReaderPlan,
    RunPlan,
    SubscriberPlan,
    draw,
)
from rollcast.observers import (
    AsyncGeneratorStreamObserver,
    ChainSpecificStreamObserver,
    MultiChainStreamObserver,
)
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.rollout import BaseAgent, Run
from rollcast.rollout.streaming import StreamingRun
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.stream.subscription import Subscription
from rollcast.testing.observers import EventCapture

__all__ = ["FaultSchedule", "Outcome", "check_invariants", "main"]

LIMIT_S = 20.0  # of one event loop's schedule; mostly it takes a few milliseconds
HUNG_DRAIN_S = 0.03  # if somebody hangs for ever, nobody waits long for them


class FaultSchedule:
    """What goes wrong with this seed.

    It draws the runs (rows, chains, scripts, tools, backend and reward faults), the observers (slow, hanging, raising,
    threaded, lossless, coming and going), readers that leave early, and cancellations of chains, runs and tasks; hostile
    watchers, subscribers that read late, prompts so long that snapshots are large, and clients of a server that never read.

    Args:
        seed: any whole number; the same one draws the same.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.plan = draw(seed)

    def play(self, observers: Sequence[StreamObserver] = ()) -> Outcome:
        """Let it happen; needs a thread without a running event loop.

        Args:
            observers: of yours; they watch everything from the beginning and are closed at the end.
        """
        return _Play(self.plan, observers).whole()


def _rows(plan: RunPlan, prompt_chars: int) -> list[dict[str, Any]]:
    more = "x" * prompt_chars
    return [{"messages": [{"role": "user", "content": f"row {r}{more}"}]} for r in range(plan.rows)]


def _agent(plan: Plan, stage: Stage, manager: StreamingManager | None) -> BaseAgent:
    backend = FaultyBackend(stage, token_exact=plan.token_exact, cleanup=plan.backend_cleanup)
    tools, reward = faulty_tools(stage), faulty_reward(stage)
    return BaseAgent("faulty", tools, backend, reward=reward, streaming_manager=manager)


def _prepare(agent: BaseAgent, stage: Stage, plan: RunPlan, *, streaming: bool) -> Run:
    run = agent.prepare(
        plan.max_steps, _rows(plan, stage.prompt_chars), plan.num_chains, streaming,
        max_concurrent_chains=plan.concurrent, seed=plan.seed,
    )  # fmt: skip
    stage.plans |= {(run.run_id, chain_id): chain for chain_id, chain in plan.chains.items()}
    return run


async def _without_faults(plan: Plan) -> list[list[dict[str, str]]]:
    """The digests of every chain if nothing goes wrong and nobody watches, by segment and run."""
    stage = Stage(faults=False, prompt_chars=plan.prompt_chars)
    agent = _agent(plan, stage, None)
    digests: list[list[dict[str, str]]] = []
    for runs in plan.segments:
        digests.append([])
        for run in runs:
            result = await _prepare(agent, stage, run, streaming=False).execute()
            digests[-1].append({t.chain_id: t.digest() for t in result})
    stage.released.set()
    return digests


@dataclass
class _Live:
    """A run that goes on."""

    plan: RunPlan
    run: Run
    outcome: RunOutcome
    stream: StreamingRun | None = None
    task: asyncio.Task[None] | None = None
    killed: bool = False

    def cancel(self, chain_id: str | None = None) -> None:
        (self.stream or self.run).cancel(chain_id)

    def unfinished(self) -> list[str]:
        """The chains that have not ended."""
        ended = {t.chain_id for t in self.run.result if t.finish_reason is not None}
        return [chain_id for chain_id in self.plan.chains if chain_id not in ended]


class _Watcher:
    """An observer of the schedule, which comes and goes."""

    def __init__(self, place: ObserverPlace, observer: FaultyObserver) -> None:
        self.place = place
        self.observer = observer
        self.present = False
        self.outer: StreamObserver = observer  # what the manager is given
        self.hung_since: int | None = None

    @property
    def wish(self) -> EventFilter:
        """What it gets, by its own filter and its place."""
        wish = self.observer.filter
        return wish if self.place.chain is None else wish & EventFilter(chains=self.place.chain)


class _Play:
    def __init__(self, plan: Plan, extra: Sequence[StreamObserver]) -> None:
        self.plan = plan
        self.extra = extra
        self.stage = Stage(prompt_chars=plan.prompt_chars)
        hung = any(place.plan.hangs_at is not None for place in plan.observers)
        hung |= any(each.manner in FOR_EVER for each in plan.hostile)
        self.manager = StreamingManager(
            queue_limit=plan.queue_limit, drain_timeout=HUNG_DRAIN_S if hung else LIMIT_S
        )
        self.agent = _agent(plan, self.stage, self.manager)
        self.reference = EventCapture()
        self.multi = MultiChainStreamObserver()
        self.watchers = [_Watcher(place, self._observer(place)) for place in plan.observers]
        self.hostile = [HostileWatcher(each, self.manager, self.stage.released) for each in plan.hostile]
        self.outcome = Outcome(plan.seed, list(plan.lines()), self.reference.events)
        self.outcome.observers = [watcher.observer for watcher in self.watchers]
        self.outcome.touched = self.stage.touched
        self.outcome.steady_drain = not hung
        self.tick = 0
        self.lives: list[_Live] = []
        self.others: list[asyncio.Task[Any]] = []  # readers and drains
        self.readers: list[AsyncGeneratorStreamObserver] = []
        self.threads: list[threading.Thread] = []
        self.due: list[
            tuple[int, Callable[[], None]]
        ] = []  # what hostile watchers and subscribers do at which turn
        self.ending = asyncio.Event()  # the runs of the segment are over
        self.hung_since: dict[tuple[str, str], int] = {}

    def _observer(self, place: ObserverPlace) -> FaultyObserver:
        kind = BatchedFaultyObserver if place.plan.batched else FaultyObserver
        return kind(place.plan, self.note)

    def note(self, what: str) -> None:
        """A line of the story."""
        self.outcome.story.append(f"@{self.tick} {what}")

    # -- the whole -----------------------------------------------------------------------------------------------------

    def whole(self) -> Outcome:
        threads_before = set(threading.enumerate())
        expected = asyncio.run(_without_faults(self.plan))
        for observer in (self.reference, self.multi, *self.extra):
            self.manager.add_observer(observer)
        try:
            for number in range(len(self.plan.segments)):
                asyncio.run(self._segment(number, expected[number]))
                if self.outcome.problems:
                    break
        finally:
            self.stage.released.set()
        if not self.outcome.problems:
            self._look_around(threads_before)
        for watcher in self.hostile:
            self.outcome.problems += watcher.judge()
        return self.outcome

    async def _segment(self, number: int, expected: list[dict[str, str]]) -> None:
        """One event loop from its beginning to its end."""
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        self.note(f"loop {number} begins")
        self.lives, self.others, self.readers, self.tick, self.ending = [], [], [], 0, asyncio.Event()
        last = number == len(self.plan.segments) - 1
        try:
            async with asyncio.timeout(LIMIT_S), AsyncExitStack() as stack:
                if self.plan.deaf_client:
                    await stack.enter_async_context(deaf_client(self.manager))
                self._watch_too(number)
                await self._turns(self.plan.segments[number], list(self.plan.actions[number]), expected)
                await self._wind_up(drains=self.plan.drains[number])
                if last:
                    await self._close()
        except TimeoutError:
            self.outcome.problems.append(f"it hangs: {self._who_waits()}")
        if last and not self.outcome.problems:
            async with asyncio.timeout(LIMIT_S):  # those that are merely slow go on after aclose
                await _until(lambda: not any("-hostile_" in task.get_name() for task in asyncio.all_tasks()))
            await ticks(3)
            self._nothing_runs("at the end", asyncio.all_tasks() - {asyncio.current_task()})

    async def _turns(
        self, runs: list[RunPlan], actions: list[Action], expected: list[dict[str, str]]
    ) -> None:
        """Turn the loop until every run is over, and do at each turn what is due."""
        waiting = list(runs)
        while waiting or actions or not all(live.task and live.task.done() for live in self.lives):
            while waiting and waiting[0].starts_at <= self.tick:
                self._start(waiting.pop(0), expected[len(self.lives)])
            while actions and actions[0].at <= self.tick:
                self._act(actions.pop(0), actions)
            self._unstick()
            while self.due and self.due[0][0] <= self.tick:
                self.due.pop(0)[1]()
            await asyncio.sleep(0)
            self.tick += 1
        if self.plan.deaf_client:
            return  # the server's tasks go on
        helpers = {*self.others, asyncio.current_task()}
        left = {t for t in asyncio.all_tasks() - helpers if not t.get_name().startswith("rollcast-observer-")}
        self._nothing_runs("when the runs are over", left)

    async def _wind_up(self, *, drains: bool) -> None:
        while self.due:
            self.due.pop(0)[1]()
        self.ending.set()
        for reader in self.readers:
            self.manager.remove_observer(reader)
        await _until(
            lambda: all(t.done() for t in self.others) and not any(t.is_alive() for t in self.threads)
        )
        for task in self.others:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.outcome.problems.append(f"{task.get_name()} raised {error!r}")
        if drains:
            await self.manager.drain()

    async def _close(self) -> None:
        """Everybody leaves; who hangs for ever is left to the manager."""
        for watcher in self.watchers:
            self._leave(watcher)
        for observer in self.extra:
            self.manager.remove_observer(observer)
        await _until(lambda: all(o.hangs or o.closed == len(o.stints) for o in self.outcome.observers))
        self.outcome.emitted = self._emitted()
        await _until(lambda: len(self.reference.events) >= self.outcome.emitted)
        await self.manager.aclose()
        self.outcome.emitted = self._emitted()  # hostile ones may have failed meanwhile

    # -- what happens at a turn ----------------------------------------------------------------------------------------

    def _start(self, plan: RunPlan, expected: dict[str, str]) -> None:
        run = _prepare(self.agent, self.stage, plan, streaming=True)
        live = _Live(plan, run, RunOutcome(run.result, expected=expected))
        if plan.as_stream:
            live.stream = StreamingRun(run, plan.chain_filter)
        self.note(f"run {len(self.lives)} is {run.run_id}")
        live.task = asyncio.create_task(self._execute(live), name="schedule-run")
        self.lives.append(live)
        self.outcome.runs.append(live.outcome)

    async def _execute(self, live: _Live) -> None:
        try:
            if live.stream is None:
                await live.run.execute()
            else:
                await self._stream(live, live.stream)
            live.outcome.returned_with = len(self.reference.events)
        except asyncio.CancelledError as error:
            if not live.killed:
                live.outcome.raised = error
        except Exception as error:
            live.outcome.raised = error
        finally:
            self.note(f"run {live.run.run_id} is over")
            live.outcome.began = any(e.run_id == live.run.run_id for e in self.reference.events) or bool(
                len(live.run.result)
            )

    async def _stream(self, live: _Live, stream: StreamingRun) -> None:
        wish = EventFilter(runs=stream.run_id) & EventFilter(chains=live.plan.chain_filter)
        reading = Reading("of run_async_streaming", wish, self._emitted())
        self.outcome.readings.append(reading)
        async with stream:
            if live.plan.leaves_after != 0:
                async for event in stream:
                    reading.events.append(event)
                    if len(reading.events) == live.plan.leaves_after:
                        break
                else:
                    reading.to_the_end = True
            if not reading.to_the_end:
                self.note(f"run {stream.run_id} is left early")
                self._touch(live, "its stream was left early")

    def _act(self, action: Action, actions: list[Action]) -> None:
        match action.kind:
            case "join" | "leave" | "refresh" | "emit":
                self._do(action)
            case "read":
                self._task(self._read(self.plan.readers[action.target]), "schedule-reader")
            case "drain":
                self._task(self.manager.drain(), "schedule-drain")
            case _ if action.target < len(self.lives):
                self._cancel(action, self.lives[action.target])
                if action.kind == "cancel_task" and action.twice_after is not None:
                    again = Action(self.tick + action.twice_after, "cancel_task", action.target)
                    actions.append(again)
                    actions.sort(key=lambda a: a.at)

    def _task(self, work: Any, name: str) -> None:
        self.others.append(asyncio.create_task(work, name=name))

    def _do(self, action: Action) -> None:
        """What may come from any thread."""
        work: Callable[[], None]
        if action.kind == "emit":
            event = StreamEvent.now(StreamEventType.TRAIN_STEP, train_step=1, policy_version=1, metrics={})
            work = lambda: self.manager.emit(event)  # noqa: E731
        else:
            watcher = self.watchers[action.target]
            work = {
                "join": lambda: self._join(watcher),
                "leave": lambda: self._leave(watcher),
                "refresh": lambda: self._refresh(watcher, action.wish or EventFilter()),
            }[action.kind]
        if not action.threaded:
            work()
            return
        thread = threading.Thread(target=work, name="schedule-thread")
        self.threads.append(thread)
        thread.start()

    def _cancel(self, action: Action, live: _Live) -> None:
        unfinished = live.unfinished()
        if action.kind == "cancel_chain":
            if action.chain in unfinished:
                self.stage.touch(live.run.run_id, action.chain, "it was cancelled")
            self.note(f"cancel {action.chain} of {live.run.run_id}")
            live.cancel(action.chain)
            return
        self._touch(live, "its run was cancelled")
        self.note(f"{action.kind} {live.run.run_id}, unfinished: {unfinished}")
        if action.kind == "cancel_run":
            live.cancel()
        elif live.task is not None:
            live.killed = True
            live.task.cancel()

    def _touch(self, live: _Live, why: str) -> None:
        for chain_id in live.unfinished():
            self.stage.touch(live.run.run_id, chain_id, why)

    def _unstick(self) -> None:
        """Cancel chains that have hung for long enough, and remove hanging observers for whom the rollout waits."""
        for place in self.stage.hung:
            since = self.hung_since.setdefault(place, self.tick)
            if self.tick == since + self.plan.patience:
                for live in self.lives:
                    if live.run.run_id == place[0]:
                        self.note(f"cancel {place[1]} of {place[0]}, which hangs")
                        live.cancel(place[1])
        for watcher in self.watchers:
            if watcher.observer.hangs and watcher.observer.mode == "lossless" and watcher.present:
                if watcher.hung_since is None:
                    watcher.hung_since = self.tick
                if self.tick >= watcher.hung_since + self.plan.patience:
                    self._leave(watcher)

    # -- observers -----------------------------------------------------------------------------------------------------

    def _emitted(self) -> int:
        return sum(self.manager.totals().emitted.values())

    def _join(self, watcher: _Watcher) -> None:
        observer, chain = watcher.observer, watcher.place.chain
        with self.manager.lock:
            if watcher.present or observer.hangs:
                return
            watcher.present = True
            now = self._emitted()
            self.note(f"{observer.name} joins after {now} events")
            observer.stints.append(Stint(now, [(now, watcher.wish)]))
            if watcher.place.via == "multi_global":
                self.multi.add_global_observer(observer)
            elif watcher.place.via == "multi_chain":
                self.multi.add_chain_observer(chain or "", observer)
            else:
                if watcher.place.via == "specific":
                    watcher.outer = ChainSpecificStreamObserver(chain or "", observer)
                self.manager.add_observer(watcher.outer)

    def _leave(self, watcher: _Watcher) -> None:
        observer = watcher.observer
        with self.manager.lock:
            if not watcher.present:
                return
            watcher.present = False
            stint = observer.stints[-1]
            stint.left = self._emitted()
            self.note(f"{observer.name} leaves after {stint.left} events{', detached' * stint.cut}")
            if watcher.place.via == "multi_global":
                self.multi.remove_global_observer(observer)
            elif watcher.place.via == "multi_chain":
                self.multi.remove_chain_observer(watcher.place.chain or "", observer)
            else:
                self.manager.remove_observer(watcher.outer)

    def _refresh(self, watcher: _Watcher, wish: EventFilter) -> None:
        with self.manager.lock:
            if not watcher.present or watcher.observer.stints[-1].cut:
                return
            watcher.observer.filter = wish
            watcher.observer.stints[-1].wishes.append((self._emitted(), watcher.wish))
            self.note(f"{watcher.observer.name} wants {wish} after {self._emitted()} events")
            self.manager.refresh()

    async def _read(self, plan: ReaderPlan) -> None:
        observer = AsyncGeneratorStreamObserver(plan.chain)
        with self.manager.lock:
            joined = self._emitted()
            self.manager.add_observer(observer)
        self.readers.append(observer)
        by_run: dict[str, Reading] = {}
        for _ in range(1 + plan.again):
            if observer.manager is None:
                break
            reading: Reading | None = None
            left = plan.leaves_after
            async with aclosing(observer.events()) as events:  # type: ignore[type-var]
                async for event in events:
                    if event.run_id not in by_run:
                        reading = Reading(plan.name, observer.filter, joined)
                        by_run[event.run_id] = reading
                        self.outcome.readings.append(reading)
                    reading = by_run[event.run_id]
                    reading.events.append(event)
                    if left is not None and len(reading.events) >= left:
                        break
                    await ticks(plan.pause)
                else:
                    if reading is not None:
                        reading.to_the_end = observer.manager is not None
        self.manager.remove_observer(observer)

    # -- those who watch besides ---------------------------------------------------------------------------------------

    def _watch_too(self, number: int) -> None:
        """Hostile watchers and subscribers of this segment."""
        self.due = []
        for watcher in self.hostile:
            if watcher.plan.segment == number:
                self.due.append((watcher.plan.joins, partial(self._let_in, watcher)))
                if watcher.plan.leaves is not None:
                    self.due.append((watcher.plan.leaves, watcher.leave))
        for plan in self.plan.subscribers:
            if plan.segment == number:
                self.due.append((plan.begins, partial(self._subscribe, plan)))
        self.due.sort(key=lambda due: due[0])

    def _let_in(self, watcher: HostileWatcher) -> None:
        self.note(f"{watcher.plan.name} joins")
        if watcher.plan.from_thread:
            thread = threading.Thread(target=watcher.join, name="schedule-thread")
            self.threads.append(thread)
            thread.start()
        else:
            watcher.join()

    def _subscribe(self, plan: SubscriberPlan) -> None:
        with self.manager.lock:
            now = self._emitted()
            subscription = self.manager.subscribe(plan.wish, name=plan.name)
        subscriber = Subscriber(plan.name, Stint(now, [(now, plan.wish)]))
        self.outcome.subscribers.append(subscriber)
        self._task(self._pull(plan, subscription, subscriber.stint), "schedule-subscriber")

    async def _pull(self, plan: SubscriberPlan, subscription: Subscription, stint: Stint) -> None:
        closing = asyncio.create_task(self._unsubscribe(subscription, stint), name="schedule-subscriber")
        self.others.append(closing)
        if plan.pause is None:
            await closing
        async for event in subscription:
            stint.events.append(event)
            await ticks(plan.pause or 0)

    async def _unsubscribe(self, subscription: Subscription, stint: Stint) -> None:
        await self.ending.wait()
        with self.manager.lock:
            stint.left = self._emitted()
            subscription.close()

    # -- what is left --------------------------------------------------------------------------------------------------

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.outcome.problems.append(
            f"the event loop reports: {context.get('message')} {context.get('exception')!r} {context.get('task')}"
        )

    def _who_waits(self) -> str:
        tasks = [f"{task.get_name()}: {task.get_coro()}" for task in asyncio.all_tasks()]
        late = [f"{o.name} has closed {o.closed} of {len(o.stints)}" for o in self.outcome.observers]
        return "; ".join([*tasks, *late, f"statistics {self.manager.statistics()}"])

    def _nothing_runs(self, when: str, tasks: set[asyncio.Task[Any]]) -> None:
        names = [f"{task.get_name()} {task.get_coro()}" for task in tasks if not task.done()]
        if names:
            self.outcome.problems.append(f"{when} there still run: {'; '.join(names)}")

    def _look_around(self, threads_before: set[threading.Thread]) -> None:
        """Threads, locks and registers."""
        manager, problems = self.manager, self.outcome.problems
        if manager.fanout.runs or manager.fanout.congested:
            problems.append(f"runs {manager.fanout.runs} and congested {manager.fanout.congested} are left")
        if self.agent.backend.running:  # type: ignore[attr-defined]  # FaultyBackend has it
            problems.append(f"the backend still generates {self.agent.backend.running}")  # type: ignore[attr-defined]
        asker = threading.Thread(target=manager.totals, daemon=True)  # which needs the lock
        asker.start()
        asker.join(LIMIT_S)
        if asker.is_alive():
            problems.append("somebody holds the manager's lock")
        deadline = time.monotonic() + LIMIT_S
        while left := [t.name for t in set(threading.enumerate()) - threads_before if _is_busy(t)]:
            for watcher in self.hostile:
                watcher.let_go()
            if time.monotonic() > deadline:
                problems.append(f"threads are left: {left}")
                return
            time.sleep(0.001)


async def _until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until it holds; whoever waits sets a limit."""
    while not holds():
        await asyncio.sleep(0)


def _is_busy(thread: threading.Thread) -> bool:
    """Whether it is one of Rollcast's and does something: tools' threads and the watchdog wait for the next run for a while."""
    return thread.name.startswith("rollcast-") and thread.name not in ("rollcast-idle", "rollcast-watchdog")


# ---------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the seeds. Returns 1 if one breaks something."""
    parser = argparse.ArgumentParser("python -m fault_schedules", description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="FROM:TO, TO excluded, or a list such as 3,14")
    parser.add_argument(
        "--verbose", type=int, metavar="SEED", help="play one seed and print its story and log"
    )
    options = parser.parse_args(arguments)
    seeds = [options.verbose] if options.verbose is not None else list(_seeds(options.seeds))
    failed = [seed for seed in seeds if not _holds(seed, verbose=options.verbose is not None)]
    print(f"{len(seeds) - len(failed)} of {len(seeds)} seeds hold")
    if failed:
        print(f"broken: {','.join(map(str, failed))}")
    return 1 if failed else 0


def _seeds(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, colon, last = part.partition(":")
        yield from range(int(first), int(last) if colon else int(first) + 1)


def _holds(seed: int, *, verbose: bool) -> bool:
    with _log(verbose=verbose):
        outcome = FaultSchedule(seed).play()
    try:
        check_invariants(outcome)
    except AssertionError as broken:
        print(broken, end="\n\n")
        return False
    if verbose:
        print("\n".join(outcome.story))
    return True


@contextmanager
def _log(*, verbose: bool) -> Iterator[None]:
    """What observers and tools raise is logged, which is right and of no interest here."""
    logger = logging.getLogger("rollcast")
    level = logger.level
    if verbose:
        logging.basicConfig(level=logging.DEBUG)
    logger.setLevel(logging.DEBUG if verbose else logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
