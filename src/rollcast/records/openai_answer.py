"""Puts an answer that was streamed together again, as the engine would have sent it whole. Pure.

A stream leaves out what is null in a whole answer, and names the rest in its own order, so a `BodyShape` learns from whole
answers of the same engine which fields there are. Before it has seen one, it has the fields of vLLM's or of OpenAI's answers,
told by the fields of the chunks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from rollcast.records.openai_piece import CallDelta, Piece, calls_of
from rollcast.records.openai_request import RequestKind
from rollcast.text import well_formed

__all__ = ["Answer", "BodyShape", "CallParts", "ToolCallText"]

AddedField = Literal["token_ids", "logprobs"]

_ADDED = {"token_ids": ("token_ids", "prompt_token_ids"), "logprobs": ("logprobs",)}
_OBJECTS = {"chat": "chat.completion", "completions": "text_completion"}
_JOINED = frozenset(
    {"content", "refusal", "reasoning", "reasoning_content"}
)  # texts of a message that come in parts
_STAMPS = ("id", "request_id", "created", "model")  # what tells whose an answer is
_NOT_IN_CHUNKS = frozenset(
    {"created", "model"}
)  # stamps that the chunks of `/inference/v1/generate` do not have
_IN_PARTS = frozenset({"token_ids", "sampling_mask"})  # lists of a choice with an entry for each token
_LAST_COUNTS = frozenset(
    {"finish_reason", "stop_reason", "weight_version"}
)  # fields whose last value is that of the whole answer
_OF_VLLM = frozenset(
    {"token_ids", "prompt_token_ids", "stop_reason", "prompt_text"}
)  # fields that only its chunks have


class ToolCallText:
    """One tool call while it arrives; `key` is the index that the engine gave it, or a number that follows."""

    __slots__ = ("arguments", "id", "key", "name")

    def __init__(self, key: int) -> None:
        self.key = key
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    @property
    def text(self) -> str:
        """The arguments so far, as valid Unicode."""
        return well_formed("".join(self.arguments))


class CallParts:
    """Puts tool calls together from their parts, in the order in which they began.

    Some engines leave the index out, begin with another than 0, or repeat the id: a part without an index belongs to the call
    with its id, or begins a call if it has a new id or, without any id, a name; else it goes on with the last call.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCallText] = []

    def add(self, deltas: Iterable[CallDelta]) -> None:
        """Take the parts of one chunk."""
        for delta in deltas:
            call = self._call_of(delta)
            call.id = call.id or delta.id
            call.name = call.name or well_formed(delta.name)
            if delta.arguments:
                call.arguments.append(delta.arguments)

    def _call_of(self, delta: CallDelta) -> ToolCallText:
        if delta.index is not None:
            same = [call for call in self.calls if call.key == delta.index]
            # An engine that says 0 for every call tells them apart by their ids.
            if same and not (delta.id and delta.name and same[-1].id and same[-1].id != delta.id):
                return same[-1]
            return self._begin(delta.index)
        if delta.id:
            known = next((call for call in self.calls if call.id == delta.id), None)
            return known or self._begin(len(self.calls))
        if self.calls and not (delta.name and self.calls[-1].name):
            return self.calls[-1]
        return self._begin(len(self.calls))

    def _begin(self, key: int) -> ToolCallText:
        call = ToolCallText(key)
        self.calls.append(call)
        return call


class _LeftOut:
    """Stands for a field that a whole answer does not have if the stream gave no value for it."""


_LEFT_OUT = _LeftOut()


