"""What is open in a chain, and how it ends: the steps that the reducer of `view.py` is made of."""

from __future__ import annotations

from typing import Any

from rollcast.records.bounded import Tail, tail_of, whole
from rollcast.records.event import StreamEvent
from rollcast.records.view_fields import ChainFields
from rollcast.records.view_parts import MAX_TEXT, Conversation, OpenCall, answered, count_use, generated

__all__ = ["ChainProgress"]

MAX_ANSWER = 4_096  # characters of an answer that stay when the conversation is dropped


class ChainProgress(ChainFields, eq=False):
    """What is known about a chain, and how its generation and its tool calls begin and end.

    `ChainFields` describes the attributes.
    """

    def begin_again(self, group_id: str | None) -> None:
        """Forget an earlier attempt of the chain."""
        fresh = type(self)(
            run_id=self.run_id,
            chain_id=self.chain_id,
            group_id=group_id,
            source=self.source,
            as_of=self.as_of,
        )
        for name in self.__struct_fields__:
            setattr(self, name, getattr(fresh, name))

    def place(self, event: StreamEvent) -> None:
        """Take the event's step and depth."""
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
            self.conversation.add(self.with_reasoning(generated(self.generation, None, self.generation_step)))
        self.generation = self.reasoning = None
        self.completion_tokens += self.generation_tokens
        self.generation_tokens = 0

    def with_reasoning(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with the reasoning of the open generation, if there is any."""
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
