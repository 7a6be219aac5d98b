"""Watches a function: each call is a chain, with the arguments as its message and the result as its final response."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any, cast

import msgspec

from rollcast.aio import why_left
from rollcast.attaching.attachment import Attachment
from rollcast.attaching.deferred import DeferredChain, copied
from rollcast.errors import InputError, MessagesError
from rollcast.failures import class_name_of
from rollcast.records.jsonable import without_named_secrets
from rollcast.stream.chain import ChainWriter, chain_here, innermost

__all__ = ["attach", "check"]

TEXT_LIMIT = 64 << 10
"""How many characters of the arguments, and of the result, are shown."""

_here: ContextVar[Any] = cast("ContextVar[Any]", chain_here)


def check(function: Any, **options: Any) -> None:
    """Check what is to be watched.

    Raises:
        InputError: it cannot be called, or it is a class; or an option is unknown.
    """
    if isinstance(function, type) or not callable(function):
        found = f"the class {function.__name__}" if isinstance(function, type) else class_name_of(function)
        raise InputError(f"attach.function got {found}; expected a function, or a method of an object")
    for name in set(options) - {"name"}:
        raise InputError(f"attach.function got the option {name!r}; its only one is 'name'")


def attach(function: Any, attachment: Attachment, *, name: str | None = None) -> Any:
    """Make the function that is called in its place. It is of the same kind: plain, a coroutine function, a generator …

    Args:
        function: the function.
        attachment: of it.
        name: what its chains and its run are called; None: its own name.
    """
    attachment.about_run(agent=name or str(getattr(function, "__name__", "function")))
    calls = _Calls(function, attachment)
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.isasyncgenfunction(inner):
        watched = _async_generator(function, calls)
    elif inspect.iscoroutinefunction(inner):
        watched = _coroutine(function, calls)
    elif inspect.isgeneratorfunction(inner):
        watched = _generator(function, calls)
    else:
        watched = _plain(function, calls)
    handle: Any = functools.update_wrapper(watched, function)
    handle.attachment, handle.host = attachment, attachment.host
    handle.streaming_manager, handle.detach = attachment.streaming_manager, attachment.detach
    return handle


class _Calls:
    """Makes the chains of one function's calls. Nothing here raises."""

    def __init__(self, function: Any, attachment: Attachment) -> None:
        self.watch = attachment.watch
        self._attachment = attachment
        self._names = _parameters(function)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        """A call begins; None if it is not watched."""
        if not self.watch.on:
            return None
        with self.watch.guarded():
            around: Any = innermost(_here.get())
            parent = around if isinstance(around, DeferredChain) and around.attachment.attached else None
            given = {**dict(zip(self._names, args, strict=False)), **kwargs}
            for extra, value in enumerate(args[len(self._names) :], len(self._names)):
                given[f"argument {extra}"] = value
            given.pop("", None)
            chain = DeferredChain(self._attachment, around)
            chain.begin(functools.partial(self._make, copied(given), parent))
            return _Call(self, chain)
        return None

    def _make(self, given: dict[str, Any], parent: DeferredChain | None) -> ChainWriter:
        """On the watch's thread."""
        given = without_named_secrets(given)
        run = self._attachment.run
        known: dict[str, Any] = {}
        around = None if parent is None else parent.begun_writer()
        if around is not None:
            # A nested call of another function is in that one's run, since chains of one run can name each other.
            run = around.run
            known["parent_chain_id"] = around.trajectory.chain_id
        for messages in _conversations(given):
            try:
                return run.chain(messages, **known)
            except MessagesError:
                continue
        return run.chain([{"role": "user", "content": _shown(given)}], **known)


class _Call:
    """One call, in the host's thread."""

    __slots__ = ("_calls", "chain")

    def __init__(self, calls: _Calls, chain: DeferredChain) -> None:
        self._calls = calls
        self.chain = chain

    def enter(self) -> Token[Any] | None:
        """Make this the current chain."""
        with self._calls.watch.guarded():
            return _here.set(self.chain)
        return None

    def leave(self, token: Token[Any] | None) -> None:
        """Make the chain before it the current one again."""
        if token is not None:
            with (
                self._calls.watch.guarded(),
                suppress(ValueError),
            ):  # an unfinished coroutine may be closed elsewhere
                _here.reset(token)

    def returned(self, result: Any) -> None:
        """The function has returned this."""
        with self._calls.watch.guarded():
            self.chain.end("answered", _shown(copied(result)))

    def raised(self, error: BaseException) -> None:
        """The function has raised this."""
        with self._calls.watch.guarded():
            if why_left(error) == "cancelled":
                self.chain.end("cancelled")
            else:
                self.chain.error(error, "agent")
                self.chain.end("error")


