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

from typing import Any, Self

from rollcast.records.bounded import tail_of, word
from rollcast.records.event import StreamEvent, StreamEventType
from rollcast.records.view_events import AFTER_END, BESIDE, HANDLERS
from rollcast.records.view_fields import ChainFields, object_of
from rollcast.records.view_parts import (
    ChainState,
    NoConversation,
    OpenCall,
    StateTime,
    ToolUse,
    moment,
    text_of,
)
from rollcast.records.view_progress import place

__all__ = ["ChainState", "ChainView", "OpenCall", "StateTime", "ToolUse"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK

MAX_ANSWER = 4_096  # characters of an answer that stay when the conversation is dropped

_handler_of = (
    HANDLERS.get
)  # called for every token: bound here, since `HANDLERS.get` would be bound anew each time


class ChainView(ChainFields, eq=False):
    """What a watcher knows about a chain. Feed it events with `apply`; events of other chains do not change it.

    `ChainFields` describes the attributes; `view_events.py` has what each type of event changes.
    """

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
        if kind is not CHUNK and kind in BESIDE:
            BESIDE[kind](self, event, data)
            return
        if event.source != self.source:
            self.source, self.as_of = text_of(event.source), -1
        seq = event.seq
        if seq.__class__ is int and seq >= 0:
            if seq <= self.as_of:
                return
            self.as_of = seq if seq < 1 << 53 else self.as_of
        if self.state == "ended" and kind not in AFTER_END:
            return
        at: Any = event.timestamp
        if at.__class__ is not float or not -1e11 < at < 1e11:
            at = moment(at)
        if at is not None:
            self.last_event_at = at
        if event.step != self.step or event.depth != self.depth:
            place(self, event)
        handler = _handler_of(kind)
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

    def forget_messages(self) -> None:
        """Drop the conversation, and all but the end of the answer, so that only little is kept."""
        self.conversation = self.conversation.anew(omitted=self.conversation.omitted + len(self.messages))
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
    def without_conversation(cls) -> Self:
        """Make an empty view that keeps no messages, for a watcher that shows them at once or does not need them."""
        return cls(conversation=NoConversation())

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
