"""What the events of a record add up to: a row for each chain, a row for each training step, totals. No I/O.

The writer feeds it as events are recorded, recovery feeds it again from the record, and both get the same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rollcast.archive.format import ChainRow, Totals, prompt_hash
from rollcast.archive.usual_events import NO_CONVERSATION, apply_usual, begun
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.bounded import number, whole
from rollcast.records.lanes import Lane, end_status, leader_of, summed_ends, worst_status
from rollcast.records.view import ChainView
from rollcast.records.view_fields import object_of

if TYPE_CHECKING:
    from rollcast.stream.asked import ChainSoFar  # what reads a record needs no stream
    from rollcast.stream.waiting import Relayed

__all__ = ["ANSWER_CHARS", "LateRow", "Skeleton", "row_so_far", "said_at_start"]

T = StreamEventType
CHUNK, OBSERVATION = T.LLM_GENERATION_CHUNK, T.TOOL_OBSERVATION
ANSWER_CHARS = 4096

# What a row tells nothing of, and what most of the time and memory of a view would go into.
_HEAVY = {
    T.CHAIN_START: "messages",
    T.LLM_GENERATION_END: "content",
    T.TOOL_CALL_START: "arguments",
    T.TOOL_OBSERVATION: "observation",
}


class _OpenRun(msgspec.Struct):
    """A run on one source."""

    train_step: int | None = None
    split: str | None = None
    parent: str | None = None
    model: str | None = None
    last_seq: int = -1
    leader: str | None = None
    ended: set[str] = set()  # its chains that have


_NO_RUN = _OpenRun()


class _OpenChain(msgspec.Struct):
    view: ChainView
    first: int
    last: int
    prompt_hash: str | None = None
    policy_first: int | None = None
    session: str | None = None


class LateRow(msgspec.Struct):
    """The row of a chain that is over, which is made when it is wanted: most rows are wanted by nobody, or after they have changed again."""

    state: str
    chain: _OpenChain
    run: _OpenRun

    @property
    def key(self) -> tuple[str, str]:
        """The run's id and the chain's."""
        return self.chain.view.run_id, self.chain.view.chain_id

    def row(self) -> dict[str, Any]:
        """The row, with what its start said."""
        row: dict[str, Any] = msgspec.to_builtins(_summed_up(self.chain, self.run, self.state))
        return row | said_at_start(self.chain.view)


class Skeleton:
    """Rows and totals of the events that were fed to it.

    Args:
        totals: to go on from.
        live: whether `row_so_far` is asked for, so that what a chain's end will tell counts at once.
        late: whether rows of chains that are over come as `late_rows`, and none of their starts in `rows`.

    Attributes:
        totals: so far.
        rows: of chains, that nobody has taken yet; `train_rows`: of training steps and evaluations; `late_rows`: see `late`.
        outcome: the status of the last run that was no other's rollout, None before its end; the worst, if it has several sources.
        runs: the runs that are open, by run and source.
    """

    def __init__(self, totals: Totals | None = None, *, live: bool = False, late: bool = False) -> None:
        self.totals = totals or Totals()
        self._live, self._late = live, late
        self.rows: list[ChainRow] = []
        self.late_rows: list[LateRow] = []
        self.train_rows: list[dict[str, Any]] = []
        self.outcome: str | None = None
        self.runs: dict[Lane, _OpenRun] = {}
        self._ends: dict[str, list[str]] = {}  # how sources ended, of runs that go on on others
        self._evaluations: dict[str, list[dict[str, Any]]] = {}  # and what the ends of evaluations told
        self._chains: dict[tuple[str, str], _OpenChain] = {}
        self._trajectories: dict[tuple[str, str], int] = {}

    def take_rows(self) -> list[ChainRow]:
        """The rows that came since this was called last."""
        rows, self.rows = self.rows, []
        return rows

    def take_late_rows(self) -> list[LateRow]:
        """As `take_rows`, of chains that are over, if they are to come late."""
        rows, self.late_rows = self.late_rows, []
        return rows

    def take_train_rows(self) -> list[dict[str, Any]]:
        """As `take_rows`, of training steps."""
        rows, self.train_rows = self.train_rows, []
        return rows

    def trajectory_at(self, run_id: str, chain_id: str, position: int) -> None:
        """The chain's trajectory stands at this position; its end row will say so."""
        self._trajectories[run_id, chain_id] = position

    def open_rows(self) -> list[ChainRow]:
        """The start rows of the chains that are open, once more: for a folder that lost them."""
        return [self._start_row(chain) for chain in self._chains.values()]

    def catch_up(self, run_id: str, chain_id: str, so_far: ChainSoFar) -> bool:
        """An open chain adds up to this, whether or not its events came. False if it is not open here."""
        chain = self._chains.get((run_id, chain_id))
        if chain is None:
            return False
        if so_far.as_of >= chain.view.as_of:
            so_far.give(chain.view)
        return True

    def feed(self, event: Relayed, position: int) -> None:
        """The event that stands at this position."""
        kind, run_id = event.event_type, event.run_id
        run = self.runs.get((run_id, event.source))  # type: ignore[call-overload]  # equal to a `Lane`, and sooner made
        if run is None and run_id:
            beside = kind is T.ERROR and not event.chain_id  # somebody who watches may say that he failed
            if not (beside and self._goes_on(run_id)):
                self.totals.runs += not self._goes_on(run_id)
                run = self.runs[Lane(run_id, event.source)] = _OpenRun()
        if run is not None and event.seq > run.last_seq:
            run.last_seq = event.seq
        if event.chain_id:
            chain = self._chains.get((run_id, event.chain_id))
            if chain is not None and (kind is CHUNK or kind is OBSERVATION) and not self._live:
                chain.last = position  # an end that follows tells a row the same
            elif run is None or kind is T.CHAIN_START or event.chain_id not in run.ended:
                if chain is None or kind is T.CHAIN_START:
                    chain = self._begin(_whole(event), position)
                elif not apply_usual(chain.view, event):
                    chain.view.apply(_without_heavy(_whole(event)))
                    chain.view.conversation = NO_CONVERSATION
                if chain is not None:
                    chain.last = position
                    if kind is T.CHAIN_END:
                        self._ended(chain)
                        del self._chains[run_id, event.chain_id]
                        if run is not None:
                            run.ended.add(event.chain_id)
        else:
            self._of_run(_whole(event), run)

    def _of_run(self, event: StreamEvent, run: _OpenRun | None) -> None:
        """Take an event that concerns a whole run, or none."""
        kind, run_id = event.event_type, event.run_id
        if kind is T.RUN_START and run is not None:
            data = object_of(event.data)
            run.train_step, run.split = whole(data.get("train_step")), _text(data.get("split"))
            run.parent, run.leader = _text(data.get("parent_run_id")), leader_of(event)
            run.model = _text(data.get("model"))
        elif kind is T.RUN_END:
            self._run_end(event, run)
        elif kind is T.TRAIN_STEP:
            self._train_step(event)
        elif kind is T.GAP:
            for (of_run, _), chain in self._chains.items():
                if of_run == run_id:
                    chain.view.apply(event)
            if end_status(event) is not None:
                self._lose_open(event)

    def _goes_on(self, run_id: str) -> bool:
        """Whether the run is open on any source."""
        return any(lane.run_id == run_id for lane in self.runs)

    def _begin(self, event: StreamEvent, position: int) -> _OpenChain | None:
        """The chain that begins with this event, as far as it was seen; None if no chain begins with it."""
        key, kind = (event.run_id, event.chain_id), event.event_type
        if kind in (T.TRAIN_STEP, T.GAP) or (kind is T.ERROR and not event.run_id):
            return None
        view = begun(event) if kind is T.CHAIN_START else None
        if view is None:
            view = ChainView()
            view.apply(_without_heavy(event))
            view.conversation = NO_CONVERSATION
        chain = self._chains[key] = _OpenChain(view, position, position)
        self._began(chain, event)
        return chain

    def _began(self, chain: _OpenChain, event: StreamEvent) -> None:
        chain.policy_first = chain.view.policy_version
        if event.event_type is T.CHAIN_START:
            data = object_of(event.data)
            messages = data.get("messages")
            chain.session = _text(object_of(data.get("row")).get("session"))
            chain.prompt_hash = chain.view.prompt_hash
            if chain.prompt_hash is None and isinstance(messages, list) and messages:
                chain.prompt_hash = prompt_hash(messages)
        self.totals.chains += 1
        self.totals.open_chains += 1
        if not self._late:
            self.rows.append(self._start_row(chain))

    def _run_of(self, chain: _OpenChain) -> _OpenRun:
        """The run that the chain is of, on its source."""
        return self.runs.get(Lane(chain.view.run_id, chain.view.source), _NO_RUN)

    def _start_row(self, chain: _OpenChain) -> ChainRow:
        view = chain.view
        return _row("start", chain, self._run_of(chain), state="running", **said_at_start(view))

    def open_chains(self) -> list[tuple[str, str]]:
        """The chains that are open, as (`run_id`, `chain_id`)."""
        return list(self._chains)

    def is_open(self, run_id: str, chain_id: str) -> bool:
        """Whether this chain is open."""
        return (run_id, chain_id) in self._chains

    def open_chains_of(self, end: StreamEvent) -> list[tuple[str, str]]:
        """The open chains whose ends will not come after this end of a run.

        Those of its source and of the sources that it leads, or of all if it does not say whose end it is.
        """
        sources = {end.source, *(lane.source for lane in self._led_by(end))}
        return [
            key
            for key, chain in self._chains.items()
            if key[0] == end.run_id and (chain.view.source in sources or not end.source)
        ]

    def _led_by(self, end: StreamEvent) -> list[Lane]:
        """The open parts of the run that end with this one."""
        if end.event_type is not T.RUN_END:
            return []
        return [
            lane for lane, run in self.runs.items() if lane.run_id == end.run_id and run.leader == end.source
        ]

    def forget_open(self, end: StreamEvent) -> None:
        """Forget the chains of which `open_chains_of` tells."""
        for key in self.open_chains_of(end):
            del self._chains[key]
            self.totals.open_chains -= 1

    def _lose_open(self, end: StreamEvent) -> None:
        """Say in a row of each chain of which `open_chains_of` tells that it is lost, and forget them."""
        for key in self.open_chains_of(end):
            self._is_over(self._chains[key], "lost")
        self.forget_open(end)

    def _is_over(self, chain: _OpenChain, state: str, trajectory: int | None = None) -> None:
        """Tell the row of a chain of which nothing more comes."""
        run = self._run_of(chain)
        if self._late:
            view = chain.view
            if view.final_response is not None:  # a row shows no more of it, and may be made much later
                view.final_response = view.final_response[-ANSWER_CHARS:]
            self.late_rows.append(LateRow(state, chain, run))
            return
        row = _summed_up(chain, run, state)
        row.trajectory = trajectory
        self.rows.append(row)

    def end_unseen(self, run_id: str, chain_id: str) -> None:
        """The chain has ended, and its end was not among the events: it is no longer open, and later events do not open it again."""
        chain = self._chains.pop((run_id, chain_id), None)
        if chain is None:
            return
        self.totals.open_chains -= 1
        run = self.runs.get(Lane(run_id, chain.view.source))
        if run is not None:
            run.ended.add(chain_id)

    def row_so_far(self, run_id: str, chain_id: str) -> dict[str, Any]:
        """The row of an open chain as it stands.

        It also has what the chain does now (`activity`), for which tools it waits (`open_tools`), and when it last did something.
        """
        chain = self._chains[run_id, chain_id]
        return _so_far(chain, self._run_of(chain))

    def _ended(self, chain: _OpenChain) -> None:
        view, totals = chain.view, self.totals
        self._is_over(chain, "ended", self._trajectories.pop((view.run_id, view.chain_id), None))
        totals.open_chains -= 1
        totals.failed += view.finish_reason == "error"
        totals.completion_tokens += view.completion_tokens
        if view.reward is not None:
            totals.reward_sum += view.reward
            totals.rewarded += 1
            run = self.runs.get(Lane(view.run_id, view.source))
            if run is not None and run.split == "eval":
                totals.eval_reward_sum += view.reward
                totals.eval_rewarded += 1

    def _train_step(self, event: StreamEvent) -> None:
        data = object_of(event.data)
        step = whole(data.get("train_step"))
        self.totals.train_steps = self.totals.train_steps if step is None else step
        kept = {name: value for name, value in data.items() if name != "chains"}
        row = {"row": "train_step", "run_id": event.run_id, "timestamp": event.timestamp}
        self.train_rows.append(row | kept)
        for run_id, chains in object_of(data.get("chains")).items():
            for chain_id, learned in object_of(chains).items():
                part = object_of(learned)
                self.rows.append(
                    ChainRow(
                        row="trained",
                        run_id=run_id,
                        chain_id=chain_id,
                        train_step=step,
                        advantage=number(part.get("advantage")),
                        staleness=whole(part.get("staleness")),
                    )
                )

    def _run_end(self, event: StreamEvent, run: _OpenRun | None) -> None:
        self._lose_open(event)
        run_id = event.run_id
        for lane in (Lane(run_id, event.source), *self._led_by(event)):
            self.runs.pop(lane, None)
        goes_on = self._goes_on(run_id)
        if not goes_on:
            for key in [key for key in self._trajectories if key[0] == run_id]:
                del self._trajectories[key]
        led = run is not None and Lane(run_id, run.leader or "") in self.runs
        if (run is None or run.parent is None) and not led:
            status = object_of(event.data).get("status")
            ends = self._ends.setdefault(run_id, [])
            ends.append(status if status in ("completed", "cancelled", "failed") else "unknown")
            worst = worst_status(ends)
            self.outcome = None if worst == "unknown" else worst
        if run is not None and run.split == "eval" and not led:
            self._evaluations.setdefault(run_id, []).append(object_of(event.data))
        if not goes_on:
            self._ends.pop(run_id, None)
            evaluations = self._evaluations.pop(run_id, [])
            if evaluations and run is not None:
                about = {"row": "evaluation", "run_id": run_id, "timestamp": event.timestamp}
                self.train_rows.append(about | {"train_step": run.train_step} | summed_ends(evaluations))


