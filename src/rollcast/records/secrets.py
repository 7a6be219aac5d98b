"""Masking of secrets in what is recorded and what a server sends: in prompts, rows, settings, arguments, observations, errors.

What a model sampled is not masked: it is what is trained on. Neither are token ids, so the ids of a prompt or an observation in
a record's `trajectories/` still spell what its text had; leave trajectories out if that matters.

A secret that a tool writes in pieces, half in one partial observation and half in the next, is not recognised in them; in the
whole observation it is.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec
from msgspec import UNSET

from rollcast.errors import InputError
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import one_line_json
from rollcast.records.event import TypedData
from rollcast.records.jsonable import as_json, without_named_secrets
from rollcast.text import looks_secret, names_secret, well_formed

__all__ = ["Masker", "masked_arguments", "masker_of", "secret_values"]

T = StreamEventType

# Kind and shape.
_SHAPES: tuple[tuple[str, str], ...] = (
    ("private-key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    ("anthropic-key", r"\bsk-ant-[A-Za-z0-9_\-]{16,}"),
    ("openai-key", r"\bsk-(?!ant-)[A-Za-z0-9_\-]{20,}"),
    ("github-token", r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    ("github-token", r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("gitlab-token", r"\bglpat-[A-Za-z0-9_\-]{16,}"),
    ("huggingface-token", r"\bhf_[A-Za-z0-9]{20,}"),
    ("aws-key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("google-key", r"\bAIza[A-Za-z0-9_\-]{35}"),
    ("slack-token", r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}"),
    ("npm-token", r"\bnpm_[A-Za-z0-9]{36}"),
    ("jwt", r"\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    ("bearer-token", r"(?<=[Bb]earer )[A-Za-z0-9_\-.~+/]{16,}=*"),
    ("password-in-url", r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
)
_KINDS = [(kind, re.compile(shape)) for kind, shape in _SHAPES]

# What one of them needs, in text or in its JSON. Each begins with one character that is rare in text, for which `re` looks
# with `memchr`: all of them together take as long as looking for one literal of several characters.
_HINTS = (
    r"-(?:(?<=sk-)|----BEGIN |(?<=glpat-)|(?<=xox[abeoprs]-))",
    r"_(?:(?<=gh[pousr]_)|(?<=github_pat_)|(?<=hf_)|(?<=npm_))",
    r"A(?:KIA|SIA|Iza)",
    r"J(?<=eyJ)",
    r"/(?<=:/)/",
)
_HINTS_IN_TEXT = [re.compile(hint).search for hint in _HINTS]
_HINTS_IN_JSON = [re.compile(hint.encode()).search for hint in _HINTS]
_BEARER, _BEARER_IN_JSON = "earer ", b"earer "


# Where text from outside stands in the data of each type. What is not named here was sampled, or says nothing.
_FIELDS: dict[str, tuple[str, ...]] = {
    T.RUN_START: ("settings", "sampling", "tags", "name", "tools", "agent", "model", "backend"),
    T.CHAIN_START: ("messages", "reference", "row"),
    T.LLM_GENERATION_START: ("sampling", "model"),
    T.TOOL_CALL_START: ("arguments",),
    T.TOOL_OBSERVATION: ("observation",),
    T.REWARD: ("metrics",),
    T.CHAIN_END: ("metrics",),
    T.TRAIN_STEP: ("metrics",),
    T.ERROR: ("error",),
    T.CHAIN_SNAPSHOT: (
        "messages", "unlisted_messages", "tool_calls", "reference", "row", "sampling", "model", "rewards", "metrics", "tools",
        "error",
    ),
    T.MESSAGE: ("content",),
}  # fmt: skip

_CONVERSATIONS = frozenset({"messages", "unlisted_messages"})
_SECRET_OPTIONS = frozenset(
    {"--alert"}
)  # their names do not say it: the path of a webhook's address is its key
_SAID = frozenset({"content", "reasoning", "reasoning_content"})  # of a message of an assistant

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


def masked_arguments(arguments: Iterable[str]) -> list[str]:
    """A command's arguments, in which the value of an option or a setting whose name looks secret is `[masked:argument]`.

    The value of `--alert` is masked too, since whoever has a webhook's address can post to it. The value stands in the next argument (`--token VALUE`) or in the same one (`--token=VALUE`, `api_key=VALUE`).
    """
    masked: list[str] = []
    secret_comes = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        secret_name = name in _SECRET_OPTIONS or names_secret(name)
        if secret_comes:
            masked.append("[masked:argument]")
            secret_comes = False
        elif equals and secret_name:
            masked.append(f"{name}=[masked:argument]")
        else:
            masked.append(argument)
            secret_comes = secret_name and argument.startswith("--")
    return masked


def masker_of(given: Any) -> Masker | None:
    """The masker that a setting means: None and True one of the known shapes and the environment, False none.

    Raises:
        InputError: it is something else.
    """
    if given is None or given is True:
        return Masker()
    if given is False:
        return None
    if isinstance(given, Masker):
        return given
    raise InputError(
        f"masker is {given!r:.80}; expected a Masker, None for the usual one, or False to mask nothing"
    )


class Masker:
    """Masks secrets, each as `[masked:KIND]`, and counts them. Several threads may use one.

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
        self._counting = threading.Lock()
        self._values = secret_values(os.environ if environ is None else environ)
        self._functions = list(functions)
        self._values_in_json = [one_line_json(msgspec.json.encode(value)[1:-1]) for value in self._values]
        try:
            self._patterns = [re.compile(pattern) for pattern in patterns]
        except re.error as error:
            raise InputError(f"a pattern of secrets is no regular expression: {error}") from None

    def concerns(self, kind: StreamEventType) -> bool:
        """Whether events of this type hold anything that came from outside."""
        return kind in _FIELDS or not kind.known

    def outside(self, events: Iterable[Any]) -> list[Any]:
        """The values in the events' data that came from outside, which are those that `event` searches.

        Args:
            events: events, or structs with the fields of one, whose data may be a `TypedData`; what other data they have was sampled.
        """
        values: list[Any] = []
        for event in events:
            kind: StreamEventType = event.event_type
            names, data = _FIELDS.get(kind), cast("Any", event.data)  # an event made by hand holds anything
            if isinstance(data, TypedData):
                values += [
                    value for name in names or () if (value := getattr(data, name, UNSET)) is not UNSET
                ]
            elif not isinstance(data, dict):
                continue
            elif names is not None:
                values += [data[name] for name in names if name in data]
            elif not kind.known:
                values.append(data)
        return values

    def may_hold(self, data: bytes) -> bool:
        """Whether JSON may hold a secret: a quick look, which says no for most of what is recorded."""
        if self._patterns or self._functions:
            return True
        for search in _HINTS_IN_JSON:
            if search(data) is not None:
                return True
        return _BEARER_IN_JSON in data or any(map(data.__contains__, self._values_in_json))

    def text(self, text: str) -> str:
        """The text without its secrets; the same object if there are none."""
        for value in self._values:
            if value in text:
                self._count("environment", text.count(value))
                text = text.replace(value, "[masked:environment]")
        if _BEARER in text or any(search(text) is not None for search in _HINTS_IN_TEXT):
            for kind, shape in _KINDS:
                text = self._without(shape, kind, text)
        for pattern in self._patterns:
            text = self._without(pattern, "pattern", text)
        for function in self._functions:
            try:
                masked = function(text)
            except Exception as error:  # noqa: BLE001  (its own code: what it could not look at is not shown)
                masked = f"[masked: a function of secrets raised {type(error).__name__}]"
            if masked != text:
                self._count("function", 1)
                text = masked
        return text

    def _without(self, shape: re.Pattern[str], kind: str, text: str) -> str:
        masked, count = shape.subn(f"[masked:{kind}]", text)
        if count:
            self._count(kind, count)
        return masked

    def _count(self, kind: str, count: int) -> None:
        with self._counting:
            self.counts[kind] += count

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
                mask = self._messages if name in _CONVERSATIONS else self.value
                try:
                    masked = mask(data[name])
                except RecursionError:  # what nests too deeply is described, as where it is written
                    masked = mask(as_json(data[name]))
                if masked is not data[name]:
                    changed[name] = masked
        return msgspec.structs.replace(event, data=data | changed) if changed else event

    def trajectory(self, value: dict[str, Any]) -> None:
        """Mask what came from outside in a trajectory's dict, in place."""
        value["row"] = self.value(without_named_secrets(value.get("row")))
        value["error"] = self.value(value.get("error"))
        value["messages"] = self._messages(value.get("messages"))
        for turn in value.get("turns", ()):
            for record in turn.get("tools", ()):
                record["observation"] = self.value(record.get("observation"))
                call = record.get("call")
                if isinstance(call, dict):
                    call["arguments"] = self.value(without_named_secrets(call.get("arguments")))

    def _messages(self, messages: Any) -> Any:
        """The messages, masked, but for what an assistant said."""
        if not isinstance(messages, list):
            return self.value(messages)
        masked = [self._message(message) for message in messages]
        return masked if any(a is not b for a, b in zip(masked, messages, strict=True)) else messages

    def _message(self, message: Any) -> Any:
        """A message, or an object with one as `message`."""
        if not isinstance(message, dict):
            return self.value(message)
        if isinstance(message.get("message"), dict):
            inner = self._message(message["message"])
            return message if inner is message["message"] else message | {"message": inner}
        if message.get("role") != "assistant":
            return self.value(message)
        fields = {name: item if name in _SAID else self.value(item) for name, item in message.items()}
        return fields if any(fields[name] is not message[name] for name in message) else message
