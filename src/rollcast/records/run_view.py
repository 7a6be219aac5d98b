"""What a watcher knows about runs: `RunView` for one, with a `ChainView` for each of its chains; `RunViews` for all of them.

Like a chain's view, they take any event and never raise. Memory is bounded: a run keeps 4,096 chains, and drops those that ended
first (they stay in the totals, and are counted as `omitted`), and it keeps 1,024 training steps. Conversations of ended chains
are kept while they weigh 8,388,608 together in a run, and in the 8 runs that ended last. 512 runs, or as many as have 16,384
chains, are kept; those that ended first are dropped first. An archive or a log has the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from rollcast.records.bounded import clean, number, whole, word
from rollcast.records.event import StreamEvent, StreamEventType
from rollcast.records.lanes import worst_status
from rollcast.records.view import ChainView
from rollcast.records.view_fields import error_of, object_of
from rollcast.records.view_parts import count_of, moment, seconds_of, seed_of, seq_of, small, text_of, words

__all__ = ["RunView", "RunViews", "SourcePart"]

T = StreamEventType

MAX_CHAINS = 4_096
MAX_STEPS = 1_024
MAX_SOURCES = 4_096
MAX_RUNS = 512
MAX_ALL_CHAINS = 16_384  # in all runs
MAX_ENDED_WEIGHT = 8_388_608  # weight of the conversations of a run's ended chains
WHOLE_RUNS = 8  # how many ended runs keep conversations
STATUSES = ("completed", "cancelled", "failed")
CLOSED = ("ended", "lost")


class SourcePart(msgspec.Struct, eq=False):
    """A run on one source.

    Attributes:
        status: how it ended, None before.
        begun: whether its `run_start` was seen.
        leader: the source that tells what the run as a whole is; None: it does itself.
        chains, groups: as in its `run_start`.
        duration_s, mean_reward, completion_tokens: as in its `run_end`.
    """

    status: str | None = None
    begun: bool = False
    leader: str | None = None
    chains: int | None = None
    groups: int | None = None
    duration_s: float | None = None
    mean_reward: float | None = None
    completion_tokens: int | None = None


class RunView(msgspec.Struct, eq=False):
    """What a watcher knows about a run. Feed it the run's events, and the `train_step` events of the training it belongs to.

    A run of several sources has a `run_start` and a `run_end` of each, and has ended when all that opened it have.

    Attributes:
        run_id: the run that this is a view of, from the first event.
        status: `running`, `completed`, `cancelled` or `failed`, the worst of its sources; `unknown` if neither start nor end was seen.
        started_at, last_event_at, ended_at: timestamps, None if not seen.
        sources: its part on each source, in the order in which they were first seen; at most 4,096.
        expected_chains, expected_groups: as in `run_start`, the sum over its sources that have no leader among them.
        agent, model, backend, policy_version, parent_run_id, train_step, split, name, tags, seed: as in `run_start`; None if they
            are not there.
        chains: the chains' views by id, in the order in which they were first seen.
        omitted: how many chains were dropped.
        gaps: how often events were lost.
        errors, error: how many errors concerned the whole run, and the latest.
        train_steps: the run's latest 1,024 steps: `train_step`, `policy_version`, `metrics`, `timestamp`.
        duration_s, mean_reward_said, completion_tokens_said: as in `run_end`; of several sources without a leader the longest, None, and the
            sum.
        most_chains: how many chains are kept.
        keeps_conversations: whether their views have the messages.
    """

    run_id: str = ""
    status: str = "unknown"
    started_at: float | None = None
    last_event_at: float | None = None
    ended_at: float | None = None
    sources: dict[str, SourcePart] = {}
    expected_chains: int | None = None
    expected_groups: int | None = None
    agent: str | None = None
    model: str | None = None
    backend: str | None = None
    policy_version: int | None = None
    parent_run_id: str | None = None
    train_step: int | None = None
    split: str | None = None
    name: str | None = None
    tags: list[str] | None = None
    seed: int | None = None
    chains: dict[str, ChainView] = {}
    ended_weights: dict[str, int] = {}  # weights of ended chains' conversations, earliest first
    ended_weight: int = 0  # their sum
    omitted: int = 0
    omitted_failed: int = 0
    omitted_tokens: int = 0
    omitted_rewards: tuple[float, int] = (0.0, 0)  # sum, count
    gaps: int = 0
    as_of: dict[str, int] = {}  # by source: the last `seq` of events that concern only the run
    errors: int = 0
    error: dict[str, Any] | None = None
    train_steps: list[dict[str, Any]] = []
    duration_s: float | None = None
    mean_reward_said: float | None = None
    completion_tokens_said: int | None = None
    most_chains: int = MAX_CHAINS
    keeps_conversations: bool = True

    # -- what it tells ---------------------------------------------------------------------------------------------------

    @property
    def by_state(self) -> dict[str, int]:
        """How many chains are in each state; dropped chains count as ended."""
        counts = Counter(view.state for view in self.chains.values())
        counts["ended"] += self.omitted
        return {state: n for state, n in counts.items() if n}

    @property
    def failed(self) -> int:
        """How many chains ended with `error`."""
        return self.omitted_failed + sum(view.finish_reason == "error" for view in self.chains.values())

    @property
    def tokens(self) -> int:
        """How many tokens were sampled, as far as is known."""
        return max(
            self.omitted_tokens + sum(view.tokens for view in self.chains.values()),
            self.completion_tokens_said or 0,
        )

    @property
    def mean_reward(self) -> float | None:
        """The mean over the chains that have a reward, from `run_end` or as far as it is known."""
        if self.mean_reward_said is not None:
            return self.mean_reward_said
        rewards = [view.reward for view in self.chains.values() if view.reward is not None]
        total, count = self.omitted_rewards
        count += len(rewards)
        mean = (total + sum(rewards)) / count if count else math.nan
        return mean if math.isfinite(mean) else None

    def to_dict(self) -> dict[str, Any]:
        """A row about the run with counts of its chains, as plain JSON."""
        return {
            "run_id": clean(self.run_id),
            **{name: msgspec.to_builtins(getattr(self, name)) for name in _ROW},
        }

    # -- what happens ----------------------------------------------------------------------------------------------------

    def apply(self, event: StreamEvent) -> None:
        """Take the next event, in place. Of other runs' events, only a `train_step` that names its chains changes it."""
        kind: Any = event.event_type
        chain_id = event.chain_id
        if event.run_id != self.run_id:
            if self.run_id or self.chains or self.status != "unknown":
                if kind == T.TRAIN_STEP:
                    self._learned(event)
                return
            self.run_id = text_of(event.run_id)
        if chain_id and chain_id.__class__ is str:
            if event.source.__class__ is str and event.source not in self.sources:
                self._part_of(event.source)
            view = self.chains.get(chain_id)
            if view is None:
                view = self._new_chain(chain_id)
            had_ended = view.state == "ended"
            view.apply(event)
            if view.last_event_at is not None:
                self.last_event_at = view.last_event_at
            if view.state == "ended" and not had_ended:
                self._chain_ended(chain_id, view.conversation.weight)
            return
        self._apply_to_run(event, text_of(kind), object_of(event.data))

    def _new_chain(self, chain_id: str) -> ChainView:
        if len(self.chains) >= self.most_chains:
            found = (name for name, view in self.chains.items() if view.state in CLOSED)
            self.let_go(next(found, next(iter(self.chains))))
        view = ChainView() if self.keeps_conversations else ChainView.without_conversation()
        self.chains[chain_id] = view
        return view

    def _chain_ended(self, chain_id: str, weight: int) -> None:
        weights = self.ended_weights
        self.ended_weight += weight - weights.pop(chain_id, 0)
        weights[chain_id] = weight
        while self.ended_weight > MAX_ENDED_WEIGHT and len(weights) > 1:
            earliest = next(iter(weights))
            self.ended_weight -= weights.pop(earliest)
            if self.chains[earliest].state == "ended":  # and has not begun again
                self.chains[earliest].forget_messages()

    def forget_messages(self) -> None:
        """Drop the conversations of all ended chains."""
        for view in self.chains.values():
            if view.state in CLOSED:
                view.forget_messages()
        self.ended_weights, self.ended_weight = {}, 0

    def let_go(self, chain_id: str) -> None:
        """Drop a chain that is kept; it stays in the totals."""
        view = self.chains.pop(chain_id)
        self.ended_weight -= self.ended_weights.pop(chain_id, 0)
        self.omitted += 1
        self.omitted_failed += view.finish_reason == "error"
        self.omitted_tokens += view.tokens
        if view.reward is not None:
            total, count = self.omitted_rewards
            self.omitted_rewards = total + view.reward, count + 1

    def _apply_to_run(self, event: StreamEvent, kind: str, data: dict[str, Any]) -> None:
        source, seq = text_of(event.source), seq_of(event.seq)
        if kind == T.GAP:
            if not 0 <= seq_of(data.get("to_seq")) <= self.as_of.get(source, -1):
                self.gaps += 1
        elif seq >= 0:
            if seq <= self.as_of.get(source, -1):
                return
            if source in self.as_of or len(self.as_of) < MAX_RUNS:
                self.as_of[source] = seq
        at = moment(event.timestamp)
        self.last_event_at = self.last_event_at if at is None else at
        if kind == T.GAP and "run_status" in data:
            self._lose(source, data, at)
        elif kind == T.RUN_START:
            self._start(source, data, at)
        elif kind == T.RUN_END:
            self._end(source, data, at)
        elif kind == T.TRAIN_STEP:
            self._step(data, at)
            self._learned(event)
        elif kind == T.ERROR:
            self.errors += 1
            self.error = error_of(data)
        if kind in (T.GAP, T.RUN_END):
            led = {name for name, part in self.sources.items() if part.leader == source}
            for view in self.chains.values():
                ends = kind == T.RUN_END and view.source in led  # with its leader
                view.apply(msgspec.structs.replace(event, source=view.source) if ends else event)

    def _part_of(self, source: str) -> SourcePart:
        part = self.sources.get(source)
        if part is None:
            part = SourcePart()
            if len(self.sources) < MAX_SOURCES:
                self.sources[source] = part
        return part

    def _leading(self) -> list[SourcePart]:
        """The parts that tell what the run as a whole is."""
        return [part for part in self.sources.values() if part.leader not in self.sources]

    def _start(self, source: str, data: dict[str, Any], at: float | None) -> None:
        part = self._part_of(source)
        part.begun, part.leader = True, word(data.get("leader"))
        part.leader = None if part.leader == source else part.leader
        part.chains, part.groups = count_of(data.get("chains")), count_of(data.get("groups"))
        leading = self._leading()
        self.expected_chains = _sum_of(part.chains for part in leading)
        self.expected_groups = _sum_of(part.groups for part in leading)
        tells = part in leading and not any(other is not part and other.begun for other in leading)
        if tells:
            for name in ("agent", "model", "backend", "parent_run_id", "split", "name"):
                setattr(self, name, word(data.get(name)))
            self.tags = words(data.get("tags"))
            self.policy_version, self.seed = whole(data.get("policy_version")), seed_of(data.get("seed"))
            self.train_step = whole(data.get("train_step"))
        if any(other is not part and other.begun for other in self.sources.values()):
            self.ended_at = None if part.status is None else self.ended_at
            self.status = "running" if self.ended_at is None else self.status
        else:
            self.started_at = at
            self.status = "running" if self.status == "unknown" else self.status

    def _end(self, source: str, data: dict[str, Any], at: float | None) -> None:
        status = data.get("status")
        part = self._part_of(source)
        part.duration_s = seconds_of(data.get("duration_s"))
        part.mean_reward = number(data.get("mean_reward"))
        part.completion_tokens = count_of(data.get("completion_tokens"))
        leading = self._leading()
        self.duration_s = max((p.duration_s for p in leading if p.duration_s is not None), default=None)
        self.mean_reward_said = leading[0].mean_reward if len(leading) == 1 else None
        self.completion_tokens_said = _sum_of(p.completion_tokens for p in leading)
        self._source_ended(source, status if status in STATUSES else "completed", at)

    def _lose(self, source: str, data: dict[str, Any], at: float | None) -> None:
        """Note that a source's part of the run has ended, and that its end was lost; of every source, if the gap names none."""
        status = status if (status := data["run_status"]) in STATUSES else "unknown"
        if not source and source not in self.sources:
            for part in self.sources.values():
                part.status = part.status or status
        self._source_ended(source, status, at)

    def _source_ended(self, source: str, status: str, at: float | None) -> None:
        self._part_of(source).status = status
        for part in self.sources.values():
            if part.leader == source:
                part.status = part.status or status
        if any(part.status is None for part in self.sources.values()):
            self.status = "running"
        else:
            self.status = worst_status(part.status or "" for part in self._leading())
            self.ended_at = at

    def _step(self, data: dict[str, Any], at: float | None) -> None:
        row = {
            "train_step": whole(data.get("train_step")),
            "policy_version": whole(data.get("policy_version")),
            "metrics": object_of(small(data.get("metrics"))),
            "timestamp": at,
        }
        self.train_steps = [*self.train_steps[-MAX_STEPS + 1 :], row]

    def _learned(self, event: StreamEvent) -> None:
        """Pass the event to the chains that a trainer names."""
        named = object_of(object_of(object_of(event.data).get("chains")).get(self.run_id))
        for chain_id in named:
            view = self.chains.get(chain_id)
            if view is not None:
                view.apply(event)