def row_so_far(start: ChainRow, so_far: ChainSoFar | None) -> dict[str, Any]:
    """The row of an open chain as it stands: see `Skeleton.row_so_far`.

    Args:
        start: the row of its start.
        so_far: what it adds up to; None: it has done nothing yet.
    """
    view = ChainView(
        run_id=start.run_id,
        chain_id=start.chain_id,
        group_id=start.group_id,
        source=start.source,
        state="waiting",
        since=start.started_at,
        started_at=start.started_at,
        last_event_at=start.started_at,
        conversation=NO_CONVERSATION,
        policy_version=start.policy_first,
        index=start.index,
        reference=start.reference,
        seed=start.seed,
        attempt=start.attempt,
        parent_chain_id=start.parent_chain_id,
    )
    if so_far is not None:
        so_far.give(view)
    chain = _OpenChain(view, -1, -1, start.prompt_hash, start.policy_first, start.session)
    return _so_far(chain, _OpenRun(start.train_step, start.split))


def _so_far(chain: _OpenChain, run: _OpenRun) -> dict[str, Any]:
    view = chain.view
    waits_for = {call.tool_name for call in view.tool_calls.values() if call.status is None}
    now = {
        "activity": view.state,
        "step": view.step,
        "last_event_at": view.last_event_at,
        "open_tools": sorted(waits_for) or None,
    }
    row: dict[str, Any] = msgspec.to_builtins(_summed_up(chain, run, "running"))
    row.update((name, value) for name, value in now.items() if value is not None)
    return row | said_at_start(view)


