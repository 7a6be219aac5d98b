"""What each type of event changes in a view: one function for each, named after the type (see `view.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rollcast.records.bounded import Tail, number, tail_of, whole, word
from rollcast.records.event import StreamEvent, StreamEventType
from rollcast.records.view_fields import STATES, ChainFields, calls_of, error_of, object_of, reward_of
from rollcast.records.view_parts import (
    MAX_CALLS,
    MAX_OUTPUT,
    MAX_REWARDS,
    MAX_TEXT,
    OpenCall,
    arguments_of,
    count_of,
    generated,
    moment,
    seconds_of,
    seed_of,
    seq_of,
    small,
    text_of,
    words,
)
from rollcast.records.view_progress import (
    begin_again,
    close_call,
    close_calls,
    close_generation,
    open_generation,
    place,
    rest,
    with_reasoning,
)

__all__ = ["AFTER_END", "BESIDE", "HANDLERS", "take_reward"]

T = StreamEventType


def _chain_start(view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
    """Begin, or begin again: forget what was known about an earlier attempt."""
    begin_again(view, word(event.group_id))
    view.joined_late = False
    view.started_at = view.last_event_at = at
    view.conversation = view.conversation.anew(data.get("messages"))
    view.conversation.prompt_length = len(view.messages)
    view.index, view.attempt = count_of(data.get("index")), count_of(data.get("attempt"))
    view.tools, view.seed = words(data.get("tools")), seed_of(data.get("seed"))
    view.policy_version = whole(data.get("policy_version"))
    view.reference = small(data.get("reference"))
    view.prompt_hash = word(data.get("prompt_hash"))
    view.parent_chain_id = word(data.get("parent_chain_id"))
    view.enter("waiting", at)


def _llm_generation_start(
    view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None
) -> None:
    step = whole(event.step)
    if view.generation is None or step is None or step != view.generation_step:
        open_generation(view, step)
    view.prompt_tokens = count_of(data.get("prompt_tokens"))
    view.model = word(data.get("model")) or view.model
    version = whole(data.get("policy_version"))
    view.policy_version = view.policy_version if version is None else version
    view.enter("generating", at)


def _llm_generation_chunk(
    view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None
) -> None:
    """Take new text. This is on the path of every token that is watched."""
    tail = view.generation
    if tail is None or event.step != view.generation_step:
        tail = _generation_of(view, event)
    text, ids, offset = text_of(data.get("content")), data.get("token_ids"), data.get("offset")
    count, fresh = len(ids) if isinstance(ids, list) else 0, True
    if offset.__class__ is not int or offset != tail.end:
        text, count, fresh = _placed(tail, text, count, offset)
    if text:
        tail.append(text)
    view.generation_tokens += count
    if fresh and "reasoning" in data:
        if view.reasoning is None:
            view.reasoning = Tail(MAX_OUTPUT)
        view.reasoning.append(text_of(data["reasoning"]))
    if view.state != "generating":
        view.enter("generating", at)


def _generation_of(view: ChainFields, event: StreamEvent) -> Tail:
    """The generation that a chunk belongs to; if its step differs from the open one's, its start was not seen."""
    step = whole(event.step)
    if view.generation is None:
        return open_generation(view, step)
    if step is not None and view.generation_step is not None and step != view.generation_step:
        return open_generation(view, step)
    view.generation_step = view.generation_step if step is None else step
    return view.generation


def _llm_generation_end(
    view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None
) -> None:
    step, tail = whole(event.step), view.generation
    if tail is None and step is not None and step == view.generation_step:
        return  # its end was already seen
    why = word(data.get("finish_reason"))
    content = data.get("content")
    said: Tail | str = content if isinstance(content, str) else Tail(MAX_TEXT) if tail is None else tail
    if isinstance(reasoning := data.get("reasoning"), str):  # whole, also if its chunks were left out
        view.reasoning = Tail.of(reasoning, MAX_OUTPUT)
    view.conversation.add(with_reasoning(view, generated(said, why, step)))
    view.generation = view.reasoning = None
    view.generation_step = step
    sampled = count_of(data.get("completion_tokens"))
    view.completion_tokens += view.generation_tokens if sampled is None else sampled
    view.generation_tokens = 0
    prompt = count_of(data.get("prompt_tokens"))
    view.prompt_tokens = view.prompt_tokens if prompt is None else prompt
    view.first_token_s += seconds_of(data.get("ttft_s")) or 0.0
    view.generations += 1
    view.truncated += why == "length"
    if why in ("stop", "length") and not view.tool_calls:
        view.enter("scoring", at)
    else:
        rest(view, at)


