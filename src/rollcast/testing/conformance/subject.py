"""What the suite has to know about a backend: how to make it, what its model computes, and what it cannot do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

from numpy.typing import NDArray

from rollcast.errors import InputError
from rollcast.models.backend import Backend
from rollcast.records import Message

__all__ = ["CLAIMS", "KNOWLEDGE", "PROPERTIES", "BackendUnderTest", "NotApplicable", "Reference"]

Reference = Callable[[Sequence[int], int], NDArray[Any]]
"""`reference(ids, version)`: log-probabilities (T, V) of the token after each of the T ids, at temperature 1."""

# What a check may need. First what the backend says about itself, then what the subject has to know about it, then what
# the contract asks for and a backend may be declared not to do.
PROPERTIES = {
    "ids": ("token_exact", "it takes and gives text, not ids"),
    "logprobs": ("logprobs", "it gives no log-probabilities"),
    "streams": ("streams", "it gives a generation in one piece"),
    "renderer": ("renderer", "it has no renderer"),
}
KNOWLEDGE = (
    "context",
    "decode",
    "kill",
    "new_weights",
    "reference",
    "running",
    "special_tokens",
    "stop_ids",
    "vocabulary",
    "wrong_weights",
)
CLAIMS = (
    "cancel",
    "close",
    "deterministic",
    "input_checks",
    "max_tokens",
    "messages",
    "sampling",
    "seed",
    "stop_strings",
    "threads",
    "unique_ids",
)

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "Such as 2 * 3."}},
            "required": ["expression"],
        },
    },
}
QUESTION: list[Message] = [{"role": "user", "content": "What is 347 * 28 + 9?"}]


class NotApplicable(SkipTest):
    """A check does not apply to this backend, and why; pytest and unittest show a skip with the reason."""


@dataclass(frozen=True, kw_only=True)
class BackendUnderTest:
    """A backend and what is known about it. If a field is left out, the checks that need it are "n/a".

    Attributes:
        name: its column in the table.
        make: returns a new backend of version 0, or an awaitable of one.
        reference: computes log-probabilities independently of the backend; called on a thread.
        decode: turns ids into text, with special tokens; what is not UTF-8 becomes U+FFFD.
        vocabulary: how many ids there are; the largest is one less.
        context: the most tokens of prompt and completion together.
        stop_ids: the ids that end a turn.
        special_tokens: strings that only the chat template may turn into their ids.
        messages, tools: a conversation; a completion of it should end by itself.
        new_weights: what `update_weights` takes; version 1 of the reference.
        wrong_weights: what `update_weights` has to refuse, for example weights of a wrong shape.
        kill: makes the engine fail, as a defect would; sync or async.
        running: tells how many generations the engine holds.
        cannot: what the backend is known not to do, with the reason that the table shows: `cancel`, `close` (end what
            runs), `deterministic` (the same in a batch as alone, to the bit), `input_checks`, `max_tokens`, `messages`
            (take them without `prompt_ids`), `sampling`, `seed`, `stop_strings`, `threads` (serve several event loops
            at once), `unique_ids`; or an attribute of this class that a check needs, or of the backend.
        hot: a temperature at which nearly all tokens are equally probable, even parts of characters.
        tolerance: how far a log-probability may be off.
        concurrency: how many requests may run at once.
        long_tokens: the length of the generations that are interrupted, at most half of the context; more than an engine
            makes while the event loop is busy for a moment.
        timeout_s: seconds after which a check counts as hung.

    Raises:
        InputError: `cannot` names something that no check needs, or has no reason for it.
    """

    name: str
    make: Callable[[], Backend | Awaitable[Backend]]
    reference: Reference | None = None
    decode: Callable[[list[int]], str] | None = None
    vocabulary: int | None = None
    context: int | None = None
    stop_ids: frozenset[int] = frozenset()
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    messages: Sequence[Message] = tuple(QUESTION)
    tools: Sequence[dict[str, Any]] = (CALCULATOR,)
    new_weights: Any = None
    wrong_weights: Any = None
    kill: Callable[[Any], Any] | None = None
    running: Callable[[Any], int] | None = None
    cannot: Mapping[str, str] = field(default_factory=dict)
    hot: float = 50.0
    tolerance: float = 1e-4
    concurrency: int = 64
    long_tokens: int = 300
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        known = {*PROPERTIES, *KNOWLEDGE, *CLAIMS}
        for need, reason in self.cannot.items():
            if need not in known:
                raise InputError(f"cannot has {need!r}; expected one of: {', '.join(sorted(known))}")
            if not reason:
                raise InputError(f"cannot[{need!r}] is empty; say why, since the table shows the reason")

    def lacks(self, need: str) -> str | None:
        """Why a check with this need does not apply; None if it does."""
        if need in self.cannot:
            return self.cannot[need]
        if need in KNOWLEDGE:
            value = getattr(self, need)
            if value is None or (need in {"stop_ids", "special_tokens"} and not value):
                return f"`{need}` is not given"
        return None