def _row(kind: str, chain: _OpenChain, run: _OpenRun, **fields: Any) -> ChainRow:
    view = chain.view
    return ChainRow(
        row=kind,
        run_id=view.run_id,
        chain_id=view.chain_id,
        group_id=view.group_id,
        source=view.source,
        index=view.index,
        train_step=run.train_step,
        split=run.split,
        prompt_hash=chain.prompt_hash,
        policy_first=chain.policy_first,
        session=chain.session,
        started_at=view.started_at,
        first=chain.first,
        **fields,
    )


def _summed_up(chain: _OpenChain, run: _OpenRun, state: str) -> ChainRow:
    """What the chain's events add up to."""
    view = chain.view
    times, stays, tool_use = {}, {}, {}
    calls = failed = 0
    for state_name, time in view.times.items():
        times[state_name] = round(time.seconds, 6)
        stays[state_name] = {"count": time.stays, "longest": round(time.longest, 6)}
    for name, use in view.tool_use.items():
        calls += use.calls
        failed += use.failed
        tool_use[name] = {"calls": use.calls, "failed": use.failed, "seconds": round(use.seconds, 6)}
    return _row(
        "end",
        chain,
        run,
        state=state,
        model=None if view.model == run.model else view.model,
        policy_last=view.policy_version,
        ended_at=view.ended_at,
        duration_s=view.duration_s,
        finish_reason=view.finish_reason,
        reward=view.reward,
        metrics=view.metrics,
        steps=view.steps,
        completion_tokens=view.completion_tokens,
        times=times,
        stays=stays,
        calls=calls,
        calls_failed=failed,
        tool_use=tool_use,
        truncated=view.truncated,
        answer=None if view.final_response is None else view.final_response[-ANSWER_CHARS:],
        error=None if view.error is None else view.error["error"],
        error_where=None if view.error is None else view.error["where"] or None,
        last=chain.last,
    )


def said_at_start(told: ChainView | ChainRow) -> dict[str, Any]:
    """The fields that only the row of a chain's start has, or that of an open chain, as far as they are known."""
    said = {
        "seed": told.seed,
        "attempt": told.attempt,
        "parent_chain_id": told.parent_chain_id,
        "reference": told.reference,
    }
    return {name: value for name, value in said.items() if value is not None}


def _whole(event: Relayed) -> StreamEvent:
    return event if isinstance(event, StreamEvent) else event.event()


def _without_heavy(event: StreamEvent) -> StreamEvent:
    heavy = _HEAVY.get(event.event_type)
    if heavy is None or event.data.__class__ is not dict or heavy not in event.data:
        return event
    return msgspec.structs.replace(event, data={n: v for n, v in event.data.items() if n != heavy})


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