def _tool_call_start(view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
    call_id = word(data.get("call_id")) or ""
    if call_id in view.tool_calls:
        return
    close_generation(view)
    view.calls_omitted += len(view.tool_calls) >= MAX_CALLS
    call = _call(view, event, data, at)
    view.conversation.list_call(call)
    rest(view, at)


def _call(view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None) -> OpenCall:
    """The event's tool call, which is opened if it was not known."""
    call_id = word(data.get("call_id")) or ""
    call = view.tool_calls.get(call_id)
    if call is None:
        arguments, too_heavy = arguments_of(data.get("arguments"))
        name = word(data.get("tool_name")) or ""
        call = OpenCall(call_id, name, Tail(MAX_OUTPUT), arguments, too_heavy, whole(event.step))
        if event.event_type == T.TOOL_CALL_START:
            call.started_at = at
        if len(view.tool_calls) < MAX_CALLS:
            view.tool_calls[call_id] = call
    return call


def _tool_observation(view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
    call_id = word(data.get("call_id")) or ""
    if call_id not in view.tool_calls and view.conversation.answers(call_id):
        return  # its end was already seen
    call = _call(view, event, data, at)
    text = text_of(data.get("observation"))
    if data.get("partial") is True:
        call.output.append(text)
    else:
        call.output = Tail.of(text, MAX_OUTPUT)
        call.status = word(data.get("status")) or "success"
    rest(view, at)


def _tool_call_end(view: ChainFields, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
    call_id = word(data.get("call_id")) or ""
    if call_id not in view.tool_calls and view.conversation.answers(call_id):
        return
    call = _call(view, event, data, at)
    duration = seconds_of(data.get("duration_s"))
    if duration is None and call.started_at is not None and at is not None:
        duration = max(at - call.started_at, 0.0)
    close_call(view, call, word(data.get("status")) or call.status, duration)
    rest(view, at)


def _message(view: ChainFields, _event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
    """Add a message that the chain did not generate; the chain continues."""
    view.conversation.take(data)
    rest(view, at)


def _reward(view: ChainFields, event: StreamEvent, data: dict[str, Any], _at: float | None) -> None:
    take_reward(view, event.step, data)


def take_reward(view: ChainFields, step: Any, data: dict[str, Any]) -> None:
    """Add a reward. One of a step counts as the chain's until the chain has its own."""
    given = reward_of({**data, "step": step})
    value, final = given["reward"], given["final"] is True
    settled = any(reward["final"] for reward in view.rewards) or view.state == "ended"
    view.rewards = [*view.rewards[-MAX_REWARDS + 1 :], given]
    if final or not settled or view.reward is None:
        view.reward = value
        view.metrics = object_of(small(data.get("metrics")))


def _error(view: ChainFields, _event: StreamEvent, data: dict[str, Any], _at: float | None) -> None:
    view.errors += 1
    view.error = error_of(data)


def _chain_end(view: ChainFields, _event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
    close_generation(view)
    close_calls(view)
    view.finish_reason = word(data.get("finish_reason")) or "unknown"
    view.final_response, view.final_response_omitted = tail_of(text_of(data.get("final_response")), MAX_TEXT)
    view.steps, view.duration_s = count_of(data.get("steps")), seconds_of(data.get("duration_s"))
    sampled = count_of(data.get("completion_tokens"))
    view.completion_tokens = view.completion_tokens if sampled is None else sampled
    if "reward" in data:
        view.reward = number(data["reward"])
    if data.get("metrics"):
        view.metrics = object_of(small(data["metrics"]))
    view.ended_at = at
    view.enter("ended", at)


# -- what is not counted by the chain's own seq ------------------------------------------------------------------------


def _gap(view: ChainFields, event: StreamEvent, data: dict[str, Any]) -> None:
    """Note that events were lost, so that what is open is unknown until a later event shows it."""
    last = seq_of(data.get("to_seq"))  # -1 if it is not known
    if view.state == "ended" or 0 <= last <= view.as_of:
        return
    view.as_of = max(last, view.as_of)
    view.gaps += 1
    view.generation = view.reasoning = view.generation_step = None
    view.generation_tokens = 0
    view.tool_calls = {}
    view.state, view.since = (
        "unknown",
        view.last_event_at,
    )  # how long the earlier state lasted is not known
    if "run_status" in data:
        view.enter("lost", moment(event.timestamp))


def _train_step(view: ChainFields, _event: StreamEvent, data: dict[str, Any]) -> None:
    """Note that a trainer learned from the chain. The event is another run's, so it may come at any time, and twice."""
    learned = object_of(object_of(object_of(data.get("chains")).get(view.run_id)).get(view.chain_id))
    if learned:
        view.train_step = whole(data.get("train_step"))
        view.advantage, view.staleness = number(learned.get("advantage")), whole(learned.get("staleness"))


def _run_end(view: ChainFields, event: StreamEvent, _data: dict[str, Any]) -> None:
    if view.state not in ("ended", "lost"):
        close_generation(view)
        close_calls(view)
        view.enter("lost", moment(event.timestamp))


def _run_start(view: ChainFields, event: StreamEvent, data: dict[str, Any]) -> None:
    """Do nothing: this concerns only the run."""


def _chain_snapshot(view: ChainFields, event: StreamEvent, data: dict[str, Any]) -> None:
    """Take a snapshot: a view in its long form, or the short form that a chain itself sends."""
    as_of = seq_of(data.get("as_of"))
    if 0 <= as_of < view.as_of and event.source == view.source:
        return  # older than what is known
    another = text_of(event.source) != view.source or count_of(data.get("attempt")) != view.attempt
    view.source, view.group_id = text_of(event.source), word(event.group_id)
    if view.state == "ended" or (another and data.get("state") in STATES):  # it has begun again, unseen
        begin_again(view, view.group_id)
    if data.get("state") in STATES:
        view.restore(data)
        return
    at = moment(event.timestamp)
    view.as_of = as_of if as_of >= 0 else view.as_of
    going_on = view.generation is not None and view.generation_step == event.step
    same_step = view.step == event.step
    view.last_event_at = view.last_event_at if at is None else at
    place(view, event)
    before = view.conversation
    view.conversation = before.anew(data.get("messages"), before.prompt_length)
    content = data.get("content")
    view.generation = Tail.of(content, MAX_TEXT) if isinstance(content, str) else None
    if view.generation is None or not going_on:
        view.completion_tokens += view.generation_tokens
        view.generation_tokens, view.reasoning = 0, None
    view.generation_step = whole(event.step)
    view.tool_calls = calls_of(data.get("tool_calls"))
    state, since = view.state, view.since
    if not (state == "scoring" and same_step and view.generation is None and not view.tool_calls):
        rest(view, at)
    if (view.state, same_step) != (state, True) or since is None:
        view.since = at


def _placed(tail: Tail, text: str, count: int, offset: Any) -> tuple[str, int, bool]:
    """The new text of a chunk that does not begin where the text ends, how many of its ids are new, and whether all of it is.

    Chunks before it may be missing; or its beginning may be known, since chunks were merged after a snapshot. How many ids
    are new is then estimated in proportion, until the generation's end gives the exact number. A chunk without an offset, as
    in an event made by hand, continues where the text ends.
    """
    offset = count_of(offset)
    if offset is None:
        return text, count, True
    if offset > tail.end:
        tail.restart(offset)
        return text, count, True
    known = tail.end - offset
    if known == 0:
        return text, count, True
    rest = text[known:]
    return rest, (count * len(rest) // len(text) if text else 0), False


HANDLERS: dict[str, Callable[[ChainFields, StreamEvent, dict[str, Any], float | None], None]] = {
    T.CHAIN_START: _chain_start,
    T.LLM_GENERATION_START: _llm_generation_start,
    T.LLM_GENERATION_CHUNK: _llm_generation_chunk,
    T.LLM_GENERATION_END: _llm_generation_end,
    T.TOOL_CALL_START: _tool_call_start,
    T.TOOL_OBSERVATION: _tool_observation,
    T.TOOL_CALL_END: _tool_call_end,
    T.MESSAGE: _message,
    T.REWARD: _reward,
    T.ERROR: _error,
    T.CHAIN_END: _chain_end,
}
BESIDE: dict[str, Callable[[ChainFields, StreamEvent, dict[str, Any]], None]] = {
    T.CHAIN_SNAPSHOT: _chain_snapshot,
    T.GAP: _gap,
    T.TRAIN_STEP: _train_step,
    T.RUN_START: _run_start,
    T.RUN_END: _run_end,
}
"""What may come in any order with the chain's own events."""
AFTER_END = frozenset({T.CHAIN_START, T.REWARD, T.ERROR})
"""What counts after a chain's end."""
