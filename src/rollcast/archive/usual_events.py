"""What the usual events of a chain change in its row, for a fifth of what `ChainView.apply` costs.

A row says nothing about the conversation, and most events belong to a chain of which every event was seen, and have the fields
that `docs/events.md` lists. `apply_usual` takes such events and changes those fields of the view that a row is made of, exactly as
`ChainView.apply` would. All others it leaves to `ChainView.apply`, on the same view.

Fields that no row shows are not updated: `conversation`, `prompt_tokens`, `generations`, `first_token_s`, `tools`, the text that
was generated, arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.bounded import Tail, number, tail_of, whole, word
from rollcast.records.event import TypedData
from rollcast.records.view import ChainView
from rollcast.records.view_events import take_reward
from rollcast.records.view_fields import object_of
from rollcast.records.view_parts import (
    MAX_CALLS,
    MAX_OUTPUT,
    MAX_TEXT,
    NoConversation,
    OpenCall,
    count_of,
    count_use,
    seconds_of,
    seed_of,
    small,
)

if TYPE_CHECKING:
    from rollcast.stream.waiting import Relayed  # what reads a record needs no stream

__all__ = ["NO_CONVERSATION", "apply_usual", "begun"]

T = StreamEventType


NO_CONVERSATION = NoConversation()


def begun(event: StreamEvent) -> ChainView | None:
    """A view that has seen this `chain_start` and nothing before it; None if it is not one of the usual kind."""
    data, at, seq = event.data, event.timestamp, event.seq
    if not (
        data.__class__ is dict
        and at.__class__ is float
        and -1e11 < at < 1e11
        and seq.__class__ is int
        and 0 <= seq < 1 << 53
        and event.run_id.__class__ is event.chain_id.__class__ is event.source.__class__ is str
    ):
        return None
    get = data.get
    reference = get("reference")
    return ChainView(
        run_id=event.run_id,
        chain_id=event.chain_id,
        group_id=word(event.group_id),
        source=event.source,
        state="waiting",
        since=at,
        started_at=at,
        last_event_at=at,
        joined_late=False,
        as_of=seq,
        conversation=NO_CONVERSATION,
        policy_version=whole(get("policy_version")),
        index=count_of(get("index")),
        reference=None if reference is None else small(reference),
        prompt_hash=word(get("prompt_hash")),
        seed=seed_of(get("seed")),
        attempt=count_of(get("attempt")),
        parent_chain_id=word(get("parent_chain_id")),
    )


class _Taker(NamedTuple):
    """What takes events of one type.

    Attributes:
        take: given the view, the fields of the data, the event's time and its step; False if it has to be left to `ChainView.apply`.
        names: of those fields, at least two. One that the data lacks is UNSET.
        of_struct: gets them from data that was read into a struct.
        unset: what each is if it is not there.
    """

    take: Callable[[ChainView, Any, float, int], bool]
    names: tuple[str, ...]
    of_struct: Callable[[Any], tuple[Any, ...]]
    unset: tuple[Any, ...]


def apply_usual(view: ChainView, event: Relayed) -> bool:
    """Apply an event of the view's chain, as far as its row shows it. False, with nothing changed, if it is one for `ChainView.apply`."""
    taker = _TAKERS.get(event.event_type)
    if taker is None:
        return False
    data, at, seq, step = event.data, event.timestamp, event.seq, event.step
    if data.__class__ is dict:
        fields: Any = map(data.get, taker.names, taker.unset)
    elif isinstance(data, TypedData):
        fields = taker.of_struct(data)
    else:
        return False
    if (
        at.__class__ is not float
        or not -1e11 < at < 1e11
        or seq.__class__ is not int
        or not view.as_of < seq < 1 << 53
        or step.__class__ is not int
        or not 0 <= step < 1 << 53
        or event.source != view.source
        or view.state == "ended"
        or not taker.take(view, fields, at, step)
    ):
        return False
    view.as_of, view.last_event_at, view.step = seq, at, step
    depth = event.depth
    view.depth = depth if depth.__class__ is int and -1 << 53 < depth < 1 << 53 else whole(depth)
    return True


