"""Plays a schedule with real processes, and says what it broke.

Events are counted, and never the time: a fault comes after so many events of all producers, and is mended after so many more, or when
nothing happens any more. A seed draws the same each time; what the processes make of it is up to the machine.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fleet_faults.invariants import Emitted, Seen, Truth, breaks_of_the_grammar, broken_promises, in_one
from fleet_faults.nursery import Nursery
from fleet_faults.plan import SLOW, Fault, Plan, WorkerPlan, draw
from fleet_faults.processes import Child, left_over
from fleet_faults.relay import CLEAR, Relay, Weather
from fleet_faults.viewers import DeafViewer, Viewer
from rollcast.archive.reader import Archive
from rollcast.serve import client

__all__ = ["Outcome", "play"]

TOKEN = "fault-schedules"
LIMIT_S = 100.0  # of a schedule; on a machine that has time it takes a few seconds
MOST_LINES = 100  # that a process may say on its standard error
QUIET_S = 1.0  # if no worker emits anything for so long, what is to be mended at the end is mended
MEMORY = 400 << 20  # bytes that a process may have at most
LOST = ("could not be", "are dropped")  # a producer says so of what it lost
GAVE_UP = "does not have everything"  # and so if it ends before the hub has all the others
SWEEPER = "sweeper"  # the worker that comes last on each host, and hands over what others left


@dataclass
class Outcome:
    """What came of a schedule.

    Attributes:
        events: emitted, chunks not counted.
        gaps: how many gaps viewers and the hub's record have.
        peak: the most memory that the hub had, in bytes.
        broken: the promises that were not kept.
        story: what happened, with what each process said.
    """

    seed: int
    plan: Plan
    events: int = 0
    gaps: int = 0
    peak: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    def told(self) -> str:
        """All of it, to be read by people."""
        lines = [f"seed {self.seed}: {len(self.broken)} broken", *(f"- {line}" for line in self.broken)]
        return "\n".join([*lines, "Its plan:", *self.plan.lines(), "Its story:", *self.story])


class _Worker:
    """A producer of the plan, which may be killed and begin anew."""

    def __init__(self, plan: WorkerPlan, relay: Relay) -> None:
        self.plan = plan
        self.relay = relay
        self.attempt = 0
        self.child: Child | None = None
        self.streams: set[tuple[str, str]] = set()  # the runs of the process that it has now
        self.earlier: list[Child] = []

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.child is None or self.child.over


class _Play:
    def __init__(self, plan: Plan, folder: Path, nursery: Nursery) -> None:
        self.nursery = nursery
        self.plan = plan
        self.folder = folder
        self.truth = Truth()
        self.outcome = Outcome(plan.seed, plan)
        self.emitted = 0
        self.last_emitted = 0.0
        self.began = time.monotonic()
        self.hub: Child | None = None
        self.hubs: list[Child] = []
        self.sessions: set[int] = set()
        self.relays: list[Relay] = []
        self.workers: list[_Worker] = []
        self.viewers: list[Viewer | DeafViewer] = []
        self.mends: list[tuple[int | None, str, Callable[[], Awaitable[None]]]] = []
        self.frozen: set[Child] = set()

    def note(self, what: str) -> None:
        """A line of the story."""
        self.outcome.story.append(f"{time.monotonic() - self.began:7.3f} s, {self.emitted:4} events: {what}")

    # -- the whole -----------------------------------------------------------------------------------------------------

    async def whole(self) -> Outcome:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end_everything)
            try:
                async with asyncio.timeout(LIMIT_S):
                    await self._start(stack)
                    await self._turns()
                    await self._wind_up()
            except TimeoutError:
                self.outcome.broken.append(f"it hangs: {self._who_waits()}")
        if not self.outcome.broken:
            await asyncio.to_thread(self._judge)  # it reads records, which blocks
        self._tell_what_processes_said()
        self.outcome.seconds = time.monotonic() - self.began
        return self.outcome

    async def _start(self, stack: AsyncExitStack) -> None:
        await self._start_hub()
        port = self.port
        for host in range(self.plan.hosts):  # one each, since a record is for the hub of one address
            relay = await stack.enter_async_context(Relay("127.0.0.1", port, self.plan.seed * 100 + host))
            slow = any(worker.slow for worker in self.plan.workers if worker.host == host)
            relay.weather = Weather(*SLOW) if slow else CLEAR
            self.relays.append(relay)
        self.workers = [_Worker(plan, self.relays[plan.host]) for plan in self.plan.workers]
        for number, wish in enumerate(self.plan.viewers):
            relay = await stack.enter_async_context(
                Relay("127.0.0.1", port, self.plan.seed * 100 + 50 + number)
            )
            relay.weather = Weather(*SLOW) if wish.slow else CLEAR
            self.relays.append(relay)
            deaf = wish.manner == "deaf"
            self.viewers.append(
                DeafViewer(relay, TOKEN)
                if deaf
                else Viewer(number, wish, relay, TOKEN, lambda: len(self.hubs))
            )
        for worker in self.workers:
            await self._start_worker(worker)

    async def _turns(self) -> None:
        """Do what is due, until every worker has ended and everything is mended."""
        faults = list(self.plan.faults)
        waiting = [
            (wish.comes_at, viewer) for wish, viewer in zip(self.plan.viewers, self.viewers, strict=True)
        ]
        while faults or waiting or self.mends or not all(worker.over for worker in self.workers):
            over = all(worker.over for worker in self.workers)
            quiet = over or self._is_quiet
            for comes_at, viewer in [w for w in waiting if over or w[0] <= self.emitted]:
                waiting.remove((comes_at, viewer))
                viewer.start()
            while faults and (quiet or faults[0].at <= self.emitted):
                await self._go_wrong(faults.pop(0))
            for mend in [m for m in self.mends if quiet or (m[0] is not None and m[0] <= self.emitted)]:
                self.mends.remove(mend)
                self.note(f"mended: {mend[1]}")
                await mend[2]()
            await asyncio.sleep(0.002)

    @property
    def _is_quiet(self) -> bool:
        """Whether no worker emits anything any more, although each has begun, or is frozen and cannot."""
        begun = all(worker.over or worker.streams or worker.child in self.frozen for worker in self.workers)
        return begun and time.monotonic() - self.last_emitted > QUIET_S

    async def _wind_up(self) -> None:
        """Everything is mended: what was left behind is handed over, and viewers see it all."""
        for relay in self.relays:
            relay.weather = CLEAR
        readers = [viewer for viewer in self.viewers if isinstance(viewer, Viewer)]
        while not all(viewer.subscribed for viewer in readers):
            await asyncio.sleep(0.005)
        for host in range(self.plan.hosts):
            await self._sweep(host)
        for worker in self.workers:
            assert worker.child is not None
            if worker.child.code and not worker.child.killed:
                self.outcome.broken.append(f"{worker.child.name} ended with {worker.child.code}")
        last = {stream[0] for stream in self.truth.events if stream[1].startswith(SWEEPER)}
        while not all(viewer.failure or viewer.has(run_id) for viewer in readers for run_id in last):
            await asyncio.sleep(0.005)
        for viewer in self.viewers:
            await viewer.stop()
        assert self.hub is not None
        self.hub.look_at_memory()
        self.hub.signal(signal.SIGTERM)
        await self.hub.wait()
        if self.hub.code not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            self.outcome.broken.append(f"the hub ended with {self.hub.code}")
        self.note("all is over")

    async def _sweep(self, host: int) -> None:
        """Another producer on that host, until nothing is left to hand over there."""
        plan = WorkerPlan(f"{SWEEPER}{host}", host, "handmade", 2, 1, 1, 2, 0.0, drain_s=LIMIT_S, sweeps=True)
        worker = _Worker(plan, self.relays[host])
        self.workers.append(worker)
        await self._start_worker(worker)
        assert worker.child is not None
        await worker.child.wait()
        if left := [path.parent.name for path in (self.folder / f"host{host}").glob("*/handover.json")]:
            self.outcome.broken.append(f"these records are never handed over: {left}")

    async def _end_everything(self) -> None:
        for viewer in self.viewers:
            await viewer.stop()
        for child in self._children:
            child.signal(signal.SIGCONT)
            await child.kill()
        if found := left_over(self.sessions):
            self.outcome.broken.append(f"processes are left: {found}")
            for line in found:
                with suppress(OSError):
                    os.kill(int(line.split(":")[0]), signal.SIGKILL)

    # -- processes -----------------------------------------------------------------------------------------------------

    async def _start_hub(self) -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(line: bytes) -> None:
            if not ready.done() and (found := re.search(rb"ROLLCAST_HUB=(\S+)", line)):
                ready.set_result(found[1].decode())

        arguments = [str(self.plan.hub_clock_s)]
        arguments += ["--port", "0", "--token", TOKEN, "--record-dir", str(self.folder / "hub")]
        self.hub = Child(self.nursery, f"hub {len(self.hubs) + 1}", "fleet_faults.hub", arguments, {}, take)
        self.hubs.append(self.hub)
        await self.hub.start()
        self.sessions.add(self.hub.pid)
        ended = asyncio.create_task(self.hub.wait())
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise AssertionError(f"the hub does not start: {self.hub.errors}")
        self.port: int = urlsplit(ready.result()).port or 0
        for relay in self.relays:
            relay.target = ("127.0.0.1", self.port)
        self.note(f"the hub is there, on port {self.port}")

    async def _start_worker(self, worker: _Worker) -> None:
        plan = worker.plan
        worker.attempt += 1
        name = f"{plan.source}, attempt {worker.attempt}"
        records = self.folder / f"host{plan.host}"
        environment = {
            "ROLLCAST_HUB": worker.relay.url,
            "ROLLCAST_HUB_TOKEN": TOKEN,
            "ROLLCAST_SOURCE": plan.source,
            "ROLLCAST_RECORDS": str(records),
        }
        if plan.shares_run:
            environment["ROLLCAST_RUN_ID"] = f"shared-{self.plan.seed}-{worker.attempt}"
        arguments = [msgspec.json.encode(plan).decode(), str(worker.attempt), str(self.plan.seed)]
        if worker.child is not None:
            worker.earlier.append(worker.child)
        streams = worker.streams = set()
        worker.child = Child(
            self.nursery,
            name,
            "fleet_faults.worker",
            arguments,
            environment,
            lambda line: self._take(line, streams),
        )
        await worker.child.start()
        self.sessions.add(worker.child.pid)
        self.last_emitted = time.monotonic()
        self.note(f"{name} begins")

    def _take(self, line: bytes, streams: set[tuple[str, str]]) -> None:
        event = Emitted(*msgspec.json.decode(line))
        stream = (event.run_id, event.source)
        streams.add(stream)
        self.truth.events[stream].append(event)
        self.emitted += 1
        self.last_emitted = time.monotonic()

    # -- faults --------------------------------------------------------------------------------------------------------

    async def _go_wrong(self, fault: Fault) -> None:
        self.note(f"{fault.kind} {fault.whom}")
        await _FAULTS[fault.kind](self, fault)

    def _mend(self, fault: Fault, mend: Callable[[], Awaitable[None]]) -> None:
        self.mends.append((fault.until, f"{fault.kind} {fault.whom}", mend))

    async def _kill_worker(self, fault: Fault) -> None:
        worker = self.workers[fault.whom]
        if worker.over:
            return
        assert worker.child is not None
        await worker.child.kill()
        if worker.child.killed:
            self.truth.cut_off |= worker.streams
        self._mend(fault, lambda: self._start_worker(worker))

    async def _kill_hub(self, fault: Fault) -> None:
        assert self.hub is not None
        if not self.hub.over:
            await self.hub.kill()
            self._mend(fault, self._start_hub)

    async def _stop_hub(self, fault: Fault) -> None:
        assert self.hub is not None
        if not self.hub.over:
            self.hub.signal(signal.SIGCONT)
            self.hub.signal(signal.SIGTERM)
            await self.hub.wait()
            self._mend(fault, self._start_hub)

    async def _freeze(self, child: Child | None, fault: Fault) -> None:
        if child is None or child.over:
            return

        async def thaw() -> None:
            self.frozen.discard(child)
            child.signal(signal.SIGCONT)

        self.frozen.add(child)
        child.signal(signal.SIGSTOP)
        self._mend(fault, thaw)

    async def _cut(self, relays: list[Relay], fault: Fault) -> None:
        async def mend() -> None:
            for relay in relays:
                relay.mend()

        for relay in relays:
            relay.cut()
        self._mend(fault, mend)

    async def _cut_in_frame(self, fault: Fault) -> None:
        relay = self.workers[fault.whom].relay

        async def mend() -> None:
            relay.mend()

        relay.cut_after(fault.after_bytes)
        self._mend(fault, mend)

    async def _stall(self, fault: Fault) -> None:
        relay = self.workers[fault.whom].relay

        async def mend() -> None:
            relay.mend()

        relay.stall()
        self._mend(fault, mend)

    async def _vanish(self, relay: Relay) -> None:
        relay.vanish()

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Compare what everybody got with what was emitted."""
        self._note_what_had_to_be_lost()
        archives = self._archives()
        truth = self.truth
        if len(archives) < len(
            self.hubs
        ):  # one of them had nothing to record, so no cursor of its is known to the next
            truth = replace(truth, lossy=set(truth.events))
        for viewer in self.viewers:
            if isinstance(viewer, Viewer):
                if viewer.failure is not None:
                    self.outcome.broken.append(f"{viewer.seen.who}: {viewer.failure!r}")
                self.outcome.broken += broken_promises(truth, viewer.seen)
                self.outcome.gaps += sum(e.event_type == "gap" for e in viewer.seen.events)
        for number, archive in enumerate(archives, 1):
            one = Seen(f"record {number} of the hub", list(archive.events()))
            self.outcome.broken += breaks_of_the_grammar(one)
        recorded = Seen("the hub's records", list(in_one(list(archive.events()) for archive in archives)))
        self.outcome.broken += broken_promises(self.truth, recorded, grammar=False)
        self.outcome.gaps += sum(e.event_type == "gap" for e in recorded.events)
        self.outcome.events = self.emitted
        self.outcome.peak = max(hub.peak for hub in self.hubs)
        if self.outcome.peak > MEMORY:
            self.outcome.broken.append(f"the hub had {self.outcome.peak >> 20} MiB")

    def _note_what_had_to_be_lost(self) -> None:
        """A producer whose disk is full, and that says what it lost, is believed."""
        for worker in self.workers:
            said = worker.child.errors if worker.child is not None else []
            if worker.plan.file_limit is not None and any(word in line for line in said for word in LOST):
                self.truth.lossy |= worker.streams
                if any(GAVE_UP in line for line in said):
                    self.truth.cut_off |= worker.streams

    def _archives(self) -> list[Archive]:
        """The hub's records, the earliest first."""
        archives = [Archive.open(path.parent) for path in (self.folder / "hub").rglob("run.json")]
        return sorted(archives, key=lambda archive: archive.facts.started_at)

    def _who_waits(self) -> str:
        workers = [worker.child.name for worker in self.workers if worker.child and not worker.over]
        last = {stream[0] for stream in self.truth.events if stream[1].startswith(SWEEPER)}
        viewers = [
            f"{viewer.seen.who} with {len(viewer.seen.events)} events"
            for viewer in self.viewers
            if isinstance(viewer, Viewer) and not all(map(viewer.has, last))
        ]
        return f"workers {workers}, viewers {viewers}, {len(self.mends)} things to be mended"

    @property
    def _children(self) -> list[Child]:
        workers = [child for worker in self.workers for child in (*worker.earlier, worker.child) if child]
        return [*self.hubs, *workers]

    def _tell_what_processes_said(self) -> None:
        for child in self._children:
            if any("Traceback (most recent call last)" in line for line in child.errors):
                self.outcome.broken.append(f"{child.name} wrote a traceback")
            if len(child.errors) > MOST_LINES:
                self.outcome.broken.append(f"{child.name} wrote {len(child.errors)} lines")
            self.outcome.story += [f"  {child.name}: {line}" for line in child.errors[:200]]


