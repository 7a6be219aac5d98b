"""A recorded chain as Markdown, for people and issues. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rollcast.archive.story import Story
from rollcast.text import printable_line

__all__ = ["markdown_of"]

_TICKS = re.compile("`+")


def markdown_of(story: Story) -> str:
    """The chain under a heading of its own. What was said stands in fences, so that it cannot change the page."""
    return "\n".join(_parts(story)) + "\n"


def _parts(story: Story) -> Iterator[str]:
    view, row = story.view, story.row
    group = "" if row.get("group_id") is None else f" of {_plain(row['group_id'])}"
    yield f"## {_plain(row['chain_id'])}{group}\n"
    facts = [("run", row["run_id"]), ("training step", row.get("train_step")), ("reward", view.reward)]
    facts += list(view.metrics.items())
    facts += [("advantage", row.get("advantage")), ("reference", view.reference)]
    facts += [("end", row.get("finish_reason") if row.get("state") == "ended" else row.get("state"))]
    facts += [("steps", view.steps), ("tokens", view.tokens), ("error", row.get("error"))]
    yield "".join(f"- {_plain(name)}: {_plain(value)}\n" for name, value in facts if value is not None)
    if view.conversation.omitted:
        yield f"{view.conversation.omitted} messages are too old or too large.\n"
    for message in view.messages:
        yield from _message(message)
    if story.lacks_end:
        yield "Events of this chain are missing.\n"
    if view.content is not None:
        yield f"### assistant, step {view.generation_step}, not ended\n\n{_fenced(view.content)}"


def _message(message: dict[str, Any]) -> Iterator[str]:
    step = message.get("step")
    title = _plain(message.get("role"))
    for name in ("name", "status"):
        if message.get("role") == "tool" and message.get(name) is not None:
            title += f", {_plain(message[name])}"
    yield f"### {title}" + (f", step {step}" if isinstance(step, int) else "") + "\n"
    if isinstance(message.get("reasoning"), str) and message["reasoning"]:
        yield f"Reasoning:\n\n{_fenced(message['reasoning'])}"
    content = message.get("content")
    if content is not None and content != "":
        yield _fenced(content)
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else {}
        yield f"Calls {_plain(function.get('name'))}:\n\n{_fenced(function.get('arguments'), 'json')}"


def _fenced(value: Any, language: str = "text") -> str:
    """A fence that is longer than any in the text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    ticks = "`" * max(3, 1 + max((len(run) for run in _TICKS.findall(text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}\n"


def _plain(value: Any) -> str:
    """One line that Markdown does not read anything into."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return re.sub(r"([\\`*\[\]<>#|])", r"\\\1", printable_line(text, 400))
