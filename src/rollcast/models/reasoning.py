"""Tells reasoning from output: the families of models, by the tags that they reason between, and what a prompt tells.

A family writes its reasoning between two tags. `Thinking` says which families a model may belong to, whether the prompt
has already opened the reasoning, and whether there can be any; it is read off the chat template. `parse/reading.py` then
takes a turn apart while it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

__all__ = [
    "FAMILIES",
    "FIELDS",
    "NONE",
    "UNKNOWN",
    "Family",
    "TellsThinking",
    "Thinking",
    "families_of",
    "field_read",
    "left_open",
    "thinking_after",
]

FIELDS = ("reasoning_content", "thinking", "reasoning")
"""The keys under which messages keep a turn's reasoning apart from its content; ours is the first."""


_PROBE = "thought9d41c7"


class Family(NamedTuple):
    """How one family of models writes its reasoning.

    Attributes:
        openings: the tag that begins it, in all its forms.
        closing: the tag that ends it.
        before: words that end it too, though they belong to what follows: the next message of the turn. Some engines show
            no `<|end|>`.
        lone: whether the closing tag alone says that the text before it was reasoning.
        heads: text that may stand between the reasoning and the answer, and belongs to neither.
        own: other models' texts have such words too, so it is this family only if the template has them.
    """

    openings: tuple[str, ...]
    closing: str
    before: tuple[str, ...] = ()
    lone: bool = True
    heads: tuple[str, ...] = ()
    own: bool = False


# Of Qwen, DeepSeek, GLM, Nemotron, MiniMax, Kimi K2, LFM, Granite 3.3 and most others; Magistral; Gemma 4; gpt-oss; Command A;
# Seed-OSS; Kimi-VL; Apertus; LongCat; Granite 3.2; Muse Glimmer.
FAMILIES = (
    Family(("<think>",), "</think>"),
    Family(("[THINK]",), "[/THINK]"),
    Family(("<|channel>thought",), "<channel|>"),
    Family(
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        "<|end|>",
        before=("<|start|>assistant",),
        lone=False,
        heads=("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
    ),
    Family(("<|START_THINKING|>",), "<|END_THINKING|>", heads=("<|START_RESPONSE|>",)),
    Family(("<seed:think>",), "</seed:think>"),
    Family(("◁think▷",), "◁/think▷"),
    Family(("<|inner_prefix|>",), "<|inner_suffix|>"),
    Family(("<longcat_think>",), "</longcat_think>"),
    Family(
        ("Here is my thought process:", "Here's my thought process:"),
        "Here is my response:",
        lone=False,
        own=True,
    ),
    Family(
        ("<|start|>assistant to=self<|message|>", " to=self<|message|>", "to=self<|message|>"),
        "<|eom|>",
        before=("<|start|>assistant",),
        lone=False,
        heads=(
            "<|start|>assistant to=user<|message|>",
            " to=user<|message|>",
            "to=user<|message|>",
        ),
        own=True,
    ),
)
_COMMON = tuple(family for family in FAMILIES if not family.own)


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about the next turn's reasoning.

    Attributes:
        families: the families whose opening tags count.
        expected: the families that the model may belong to; empty if it is known not to reason unasked.
        inside: the prompt leaves the model in reasoning of this family.
        token_ids: the tags that are tokens of the vocabulary, by id. Such a tag spelt in other tokens is text.
    """

    families: tuple[Family, ...] = _COMMON
    expected: tuple[Family, ...] = _COMMON
    inside: Family | None = None
    token_ids: Mapping[int, str] = {}

    @property
    def reasons(self) -> bool:
        """Whether the model may reason unasked, or is reasoning already."""
        return self.inside is not None or bool(self.expected)

    @property
    def lone(self) -> tuple[Family, ...]:
        """The families whose closing tag says, without an opening one, that all text before it was reasoning."""
        return () if self.inside is not None else tuple(family for family in self.expected if family.lone)


UNKNOWN = Thinking()
"""There is no template: text before a lone closing tag is reasoning."""
NONE = Thinking(expected=())
"""The model does not reason, unless it writes an opening tag."""


@runtime_checkable
class TellsThinking(Protocol):
    """A conversation, or a backend without one, that knows whether and how the next turn reasons."""

    @property
    def thinking(self) -> Thinking:
        """What is known about the turn that follows the last prompt."""
        ...


def families_of(source: str) -> tuple[Family, ...]:
    """The families whose tags a chat template has."""
    return tuple(
        family
        for family in FAMILIES
        if any(opening in source for opening in family.openings) or (family.lone and family.closing in source)
    )


def left_open(prompt: str, families: tuple[Family, ...] = FAMILIES) -> tuple[Family, str] | None:
    """The family in whose reasoning a prompt leaves the model, and what the prompt has written of the reasoning."""
    written = prompt.rstrip()
    for family in families:
        for opening in map(str.strip, family.openings):
            if written.endswith(opening):
                return family, prompt[len(written) - len(opening) :]
    return None


def thinking_after(prompt: str, known: tuple[Family, ...], token_ids: Mapping[int, str]) -> Thinking:
    """What is known after a prompt, if its template has the tags of these families."""
    families = (*_COMMON, *(family for family in known if family.own))
    opened = left_open(prompt, families)
    return Thinking(
        families=families,
        expected=() if _closed_empty(prompt) else known,
        inside=None if opened is None else opened[0],
        token_ids=token_ids,
    )


def _closed_empty(prompt: str) -> bool:
    """Whether a prompt ends with an empty reasoning."""
    written = prompt.rstrip()
    return any(
        written.endswith(family.closing)
        and left_open(written.removesuffix(family.closing), (family,)) is not None
        for family in FAMILIES
    )


def field_read(
    source: str, text: Callable[[list[dict[str, Any]]], str], probe: list[dict[str, Any]]
) -> str | None:
    """The key of a message under which a template reads a turn's reasoning; None if there is no such key.

    Args:
        source: the template's source.
        text: renders messages; gives an empty text if the template refuses them.
        probe: a message that calls a tool, and its result. Some templates show the reasoning only of such turns.
    """
    ask = {"role": "user", "content": "hello"}
    for field in FIELDS:
        if field not in source:
            continue
        thought = {field: _PROBE}
        said = {"role": "assistant", "content": "hello", **thought}
        called, *results = probe
        for messages in ([ask, said], [ask, {**called, **thought}, *results], [ask, said, ask]):
            if _PROBE in text(messages):
                return field
    return None