class _Level:
    """The fields of one kind of object in whole answers, in order, with what stands there if there is no value.

    Args:
        fields: the names, separated by spaces: a field with a question mark is left out if it has no value, the others are null.

    Attributes:
        always: unusual fields that had a value in every object so far; None before the first.
    """

    def __init__(self, fields: str) -> None:
        self._usual = {n.removesuffix("?"): _LEFT_OUT if n.endswith("?") else None for n in fields.split()}
        self.defaults: dict[str, Any] = dict(self._usual)
        self.always: set[str] | None = None
        self._learnt = False

    def learn(self, value: Mapping[str, Any]) -> None:
        """Take order and empty values from an object of a whole answer."""
        given = {name for name, each in value.items() if each not in (None, [], "") and name not in _KNOWN}
        self.always = given if self.always is None else self.always & given
        order = list(self.defaults) if self._learnt else []
        names = list(value)
        for at, name in enumerate(names):
            if name not in order:
                order.insert(order.index(names[at - 1]) + 1 if at else 0, name)
        known = self.defaults if self._learnt else self._usual
        self._learnt = True
        self.defaults = {
            name: _LEFT_OUT
            if name not in value
            else value[name]
            if value[name] is None or value[name] == []
            else known.get(name, _LEFT_OUT)
            for name in order
        }

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values in this order, with what stands for those that are not there."""
        whole = {
            name: values.get(name, default)
            for name, default in self.defaults.items()
            if name in values or default is not _LEFT_OUT
        }
        whole.update((name, value) for name, value in values.items() if name not in whole)
        return whole


# The orders of vLLM 0.32's protocol.py (of chat_completion/, completion/ and scale_out/token_in_token_out/) and of OpenAI's reference.
_SHAPES: dict[tuple[RequestKind, bool], dict[str, str]] = {
    ("chat", True): {
        "top": "id? object? created? model? choices? service_tier system_fingerprint usage? prompt_logprobs prompt_token_ids "
        "prompt_text kv_transfer_params ec_transfer_params metrics",
        "choice": "index? message? logprobs finish_reason stop_reason token_ids routed_experts",
        "said": "role? content refusal annotations audio function_call tool_calls? reasoning",
        "usage": "prompt_tokens? total_tokens? completion_tokens? prompt_tokens_details completion_tokens_details",
    },
    ("chat", False): {
        "top": "id? object? created? model? choices? usage? service_tier? system_fingerprint?",
        "choice": "index? message? logprobs finish_reason",
        "said": "role? content refusal? annotations? tool_calls?",
        "usage": "prompt_tokens? completion_tokens? total_tokens?",
    },
    ("completions", True): {
        "top": "id? object? created? model? choices? service_tier system_fingerprint usage? kv_transfer_params ec_transfer_params "
        "metrics",
        "choice": "index? text? logprobs finish_reason stop_reason token_ids prompt_logprobs prompt_token_ids routed_experts",
        "usage": "prompt_tokens? total_tokens? completion_tokens? prompt_tokens_details completion_tokens_details",
    },
    ("completions", False): {
        "top": "id? object? created? model? choices? usage? system_fingerprint?",
        "choice": "text? index? logprobs finish_reason",
        "usage": "prompt_tokens? completion_tokens? total_tokens?",
    },
    ("generate", True): {
        "top": "request_id? model created usage? prompt_logprobs prompt_token_id_logprobs prompt_token_ids mm_placeholders metrics "
        "kv_transfer_params ec_transfer_params output_mode? choices?",
        "choice": "index? finish_reason stop_reason token_ids routed_experts sampling_mask weight_versions text? logprobs",
        "usage": "prompt_tokens? total_tokens? completion_tokens? prompt_tokens_details completion_tokens_details",
    },
}  # fmt: skip

_KNOWN = _JOINED | {
    name.removesuffix("?")
    for shape in _SHAPES.values()
    for fields in shape.values()
    for name in fields.split()
}


class BodyShape:
    """Which fields the whole answers of one engine have, for one kind of request.

    Attributes:
        answers: from how many whole answers it has learnt.
        empty_content: the content of an answer that has neither text nor reasoning nor calls.
        stamps: the id, the time and the model of the last whole answer, by the names of their fields.
        counts: whether whole answers have a usage.
    """

    def __init__(self, kind: RequestKind, *, vllm: bool = False) -> None:
        self.kind = kind
        self.answers = 0
        self.empty_content: str | None = ""
        self.stamps: dict[str, Any] = {}
        self.counts = False
        self._levels = self._usual(vllm=vllm)

    def _usual(self, *, vllm: bool) -> dict[str, _Level]:
        fields = _SHAPES[self.kind, vllm or self.kind == "generate"]
        return {name: _Level(fields.get(name, "")) for name in ("top", "choice", "said", "usage")}

    def learn(self, body: Mapping[str, Any]) -> None:
        """Learn from a whole answer of this engine, which did not stream."""
        choices = body.get("choices")
        choices = [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []
        if not choices:
            return
        if not self.answers:
            self._levels = self._usual(vllm=any("stop_reason" in choice for choice in choices))
        self.answers += 1
        self._levels["top"].learn(body)
        self.stamps.update((name, body[name]) for name in _STAMPS if body.get(name) is not None)
        for choice in choices:
            self._levels["choice"].learn(choice)
            if isinstance(said := choice.get("message"), Mapping):
                self._levels["said"].learn(said)
                if not any(said.get(name) for name in (*_JOINED, "tool_calls", "function_call")):
                    self.empty_content = said.get("content")
        if isinstance(usage := body.get("usage"), Mapping):
            self.counts = True
            self._levels["usage"].learn(usage)

    def missing(self, level: str, values: Collection[str]) -> set[str]:
        """The fields of such an object that every whole answer had, and these values do not have."""
        return (self._levels[level].always or set()).difference(values)

    def has(self, name: str, *, empty: bool) -> bool:
        """Whether a whole answer may have this field at its top; an `empty` one, only if such an answer had it."""
        return name in self._levels["top"].defaults or (name in _KNOWN and not empty)

    def filled(self, level: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """An object of a whole answer with these values: `top`, a `choice`, its message (`said`) or the `usage`."""
        return self._levels[level].filled(values)


class _Choice:
    """One choice while it arrives.

    Attributes:
        in_parts: fields that came in several chunks, and of which it is not known how a whole answer has them, such as ART's
            `policy_token_spans`.
    """

    def __init__(self) -> None:
        self.in_parts: set[str] = set()
        self.fields: dict[str, Any] = {}
        self.said: dict[str, Any] = {}
        self.texts: dict[str, list[str]] = {}
        self.calls = CallParts()
        self.logprobs: dict[str, Any] | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name in ("delta", "logprobs", "index"):
                continue
            if name == "text":
                self.texts.setdefault("text", []).append(value if isinstance(value, str) else "")
            elif name in _IN_PARTS and isinstance(value, list):
                self.fields.setdefault(name, []).extend(value)
            elif value is not None and not (name == "finish_reason" and value == ""):  # "" is no reason yet
                if name not in _LAST_COUNTS and _is_part(self.fields.get(name), value):
                    self.in_parts.add(name)
                self.fields[name] = value
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            delta = {}
        self.calls.add(calls_of(delta))
        for name, value in delta.items():
            if name in _JOINED and isinstance(value, str):
                self.texts.setdefault(name, []).append(value)
            elif name == "role" and not value:
                continue  # some engines name it only in the first chunk
            elif name not in ("tool_calls", "function_call") and value is not None:
                known = self.said.get(name)
                if not isinstance(value, list) and _is_part(known, value):
                    self.in_parts.add(name)
                self.said[name] = (
                    known + value if isinstance(known, list) and isinstance(value, list) else value
                )
        if isinstance(logprobs := choice.get("logprobs"), Mapping):
            self.logprobs = {} if self.logprobs is None else self.logprobs
            _join_lists(self.logprobs, logprobs)

    def whole(self, index: int, kind: RequestKind, shape: BodyShape, absent: set[str]) -> dict[str, Any]:
        values = {"index": index} | {n: value for n, value in self.fields.items() if n not in absent}
        if self.logprobs is not None and "logprobs" not in absent:
            values["logprobs"] = self.logprobs
        if kind == "chat":
            values["message"] = shape.filled("said", self._message(shape.empty_content))
        elif kind == "completions":
            values["text"] = "".join(self.texts.get("text", ()))
        return shape.filled("choice", values)

    def _message(self, empty: str | None) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", **self.said}
        for name, parts in self.texts.items():
            if (text := "".join(parts)) or name == "content":
                said[name] = text
        if self.calls.calls:
            said["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.text}}
                for c in self.calls.calls
            ]
        if said.get("content") == "":  # a stream begins with an empty text, even if none follows
            others = "tool_calls" in said or any(name in said for name in _JOINED - {"content"})
            said["content"] = None if others else empty
        return said


def _is_part(known: Any, value: Any) -> bool:
    """Whether a field has come before, so that this value is a part of it, or stands in its place: nobody knows which."""
    return known is not None and (known != value or (isinstance(value, list | dict) and bool(value)))


def _join_lists(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Append what came, in place: an answer may have a hundred thousand chunks."""
    for name, value in more.items():
        if not isinstance(value, list):
            if value is not None or name not in known:
                known[name] = value
        elif isinstance(known.get(name), list):
            known[name].extend(value)
        else:
            known[name] = list(value)


