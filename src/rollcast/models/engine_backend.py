"""The base of backends with an engine: requests in, deltas out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from rollcast.errors import InputError, PromptTooLongError
from rollcast.models.backend import Delta, GenerationRequest, Sampling
from rollcast.models.checks import check_prompt_ids
from rollcast.models.inbox import Inbox
from rollcast.models.text import TokenTexts

if TYPE_CHECKING:
    from rollcast.models.chat import TemplateRenderer

__all__ = ["EngineBackend", "Generates", "InboxBackend", "room_for"]

G = TypeVar("G", bound=Inbox)
G_contra = TypeVar("G_contra", bound=Inbox, contravariant=True)


class Generates(Protocol[G_contra]):
    """What a backend asks of its engine, from any thread."""

    @property
    def version(self) -> int:
        """The version of the weights that it samples from now."""
        ...

    def submit(self, generation: G_contra) -> None:
        """Begin a generation: deltas go to its inbox, the last with a finish reason, or an error in its place.

        Raises:
            BackendError: nothing can be generated; BackendClosedError if the engine was closed.
        """
        ...

    def leave(self, generation: G_contra) -> None:
        """End a generation early; its inbox receives None unless it had ended. May be called twice."""
        ...


class InboxBackend(ABC, Generic[G]):
    """A backend whose engine samples elsewhere, on a thread, in a process or on a server, and fills inboxes.

    Requests may come from several event loops and threads at once. A subclass sets the attributes before it calls
    `__init__`.

    Args:
        engine: the engine that samples.

    Attributes:
        name, model_name, token_exact, logprobs, streams, policy_version, renderer: as in `Backend`.
    """

    name: str
    model_name: str
    renderer: TemplateRenderer | None
    token_exact: bool = True
    logprobs: bool = True
    streams: bool = True

    def __init__(self, engine: Generates[G]) -> None:
        self._engine = engine
        self._generations: dict[str, G] = {}

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} holds a loaded model and cannot be copied or pickled; make another from the model's "
            "name where it should run"
        )

    @abstractmethod
    def _asked(self, request: GenerationRequest) -> tuple[G, int | None]:
        """Make the generation that the engine takes, and tell the prompt's length if only the backend knows it.

        Raises:
            PromptTooLongError: the prompt fills the model's context.
            InputError: the engine cannot sample in this way.
        """

    @property
    def policy_version(self) -> int:
        """The version of the weights that it samples from now; 0 for those that it began with."""
        return self._engine.version

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Sample until an end token, a stop string, `max_tokens` or the end of the context; usually one delta per token.

        Closing the iterator ends the generation, as `cancel` does.

        Raises:
            PromptTooLongError: the prompt fills the model's context.
            InputError: an id is not in this vocabulary, the request's id is in use, or the engine cannot sample in this way.
            BackendClosedError: the backend was closed, or its engine's process died.
            BackendError: the engine failed, or its weights give no finite logits or are not what they should be.
        """
        generation, prompt_tokens = self._asked(request)
        if self._generations.setdefault(request.request_id, generation) is not generation:
            raise InputError(f"request {request.request_id!r} is still running; give each request its own id")
        try:
            self._engine.submit(generation)
        except BaseException:
            del self._generations[request.request_id]
            raise
        items = generation.items
        running = True
        try:
            while running:
                if not items:
                    await generation.arrival()
                item = items.popleft()
                if isinstance(item, Delta):
                    running = item.finish_reason is None
                    if prompt_tokens is not None:
                        item = msgspec.structs.replace(item, prompt_tokens=prompt_tokens)
                        prompt_tokens = None
                    yield item
                else:
                    running = False
                    if item is not None:
                        raise item
        finally:
            del self._generations[request.request_id]
            if running:
                self._engine.leave(generation)

    async def cancel(self, request_id: str) -> None:
        """End a generation early; its iterator ends. Unknown ids are ignored."""
        generation = self._generations.get(request_id)
        if generation is not None:
            self._engine.leave(generation)


class EngineBackend(InboxBackend[G]):
    """A token-exact backend: it renders prompts, and checks them before its engine sees them.

    A subclass makes the generations that its engine takes.

    Args:
        engine: the engine that samples.
        texts: the texts of the model's tokens.

    Attributes:
        context: how many tokens a prompt and what is sampled after it may have together.
        vocab_size: how many ids the model knows.
    """

    renderer: TemplateRenderer
    context: int
    vocab_size: int

    _for_more_context = "use a larger model"
    """What to do if a conversation that cannot be shortened does not fit."""

    def __init__(self, engine: Generates[G], texts: TokenTexts) -> None:
        super().__init__(engine)
        self._texts = texts
        # More text than this cannot fit, and encoding megabytes of it would block the event loop for seconds.
        self.renderer.max_characters = self.context * max(map(len, texts.bytes))

    @abstractmethod
    def _generation(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> G:
        """Make a generation of at most `limit` tokens for this backend's engine; the prompt was checked.

        Raises:
            InputError: the engine cannot sample in this way.
        """

    def _asked(self, request: GenerationRequest) -> tuple[G, int | None]:
        rendered = request.prompt_ids is None
        prompt_ids = self.renderer.render(request.messages, request.tools) if rendered else request.prompt_ids
        assert prompt_ids is not None
        limit = room_for(
            prompt_ids,
            request.sampling.max_tokens,
            self.vocab_size,
            self.context,
            self.model_name,
            self._for_more_context,
        )
        generation = self._generation(prompt_ids, request.sampling, limit)
        return generation, len(prompt_ids) if rendered else None


def room_for(
    prompt_ids: Sequence[int], max_tokens: int, vocabulary: int, context: int, model: str, advice: str
) -> int:
    """How many tokens may be sampled after a prompt, at most `max_tokens`.

    Args:
        prompt_ids: shape (T,).
        max_tokens: what the request allows.
        vocabulary: how many ids the model knows.
        context: how many tokens a prompt and what is sampled after it may have together.
        model: the model's name.
        advice: what to do if a conversation that cannot be shortened does not fit.

    Raises:
        InputError: no engine can take the prompt.
        PromptTooLongError: it fills the context.
    """
    check_prompt_ids(prompt_ids, vocabulary)
    if len(prompt_ids) >= context:
        raise PromptTooLongError(
            f"the prompt has {len(prompt_ids)} tokens; expected fewer than the {context} of {model}'s "
            f"context: shorten the conversation, or {advice}"
        )
    return min(max_tokens, context - len(prompt_ids))
