"""The thread that steps a batch of generations.

One daemon thread steps everything that runs. It starts with the first request, ends after a while without work, and is
started again by the next request. After each step, every event loop that got tokens is woken once, however many it got.
This module does not know what a batch computes with, NumPy or torch.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakSet

from rollcast.errors import BackendClosedError, BackendError
from rollcast.models.backend import Delta, Sampling
from rollcast.models.failures import fresh_copy, not_finite
from rollcast.models.inbox import Inbox, Item, deliver
from rollcast.models.text import StopStrings, TextStream, TokenTexts

__all__ = ["Batch", "Engine", "Generation", "Row", "Sampled"]

LINGER_S = 0.5
"""How long the thread waits for work before it ends."""

# Between the turns of a chain there is no work for a moment; the BLAS threads are given back only after it.
_PAUSE_S = 0.02

# How long the interpreter's exit waits for a step that is under way.
_EXIT_S = 10.0

Weights = TypeVar("Weights")
Weights_contra = TypeVar("Weights_contra", contravariant=True)


class Row(Protocol):
    """One generation in a batch."""

    @property
    def sampled(self) -> int:
        """How many tokens were sampled."""
        ...


class Sampled(NamedTuple):
    """What a step sampled, one entry a row.

    Attributes:
        rows, tokens, logprobs: of the same length.
        failed: rows that cannot go on, which the batch has removed, and why.
    """

    rows: Sequence[Any]
    tokens: list[int]
    logprobs: list[float]
    failed: Sequence[tuple[Any, BackendError]] = ()


class Batch(Protocol[Weights_contra]):
    """What an engine steps. All methods are called only on the engine's thread."""

    def add(self, row: Any) -> None:
        """Let a row join."""

    def remove(self, row: Any) -> None:
        """Let a row go."""

    def set_parameters(self, parameters: Weights_contra) -> None:
        """Compute with these weights from the next step on."""

    def step(self) -> Sampled:
        """Sample one token for each row whose turn it is; the engine removes rows that are done."""
        ...


class Generation(Inbox):
    """One request on its way through the engine.

    Args:
        row: its entry in the batch.
        sampling: how to sample.
        limit: the most tokens that it may sample.
        texts: the texts of the model's tokens.
    """

    __slots__ = ("limit", "row", "stops", "text")

    def __init__(self, row: Row, sampling: Sampling, limit: int, texts: TokenTexts) -> None:
        super().__init__()
        self.row = row
        self.limit = limit
        self.text = TextStream(texts)
        self.stops = StopStrings(sampling.stop) if sampling.stop else None


