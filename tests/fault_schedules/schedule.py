"""What a seed draws: the runs, what watches them, and what happens at which turn of the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, get_args

from fault_schedules.hostile import HostilePlan, draw_hostile
from fault_schedules.injectors import BackendFault, ChainPlan, ObserverPlan, RewardFault
from rollcast.records import EventFilter, StreamEventType

__all__ = ["Action", "ObserverPlace", "Plan", "ReaderPlan", "RunPlan", "SubscriberPlan", "draw"]

T = StreamEventType

TOOLS = (
    "look", "trip", "count", "mumble", "give_up", "linger", "stall",
    "think", "crash", "recite", "add", "block",
)  # fmt: skip
HANGING = ("hang", "seize")
TYPES = (
    [T.LLM_GENERATION_CHUNK],
    [T.CHAIN_END, T.ERROR],
    [T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END],
    [T.LLM_GENERATION_START, T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END],
    [T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.TOOL_CALL_END],
    [T.RUN_START, T.RUN_END],
)

Kind = Literal[
    "join", "leave", "refresh", "read", "emit", "cancel_chain", "cancel_run", "cancel_task", "drain"
]


@dataclass
class RunPlan:
    """One run.

    Attributes:
        starts_at: turn of the loop.
        as_stream: by `run_async_streaming`; `leaves_after` so many events of it, or never.
        chains: chain id -> its plan.
    """

    starts_at: int
    rows: int
    num_chains: int
    max_steps: int
    concurrent: int | None
    seed: int
    as_stream: bool
    leaves_after: int | None
    chain_filter: str | None
    chains: dict[str, ChainPlan]


@dataclass
class ObserverPlace:
    """An observer and where it is added: to the manager, or in one that stands for others."""

    plan: ObserverPlan
    via: Literal["manager", "specific", "multi_chain", "multi_global"]
    chain: str | None = None


@dataclass
class ReaderPlan:
    """Somebody who reads `events()`: so many of them, or all, pausing after each; then perhaps again."""

    name: str
    chain: str | None
    leaves_after: int | None
    pause: int
    again: bool


@dataclass
class SubscriberPlan:
    """Somebody who has `subscribe`d in one segment, from one turn on: a pause after each event; None: it reads at the end."""

    name: str
    segment: int
    begins: int
    pause: int | None
    wish: EventFilter


@dataclass
class Action:
    """What happens at one turn of the loop of one segment; in a thread of its own if `threaded`."""

    at: int
    kind: Kind
    target: int = 0
    chain: str = ""
    wish: EventFilter | None = None
    twice_after: int | None = None
    threaded: bool = False


@dataclass
class Plan:
    """What one seed gives.

    Attributes:
        segments: the runs of each `asyncio.run`, one after the other, on one manager.
        actions: of each segment.
        drains: whether each segment waits for the observers before its loop ends.
        hostile, subscribers: more that watch; see there.
        prompt_chars: how long the prompts are, for snapshots that are large.
        deaf_client: whether each segment has a server, and a client of it that never reads.
        patience: turns of the loop for which what hangs is let hang.
    """

    seed: int
    queue_limit: int
    token_exact: bool
    backend_cleanup: int
    patience: int
    segments: list[list[RunPlan]] = field(default_factory=list)
    observers: list[ObserverPlace] = field(default_factory=list)
    readers: list[ReaderPlan] = field(default_factory=list)
    actions: list[list[Action]] = field(default_factory=list)
    drains: list[bool] = field(default_factory=list)
    hostile: list[HostilePlan] = field(default_factory=list)
    subscribers: list[SubscriberPlan] = field(default_factory=list)
    prompt_chars: int = 0
    deaf_client: bool = False

    def lines(self) -> Iterator[str]:
        """The plan, to be read."""
        yield (
            f"queue_limit={self.queue_limit} token_exact={self.token_exact} patience={self.patience} "
            f"backend_cleanup={self.backend_cleanup} drains={self.drains} prompt_chars={self.prompt_chars} "
            f"deaf_client={self.deaf_client}"
        )
        for i, runs in enumerate(self.segments):
            for r, run in enumerate(runs):
                yield f"loop {i}, run {r}: {_short(run, 'chains')}"
                for chain_id, chain in run.chains.items():
                    yield f"  {chain_id}: {_short(chain, 'turns')}"
                    yield from (f"    {turn[:150]}" for turn in chain.turns)
        for n, place in enumerate(self.observers):
            yield f"observer {n} via {place.via} {place.chain or ''}: {_short(place.plan)}"
        for n, reader in enumerate(self.readers):
            yield f"reader {n}: {_short(reader)}"
        yield from (f"hostile: {_short(hostile)}" for hostile in self.hostile)
        yield from (f"subscriber: {_short(subscriber)}" for subscriber in self.subscribers)
        for i, actions in enumerate(self.actions):
            yield from (f"loop {i}, turn {a.at}: {_short(a, 'at')}" for a in actions)


def _short(value: Any, *without: str) -> str:
    """The fields that say something."""
    dull: tuple[Any, ...] = (None, False, "", {}, frozenset(), EventFilter())
    return " ".join(
        f"{k}={v!r}"
        for k, v in vars(value).items()
        if k not in without and not any(v is d or v == d for d in dull)
    )


def draw(seed: int) -> Plan:
    """The plan of this seed."""
    rng = Random(seed)
    hung = rng.random() < 0.3  # somebody hangs for ever
    plan = Plan(
        seed=seed,
        queue_limit=rng.choice((2_000, 6_000, 12_000, 20_000, 40_000, 80_000, 8 << 20)),
        token_exact=rng.random() < 0.8,
        backend_cleanup=rng.choice((0, 0, 3)),
        patience=rng.randint(0, 60),
    )
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        starts = [0] if rng.random() < 0.6 else [0, rng.randint(0, 80)]
        plan.segments.append([_run(rng, at) for at in starts])
        plan.drains.append(rng.random() < 0.5)
    plan.observers = [_observer(rng, n, may_hang=hung) for n in range(rng.randint(1, 6))]
    plan.readers = [_reader(rng, n) for n in range(rng.randint(0, 3))]
    for runs in plan.segments:
        actions = [_action(rng, plan, runs) for _ in range(rng.randint(3, 14))]
        plan.actions.append(sorted(actions, key=lambda action: action.at))
    _draw_more(plan)
    return plan


def _draw_more(plan: Plan) -> None:
    """By a random stream of its own, so that all else stays what the seed drew before there was more."""
    rng = Random(f"more of {plan.seed}")
    segments = len(plan.segments)
    plan.hostile = draw_hostile(rng, segments)
    for n in range(rng.choice((0, 0, 1, 2))):
        pause = rng.choice((None, None, 0, 1, 10))
        begins = rng.choice((0, rng.randint(0, 100)))
        wish = _filter(rng)
        plan.subscribers.append(
            SubscriberPlan(f"subscriber_{n}", rng.randrange(segments), begins, pause, wish)
        )
    plan.prompt_chars = rng.choice((0, 0, 0, 0, 0, 0, 3_000, 300_000))
    plan.deaf_client = rng.random() < 0.06


def _run(rng: Random, starts_at: int) -> RunPlan:
    rows, repeats = rng.randint(1, 2), rng.randint(1, 3)
    chains = [f"chain_{i}" for i in range(rows * repeats)]
    as_stream = rng.random() < 0.3
    return RunPlan(
        starts_at=starts_at,
        rows=rows,
        num_chains=repeats,
        max_steps=rng.randint(1, 4),
        concurrent=rng.choice((None, None, 1, 2)),
        seed=rng.randrange(1000),
        as_stream=as_stream,
        leaves_after=rng.randint(0, 60) if as_stream and rng.random() < 0.5 else None,
        chain_filter=rng.choice(chains) if as_stream and rng.random() < 0.3 else None,
        chains={chain_id: _chain(rng) for chain_id in chains},
    )


def _chain(rng: Random) -> ChainPlan:
    faulty = rng.random() < 0.35
    shaped = rng.random() < 0.4
    turns = [
        _turn(rng, hangs=faulty and rng.random() < 0.2, tail=not shaped) for _ in range(rng.randint(0, 3))
    ]
    plan = ChainPlan([*turns, _words(rng, rng.choice((rng.randint(1, 30), 120)))], shaped=shaped)
    if faulty and rng.random() < 0.6:
        kinds: tuple[BackendFault, ...] = get_args(BackendFault)
        (kind,) = rng.choices(kinds, (4, 3, 1, 1, 1))
        plan.backend[rng.randint(1, len(plan.turns))] = (rng.randint(0, 6), kind)
    if faulty and rng.random() < 0.4:
        plan.reward_fault = rng.choice(get_args(RewardFault))
    return plan


def _turn(rng: Random, *, hangs: bool, tail: bool) -> str:
    names = [rng.choice(TOOLS) for _ in range(rng.choice((1, 1, 2, 3)))]
    if hangs:
        names[-1] = rng.choice(HANGING)
    elif rng.random() < 0.2:
        names[-1] = rng.choice(("answer", "unknown", "malformed"))
    calls = []
    for name in names:
        call = json.dumps({"name": name, "arguments": {"n": rng.randint(0, 6)}})
        calls.append(f"<tool_call>{call[:-4] if name == 'malformed' else call}</tool_call>")
    after = " and so on and on" if tail and rng.random() < 0.2 else ""
    return _words(rng, rng.choice((rng.randint(0, 8), 60))) + " ".join(calls) + after


def _words(rng: Random, n: int) -> str:
    return "".join(f"{rng.choice(('so', 'then', 'é', '四', '<', 'answer', '4'))} " for _ in range(n))


def _filter(rng: Random) -> EventFilter:
    if rng.random() < 0.4:
        return EventFilter()
    chains = rng.choice((None, None, "chain_0", ["chain_0", "chain_1"], ["chain_2"]))
    groups = rng.choice((None, None, None, "group_0", "group_1"))
    types = rng.choice((None, None, *TYPES))
    wish = EventFilter(chains=chains, groups=groups, types=types)
    return wish | EventFilter(types=T.RUN_END) if rng.random() < 0.1 else wish


def _observer(rng: Random, n: int, *, may_hang: bool) -> ObserverPlace:
    via: Any = rng.choice(("manager", "manager", "manager", "specific", "multi_chain", "multi_global"))
    calls = range(rng.choice((5, 40)))
    plan = ObserverPlan(
        f"observer_{n}",
        _filter(rng),
        mode="lossless" if rng.random() < 0.3 else "coalesce",
        threaded=rng.random() < 0.3,
        batched=rng.random() < 0.3,
    )
    manner = rng.random()
    if manner < 0.45:
        plan.stalls = {call: rng.choice((1, 5, 60, 200, 500)) for call in calls if rng.random() < 0.3}
    elif manner < 0.6 and may_hang:
        plan.hangs_at = rng.choice(calls)
    elif manner < 0.75:
        plan.raises_at = frozenset(call for call in calls if rng.random() < 0.4)
    elif manner < 0.85:
        plan.raises_always = True
    plan.bad_hooks = rng.random() < 0.1
    return ObserverPlace(
        plan, via, f"chain_{rng.randint(0, 2)}" if via in ("specific", "multi_chain") else None
    )


def _reader(rng: Random, n: int) -> ReaderPlan:
    return ReaderPlan(
        f"reader_{n}",
        chain=rng.choice((None, "chain_0", "chain_1")),
        leaves_after=rng.choice((None, rng.randint(0, 40))),
        pause=rng.choice((0, 0, 1, 10)),
        again=rng.random() < 0.4,
    )


KINDS: dict[Kind, int] = {
    "join": 16, "leave": 9, "refresh": 8, "read": 5, "emit": 3,
    "cancel_chain": 4, "cancel_run": 1, "cancel_task": 2, "drain": 2,
}  # fmt: skip


def _action(rng: Random, plan: Plan, runs: list[RunPlan]) -> Action:
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    action = Action(rng.choice((0, rng.randint(0, 60), rng.randint(0, 400))), kind)
    if kind in ("join", "leave", "refresh"):
        action.target = rng.randrange(len(plan.observers))
        action.threaded = rng.random() < 0.3
        action.wish = _filter(rng) if kind == "refresh" else None
    elif kind == "emit":
        action.threaded = rng.random() < 0.3
    elif kind == "read":
        if not plan.readers:
            action.kind = "drain"
        else:
            action.target = rng.randrange(len(plan.readers))
    else:
        action.target = rng.randrange(len(runs))
        action.chain = rng.choice(list(runs[action.target].chains))
        action.twice_after = rng.choice((None, rng.randint(0, 8)))
    return action
