"""Masking of secrets in what is recorded: in prompts, rows, arguments, observations and errors.

What a model sampled is not masked: it is what is trained on. Neither are token ids, so the ids of a prompt or an observation in
`trajectories/` still spell what its text had; leave trajectories out if that matters.

A secret that a tool writes in pieces, half in one partial observation and half in the next, is not recognised in them; in the
whole observation it is.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from rollcast.errors import InputError
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import one_line_json
from rollcast.records.jsonable import as_json
from rollcast.text import looks_secret, well_formed

__all__ = ["Masker", "secret_values"]

T = StreamEventType

# Kind, literals of which every such secret has one (looked for first, since that is quick), and its shape.
_SHAPES: tuple[tuple[str, str, str], ...] = (
    ("private-key", "-----BEGIN", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    ("anthropic-key", "sk-ant-", r"\bsk-ant-[A-Za-z0-9_\-]{16,}"),
    ("openai-key", "sk-", r"\bsk-(?!ant-)[A-Za-z0-9_\-]{20,}"),
    ("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    ("github-token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("gitlab-token", "glpat-", r"\bglpat-[A-Za-z0-9_\-]{16,}"),
    ("huggingface-token", "hf_", r"\bhf_[A-Za-z0-9]{20,}"),
    ("aws-key", "AKIA ASIA", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("google-key", "AIza", r"\bAIza[A-Za-z0-9_\-]{35}"),
    ("slack-token", "xox", r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}"),
    ("npm-token", "npm_", r"\bnpm_[A-Za-z0-9]{36}"),
    ("jwt", "eyJ", r"\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    ("bearer-token", "earer", r"(?<=[Bb]earer )[A-Za-z0-9_\-.~+/]{16,}=*"),
    ("password-in-url", "://", r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
)  # fmt: skip
_KINDS = [(kind, literals.split(), re.compile(shape)) for kind, literals, shape in _SHAPES]
_LITERALS = [literal.encode() for _, literals, _ in _KINDS for literal in literals]


# Where text from outside stands in the data of each type. What is not named here was sampled, or says nothing.
_FIELDS: dict[str, tuple[str, ...]] = {
    T.RUN_START: ("settings", "tags", "name", "tools"),
    T.CHAIN_START: ("messages", "reference", "row"),
    T.TOOL_CALL_START: ("arguments",),
    T.TOOL_OBSERVATION: ("observation",),
    T.ERROR: ("error",),
    T.CHAIN_SNAPSHOT: ("messages", "tool_calls", "reference", "error"),
    T.MESSAGE: ("content",),
}  # fmt: skip

Pattern = str | re.Pattern[str]


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """The values of variables that look secret by their name: of 8 characters or more, and no path, number or common word."""
    values = {
        well_formed(
            value
        )  # of bytes that are no UTF-8 the system makes lone surrogates, which no event holds
        for name, value in environ.items()
        if looks_secret(name, value)
    }
    return sorted(values, key=len, reverse=True)


class Masker:
    """Masks secrets, each as `[masked:KIND]`, and counts them.

    Args:
        patterns: of one's own: regular expressions.
        functions: of one's own: each is given a text and gives it back without its secrets. A text on which one raises is left
            out as a whole.
        environ: whose values are secret if their names look so; None: the environment of this process.

    Attributes:
        counts: of what was masked, by kind.

    Raises:
        InputError: a pattern is no regular expression.
    """

    def __init__(
        self,
        patterns: Iterable[Pattern] = (),
        functions: Iterable[Callable[[str], str]] = (),
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._values = secret_values(os.environ if environ is None else environ)
        self._functions = list(functions)
        self._quick = [
            *_LITERALS,
            *(one_line_json(msgspec.json.encode(value)[1:-1]) for value in self._values),
        ]
        try:
            self._patterns = [re.compile(pattern) for pattern in patterns]
        except re.error as error:
            raise InputError(f"a pattern of secrets is no regular expression: {error}") from None

    def concerns(self, kind: StreamEventType) -> bool:
        """Whether events of this type hold anything that came from outside."""
        return kind in _FIELDS or not kind.known

    def may_hold(self, data: bytes) -> bool:
        """Whether JSON may hold a secret: a quick look, which says no for most of what is recorded."""
        if self._patterns or self._functions:
            return True
        return any(map(data.__contains__, self._quick))

    def text(self, text: str) -> str:
        """The text without its secrets; the same object if there are none."""
        for value in self._values:
            if value in text:
                self.counts["environment"] += text.count(value)
                text = text.replace(value, "[masked:environment]")
        for kind, literals, shape in _KINDS:
            for literal in literals:
                if literal in text:
                    text = self._without(shape, kind, text)
                    break
        for pattern in self._patterns:
            text = self._without(pattern, "pattern", text)
        for function in self._functions:
            try:
                masked = function(text)
            except Exception as error:  # noqa: BLE001  (its own code: what it could not look at is not shown)
                masked = f"[masked: a function of secrets raised {type(error).__name__}]"
            if masked != text:
                self.counts["function"] += 1
                text = masked
        return text

    def _without(self, shape: re.Pattern[str], kind: str, text: str) -> str:
        masked, count = shape.subn(f"[masked:{kind}]", text)
        if count:
            self.counts[kind] += count
        return masked

    def value(self, value: Any) -> Any:
        """The value as JSON, without the secrets in its texts and names; the same object if there are none."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            items = [self.value(item) for item in value]
            return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
        if isinstance(value, dict):
            fields = {self.value(name): self.value(item) for name, item in value.items()}
            same = all(a is b for a, b in zip(fields.values(), value.values(), strict=False))
            return value if same and fields.keys() == value.keys() else fields
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.value(as_json(value))  # an object of somebody's, as it would be written

    def event(self, event: StreamEvent) -> StreamEvent:
        """The event without the secrets in what came from outside; the same object if there are none."""
        kind: StreamEventType = event.event_type
        data: Any = event.data  # an event made by hand holds anything
        if not isinstance(data, dict):
            return event
        names = _FIELDS.get(kind, () if kind.known else tuple(data))
        changed = {}
        for name in names:
            if name in data:
                mask = self._messages if name == "messages" else self.value
                masked = mask(data[name])
                if masked is not data[name]:
                    changed[name] = masked
        return msgspec.structs.replace(event, data=data | changed) if changed else event

    def trajectory(self, value: dict[str, Any]) -> None:
        """Mask what came from outside in a trajectory's dict, in place."""
        for name in ("row", "error"):
            value[name] = self.value(value.get(name))
        value["messages"] = self._messages(value.get("messages"))
        for turn in value.get("turns", ()):
            for record in turn.get("tools", ()):
                record["observation"] = self.value(record.get("observation"))
                call = record.get("call")
                if isinstance(call, dict):
                    call["arguments"] = self.value(call.get("arguments"))

    def _messages(self, messages: Any) -> Any:
        """The messages, masked, but for what an assistant said."""
        if not isinstance(messages, list):
            return self.value(messages)
        masked = [
            message
            if isinstance(message, dict) and message.get("role") == "assistant"
            else self.value(message)
            for message in messages
        ]
        return masked if any(a is not b for a, b in zip(masked, messages, strict=True)) else messages