def _nothing_open(view: ChainView) -> bool:
    return view.generation is None and not view.tool_calls and not view.generation_tokens


def _generation_start(view: ChainView, fields: Any, at: float, step: int) -> bool:
    version, model = fields
    if not _nothing_open(view):
        return False
    view.generation, view.reasoning, view.generation_step = Tail(MAX_TEXT), None, step
    if (version := whole(version)) is not None:
        view.policy_version = version
    view.model = word(model) or view.model
    view.enter("generating", at)
    return True


def _generation_end(view: ChainView, fields: Any, at: float, step: int) -> bool:
    if view.generation is None:
        return False
    why, sampled = fields
    why, sampled = word(why), count_of(sampled)
    view.generation, view.reasoning, view.generation_step = None, None, step
    view.completion_tokens += view.generation_tokens if sampled is None else sampled
    view.generation_tokens = 0
    view.truncated += why == "length"
    if view.tool_calls:
        view.enter("tool", at)
    else:
        view.enter("scoring" if why in ("stop", "length") else "waiting", at)
    return True


def _tool_call_start(view: ChainView, fields: Any, at: float, step: int) -> bool:
    call_id, name = fields
    call_id, calls = word(call_id) or "", view.tool_calls
    if call_id in calls or len(calls) >= MAX_CALLS or view.generation is not None or view.generation_tokens:
        return False
    calls[call_id] = OpenCall(call_id, word(name) or "", Tail(MAX_OUTPUT), step=step, started_at=at)
    view.reasoning = None
    view.enter("tool", at)
    return True


def _tool_call_end(view: ChainView, fields: Any, at: float, _step: int) -> bool:
    call_id, status, duration = fields
    call_id, calls = word(call_id) or "", view.tool_calls
    call = calls.get(call_id)
    if call is None or call.call_id != call_id:
        return False
    duration = seconds_of(duration)
    if duration is None and call.started_at is not None:
        duration = max(at - call.started_at, 0.0)
    del calls[call_id]
    count_use(view.tool_use, call.tool_name, word(status) or call.status, duration)
    if view.generation is not None:
        view.enter("generating", at)
    else:
        view.enter("tool" if calls else "waiting", at)
    return True


def _reward(view: ChainView, fields: Any, _at: float, step: int) -> bool:
    reward, final, metrics = fields
    take_reward(view, step, {"reward": reward, "final": final, "metrics": metrics})
    return True


def _chain_end(view: ChainView, fields: Any, at: float, _step: int) -> bool:
    if not _nothing_open(view):
        return False
    why, said, steps, sampled, reward, metrics, duration = fields
    view.reasoning = None
    view.finish_reason = word(why) or "unknown"
    view.final_response, view.final_response_omitted = tail_of(
        said if isinstance(said, str) else "", MAX_TEXT
    )
    view.steps, view.duration_s = count_of(steps), seconds_of(duration)
    sampled = count_of(sampled)
    view.completion_tokens = view.completion_tokens if sampled is None else sampled
    if reward is not UNSET:
        view.reward = number(reward)
    if metrics is not UNSET and metrics:
        view.metrics = object_of(small(metrics))
    view.ended_at = at
    view.enter("ended", at)
    return True


def _taker(take: Callable[[ChainView, Any, float, int], bool], *names: str) -> _Taker:
    return _Taker(take, names, attrgetter(*names), (UNSET,) * len(names))


_TAKERS: dict[str, _Taker] = {
    T.LLM_GENERATION_START: _taker(_generation_start, "policy_version", "model"),
    T.LLM_GENERATION_END: _taker(_generation_end, "finish_reason", "completion_tokens"),
    T.TOOL_CALL_START: _taker(_tool_call_start, "call_id", "tool_name"),
    T.TOOL_CALL_END: _taker(_tool_call_end, "call_id", "status", "duration_s"),
    T.REWARD: _taker(_reward, "reward", "final", "metrics"),
    T.CHAIN_END: _taker(
        _chain_end,
        "finish_reason",
        "final_response",
        "steps",
        "completion_tokens",
        "reward",
        "metrics",
        "duration_s",
    ),
}