def _sum_of(counts: Iterable[int | None]) -> int | None:
    """The sum of those that are known; None if none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


_ROW = (
    "status", "started_at", "last_event_at", "ended_at", "expected_chains", "expected_groups", "agent", "model", "backend",
    "policy_version", "parent_run_id", "train_step", "split", "name", "tags", "seed", "omitted", "gaps", "errors", "error",
    "train_steps", "duration_s", "by_state", "failed", "tokens", "mean_reward",
)  # fmt: skip


class RunViews(msgspec.Struct, eq=False):
    """What a watcher knows of all runs that it sees.

    Attributes:
        runs: by id, in the order in which they were first seen.
        omitted: runs that were let go.
        dropped: ids of those that were let go for the latest event.
        most_chains: how many chains of a run are kept.
        keeps_conversations: whether views of chains have the messages.
    """

    runs: dict[str, RunView] = {}
    omitted: int = 0
    dropped: list[str] = []
    chains: int = 0  # of all runs
    ended_ids: list[str] = []  # of runs that have ended and keep conversations, the earliest first
    most_chains: int = MAX_CHAINS
    keeps_conversations: bool = True

    def apply(self, event: StreamEvent) -> None:
        """Take the next event of any run. What concerns no run, such as the failure of an observer, changes nothing."""
        if self.dropped:
            self.dropped = []
        run_id: Any = event.run_id
        run = self.runs.get(run_id) if run_id.__class__ is str else None
        if run is None and run_id.__class__ is str and (run_id or event.chain_id):
            run = self._new_run(run_id)
        if run is not None:
            count, ended_at = len(run.chains), run.ended_at
            run.apply(event)
            if len(run.chains) != count:
                self.chains += len(run.chains) - count
                self._bound(run_id)
            if run.ended_at is not ended_at:
                self._run_ended(run_id)
        if event.event_type == T.TRAIN_STEP:
            for name in object_of(object_of(event.data).get("chains")):
                named = None if name == run_id else self.runs.get(name)
                if named is not None:
                    named.apply(event)

    def forget(self, run_id: str) -> None:
        """Drop a run. If more of its events come, it begins anew."""
        run = self.runs.pop(run_id, None)
        if run is not None:
            self.chains -= len(run.chains)
            self.ended_ids = [name for name in self.ended_ids if name != run_id]

    def let_go(self, run_id: str, chain_id: str) -> None:
        """Drop a chain of a run, if it is kept."""
        run = self.runs.get(run_id)
        if run is not None and chain_id in run.chains:
            run.let_go(chain_id)
            self.chains -= 1

    def _new_run(self, run_id: str) -> RunView:
        run = self.runs[run_id] = RunView(
            run_id, most_chains=self.most_chains, keeps_conversations=self.keeps_conversations
        )
        self._bound(run_id)
        return run

    def _bound(self, newest: str) -> None:
        while len(self.runs) > 1 and (len(self.runs) > MAX_RUNS or self.chains > MAX_ALL_CHAINS):
            first = next(name for name in self.runs if name != newest)
            ended = (name for name, run in self.runs.items() if run.ended_at is not None and name != newest)
            name = next(ended, first) if self.ended_ids else first
            self.chains -= len(self.runs.pop(name).chains)
            self.omitted += 1
            self.dropped.append(name)

    def _run_ended(self, run_id: str) -> None:
        self.ended_ids = [*(name for name in self.ended_ids if name != run_id), run_id]
        if len(self.ended_ids) > WHOLE_RUNS:
            earliest = self.runs.get(self.ended_ids.pop(0))
            if earliest is not None:
                earliest.forget_messages()
