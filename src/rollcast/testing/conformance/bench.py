"""Runs checks on a backend: one instance for most checks, a fresh one for those that break it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rollcast.errors import InputError
from rollcast.models.backend import Backend, Delta, GenerationRequest, Sampling
from rollcast.testing.conformance.distribution import expected_logprobs
from rollcast.testing.conformance.subject import PROPERTIES, BackendUnderTest, NotApplicable

__all__ = ["Bench", "Generated"]

ATTEMPTS = 5

# Prompts that are tried for a greedy generation that goes on and on.
_CANDIDATES = 96


@dataclass
class Generated:
    """One generation, as far as it got.

    Attributes:
        error: what it raised.
        ended: whether its iterator has ended, with or without an error.
    """

    request: GenerationRequest
    deltas: list[Delta] = field(default_factory=list)
    error: BaseException | None = None
    ended: bool = False

    @property
    def text(self) -> str:
        """The deltas' texts, joined."""
        return "".join(delta.text for delta in self.deltas)

    @property
    def ids(self) -> list[int]:
        """All sampled ids, with the stop token; empty if the backend gives only text."""
        return [token for delta in self.deltas for token in delta.token_ids or ()]

    @property
    def logprobs(self) -> list[float]:
        """The log-probabilities of the ids."""
        return [value for delta in self.deltas for value in delta.logprobs or ()]

    @property
    def versions(self) -> list[int | None]:
        """One version per token, or per delta if there are no ids."""
        return [
            delta.policy_version
            for delta in self.deltas
            for _ in (delta.token_ids if delta.token_ids is not None else (0,))
        ]

    @property
    def reason(self) -> str | None:
        """The finish reason of the last delta so far."""
        return self.deltas[-1].finish_reason if self.deltas else None

    def __str__(self) -> str:
        what = f"prompt_ids={self.request.prompt_ids!r:.120}" if self.request.prompt_ids else "the messages"
        return f"request {self.request.request_id!r} ({self.request.sampling}, {what})"