_FAULTS: dict[str, Callable[[_Play, Fault], Awaitable[None]]] = {
    "kill_worker": _Play._kill_worker,
    "kill_hub": _Play._kill_hub,
    "stop_hub": _Play._stop_hub,
    "freeze_hub": lambda play, fault: play._freeze(play.hub, fault),
    "freeze_worker": lambda play, fault: play._freeze(play.workers[fault.whom].child, fault),
    "cut_worker": lambda play, fault: play._cut([play.workers[fault.whom].relay], fault),
    "cut_all": lambda play, fault: play._cut(play.relays, fault),
    "cut_viewer": lambda play, fault: play._cut([play.viewers[fault.whom].relay], fault),
    "cut_in_frame": _Play._cut_in_frame,
    "stall_worker": _Play._stall,
    "vanish_worker": lambda play, fault: play._vanish(play.workers[fault.whom].relay),
    "vanish_viewer": lambda play, fault: play._vanish(play.viewers[fault.whom].relay),
}


def play(seed: int, folder: Path, nursery: Nursery) -> Outcome:
    """Play the schedule of this seed.

    Args:
        seed: any whole number.
        folder: an empty one, for records.
        nursery: forks the processes.
    """
    client.LONGEST_PAUSE_S = 0.5
    return asyncio.run(_Play(draw(seed), folder, nursery).whole())
