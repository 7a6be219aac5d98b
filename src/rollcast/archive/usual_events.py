"""What the usual events of a chain change in its row, for a fifth of what `ChainView.apply` costs.

A row says nothing about the conversation, and most events belong to a chain of which every event was seen, and have the fields
that `docs/events.md` lists. `apply_usual` takes such events and changes those fields of the view that a row is made of, exactly as
`ChainView.apply` would. All others it leaves to `ChainView.apply`, on the same view.

Fields that no row shows are not updated: `conversation`, `prompt_tokens`, `generations`, `first_token_s`, `tools`, the text that
was generated, arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.bounded import Tail, number, tail_of, whole, word
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


def apply_usual(view: ChainView, event: StreamEvent) -> bool:
    """Apply an event of the view's chain, as far as its row shows it. False, with nothing changed, if it is one for `ChainView.apply`."""
    take = _TAKERS.get(event.event_type)
    data, at, seq, step = event.data, event.timestamp, event.seq, event.step
    if (
        take is None
        or data.__class__ is not dict
        or at.__class__ is not float
        or not -1e11 < at < 1e11
        or seq.__class__ is not int
        or not view.as_of < seq < 1 << 53
        or step.__class__ is not int
        or not 0 <= step < 1 << 53
        or event.source != view.source
        or view.state == "ended"
        or not take(view, data, at, step)
    ):
        return False
    view.as_of, view.last_event_at, view.step = seq, at, step
    depth = event.depth
    view.depth = depth if depth.__class__ is int and -1 << 53 < depth < 1 << 53 else whole(depth)
    return True


def _nothing_open(view: ChainView) -> bool:
    return view.generation is None and not view.tool_calls and not view.generation_tokens


def _generation_start(view: ChainView, data: dict[str, Any], at: float, step: int) -> bool:
    if not _nothing_open(view):
        return False
    view.generation, view.reasoning, view.generation_step = Tail(MAX_TEXT), None, step
    version = data.get("policy_version")
    if version is not None and (version := whole(version)) is not None:
        view.policy_version = version
    view.model = word(data.get("model")) or view.model
    view.enter("generating", at)
    return True


def _generation_end(view: ChainView, data: dict[str, Any], at: float, step: int) -> bool:
    if view.generation is None:
        return False
    get = data.get
    why, sampled = word(get("finish_reason")), count_of(get("completion_tokens"))
    view.generation, view.reasoning, view.generation_step = None, None, step
    view.completion_tokens += view.generation_tokens if sampled is None else sampled
    view.generation_tokens = 0
    view.truncated += why == "length"
    if view.tool_calls:
        view.enter("tool", at)
    else:
        view.enter("scoring" if why in ("stop", "length") else "waiting", at)
    return True


def _tool_call_start(view: ChainView, data: dict[str, Any], at: float, step: int) -> bool:
    call_id, calls = word(data.get("call_id")) or "", view.tool_calls
    if call_id in calls or len(calls) >= MAX_CALLS or view.generation is not None or view.generation_tokens:
        return False
    name = word(data.get("tool_name")) or ""
    calls[call_id] = OpenCall(call_id, name, Tail(MAX_OUTPUT), step=step, started_at=at)
    view.reasoning = None
    view.enter("tool", at)
    return True


def _tool_call_end(view: ChainView, data: dict[str, Any], at: float, _step: int) -> bool:
    call_id, calls = word(data.get("call_id")) or "", view.tool_calls
    call = calls.get(call_id)
    if call is None or call.call_id != call_id:
        return False
    duration = seconds_of(data.get("duration_s"))
    if duration is None and call.started_at is not None:
        duration = max(at - call.started_at, 0.0)
    del calls[call_id]
    count_use(view.tool_use, call.tool_name, word(data.get("status")) or call.status, duration)
    if view.generation is not None:
        view.enter("generating", at)
    else:
        view.enter("tool" if calls else "waiting", at)
    return True


def _reward(view: ChainView, data: dict[str, Any], _at: float, step: int) -> bool:
    take_reward(view, step, data)
    return True


def _chain_end(view: ChainView, data: dict[str, Any], at: float, _step: int) -> bool:
    if not _nothing_open(view):
        return False
    get = data.get
    view.reasoning = None
    view.finish_reason = word(get("finish_reason")) or "unknown"
    said = get("final_response")
    view.final_response, view.final_response_omitted = tail_of(
        said if isinstance(said, str) else "", MAX_TEXT
    )
    view.steps, view.duration_s = count_of(get("steps")), seconds_of(get("duration_s"))
    sampled = count_of(get("completion_tokens"))
    view.completion_tokens = view.completion_tokens if sampled is None else sampled
    if "reward" in data:
        view.reward = number(data["reward"])
    if metrics := get("metrics"):
        view.metrics = object_of(small(metrics))
    view.ended_at = at
    view.enter("ended", at)
    return True


_TAKERS: dict[str, Callable[[ChainView, dict[str, Any], float, int], bool]] = {
    T.LLM_GENERATION_START: _generation_start,
    T.LLM_GENERATION_END: _generation_end,
    T.TOOL_CALL_START: _tool_call_start,
    T.TOOL_CALL_END: _tool_call_end,
    T.REWARD: _reward,
    T.CHAIN_END: _chain_end,
}