class Bench:
    """Gives checks the backend, and looks after it.

        async with Bench(subject) as bench:
            for check in CHECKS:
                await check(bench)

    One instance serves all checks except those that break it, which get one of their own; after a failed check, the next
    also gets a new one. Everything happens in the event loop that opened the bench.
    """

    def __init__(self, subject: BackendUnderTest) -> None:
        self.subject = subject
        self._backend: Backend | None = None
        self._used = False
        self._names = itertools.count()
        self._long: list[list[int] | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen: dict[tuple[int, tuple[int, ...]], NDArray[Any]] = {}

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.discard()

    @property
    def backend(self) -> Backend:
        """The instance that the running check may use."""
        assert self._backend is not None  # while a check runs
        return self._backend

    async def prepare(self, *, fresh: bool) -> None:
        """Provide a backend; an unused one if `fresh`.

        Raises:
            InputError: the bench was opened in another event loop.
        """
        if self._loop is not asyncio.get_running_loop():
            raise InputError(
                "this bench was opened in another event loop, where its backend lives; with pytest-asyncio give the "
                'tests and the fixture one loop: @pytest.mark.asyncio(loop_scope="module")'
            )
        if fresh and self._used:
            await self.discard()
        if self._backend is None:
            made: Any = self.subject.make()
            self._backend = await made if inspect.isawaitable(made) else made
        self._used = True

    async def renew(self) -> None:
        """Go on with a new backend."""
        await self.discard()
        await self.prepare(fresh=True)

    async def discard(self) -> None:
        """Close the backend; the next check gets a new one."""
        backend, self._backend, self._used = self._backend, None, False
        if backend is not None:
            await backend.close()

    def require(self, needs: Iterable[str]) -> None:
        """Raise NotApplicable if the backend or the subject lacks one of these."""
        for need in needs:
            reason = self.subject.lacks(need)
            if reason is None and need in PROPERTIES and self._backend is not None:
                attribute, missing = PROPERTIES[need]
                reason = None if getattr(self._backend, attribute) else missing
            if reason is not None:
                raise NotApplicable(reason)

    def has(self, *needs: str) -> bool:
        """Whether the backend and the subject have all of these, for a part of a check that needs them."""
        try:
            self.require(needs)
        except NotApplicable:
            return False
        return True

    # -- asking --------------------------------------------------------------------------------------------------------

    def request(
        self, prompt: Sequence[int] | None = None, *, name: str | None = None, **sampling: Any
    ) -> GenerationRequest:
        """Make a request with an id of its own; it has the subject's conversation if no prompt is given."""
        subject = self.subject
        if prompt is None and self.backend.token_exact and self.backend.renderer is not None:
            prompt = self.backend.renderer.render(list(subject.messages), list(subject.tools))
        return GenerationRequest(
            request_id=name if name is not None else f"conformance/{next(self._names)}",
            messages=list(subject.messages),
            tools=list(subject.tools),
            sampling=Sampling(**{"max_tokens": 32, **sampling}),
            prompt_ids=None if prompt is None else list(prompt),
        )

    async def read(
        self,
        got: Generated,
        on_delta: Callable[[Generated], Any] | None = None,
        leave_after: int | None = None,
    ) -> Generated:
        """Read a generation to its end, or close it after some deltas; a failure is kept, not raised.

        `on_delta`, sync or async, is called after each.
        """
        try:
            deltas: Any = self.backend.generate(got.request)
            async for delta in deltas:
                got.deltas.append(delta)
                if on_delta is not None:
                    made = on_delta(got)
                    if inspect.isawaitable(made):
                        await made
                if len(got.deltas) == leave_after:
                    await deltas.aclose()
                    break
        except Exception as error:  # noqa: BLE001  (the check looks at it)
            got.error = error
        finally:
            got.ended = True
        return got

    async def generate(self, prompt: Sequence[int] | None = None, **sampling: Any) -> Generated:
        """Read a whole generation.

        Raises:
            AssertionError: it failed.
        """
        (got,) = await self.together([self.request(prompt, **sampling)])
        return got

    async def together(self, requests: Iterable[GenerationRequest]) -> list[Generated]:
        """Read whole generations, as many at once as the subject takes.

        Raises:
            AssertionError: one failed.
        """
        places = asyncio.Semaphore(self.subject.concurrency)

        async def whole(request: GenerationRequest) -> Generated:
            async with places:
                return await self.read(Generated(request))

        got = await asyncio.gather(*map(whole, requests))
        for one in got:
            if one.error is not None:
                raise AssertionError(
                    f"{one} raised {type(one.error).__name__}: {one.error}; expected deltas"
                ) from one.error
        return got

    async def until(self, state: Callable[[], bool], otherwise: str) -> None:
        """Wait for a state, polling it.

        Raises:
            AssertionError: it was not reached in time.
        """
        try:
            async with asyncio.timeout(self.subject.timeout_s / 2):
                while not state():
                    await asyncio.sleep(0.001)
        except TimeoutError as error:
            raise AssertionError(otherwise) from error

    def prompt(self, number: int, length: int = 8) -> list[int] | None:
        """Random ids, the same for the same number, without special tokens; None if the backend takes messages."""
        if not self.has("ids", "vocabulary"):
            return None
        assert self.subject.vocabulary is not None
        special = {*self.subject.special_tokens.values(), *self.subject.stop_ids}
        draw = random.Random(number)
        ids: list[int] = []
        while len(ids) < length:
            token = draw.randrange(self.subject.vocabulary)
            if token not in special:
                ids.append(token)
        return ids

    async def long_prompts(self, count: int) -> list[list[int] | None]:
        """Find prompts whose greedy generation lasts `long_tokens`, repeated up to `count`.

        Raises:
            NotApplicable: there are none.
        """
        if self._long is None:
            tokens = self.subject.long_tokens
            prompts = [self.prompt(number) for number in range(_CANDIDATES)]
            if prompts[0] is None:
                prompts = [None]
            self._long = []
            # A few at a time, so that a slow engine need not answer them all.
            for start in range(0, len(prompts), 24):
                requests = [
                    self.request(prompt, temperature=0.0, max_tokens=tokens)
                    for prompt in prompts[start : start + 24]
                ]
                for prompt, got in zip(prompts[start:], await self.together(requests), strict=False):
                    # A backend of text alone may give several tokens in a delta.
                    if len(got.ids) >= tokens or (not got.ids and got.reason == "length"):
                        self._long.append(prompt)
                if len(self._long) >= 4:
                    break
        if not self._long:
            raise NotApplicable(f"no greedy generation goes on for {self.subject.long_tokens} tokens")
        return [prompt for prompt, _ in zip(itertools.cycle(self._long), range(count), strict=False)]

    async def in_time(self, attempt: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        """Repeat an attempt until it happened while generations still ran.

        If something else holds up the event loop for a while, that proves nothing about the backend.

        Raises:
            AssertionError: no attempt did.
        """
        for _ in range(ATTEMPTS):
            if await attempt():
                return
        raise AssertionError(f"{otherwise} ({ATTEMPTS} of {ATTEMPTS} attempts)")

    # -- comparing -----------------------------------------------------------------------------------------------------

    async def reference(self, ids: Sequence[int], version: int = 0) -> NDArray[Any]:
        """Log-probabilities (T, V) of the token after each of the ids, from the subject's reference."""
        assert self.subject.reference is not None
        key = version, tuple(ids)
        if key not in self._seen:
            if len(self._seen) >= 256:
                self._seen.clear()
            self._seen[key] = np.asarray(await asyncio.to_thread(self.subject.reference, list(ids), version))
        return self._seen[key]

    async def check_logprobs(self, got: Generated, version: int = 0) -> None:
        """Compare a generation with the reference.

        Raises:
            AssertionError: a log-probability differs, or a token was sampled that cannot be.
        """
        prompt, ids, sampling = got.request.prompt_ids, got.ids, got.request.sampling
        assert prompt is not None
        assert len(got.logprobs) == len(ids), (
            f"{got} has {len(ids)} ids and {len(got.logprobs)} log-probabilities; expected one each"
        )
        if not ids:
            return
        logprobs = (await self.reference([*prompt, *ids[:-1]], version))[len(prompt) - 1 :]
        tolerance = self.subject.tolerance
        expected = expected_logprobs(logprobs, ids, sampling, tolerance)
        for i, (token, value, allowed) in enumerate(zip(ids, got.logprobs, expected, strict=True)):
            assert allowed, (
                f"{got} sampled id {token} as token {i}, which temperature {sampling.temperature}, top_k "
                f"{sampling.top_k} and top_p {sampling.top_p} leave out"
            )
            off = min(abs(value - each) for each in allowed)
            # Dividing by a temperature magnifies the engine's rounding.
            limit = tolerance / min(sampling.temperature or 1.0, 1.0)
            assert off <= limit, (
                f"{got} gave token {i} (id {token}) the log-probability {value:.6f}; expected {allowed[0]:.6f} ± "
                f"{limit:g} with the weights of version {version}"
            )
