"""`ChainView`: what a watcher knows about one chain from the events that reached it. All watchers use this one reducer.

`apply` takes any event in any order and never raises: a watcher may join late, lose events, or read handmade events. What is
not known is marked (`joined_late`, `gaps`, `omitted`) and never guessed. `to_dict` returns plain JSON, which is the `data` of a
`chain_snapshot` in its long form: a view made from it continues as this one does.

Memory is bounded. A view keeps the last 262,144 characters of a text, the last 65,536 of a tool call's output and of
reasoning, 1,024 messages that weigh 1,048,576 together (one for each value and each character), and 128 open calls. It drops
the start of a text first, and the oldest message after the prompt; `omitted` and `messages_omitted` count what was dropped.
Characters are code points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from rollcast.records.bounded import Tail, number, tail_of, whole, word
from rollcast.records.event import StreamEvent, StreamEventType
from rollcast.records.view_fields import (
    STATES,
    ChainFields,
    calls_of,
    error_of,
    object_of,
    reward_of,
)
from rollcast.records.view_parts import (
    MAX_CALLS,
    MAX_OUTPUT,
    MAX_REWARDS,
    MAX_TEXT,
    ChainState,
    Conversation,
    OpenCall,
    StateTime,
    ToolUse,
    answered,
    arguments_of,
    count_of,
    count_use,
    generated,
    moment,
    seconds_of,
    seed_of,
    seq_of,
    small,
    text_of,
    words,
)

__all__ = ["ChainState", "ChainView", "OpenCall", "StateTime", "ToolUse"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK

MAX_ANSWER = 4_096  # characters of an answer that stay when the conversation is dropped


class ChainView(ChainFields, eq=False):
    """What a watcher knows about a chain. Feed it events with `apply`; events of other chains do not change it.

    `ChainFields` describes the attributes.
    """

    # -- what happens ----------------------------------------------------------------------------------------------------

    def apply(self, event: StreamEvent) -> None:
        """Take the next event, in place. This never raises, whatever the event contains.

        An event whose `seq` is not above `as_of` was already seen and changes nothing; one without `seq` always counts.
        """
        if (event.chain_id != self.chain_id or event.run_id != self.run_id) and not self._concerns(event):
            return
        kind: Any = event.event_type  # an event made by hand may contain anything
        data: Any = event.data
        if data.__class__ is not dict:
            data = object_of(data)
        if kind.__class__ is not T:
            kind = text_of(kind)
        if kind is not CHUNK and kind in _BESIDE:
            _BESIDE[kind](self, event, data)
            return
        if event.source != self.source:
            self.source, self.as_of = text_of(event.source), -1
        seq = event.seq
        if seq.__class__ is int and seq >= 0:
            if seq <= self.as_of:
                return
            self.as_of = seq if seq < 1 << 53 else self.as_of
        if self.state == "ended" and kind not in _AFTER_END:
            return
        at: Any = event.timestamp
        if at.__class__ is not float or not -1e11 < at < 1e11:
            at = moment(at)
        if at is not None:
            self.last_event_at = at
        if event.step != self.step or event.depth != self.depth:
            self._place(event)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, event, data, at)

    def _concerns(self, event: StreamEvent) -> bool:
        """Whether an event with another run or chain concerns this view. An empty view takes on the event's run and chain."""
        kind = event.event_type
        if kind == T.TRAIN_STEP:
            return True
        if kind in (T.GAP, T.RUN_END):
            return bool(event.run_id == self.run_id and event.source == self.source)
        if self.chain_id or self.run_id or kind == T.RUN_START:
            return False
        self.chain_id, self.run_id = text_of(event.chain_id), text_of(event.run_id)
        self.group_id, self.source = word(event.group_id), text_of(event.source)
        return True

    def _forget(self, group_id: str | None) -> None:
        fresh = ChainView(
            run_id=self.run_id,
            chain_id=self.chain_id,
            group_id=group_id,
            source=self.source,
            as_of=self.as_of,
        )
        for name in ChainView.__struct_fields__:
            setattr(self, name, getattr(fresh, name))

    def _place(self, event: StreamEvent) -> None:
        step = whole(event.step)
        if step is not None:
            self.step, self.depth = step, whole(event.depth)

    def rest(self, at: float | None) -> None:
        """Enter the state of what is still open, after something ended."""
        if self.generation is not None:
            self.enter("generating", at)
        else:
            self.enter("tool" if self.tool_calls else "waiting", at)

    def open_generation(self, step: int | None) -> Tail:
        """Begin a generation; what was open before it has ended unseen."""
        self.close_generation()
        self.close_calls()
        self.generation, self.reasoning = Tail(MAX_TEXT), None
        self.generation_step, self.generation_tokens = step, 0
        return self.generation

    def close_generation(self) -> None:
        """End the open generation, whose end was not seen; its text so far becomes a message."""
        if self.generation is not None and self.generation.end:
            self.conversation.add(
                self._with_reasoning(generated(self.generation, None, self.generation_step))
            )
        self.generation = self.reasoning = None
        self.completion_tokens += self.generation_tokens
        self.generation_tokens = 0

    def _with_reasoning(self, message: dict[str, Any]) -> dict[str, Any]:
        return message if self.reasoning is None else {**message, "reasoning": self.reasoning.text}

    def close_calls(self) -> None:
        """End the open tool calls, whose ends were not seen."""
        for call in list(self.tool_calls.values()):
            self.close_call(call, call.status, None)

    def close_call(self, call: OpenCall, status: str | None, duration_s: float | None) -> None:
        """End a tool call: count it, and add its output to the conversation."""
        self.tool_calls.pop(call.call_id, None)
        count_use(self.tool_use, call.tool_name, status, duration_s)
        self.conversation.add(answered(call, status, duration_s))

    def forget_messages(self) -> None:
        """Drop the conversation, and all but the end of the answer, so that only little is kept."""
        self.conversation = Conversation(omitted=self.conversation.omitted + len(self.messages))
        if self.final_response is not None:
            self.final_response, omitted = tail_of(self.final_response, MAX_ANSWER)
            self.final_response_omitted += omitted

    def forget_text(self) -> None:
        """Drop all text, for a watcher that has already shown it; positions, counts and states stay."""
        if self.messages or self.final_response:
            self.forget_messages()
        if self.generation is not None:
            self.generation.restart(self.generation.end)
        if self.reasoning is not None:
            self.reasoning.restart(self.reasoning.end)
        for call in self.tool_calls.values():
            call.output.restart(call.output.end)

    @classmethod
    def from_snapshot(cls, event: StreamEvent) -> Self:
        """Make a view from a `chain_snapshot`, in its long or its short form."""
        view = cls()
        view.apply(event)
        return view

    def snapshot(self) -> StreamEvent:
        """The view as a `chain_snapshot` in its long form. Do not change its data, since it shares the view's messages."""
        return StreamEvent(
            T.CHAIN_SNAPSHOT, self.chain_id, self.last_event_at or 0.0, self.told(), self.step, self.depth, self.as_of,
            self.run_id, self.group_id, self.source,
        )  # fmt: skip

    # -- what each event does ----------------------------------------------------------------------------------------------------

    def _chain_start(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        """Begin, or begin again: forget what was known about an earlier attempt."""
        self._forget(word(event.group_id))
        self.joined_late = False
        self.started_at = self.last_event_at = at
        self.conversation = Conversation.of(data.get("messages"))
        self.conversation.prompt_length = len(self.messages)
        self.index, self.attempt = count_of(data.get("index")), count_of(data.get("attempt"))
        self.tools, self.seed = words(data.get("tools")), seed_of(data.get("seed"))
        self.policy_version = whole(data.get("policy_version"))
        self.reference = small(data.get("reference"))
        self.prompt_hash = word(data.get("prompt_hash"))
        self.parent_chain_id = word(data.get("parent_chain_id"))
        self.enter("waiting", at)

    def _llm_generation_start(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        step = whole(event.step)
        if self.generation is None or step is None or step != self.generation_step:
            self.open_generation(step)
        self.prompt_tokens = count_of(data.get("prompt_tokens"))
        self.model = word(data.get("model")) or self.model
        version = whole(data.get("policy_version"))
        self.policy_version = self.policy_version if version is None else version
        self.enter("generating", at)

    def _llm_generation_chunk(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        """Take new text. This is on the path of every token that is watched."""
        tail = self.generation
        if tail is None or event.step != self.generation_step:
            tail = self._generation_of(event)
        text, ids, offset = text_of(data.get("content")), data.get("token_ids"), data.get("offset")
        count, fresh = len(ids) if isinstance(ids, list) else 0, True
        if offset.__class__ is not int or offset != tail.end:
            text, count, fresh = _placed(tail, text, count, offset)
        if text:
            tail.append(text)
        self.generation_tokens += count
        if fresh and "reasoning" in data:
            if self.reasoning is None:
                self.reasoning = Tail(MAX_OUTPUT)
            self.reasoning.append(text_of(data["reasoning"]))
        if self.state != "generating":
            self.enter("generating", at)

    def _generation_of(self, event: StreamEvent) -> Tail:
        """The generation that a chunk belongs to; if its step differs from the open one's, its start was not seen."""
        step = whole(event.step)
        if self.generation is None:
            return self.open_generation(step)
        if step is not None and self.generation_step is not None and step != self.generation_step:
            return self.open_generation(step)
        self.generation_step = self.generation_step if step is None else step
        return self.generation

    def _llm_generation_end(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        step, tail = whole(event.step), self.generation
        if tail is None and step is not None and step == self.generation_step:
            return  # its end was already seen
        why = word(data.get("finish_reason"))
        content = data.get("content")
        said: Tail | str = content if isinstance(content, str) else Tail(MAX_TEXT) if tail is None else tail
        self.conversation.add(self._with_reasoning(generated(said, why, step)))
        self.generation = self.reasoning = None
        self.generation_step = step
        sampled = count_of(data.get("completion_tokens"))
        self.completion_tokens += self.generation_tokens if sampled is None else sampled
        self.generation_tokens = 0
        prompt = count_of(data.get("prompt_tokens"))
        self.prompt_tokens = self.prompt_tokens if prompt is None else prompt
        self.first_token_s += seconds_of(data.get("ttft_s")) or 0.0
        self.generations += 1
        self.truncated += why == "length"
        if why in ("stop", "length") and not self.tool_calls:
            self.enter("scoring", at)
        else:
            self.rest(at)

    def _tool_call_start(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        call_id = word(data.get("call_id")) or ""
        if call_id in self.tool_calls:
            return
        self.close_generation()
        self.calls_omitted += len(self.tool_calls) >= MAX_CALLS
        call = self._call(event, data, at)
        self.conversation.list_call(call)
        self.rest(at)

    def _call(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> OpenCall:
        """The event's tool call, which is opened if it was not known."""
        call_id = word(data.get("call_id")) or ""
        call = self.tool_calls.get(call_id)
        if call is None:
            arguments, too_heavy = arguments_of(data.get("arguments"))
            name = word(data.get("tool_name")) or ""
            call = OpenCall(call_id, name, Tail(MAX_OUTPUT), arguments, too_heavy, whole(event.step))
            if event.event_type == T.TOOL_CALL_START:
                call.started_at = at
            if len(self.tool_calls) < MAX_CALLS:
                self.tool_calls[call_id] = call
        return call

    def _tool_observation(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        call_id = word(data.get("call_id")) or ""
        if call_id not in self.tool_calls and self.conversation.answers(call_id):
            return  # its end was already seen
        call = self._call(event, data, at)
        text = text_of(data.get("observation"))
        if data.get("partial") is True:
            call.output.append(text)
        else:
            call.output = Tail.of(text, MAX_OUTPUT)
            call.status = word(data.get("status")) or "success"
        self.rest(at)

    def _tool_call_end(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        call_id = word(data.get("call_id")) or ""
        if call_id not in self.tool_calls and self.conversation.answers(call_id):
            return
        call = self._call(event, data, at)
        duration = seconds_of(data.get("duration_s"))
        if duration is None and call.started_at is not None and at is not None:
            duration = max(at - call.started_at, 0.0)
        self.close_call(call, word(data.get("status")) or call.status, duration)
        self.rest(at)

    def _message(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        """Add a message that the chain did not generate; the chain continues."""
        self.conversation.take(data)
        self.rest(at)

    def _reward(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        given = reward_of({**data, "step": event.step})
        value, final = given["reward"], given["final"] is True
        settled = any(reward["final"] for reward in self.rewards) or self.state == "ended"
        self.rewards = [*self.rewards[-MAX_REWARDS + 1 :], given]
        if final or not settled or self.reward is None:
            self.reward = value
            self.metrics = object_of(small(data.get("metrics")))

    def _error(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        self.errors += 1
        self.error = error_of(data)

    def _chain_end(self, event: StreamEvent, data: dict[str, Any], at: float | None) -> None:
        self.close_generation()
        self.close_calls()
        self.finish_reason = word(data.get("finish_reason")) or "unknown"
        self.final_response, self.final_response_omitted = tail_of(
            text_of(data.get("final_response")), MAX_TEXT
        )
        self.steps, self.duration_s = count_of(data.get("steps")), seconds_of(data.get("duration_s"))
        sampled = count_of(data.get("completion_tokens"))
        self.completion_tokens = self.completion_tokens if sampled is None else sampled
        if "reward" in data:
            self.reward = number(data["reward"])
        if data.get("metrics"):
            self.metrics = object_of(small(data["metrics"]))
        self.ended_at = at
        self.enter("ended", at)

    # -- what is not counted by the chain's own seq ----------------------------------------------------------------------------------

    def _gap(self, event: StreamEvent, data: dict[str, Any]) -> None:
        """Note that events were lost, so that what is open is unknown until a later event shows it."""
        last = seq_of(data.get("to_seq"))  # -1 if it is not known
        if self.state == "ended" or 0 <= last <= self.as_of:
            return
        self.as_of = max(last, self.as_of)
        self.gaps += 1
        self.generation = self.reasoning = self.generation_step = None
        self.generation_tokens = 0
        self.tool_calls = {}
        self.state, self.since = (
            "unknown",
            self.last_event_at,
        )  # how long the earlier state lasted is not known
        if "run_status" in data:
            self.enter("lost", moment(event.timestamp))

    def _train_step(self, event: StreamEvent, data: dict[str, Any]) -> None:
        """Note that a trainer learned from the chain. The event is another run's, so it may come at any time, and twice."""
        learned = object_of(object_of(object_of(data.get("chains")).get(self.run_id)).get(self.chain_id))
        if learned:
            self.train_step = whole(data.get("train_step"))
            self.advantage, self.staleness = number(learned.get("advantage")), whole(learned.get("staleness"))

    def _run_end(self, event: StreamEvent, data: dict[str, Any]) -> None:
        if self.state not in ("ended", "lost"):
            self.close_generation()
            self.close_calls()
            self.enter("lost", moment(event.timestamp))

    def _run_start(self, event: StreamEvent, data: dict[str, Any]) -> None:
        """Do nothing: this concerns only the run."""

    def _chain_snapshot(self, event: StreamEvent, data: dict[str, Any]) -> None:
        """Take a snapshot: a view in its long form, or the short form that a chain itself sends."""
        as_of = seq_of(data.get("as_of"))
        if 0 <= as_of < self.as_of and event.source == self.source:
            return  # older than what is known
        self.source, self.group_id = text_of(event.source), word(event.group_id)
        if data.get("state") in STATES:
            self.restore(data)
            return
        if self.state == "ended":  # it has begun again, unseen
            self._forget(self.group_id)
        at = moment(event.timestamp)
        self.as_of = as_of if as_of >= 0 else self.as_of
        going_on = self.generation is not None and self.generation_step == event.step
        same_step = self.step == event.step
        self.last_event_at = self.last_event_at if at is None else at
        self._place(event)
        before = self.conversation
        self.conversation = Conversation.of(data.get("messages"), before.prompt_length)
        content = data.get("content")
        self.generation = Tail.of(content, MAX_TEXT) if isinstance(content, str) else None
        if self.generation is None or not going_on:
            self.completion_tokens += self.generation_tokens
            self.generation_tokens, self.reasoning = 0, None
        self.generation_step = whole(event.step)
        self.tool_calls = calls_of(data.get("tool_calls"))
        state, since = self.state, self.since
        if not (state == "scoring" and same_step and self.generation is None and not self.tool_calls):
            self.rest(at)
        if (self.state, same_step) != (state, True) or since is None:
            self.since = at


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


def _methods(*names: str) -> dict[str, Callable[..., None]]:
    return {name: vars(ChainView)[f"_{name}"] for name in names}


# Each method that takes an event is named after its type.
_BESIDE = _methods("chain_snapshot", "gap", "train_step", "run_start", "run_end")
_HANDLERS = _methods(
    "chain_start", "llm_generation_start", "llm_generation_chunk", "llm_generation_end", "tool_call_start",
    "tool_observation", "tool_call_end", "message", "reward", "error", "chain_end",
)  # fmt: skip
_AFTER_END = frozenset({T.CHAIN_START, T.REWARD, T.ERROR})
