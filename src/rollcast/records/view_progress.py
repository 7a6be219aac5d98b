"""What is open in a chain, and how it ends: the steps that the reducer of `view.py` is made of."""

from __future__ import annotations

from typing import Any

from rollcast.records.bounded import Tail, whole
from rollcast.records.event import StreamEvent
from rollcast.records.view_fields import ChainFields
from rollcast.records.view_parts import MAX_TEXT, OpenCall, answered, count_use, generated

__all__ = [
    "begin_again",
    "close_call",
    "close_calls",
    "close_generation",
    "open_generation",
    "place",
    "rest",
    "with_reasoning",
]


def begin_again(view: ChainFields, group_id: str | None) -> None:
    """Forget an earlier attempt of the chain."""
    fresh = type(view)(
        run_id=view.run_id,
        chain_id=view.chain_id,
        group_id=group_id,
        source=view.source,
        as_of=view.as_of,
        conversation=view.conversation.anew(),
    )
    for name in view.__struct_fields__:
        setattr(view, name, getattr(fresh, name))


def place(view: ChainFields, event: StreamEvent) -> None:
    """Take the event's step and depth."""
    step = whole(event.step)
    if step is not None:
        view.step, view.depth = step, whole(event.depth)


def rest(view: ChainFields, at: float | None) -> None:
    """Enter the state of what is still open, after something ended."""
    if view.generation is not None:
        view.enter("generating", at)
    else:
        view.enter("tool" if view.tool_calls else "waiting", at)


def open_generation(view: ChainFields, step: int | None) -> Tail:
    """Begin a generation; what was open before it has ended unseen."""
    close_generation(view)
    close_calls(view)
    view.generation, view.reasoning = Tail(MAX_TEXT), None
    view.generation_step, view.generation_tokens = step, 0
    return view.generation


def close_generation(view: ChainFields) -> None:
    """End the open generation, whose end was not seen; its text so far becomes a message."""
    if view.generation is not None and view.generation.end:
        view.conversation.add(with_reasoning(view, generated(view.generation, None, view.generation_step)))
    view.generation = view.reasoning = None
    view.completion_tokens += view.generation_tokens
    view.generation_tokens = 0


def with_reasoning(view: ChainFields, message: dict[str, Any]) -> dict[str, Any]:
    """The message with the reasoning of the open generation, if there is any."""
    return message if view.reasoning is None else {**message, "reasoning": view.reasoning.text}


def close_calls(view: ChainFields) -> None:
    """End the open tool calls, whose ends were not seen."""
    for call in list(view.tool_calls.values()):
        close_call(view, call, call.status, None)


def close_call(view: ChainFields, call: OpenCall, status: str | None, duration_s: float | None) -> None:
    """End a tool call: count it, and add its output to the conversation."""
    view.tool_calls.pop(call.call_id, None)
    count_use(view.tool_use, call.tool_name, status, duration_s)
    view.conversation.add(answered(call, status, duration_s))
