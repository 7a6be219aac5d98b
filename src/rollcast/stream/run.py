"""The writer of a run. Runs, chains, generations and tool calls are each closed by the block that opened them.

    with manager.run(chains=1) as run, run.chain(messages) as chain:
        with chain.generation() as generation:
            generation.chunk("Hel"), generation.chunk("lo")

The rollout and a user's own loop use the same objects. Each writes to the chain's open trajectory, and emits the events that
an observer wants. A run that is not live writes its trajectories and emits nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Literal, Self, TypedDict

from rollcast.aio import running_loop, why_left
from rollcast.errors import InputError
from rollcast.failures import FailureLog
from rollcast.records import (
    EventFilter,
    Message,
    StreamEvent,
    StreamEventType,
    Trajectory,
    validated_messages,
)
from rollcast.records.event import RunStatus
from rollcast.records.jsonable import as_json, detached
from rollcast.stream.chain import UNSET, ChainWriter, error_data
from rollcast.stream.delivery import ensure_not_in_own_hook
from rollcast.stream.fanout import Fanout, OpenPart, Route, Targets
from rollcast.stream.processes import SharedRun
from rollcast.stream.queue import Control, EventQueue, event_size

__all__ = ["RunAbout", "RunWriter", "new_run_id"]

logger = logging.getLogger("rollcast.stream")

MAX_NAMED = 8  # of the names in a filter that a run did not have, in a warning

T = StreamEventType
_NO_LOCK: AbstractContextManager[Any] = nullcontext()


def new_run_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so that ids sort by time."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class RunAbout(TypedDict, total=False):
    """The keywords of `manager.run(...)`; see `RunWriter`."""

    live: bool
    chains: int
    groups: int
    agent: str
    model: str
    backend: str
    policy_version: int
    parent_run_id: str | None
    split: Literal["train", "eval"] | None
    run_id: str | None
    on_cancel: Callable[[str | None], object] | None
    train_step: int | None
    seed: int | None
    sampling: dict[str, Any] | None
    settings: dict[str, Any] | None
    name: str | None
    tags: Sequence[str]
    tools: Sequence[dict[str, Any]]
    leader: str | None


class RunWriter:
    """One run: begins on entering the block, and closes everything that is still open on leaving it.

    Its methods are more than twenty, since it is the public face of a run: each is one thing that a loop of your own can say or ask.

    Args:
        fanout: the fanout of the manager whose observers watch.
        live: whether events are emitted.
        chains, groups: how many there will be.
        agent, model, backend, policy_version: fields of `run_start`.
        parent_run_id: the training run that this is a rollout of, or the run whose chain began this one.
        split: `train` or `eval`.
        run_id: the run's id; None: one is made, or, for the first run of a process that has no parent, what `ROLLCAST_RUN_ID` says.
            Processes that give the same id make one run of several sources; chains and groups need ids that differ then.
        on_cancel: called by `manager.cancel` with a chain id, or None for the whole run, from any thread.
        train_step: the training step that its chains are for; in an evaluation, the step that it comes after.
        seed, sampling, settings: what to pass to get the same run again, how its generations are sampled, and how else it goes.
            They are shown to every observer, so leave secrets out.
        name, tags: what its owner calls it.
        tools: the schemas of the agent's tools.
        leader: the source of the process that began the run, if this is only a part of it.
    """

    def __init__(
        self,
        fanout: Fanout,
        *,
        live: bool = True,
        chains: int = 1,
        groups: int = 1,
        agent: str = "",
        model: str = "",
        backend: str = "",
        policy_version: int = 0,
        parent_run_id: str | None = None,
        split: Literal["train", "eval"] | None = None,
        run_id: str | None = None,
        on_cancel: Callable[[str | None], object] | None = None,
        train_step: int | None = None,
        seed: int | None = None,
        sampling: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        tools: Sequence[dict[str, Any]] = (),
        leader: str | None = None,
    ) -> None:
        self.fanout = fanout
        self.manager: Any = (
            None  # the StreamingManager that made the run, for a user's own loop; nothing here needs it
        )
        self.on_cancel = on_cancel
        self.live = live
        shared = SharedRun.take() if live and run_id is None and parent_run_id is None else None
        self.run_id = run_id or shared or new_run_id()
        self.source = fanout.source
        # Ends the ids of chains and groups that are made here, if other processes make some for the same run.
        self.suffix = f"@{self.source}" if shared and self.source else ""
        self.seq = -1  # that of the last event
        self.model = model
        self.policy_version = policy_version
        self.open_chains: dict[str, ChainWriter] = {}
        self.announced: dict[str, str | None] = {}  # chains that have not begun, with their groups
        self._chain_ids: set[str] = set()  # all ids so far
        self._repeats: dict[str | None, int] = {}  # how many chains so far, by group
        self._ended: dict[str | None, int] = {}  # how many of them have ended
        self.expected_chains = chains
        self.chains = 0  # how many so far; the run does not keep their trajectories
        self._totals = {"failed": 0, "completion_tokens": 0}
        self._rewards: tuple[float, int] = (0.0, 0)  # sum, count
        self.failures = FailureLog()
        self._last_chain = ""
        self._places_seen: set[str] = set()  # those chains and groups that filters name
        self.status: RunStatus | None = None
        self._opened = False
        self.loop: asyncio.AbstractEventLoop | None = None  # the loop in which it was opened
        self.lock: AbstractContextManager[Any] = fanout.lock if live else _NO_LOCK
        self._route = Route(fanout, self.run_id, "", None, self.source)
        self._began = time.perf_counter()
        self._start: dict[str, Any] = {
            "chains": chains, "groups": groups, "agent": agent, "model": model, "backend": backend,
            "policy_version": policy_version,
        }  # fmt: skip
        self.parent_run_id = parent_run_id
        known = {
            "split": split, "train_step": train_step, "seed": seed, "sampling": sampling, "settings": settings, "name": name,
            "tags": list(tags) or None, "tools": list(tools) or None, "leader": leader,
        }  # fmt: skip
        self._start.update({field: value for field, value in known.items() if value is not None})

    def open(self) -> Self:
        """Begin the run.

        Raises:
            InputError: it has already begun.
        """
        if self._opened:
            raise InputError(f"run {self.run_id} was opened already; make another one with manager.run(...)")
        self._opened = True
        self._began = time.perf_counter()
        self.loop = running_loop()
        if self.live:
            with self.lock:
                self.fanout.runs[self.run_id] = self
                self.fanout.broadcast_locked(Control("run_opened", self.run_id))
                parent = {} if self.parent_run_id is None else {"parent_run_id": self.parent_run_id}
                self._emit(T.RUN_START, self._start | parent)
        elif readers := self.fanout.deliveries:
            names = ", ".join(delivery.reader for delivery in readers)
            logger.warning("%s will see nothing of this run: it runs with enable_streaming=False", names)
        logger.debug("run %s begins", self.run_id)
        return self

    def close(self, status: RunStatus = "completed") -> None:
        """End what is still open, then the run. This does not wait for observers; `manager.drain` does."""
        if self.status is not None:
            return
        for chain in list(self.open_chains.values()):
            chain.end("cancelled" if status != "failed" else "error")
        self.status = status
        total, rewarded = self._rewards
        led = {name: self._start[name] for name in ("leader",) if name in self._start}
        if self.live:
            with self.lock:
                self._emit(
                    T.RUN_END,
                    {
                        "status": status,
                        "chains": 0 if led else self.chains,
                        "failed": self._totals["failed"],
                        "mean_reward": total / rewarded if rewarded else None,
                        "completion_tokens": self._totals["completion_tokens"],
                        "duration_s": time.perf_counter() - self._began,
                        **led,
                    },
                )
                self.fanout.runs.pop(self.run_id, None)
                self._name_empty_filters()
                self.fanout.broadcast_locked(Control("run_closed", self.run_id))
        logger.debug("run %s is %s", self.run_id, status)

    def chain_began(self, chain: ChainWriter) -> None:
        """Add the chain to the open ones. The lock is held.

        Raises:
            InputError: the run is not open, or the chain has already begun.
        """
        name = chain.trajectory.chain_id
        if not self._opened:
            raise InputError(f"{name} cannot begin: its run has not; enter it, or call its open()")
        if self.status is not None:
            raise InputError(f"{name} cannot begin: run {self.run_id} has ended ({self.status})")
        if name in self.open_chains or chain.ended:
            raise InputError(f"{name} has begun already; make another one with run.chain(...)")
        self.open_chains[name] = chain
        self.announced.pop(name, None)
        if self.live:
            self.fanout.make_room_locked(len(self.open_chains))
        self._note_places(chain.trajectory)

    def chain_ended(self, chain: ChainWriter) -> None:
        """Add it to the totals. The lock is held."""
        self.open_chains.pop(chain.trajectory.chain_id, None)
        self._add_to_totals(chain.trajectory)

    def count_elsewhere(self, trajectory: Trajectory, announced: str) -> None:
        """Add a chain to the totals that another process ran for this run, which no longer changes.

        Args:
            trajectory: what the chain came to.
            announced: the id under which it was announced.
        """
        with self.lock:
            self.announced.pop(announced, None)
            self.chains += 1
            self._add_to_totals(trajectory)

    def _add_to_totals(self, trajectory: Trajectory) -> None:
        if "leader" not in self._start:  # otherwise the leader counts it
            self._totals["failed"] += trajectory.finish_reason == "error"
            self._totals["completion_tokens"] += trajectory.completion_tokens
            if trajectory.reward is not None:
                self._rewards = (self._rewards[0] + trajectory.reward, self._rewards[1] + 1)
        self._ended[trajectory.group_id] = self._ended.get(trajectory.group_id, 0) + 1
        self._last_chain = trajectory.chain_id
        self._note_places(trajectory)  # again, for observers that were added meanwhile

    def _note_places(self, trajectory: Trajectory) -> None:
        for place in (trajectory.chain_id, trajectory.group_id):
            if place in self.fanout.named:
                self._places_seen.add(place)

    def _name_empty_filters(self) -> None:
        """Warn of filters that name chains or groups that this run did not have, mostly because of a misspelt id."""
        for delivery in self.fanout.deliveries if self.chains else ():
            if delivery.born > self._began or not delivery.names_are_meant:
                continue
            for wanted in delivery.filter.alternatives:
                if not wanted.wants_gap(self.run_id, self.source):  # it wants nothing of this run
                    continue
                missing = (
                    (wanted.chains or frozenset()) | (wanted.groups or frozenset())
                ) - self._places_seen
                if missing:
                    more = f" and {len(missing) - MAX_NAMED:,} more" if len(missing) > MAX_NAMED else ""
                    logger.warning(
                        "the filter of %s names %s, which this run did not have; it had %s, the last of them %s",
                        delivery.reader,
                        ", ".join(sorted(missing)[:MAX_NAMED]) + more,
                        "1 chain" if self.chains == 1 else f"{self.chains} chains",
                        self._last_chain,
                    )

    def chain(
        self,
        messages: Sequence[Message] = (),
        *,
        chain_id: str | None = None,
        group_id: str | None = None,
        index: int | None = None,
        tools: Sequence[str] = (),
        row: dict[str, Any] | None = None,
        reference: Any = UNSET,
        seed: int | None = None,
        attempt: int | None = None,
        parent_chain_id: str | None = None,
    ) -> ChainWriter:
        """Make a chain of this run, which has not begun; use it as a context manager.

        Args:
            messages: the conversation that it begins with; may be empty.
            chain_id: an id that is unique within the run; None: the next free `chain_0 …`.
            group_id: the group; chains in one group are repeats of one row.
            index: the repeat within the group, from 0; None: it is counted.
            tools: the names of the tools that it may call.
            row: the row's fields besides the messages, for the trajectory; `chain_start` has them as JSON.
            reference: the row's answer, for `chain_start`.
            seed: the chain's own, for `chain_start`.
            attempt: which attempt at its row it is, from 1, if there may be several.
            parent_chain_id: the chain that began this one, if it is a sub-agent's.

        Raises:
            InputError: the run already has a chain with that id.
            MessagesError: a message has the wrong shape.
        """
        messages = validated_messages(messages, "messages") if messages else []
        with self.lock:
            chain_id = chain_id if chain_id is not None else self._free_id()
            if chain_id in self._chain_ids:
                raise InputError(
                    f"run {self.run_id} has a chain {chain_id!r} already; chain ids are unique within a run"
                )
            self._chain_ids.add(chain_id)
            self.chains += 1
            repeat = self._repeats.get(group_id, 0) if group_id is not None else 0
            self._repeats[group_id] = repeat + 1
            trajectory = Trajectory(
                self.run_id,
                chain_id,
                group_id,
                repeat if index is None else index,
                row=row or {},
                messages=messages,
                prompt_length=len(messages),
            )
        about = {"seed": seed, "attempt": attempt, "parent_chain_id": parent_chain_id}
        known = {field: value for field, value in about.items() if value is not None}
        return ChainWriter(self, trajectory, list(tools), reference, known)

    def announce(self, chain_id: str, group_id: str | None = None) -> None:
        """Announce a chain that will begin, so that `manager.cancel` can keep it from beginning, alone or with its group.

        `on_cancel` is then called with its id, as for an open chain.
        """
        with self.lock:
            if chain_id not in self._chain_ids:
                self.announced[chain_id] = group_id

    def _free_id(self) -> str:
        number = self.chains
        while f"chain_{number}{self.suffix}" in self._chain_ids:
            number += 1
        return f"chain_{number}{self.suffix}"

    def error(self, error: BaseException | str, where: str) -> None:
        """Record a failure that concerns the run as a whole."""
        if self.live:
            with self.lock:
                self._emit(T.ERROR, error_data(error, where))

    def _emit(self, event_type: StreamEventType, data: dict[str, Any]) -> None:
        targets = self._route.targets_locked(event_type)
        if targets:
            self.publish(targets, event_type, self._route, as_json(data), None)

    def publish(
        self,
        targets: Targets,
        event_type: StreamEventType,
        route: Route,
        data: dict[str, Any],
        step: int | None,
        depth: int | None = None,
    ) -> None:
        """See `RunOfChain.publish`."""
        fanout, place = self.fanout, route.place
        self.seq = seq = self.seq + 1
        if not targets:  # all that want it want more data in it
            fanout.count_locked(event_type)
            return
        event = StreamEvent(
            event_type,
            place.chain_id,
            time.time(),
            detached(data),  # a watcher that changes it does not change the run
            step,
            depth,
            seq,
            place.run_id,
            place.group_id,
            place.source,
        )
        fanout.publish_locked(event, targets, event_size(event))

    def publish_again(
        self, targets: Targets, event_type: StreamEventType, route: Route, data: dict[str, Any], step: int | None,
        depth: int | None, size: int,
    ) -> None:  # fmt: skip
        """See `RunOfChain.publish_again`."""
        place = route.place
        event = StreamEvent(
            event_type, place.chain_id, time.time(), detached(data), step, depth, self.seq, place.run_id, place.group_id,
            place.source,
        )  # fmt: skip
        EventQueue.put_in_each(targets, event, size)

    def has_chain(self, chain_id: str) -> bool:
        """See `OpenRun.has_chain`."""
        return chain_id in self.open_chains

    def had_chain(self, chain_id: str) -> bool:
        """Whether a chain of this run had that id, be it open or not: no other can have it."""
        return chain_id in self._chain_ids

    def tell_all(self, chain_id: str) -> None:
        """See `OpenRun.tell_all`."""
        chain = self.open_chains.get(chain_id)
        if chain is not None:
            chain.tell_all()

    def place_in(self, chain_id: str) -> tuple[int, int] | None:
        """See `OpenRun.place_in`."""
        chain = self.open_chains.get(chain_id)
        if chain is None:
            return None
        turn = chain.trajectory.open_turn
        return len(chain.trajectory.turns), 0 if turn is None else turn.chars

    def chain_ids(self, group_id: str | None = None) -> list[str]:
        """See `OpenRun.chain_ids`."""
        chains = self.open_chains.items()
        return [name for name, chain in chains if group_id in (None, chain.trajectory.group_id)]

    def as_of(self) -> Mapping[str, int]:
        """See `OpenRun.as_of`."""
        return {self.source: self.seq}

    def next_seq(self, source: str) -> int | None:
        """See `OpenRun.next_seq`."""
        if source != self.source:
            return None
        self.seq += 1
        return self.seq

    def count_ended(self, group_id: str | None = None) -> int:
        """See `OpenRun.count_ended`."""
        return sum(self._ended.values()) if group_id is None else self._ended.get(group_id, 0)

    def open_part(self, chain_id: str) -> OpenPart | None:
        """See `OpenRun.open_part`."""
        chain = self.open_chains.get(chain_id)
        if chain is None or (chain.generation_open is None and not chain.tools_open):
            return None
        t, turn = chain.trajectory, chain.trajectory.open_turn
        content = None if turn is None else turn.text
        return OpenPart(
            self.run_id,
            chain_id,
            t.group_id,
            len(t.turns),
            chain.depth,
            self.seq,
            content,
            0,
            t.open_tool_calls,
        )

    def standing(self) -> tuple[int, int]:
        """See `OpenRun.standing`."""
        open_turns = [chain.generation_open for chain in self.open_chains.values()]
        return len(open_turns), sum(g.turn.completion_tokens for g in open_turns if g is not None)

    def snapshots(self, filter: EventFilter, besides: EventFilter | None) -> Iterator[StreamEvent]:
        """See `OpenRun.snapshots`. The lock is held."""
        for chain in self.open_chains.values():
            place = (
                chain.trajectory.chain_id,
                chain.trajectory.group_id,
                self.run_id,
                self.source,
            )
            if filter.wants_snapshot(*place) and not (besides and besides.wants_snapshot(*place)):
                yield chain.snapshot()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_run_status(error))
        if self.live:
            self.fanout.drain_sync()

    async def __aenter__(self) -> Self:
        if self.live:
            ensure_not_in_own_hook("a run", self.fanout.deliveries)
        return self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_run_status(error))
        if self.live:
            await self.fanout.drain()


def _run_status(error: BaseException | None) -> RunStatus:
    if error is None:
        return "completed"
    return "cancelled" if why_left(error) == "cancelled" else "failed"