class Answer:
    """An answer that is put together from its pieces.

    Attributes:
        error: what the engine reported instead of an answer; None as a rule.
        ended: whether every choice has its finish reason.
    """

    def __init__(self, kind: RequestKind, shape: BodyShape | None = None) -> None:
        self.kind = kind
        self.error: str | None = None
        self._shape = shape
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._of_vllm = False

    def add(self, piece: Piece) -> None:
        """Take the next piece."""
        if piece.error is not None:
            self.error = piece.error
        chunk = piece.raw
        if chunk is None or piece.error is not None:
            return
        for name, value in chunk.items():
            if name not in ("choices", "object") and (value is not None or name not in self._top):
                self._top[name] = value
        self._of_vllm = self._of_vllm or not _OF_VLLM.isdisjoint(chunk)
        choices = chunk.get("choices")
        for at, choice in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(choice, Mapping):
                self._of_vllm = self._of_vllm or not _OF_VLLM.isdisjoint(choice)
                index = choice.get("index")
                index = index if isinstance(index, int) else at
                self._choices.setdefault(index, _Choice()).add(choice)

    @property
    def ended(self) -> bool:
        """Whether there is an answer, and every choice has its finish reason."""
        return bool(self._choices) and all(
            choice.fields.get("finish_reason") is not None for choice in self._choices.values()
        )

    def missing(self) -> set[str]:
        """The fields that every whole answer of this engine had and this stream did not give, or gave in parts of which nothing is known."""
        shape = self._shape
        if shape is None:
            return set()
        found = shape.missing("top", self._top) | shape.stamps.keys() - self._top.keys()
        if self.kind == "generate":
            found -= _NOT_IN_CHUNKS
        if isinstance(usage := self._top.get("usage"), dict):
            found |= shape.missing("usage", usage)
        for choice in self._choices.values():
            found |= choice.in_parts
            found |= shape.missing("choice", choice.fields)
            found |= shape.missing("said", choice.said.keys() | choice.texts.keys())
        return found

    def whole(self, *, without: Collection[AddedField] = (), created: int | None = None) -> dict[str, Any]:
        """The answer as the engine would have sent it without `stream`.

        Args:
            without: what the caller had not asked for, so that it is left out: `token_ids` (those of the prompt too), `logprobs`.
            created: when the engine was asked, in seconds since 1970; for answers of `/inference/v1/generate`, whose chunks do not say.
        """
        shape = self._shape if self._shape is not None and self._shape.answers else None
        shape = shape or BodyShape(self.kind, vllm=self._of_vllm)
        absent = {name for added in without for name in _ADDED[added]}
        values = {name: value for name, value in self._top.items() if name not in absent}
        if shape.answers:  # what only its streams have, such as `obfuscation`
            values = {name: value for name, value in values.items() if shape.has(name, empty=value is None)}
        if self.kind in _OBJECTS:
            values["object"] = _OBJECTS[self.kind]
        else:
            stamps = {**shape.stamps, "created": created}
            names = [name for name in _NOT_IN_CHUNKS & shape.stamps.keys() if stamps[name] is not None]
            values = {name: stamps[name] for name in names} | values
        if shape.answers and not shape.counts:  # its streams have a usage because they were asked for it
            values.pop("usage", None)
        if isinstance(usage := values.get("usage"), dict):
            values["usage"] = shape.filled("usage", usage)
        values["choices"] = [
            choice.whole(index, self.kind, shape, absent) for index, choice in sorted(self._choices.items())
        ]
        return shape.filled("top", values)

    def body(self, *, without: Collection[AddedField] = (), created: int | None = None) -> bytes:
        """The same as JSON, in the form that Starlette gives the answers of vLLM, SGLang and most others."""
        return json.dumps(
            self.whole(without=without, created=created),
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        ).encode()
