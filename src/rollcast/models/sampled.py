"""Turns that a model sampled: what the next prompts have to show of them, and whether they do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rollcast.models.parse.reading import split
from rollcast.models.reasoning import FAMILIES, FIELDS, Thinking

__all__ = ["SampledTurn", "reasoning_of", "shows_all", "with_own_reasoning", "without_whitespace"]

_TAGS = [tag for family in FAMILIES for tag in (*family.openings, family.closing)]
_AROUND_TAGS = re.compile(rf"\s*({'|'.join(map(re.escape, _TAGS))})\s*")


class SampledTurn:
    """What the model wrote, word for word, and the beginning that the prompt had written.

    Attributes:
        written: the turn.
        begun: the tag with which the prompt opened its reasoning, and the whitespace after it.
        reading: the turn's reasoning and output.
        shown: what a prompt has to show of it after `begun`, however it writes the calls. None: only its message.
    """

    def __init__(self, written: str, begun: str, thinking: Thinking) -> None:
        self.written = written
        self.begun = begun
        self.reading = split(written, thinking)
        self.shown: str | None = None
        self._begin = 0  # after the opening tag, if the model has repeated the prompt's
        if thinking.inside is not None and self.reading.tags:
            end = self.reading.tags[0][1]
            self._begin = end if written[:end].strip() in thinking.inside.openings else 0

    def message(self, message: Mapping[str, Any], field: str | None, *, splits: bool) -> dict[str, Any]:
        """The message for a template that reads reasoning under this key; without a key, its content has the reasoning.

        Args:
            message: the turn's message; its content is text.
            field: the key.
            splits: the template looks for the tags in the content.
        """
        content, thought, read = message["content"], reasoning_of(message), self.reading
        if not (read.has_reasoning or read.tags):
            self.shown = None
            kept = {**message, "content": self.begun + content}
            return _with_reasoning(kept, thought, field) if thought else kept
        if content == self.written:  # reasoning and output in one
            content, thought = read.output, thought or read.reasoning
        written = self.written[self._begin :]
        lead = self.written[self._begin : read.lead] if read.output else written
        whole = read.interleaved and content == read.output
        self.shown = written if whole else (lead.rstrip() if splits else lead) + content
        return _with_reasoning(
            {**message, "content": content if field else self.begun + self.shown}, thought, field
        )


def _with_reasoning(message: Mapping[str, Any], thought: str, field: str | None) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key not in FIELDS}
    return {**kept, field: thought} if field and thought else kept


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The reasoning that a message keeps beside its content."""
    said = next((message[key] for key in FIELDS if message.get(key)), "")
    return said if isinstance(said, str) else ""


def with_own_reasoning(message: Mapping[str, Any], field: str | None) -> Mapping[str, Any]:
    """A message that was not sampled, with its reasoning under the key that the template reads."""
    thought = reasoning_of(message)
    return (
        _with_reasoning(message, thought, field)
        if field and thought and message["role"] == "assistant"
        else message
    )


def shows_all(body: str, thoughts: list[str], content: str, *, calls: bool) -> bool:
    """Whether a turn as the template writes it has all of its text, and, beside calls, nothing else."""
    if not thoughts:
        if body == content:
            return True
        body, content = _without_edges(body), _without_edges(content)
        if not calls:
            return body == content
        # Reasoning that was not sampled is not part of the calls; some templates write an empty one before them.
        added = any(body.count(family.closing) != content.count(family.closing) for family in FAMILIES)
        return body.startswith(content) and not added
    place, body = 0, without_whitespace(body)
    for part in map(without_whitespace, (*thoughts, content)):
        place = body.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def _without_edges(text: str) -> str:
    """Remove the whitespace around a turn's reasoning and its answer; that inside matters, in code for example."""
    return _AROUND_TAGS.sub(r"\1", text).strip()


def without_whitespace(text: str) -> str:
    """The text without whitespace."""
    return "".join(text.split())