class Engine(Generic[Weights]):
    """Steps a batch on a thread of its own.

    Args:
        name: the backend's name, for errors and for the thread.
        make_batch: builds the batch, on the engine's thread, at the first request or the first new weights.
        end_ids: ids of the tokens that end a generation.
        working: a context that is entered when there is work, and left when there has been none for a moment.

    Attributes:
        version: the version of the weights that it samples from now.
    """

    def __init__(
        self,
        name: str,
        make_batch: Callable[[], Batch[Weights]],
        end_ids: frozenset[int],
        working: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._name = name
        self._make_batch = make_batch
        self._end_ids = end_ids
        self._working = working
        self.version = 0
        self._batch: Batch[Weights] | None = None
        # Used by the engine's thread only: what runs, by row.
        self._running: dict[Any, Generation] = {}
        # Shared, under the condition's lock.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process: int | None = None  # in which the thread was started
        self._arrived: list[Generation] = []
        self._left: list[Generation] = []
        self._update: tuple[Weights, int, Future[None]] | None = None
        self._failure: BackendError | None = None

    # -- called from any thread ----------------------------------------------------------------------------------------

    def submit(self, generation: Generation) -> None:
        """Add a generation to the batch.

        Raises:
            BackendClosedError: the engine was closed.
            BackendError: its thread died of an error, or this process was forked from the one that it runs in.
        """
        self._check_process()
        with self._changed:
            if self._failure is not None:
                raise fresh_copy(self._failure)
            self._arrived.append(generation)
            self._call()

    def leave(self, generation: Generation) -> None:
        """End a generation before its next token; it receives None unless it had ended. May be called twice."""
        if self._process != os.getpid():
            return
        with self._changed:
            if self._thread is not None:
                self._left.append(generation)
                self._changed.notify()

    def _check_process(self) -> None:
        """Raise in a forked process: it has no engine thread and locks that are never released, so it would wait forever."""
        if self._process not in {None, os.getpid()}:
            raise BackendError(
                f"the {self._name} backend has run in the process that this one was forked from; make one in this process, "
                "or start processes with the method 'spawn'"
            )

    def _call(self) -> None:
        if self._thread is None:
            self._process = os.getpid()
            _started.add(self)
            # Registered after the exit hooks of torch and others, so that it runs before them.
            atexit.unregister(_end_all)
            atexit.register(_end_all)
            self._thread = threading.Thread(target=self._run, name=f"rollcast-{self._name}", daemon=True)
            self._thread.start()
        self._changed.notify()

    def set_parameters(self, parameters: Weights, version: int) -> None:
        """Replace the weights, and wait until no token is sampled from the old ones any more.

        Raises:
            BackendError: the engine was closed, its thread died of an error, or this process was forked.
        """
        self._check_process()
        done: Future[None] = Future()
        with self._changed:
            if self._failure is not None:
                raise fresh_copy(self._failure)
            if self._update is not None:
                # Superseded before a token was sampled from it.
                self._update[2].set_result(None)
            self._update = parameters, version, done
            self._call()
        done.result()

    def close(self, failure: BackendError, timeout_s: float | None = None) -> None:
        """Fail every present and future generation with this error, and wait for the thread to end."""
        if self._process not in {None, os.getpid()}:
            return  # the thread is the parent process's
        with self._changed:
            if self._failure is None:
                self._failure = failure
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join(timeout_s)

    # -- the engine's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                with self._working():
                    self._work()
        except BaseException as error:  # noqa: BLE001  (whatever kills this thread, no caller may wait forever)
            self._die(error)

    def _wait_for_work(self) -> bool:
        """Wait for work; False if none came in time, and the next request starts another thread."""
        with self._changed:
            if self._changed.wait_for(self._has_work, LINGER_S):
                return True
            self._thread = None
            return False

    def _has_work(self) -> bool:
        return bool(self._arrived or self._running or self._left or self._update or self._failure)

    def _work(self) -> None:
        """Step until there has been nothing to do for a moment."""
        if self._batch is None:
            self._batch = self._make_batch()
        while self._take_changes(self._batch):
            if self._running:
                self._deliver(self._outgoing(self._batch, self._batch.step()))

    def _take_changes(self, batch: Batch[Weights]) -> bool:
        """Between two steps, add and remove rows and adopt weights. False if there is no work for a moment."""
        with self._changed:
            if not self._changed.wait_for(self._has_work, _PAUSE_S):
                return False
            if self._failure is not None:
                raise self._failure
            arrived, self._arrived = self._arrived, []
            left, self._left = self._left, []
            update, self._update = self._update, None
            for generation in arrived:
                self._running[generation.row] = generation
        if update is not None:
            self._adopt(batch, *update)
        for generation in arrived:
            batch.add(generation.row)
        ended = [generation for generation in left if self._running.pop(generation.row, None) is not None]
        for generation in ended:
            batch.remove(generation.row)
        self._deliver([(generation, None) for generation in ended])
        return True

    def _adopt(self, batch: Batch[Weights], parameters: Weights, version: int, done: Future[None]) -> None:
        try:
            batch.set_parameters(parameters)
        except BaseException as error:
            done.set_exception(error)
            raise
        self.version = version
        done.set_result(None)

    def _outgoing(self, batch: Batch[Weights], sampled: Sampled) -> list[tuple[Generation, Item]]:
        """Make a delta for each token, and remove the rows that are done from the batch."""
        outgoing: list[tuple[Generation, Item]] = []
        running, ends, version = self._running, self._end_ids, self.version
        for row, failure in sampled.failed:
            outgoing.append((running.pop(row), failure))
        for row, token, logprob in zip(sampled.rows, sampled.tokens, sampled.logprobs, strict=True):
            generation = running[row]
            if not isfinite(logprob):
                del running[row]
                batch.remove(row)
                outgoing.append((generation, not_finite(version)))
                continue
            if token in ends:
                text, reason = generation.text.end(), "stop"
            else:
                text, reason = generation.text.feed(token), None
                if generation.stops is not None and (cut := generation.stops.cut(text)) is not None:
                    text, reason = cut, "stop"
                elif row.sampled == generation.limit:
                    text, reason = text + generation.text.end(), "length"
            if reason is not None:
                del running[row]
                batch.remove(row)
            outgoing.append((generation, Delta(text, [token], [logprob], version, None, reason)))
        return outgoing

    def _deliver(self, outgoing: list[tuple[Generation, Item]]) -> None:
        for loop in deliver(outgoing):
            # Its loop is closed, so its tokens would never be read.
            with self._changed:
                self._left += [other for other in self._running.values() if other.loop is loop]

    def _die(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = BackendError(
                    f"the {self._name} engine died of {type(error).__name__}: {error}"
                )
                self._failure.__cause__ = error
            failure = self._failure
            self._thread = None
            generations = [*self._running.values(), *self._arrived]
            self._running.clear()
            self._arrived.clear()
            self._left.clear()
            update, self._update = self._update, None
        if update is not None:
            update[2].set_exception(failure)
        self._batch = None
        self._deliver([(generation, fresh_copy(failure)) for generation in generations])


_started: WeakSet[Engine[Any]] = WeakSet()


def _end_all() -> None:
    """End all engines: a daemon thread that is inside torch when the interpreter exits aborts the process."""
    for engine in list(_started):
        engine.close(BackendClosedError("the interpreter is exiting"), _EXIT_S)
