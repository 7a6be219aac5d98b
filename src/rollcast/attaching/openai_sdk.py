"""Watches a client of the openai package: each request for text, streamed or not, and what comes back.

Three methods that every version from 2 to 3 calls for each request are hooked on the one client, never on its class: `request`, which
begins and fails a call; `_prepare_request`, which has the bytes that are sent, for each attempt; and `_process_response`, which has the
response. The response's bytes are looked at on their way to the SDK, so the SDK makes the same objects of them as ever.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.openai_calls import SdkCall, SdkCalls
from rollcast.attaching.versions import note_version
from rollcast.errors import InputError
from rollcast.failures import class_name_of
from rollcast.records.openai_wire import kind_of

__all__ = ["attach", "check"]

WRITTEN_FOR = ("2", "3")
IDLE_S = 600.0  # how long a conversation waits for its next request

_HOOKED = ("request", "_prepare_request", "_process_response", "copy", "with_options")


def check(client: Any, **options: Any) -> None:
    """Check what is to be watched.

    Raises:
        InputError: it is not a client of this package, or an option is unknown or has a wrong value.
    """
    if isinstance(client, type) or not all(callable(getattr(client, name, None)) for name in _HOOKED):
        found = f"the class {client.__name__}" if isinstance(client, type) else class_name_of(client)
        raise InputError(
            f"attach.openai got {found}; expected a client: OpenAI(), AsyncOpenAI(), AzureOpenAI() or AsyncAzureOpenAI()"
        )
    for name in set(options) - {"idle_s"}:
        raise InputError(f"attach.openai got the option {name!r}; its only one is 'idle_s'")
    idle_s = options.get("idle_s", IDLE_S)
    if idle_s is not None and (
        isinstance(idle_s, bool) or not isinstance(idle_s, int | float) or not idle_s > 0
    ):
        raise InputError(f"attach.openai got idle_s={idle_s!r}; expected seconds, or None")


def attach(client: Any, attachment: Attachment, *, idle_s: float | None = IDLE_S) -> None:
    """Watch the client, and those that its `copy` and `with_options` make.

    Args:
        client: of the openai package.
        attachment: of it.
        idle_s: after how many seconds without a request a conversation is closed; None: when it is detached.
    """
    attachment.watch.tell(note_version, "openai", "the openai package", WRITTEN_FOR)  # it reads from the disk
    attachment.about_run(backend="openai")
    hooks = _Hooks(SdkCalls(attachment, idle_s))
    for name, hook in hooks.of(client).items():
        attachment.hook(client, name, hook)
    attachment.on_detach(hooks.take_out)


class _Hooks:
    """The hooks of one client and of its copies."""

    def __init__(self, calls: SdkCalls) -> None:
        self._calls = calls
        self._watch = calls.watch
        self._current: ContextVar[SdkCall | None] = ContextVar("rollcast_openai_call", default=None)
        self._copies: WeakSet[Any] = WeakSet()

    def of(self, client: Any) -> dict[str, Any]:
        """The hooks by name."""
        # A subclass, or whoever hooked it before, may have made its methods plain functions that return something to await.
        is_async = hasattr(client, "__aenter__") or inspect.iscoroutinefunction(client.request)
        makes = self._async_hooks if is_async else self._hooks
        hooks = makes(client)
        for name in ("copy", "with_options"):
            hooks[name] = self._copying(getattr(client, name))
        return {name: functools.update_wrapper(hook, getattr(client, name)) for name, hook in hooks.items()}

    def take_out(self) -> None:
        """Take the hooks out of the copies."""
        for copy in list(self._copies):
            for name in _HOOKED:
                vars(copy).pop(name, None)

    def _copying(self, original: Any) -> Any:
        def hook(*args: Any, **kwargs: Any) -> Any:
            copy = original(*args, **kwargs)
            with self._watch.guarded():
                if self._watch.on and "request" not in vars(copy):
                    for name, inner in self.of(copy).items():
                        setattr(copy, name, inner)
                    self._copies.add(copy)
            return copy

        return hook

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SdkCall | None:
        """The call that begins with these arguments of `request`; None if it is not watched."""
        if not self._watch.on:
            return None
        with self._watch.guarded():
            options = kwargs["options"] if "options" in kwargs else args[1]
            if options.method.lower() != "post":
                return None
            url = str(options.url)
            kind = "responses" if url.endswith("/responses") else kind_of(url)
            return None if kind is None else self._calls.call(kind)
        return None

    def _sent(self, request: Any) -> None:
        call = self._current.get()
        if call is not None:
            with self._watch.guarded():
                call.sent(request.read())

    def _got(self, kwargs: dict[str, Any], *, is_async: bool) -> None:
        call = self._current.get()
        if call is not None:
            with self._watch.guarded():
                call.got(kwargs["response"], is_async=is_async)

    def _hooks(self, client: Any) -> dict[str, Any]:
        ask, prepare, process = (getattr(client, name) for name in _HOOKED[:3])

        def request(*args: Any, **kwargs: Any) -> Any:
            call = self._begin(args, kwargs)
            if call is None:
                return ask(*args, **kwargs)
            token = self._current.set(call)
            try:
                return ask(*args, **kwargs)
            except BaseException as error:
                call.raised(error)
                raise
            finally:
                self._current.reset(token)

        def prepare_request(request: Any) -> Any:
            result = prepare(request)
            self._sent(request)
            return result

        def process_response(**kwargs: Any) -> Any:
            self._got(kwargs, is_async=False)
            return process(**kwargs)

        return {
            "request": request,
            "_prepare_request": prepare_request,
            "_process_response": process_response,
        }

    def _async_hooks(self, client: Any) -> dict[str, Any]:
        ask, prepare, process = (getattr(client, name) for name in _HOOKED[:3])

        async def request(*args: Any, **kwargs: Any) -> Any:
            call = self._begin(args, kwargs)
            if call is None:
                return await ask(*args, **kwargs)
            token = self._current.set(call)
            try:
                return await ask(*args, **kwargs)
            except BaseException as error:
                call.raised(error)
                raise
            finally:
                self._current.reset(token)

        async def prepare_request(request: Any) -> Any:
            result = await prepare(request)
            self._sent(request)
            return result

        async def process_response(**kwargs: Any) -> Any:
            self._got(kwargs, is_async=True)
            return await process(**kwargs)

        return {
            "request": request,
            "_prepare_request": prepare_request,
            "_process_response": process_response,
        }
