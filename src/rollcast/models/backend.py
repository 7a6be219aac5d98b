"""The seam between the rollout and a model: one async method that yields deltas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

import msgspec

from rollcast.errors import InputError
from rollcast.records import Message, ToolCall

__all__ = ["Backend", "BaseBackend", "ChatRenderer", "Delta", "GenerationRequest", "Sampling"]


class Sampling(msgspec.Struct, frozen=True):
    """How to sample.

    Attributes:
        temperature: 0 is greedy.
        top_p: keep the most probable tokens whose probabilities sum to this; 1 keeps all.
        top_k: keep this many; 0 keeps all.
        max_tokens: the most tokens that one generation may have.
        stop: strings that end a generation; the text ends after the first of them.
        seed: this generation's seed, a number of 63 bits; None leaves it to the backend.

    Raises:
        InputError: a value has the wrong type, or is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = msgspec.structs.asdict(self)
        number, whole = int | float, int
        rules = (
            ("temperature", number, lambda v: v >= 0, "a number from 0 (greedy) upward"),
            ("top_p", number, lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
            ("top_k", whole, lambda v: v >= 0, "a whole number; 0 keeps all tokens"),
            ("max_tokens", whole, lambda v: v >= 1, "a whole number from 1 upward"),
            ("stop", tuple, _are_texts, "a tuple of strings, none of them empty"),
            ("seed", whole | None, _is_seed, "a whole number from 0 to 2**63 - 1, or None"),
        )
        for name, kind, holds, expected in rules:
            if not (isinstance(given[name], kind) and holds(given[name])):
                raise InputError(f"{name} is {given[name]!r}; expected {expected}")


def _is_seed(value: int | None) -> bool:
    return value is None or 0 <= value < 1 << 63


def _are_texts(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, str) and value for value in values)


class GenerationRequest(msgspec.Struct, frozen=True):
    """What a backend is asked to continue.

    Attributes:
        request_id: a unique id, by which `cancel` finds the request.
        messages: the conversation, for backends that render it themselves.
        tools: JSON-schema descriptions, `{"type": "function", "function": {…}}`.
        sampling: how to sample.
        prompt_ids: the whole prompt as ids, shape (T,), if the backend is token-exact; else None.
    """

    request_id: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    sampling: Sampling
    prompt_ids: list[int] | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What was just sampled: usually one token.

    Attributes:
        text: the new text; empty if the token ends in the middle of a character.
        token_ids: shape (T,), the stop token included, whose text is empty.
        logprobs: log-probabilities in the distribution that was sampled from (after temperature, top-p and top-k),
            shape (T,).
        policy_version: the version of the weights that sampled these tokens.
        tool_calls: the calls, if the backend parses them itself.
        finish_reason: `stop` or `length` on the last delta.
        prompt_tokens: length of the prompt, if only the backend knows it; on any delta.
    """

    text: str
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    policy_version: int | None = None
    tool_calls: list[ToolCall] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None


class ChatRenderer(Protocol):
    """Turns messages into token ids, for token-exact backends. Text from outside never becomes special tokens."""

    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        """Return the ids of the whole prompt, shape (T,), up to where the assistant speaks."""
        ...

    def extend(
        self,
        ids: list[int],
        messages: list[Message],
        new: int,
        tools: list[dict[str, Any]],
    ) -> list[int] | None:
        """Return the ids, shape (T,), that add the last `new` messages to `ids`, up to where the assistant speaks.

        `ids` end with what the assistant sampled last; its message comes before the `new` ones. None if the prompt does
        not continue `ids`: then the whole prompt is rendered, and a new segment of the trajectory begins.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A model. `generate` is all that a rollout needs; `BaseBackend` has a default for the rest."""

    @property
    def name(self) -> str:
        """The backend's name, such as `tiny`."""
        ...

    @property
    def model_name(self) -> str:
        """The model's name, such as `rollcast/tiny`."""
        ...

    @property
    def token_exact(self) -> bool:
        """Whether it takes `prompt_ids` and yields `token_ids`."""
        ...

    @property
    def logprobs(self) -> bool:
        """Whether it yields `logprobs`."""
        ...

    @property
    def streams(self) -> bool:
        """Whether it yields more than one delta per generation."""
        ...

    @property
    def policy_version(self) -> int:
        """The version of the weights that it samples from now."""
        ...

    @property
    def renderer(self) -> ChatRenderer | None:
        """The renderer if `token_exact`, else None."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Sample until a stop token, a stop string or `max_tokens`; the last delta has the finish reason.

        Closing the iterator ends the generation, as `cancel` does.

        Raises:
            BackendError: the model failed; PromptTooLongError if the prompt does not fit.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """End a generation early; its iterator ends. Unknown ids are ignored."""
        ...

    async def update_weights(self, weights: Any, version: int) -> None:
        """From the next token on, sample from these weights, whose version is `version`."""
        ...

    async def close(self) -> None:
        """Release the model. Running generations raise BackendClosedError. May be called twice."""
        ...


class BaseBackend:
    """A backend with everything but `generate`: derive from it and write that method.

    Attributes:
        name, model_name, token_exact, logprobs, streams, policy_version, renderer: as in `Backend`.
    """

    name: str = "own"
    model_name: str = "own"
    token_exact: bool = False
    logprobs: bool = False
    streams: bool = True
    policy_version: int = 0
    renderer: ChatRenderer | None = None

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """See `Backend.generate`."""
        raise InputError(
            f"{type(self).__name__} has no generate; write an async generator of Deltas of that name"
        )

    async def cancel(self, request_id: str) -> None:
        """Does nothing: the rollout closes the iterator, which is enough."""

    async def update_weights(self, weights: Any, version: int) -> None:
        """Only note the version: a server elsewhere gets its weights by other means."""
        self.policy_version = version

    async def close(self) -> None:
        """Does nothing: there is nothing to release."""