def _plain(function: Any, calls: _Calls) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        call = calls.begin(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        token = call.enter()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            call.raised(error)
            raise
        finally:
            call.leave(token)
        call.returned(result)
        return result

    return watched


def _coroutine(function: Any, calls: _Calls) -> Callable[..., Any]:
    async def watched(*args: Any, **kwargs: Any) -> Any:
        call = calls.begin(args, kwargs)
        if call is None:
            return await function(*args, **kwargs)
        token = call.enter()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            call.raised(error)
            raise
        finally:
            call.leave(token)
        call.returned(result)
        return result

    return watched


def _generator(function: Any, calls: _Calls) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call = calls.begin(args, kwargs)
        if call is None:
            return (yield from function(*args, **kwargs))
        given = _Yielded(calls)
        try:
            result = yield from _steps(function(*args, **kwargs), call, given)
        except BaseException as error:
            call.raised(error)
            raise
        call.returned(given.text if result is None else result)
        return result

    return watched


def _steps(generator: Any, call: _Call, given: _Yielded) -> Generator[Any, Any, Any]:
    """Do what `yield from generator` does; between two items the caller's current chain is its own (PEP 380)."""
    resume: Callable[..., Any] = generator.__next__
    sent: tuple[Any, ...] = ()
    while True:
        token = call.enter()
        try:
            item = resume(*sent)
        except StopIteration as stop:
            return stop.value
        finally:
            call.leave(token)
        given.add(item)
        try:
            value = yield item
        except GeneratorExit:
            generator.close()
            raise
        except BaseException as error:  # noqa: BLE001  (it is thrown on, whatever it is)
            resume, sent = generator.throw, (error,)
        else:
            resume, sent = (generator.__next__, ()) if value is None else (generator.send, (value,))


def _async_generator(function: Any, calls: _Calls) -> Callable[..., Any]:
    async def watched(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = calls.begin(args, kwargs)
        generator = function(*args, **kwargs)
        given = _Yielded(calls)
        resume: Callable[..., Any] = generator.__anext__
        sent: tuple[Any, ...] = ()
        try:
            while True:
                token = None if call is None else call.enter()
                try:
                    item = await resume(*sent)
                except StopAsyncIteration:
                    break
                finally:
                    if call is not None:
                        call.leave(token)
                given.add(item)
                try:
                    value = yield item
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  (it is thrown on, whatever it is)
                    resume, sent = generator.athrow, (error,)
                else:
                    resume, sent = generator.asend, (value,)
        except BaseException as error:
            if call is not None:
                call.raised(error)
            raise
        if call is not None:
            call.returned(given.text)

    return watched


class _Yielded:
    """The items of a generator, as far as they are text, up to a limit."""

    def __init__(self, calls: _Calls) -> None:
        self._watch = calls.watch
        self._pieces: list[str] = []
        self._size = 0

    def add(self, item: Any) -> None:
        with self._watch.guarded():
            if self._size <= TEXT_LIMIT:
                piece = item if type(item) is str else _shown(copied(item)) + "\n"
                self._pieces.append(piece)
                self._size += len(piece)

    @property
    def text(self) -> str:
        return "".join(self._pieces)


def _parameters(function: Any) -> list[str]:
    """The names of the positional parameters; `""` for `self`, which is not shown."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function written in C
        return []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return ["", *names[1:]] if names[:1] in (["self"], ["cls"]) else names


def _conversations(given: dict[str, Any]) -> list[Any]:
    """What may be the messages of the conversation: an argument that is a list of messages, or the only argument if it is text."""
    found = [
        value
        for value in given.values()
        if isinstance(value, list)
        and value
        and all(isinstance(each, dict) and "role" in each for each in value)
    ]
    if len(given) == 1:
        (only,) = given.values()
        if isinstance(only, str):
            found.append([{"role": "user", "content": _shown(only)}])
    return found[:1]


def _shown(value: Any) -> str:
    """JSON as text; text as it is. A long one is cut."""
    text = "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}… [{len(text):,} characters]"
