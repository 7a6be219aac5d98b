"""`@tool` turns a function into a tool, which is described to a model and called by a rollout."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self, overload

from rollcast.aio import call_in
from rollcast.errors import ToolDefinitionError, ToolError
from rollcast.failures import by_signal
from rollcast.records.event import ToolStatus
from rollcast.text import bounded
from rollcast.tools.arguments import Arguments, ArgumentsError
from rollcast.tools.context import Injected
from rollcast.tools.copying import reduced
from rollcast.tools.execution import CancelledItself, OutOfTime, in_task, in_thread, is_async
from rollcast.tools.image import Image
from rollcast.tools.json_schema import schema_arguments
from rollcast.tools.observation import CannotShow, Output, as_text, failure_text
from rollcast.tools.signature import arguments_of

__all__ = ["Tool", "ToolResult", "tool"]

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_OUTPUT = 10_000
TURN_S = 0.02  # an async generator that never waits lets others run after so many seconds
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what the OpenAI API takes as a function's name


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of one call.

    Attributes:
        observation: what the model reads; at most the tool's `max_output` characters, and always encodable.
        status: `success`, `error`, `timeout`, or `cancelled` if the tool cancelled itself.
        duration_s: seconds from the call to the result.
        images: the images that the tool returned; the observation has a note for each.
        failure: the exception that the tool's own code raised (not a ToolError, which is meant for the model), or its
            time-out.
    """

    observation: str
    status: ToolStatus
    duration_s: float
    images: tuple[Image, ...] = ()
    failure: BaseException | None = None

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The observation and its images as a message's content in OpenAI's form, for a model that reads images."""
        return [{"type": "text", "text": self.observation}, *(image.part for image in self.images)]


@dataclass(frozen=True, eq=False)
class Tool:
    """A function that a model may call. It can still be called as the plain function. `tool` makes it.

    `dataclasses.replace(a_tool, name="other")` gives the same function under other settings.

    Attributes:
        function: sync or async, or a generator of partial output of either kind.
        arguments: its parameters.
        name: the name by which the model calls it.
        description: what the model reads about it.
        terminal: True if its call ends the chain.
        timeout: seconds, or None to wait for ever.
        max_output: the most characters in an observation.
        inline: True if a sync function runs in the event loop instead of a thread.
    """

    function: Callable[..., Any]
    arguments: Arguments
    name: str
    description: str
    terminal: bool = False
    timeout: float | None = DEFAULT_TIMEOUT_S
    max_output: int = DEFAULT_MAX_OUTPUT
    inline: bool = False

    def __post_init__(self) -> None:
        given: dict[str, Any] = vars(self)
        if not (isinstance(given["name"], str) and _NAME.fullmatch(self.name)):
            raise ToolDefinitionError(
                f"a tool is named {self.name!r}; a name has 1 to 64 letters, digits, _ and -: give it another, name=…"
            )
        if self.timeout is not None and not (isinstance(given["timeout"], int | float) and self.timeout > 0):
            raise ToolDefinitionError(
                f"tool {self.name!r} has timeout={self.timeout!r}; expected seconds above 0, or None for no limit"
            )
        if not (isinstance(given["max_output"], int) and self.max_output >= 1):
            raise ToolDefinitionError(
                f"tool {self.name!r} has max_output={self.max_output!r}; expected a number of characters from 1 upward"
            )
        if self.inline and is_async(self.function):
            raise ToolDefinitionError(
                f"tool {self.name!r} is async, so inline=True means nothing; leave it out"
            )
        for attribute in ("__doc__", "__module__", "__qualname__", "__name__"):
            if hasattr(self.function, attribute):
                object.__setattr__(self, attribute, getattr(self.function, attribute))
        object.__setattr__(self, "__wrapped__", self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return reduced(self, self.function, _made, self._settings | {"given": self.arguments.given})

    def __copy__(self) -> Self:
        return self  # it is immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        function = copy.deepcopy(self.function, memo)
        return self if function is self.function else replace(self, function=function)

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"function", "arguments"}
        }

    @classmethod
    def from_schema(
        cls,
        name: str,
        description: str | None,
        parameters: Mapping[str, Any] | None,
        call: Callable[..., Any],
        *,
        terminal: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        max_output: int = DEFAULT_MAX_OUTPUT,
        inline: bool = False,
    ) -> Self:
        """Make a tool that a JSON Schema describes, such as one from an MCP server.

        The model's arguments are checked against the schema, by its own draft (2020-12 if it names none) and without
        fetching anything. Defaults are not filled in, and formats, such as `email`, are not checked.

        Args:
            name: the name by which the model calls it.
            description: what the model reads about it.
            parameters: JSON Schema of an object, like MCP's `inputSchema` and OpenAI's `parameters`; None if it takes no
                arguments.
            call: gets the arguments that the model gave, by name; sync or async, or a plain function that returns a
                coroutine. A parameter of it that is annotated with `ChainContext` gets the chain's.
            terminal: whether its call ends the chain.
            timeout: seconds, or None for no limit.
            max_output: the most characters in an observation.
            inline: run a plain `call` in the event loop, as with `tool`.

        Raises:
            ToolDefinitionError: the schema is not for an object, or `call` does not take what it allows.
        """
        if isinstance(call, Tool):
            call = call.function
        arguments = schema_arguments(str(name), parameters, call)
        text = "" if description is None else inspect.cleandoc(description)
        return cls(call, arguments, name, text, terminal, timeout, max_output, inline)

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON Schema of its arguments."""
        return self.arguments.schema

    @property
    def schema(self) -> dict[str, Any]:
        """Its description for the OpenAI API and chat templates: `{"type": "function", "function": {…}}`."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    async def invoke(
        self,
        arguments: Mapping[str, Any] | str,
        context: Injected | None = None,
        on_partial: Callable[[str], object] | None = None,
    ) -> ToolResult:
        """Call it with the arguments that a model wrote. Failures become results, too.

        Cancelling this cancels an async tool and waits up to a second for its cleanup; it leaves a sync tool behind
        in its thread and returns at once.

        Args:
            arguments: an object, or its JSON.
            context: fills the parameters that are annotated with its class.
            on_partial: called in this event loop with each piece that a generator yields; all of them together are
                at most `max_output` characters.

        Raises:
            InputError: the function needs another context.
        """
        begin = time.perf_counter()
        try:
            keywords = self.arguments.bind(self.name, arguments, context)
        except ArgumentsError as error:
            return ToolResult(bounded(str(error), self.max_output), "error", time.perf_counter() - begin)
        output = Output(self.max_output, on_partial)
        try:
            if is_async(self.function):
                status, text = await self._in_loop(_run_async(self.function, keywords, output), self.timeout)
            else:
                status, text = await self._sync(keywords, output, begin)
        except OutOfTime:
            late = f"{self.name} timed out after {self.timeout:g} s"
            status, text = "timeout", output.after(f"error: {late}")
            output.failure = TimeoutError(late)
        except CancelledItself:
            status, text = "cancelled", output.after(f"error: {self.name} was cancelled")
        finally:
            output.close()
        return _result(text, status, begin, output)

    async def _sync(self, keywords: dict[str, Any], output: Output, begin: float) -> tuple[ToolStatus, str]:
        """Run a plain function; if it wraps an async function and returns a coroutine, run that in the event loop."""
        work = functools.partial(_run_sync, self.function, keywords, output, awaits=self._wraps_async)
        if self.inline:
            outcome = work()
        else:
            output.deliver = _across_threads(output.deliver)
            outcome = await in_thread(work, f"rollcast-tool-{self.name}", self.timeout)
        if not isinstance(outcome, _Unfinished):
            return outcome
        left = None if self.timeout is None else max(0.0, self.timeout - (time.perf_counter() - begin))
        return await self._in_loop(_run_async(lambda: outcome.value, {}, output), left)

    async def _in_loop(
        self, running: Coroutine[Any, Any, tuple[ToolStatus, str]], seconds: float | None
    ) -> tuple[ToolStatus, str]:
        return await in_task(running, f"tool {self.name!r}", seconds)

    @functools.cached_property
    def _wraps_async(self) -> bool:
        """Whether a coroutine that the plain function returns should be awaited; otherwise it is a mistake."""
        return self.arguments.given is not None or is_async(inspect.unwrap(self.function))


def _result(text: str, status: ToolStatus, begin: float, output: Output) -> ToolResult:
    return ToolResult(text, status, time.perf_counter() - begin, tuple(output.images), output.failure)


def _across_threads(on_partial: Callable[[str], object] | None) -> Callable[[str], None] | None:
    if on_partial is None:
        return None
    loop = asyncio.get_running_loop()

    def deliver(piece: str) -> None:
        call_in(loop, on_partial, piece)  # if the loop is closed, nothing waits

    return deliver


class _Unfinished(NamedTuple):
    """A plain function's result that only an event loop can finish."""

    value: Any


def _run_sync(
    function: Callable[..., Any], keywords: dict[str, Any], output: Output, *, awaits: bool
) -> tuple[ToolStatus, str] | _Unfinished:
    """Run a sync function, in a worker thread or inline."""
    try:
        value = function(**keywords)
        if inspect.isgenerator(value):
            value = _drained(value, output)
            if value is None:
                return "success", output.text
        if awaits and output.open and (inspect.isawaitable(value) or isinstance(value, AsyncGenerator)):
            return _Unfinished(value)
        if inspect.iscoroutine(value):
            value.close()
            raise CannotShow("the result is a coroutine; define the tool with `async def`")
        return "success", bounded(as_text(value, output.keep), output.limit)
    except BaseException as error:
        if by_signal(error):
            raise
        return "error", _failure(error, output)  # the tool's failure, whatever it is


def _drained(generator: Generator[Any, Any, Any], output: Output) -> Any:
    """Return the generator's return value; its pieces go to the output. It ends early if nothing waits any more."""
    try:
        while output.open:
            piece = next(generator)
            if piece is not None:
                output.add_value(piece)
    except StopIteration as stop:
        return stop.value
    finally:
        generator.close()
    return None


async def _run_async(
    function: Callable[..., Any], keywords: dict[str, Any], output: Output
) -> tuple[ToolStatus, str]:
    try:
        value = function(**keywords)
        if inspect.isawaitable(value):
            value = await value
        if isinstance(value, AsyncGenerator):
            others_run_at = time.perf_counter() + TURN_S
            async with aclosing(value) as pieces:
                async for piece in pieces:
                    if piece is not None:
                        output.add_value(piece)
                    if time.perf_counter() >= others_run_at:  # it may never wait for anything
                        await asyncio.sleep(0)
                        others_run_at = time.perf_counter() + TURN_S
            return "success", output.text
        return "success", bounded(as_text(value, output.keep), output.limit)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if by_signal(error):
            raise
        return "error", _failure(error, output)  # the tool's failure, even sys.exit()


def _failure(error: BaseException, output: Output) -> str:
    if not isinstance(error, ToolError):
        output.failure = error
    return output.after(f"error: {error}" if isinstance(error, CannotShow) else failure_text(error))


def _made(function: Callable[..., Any], settings: dict[str, Any]) -> Tool:
    """Make the tool again, in another process."""
    settings = dict(settings)
    name, given = settings["name"], settings.pop("given")
    arguments = arguments_of(function, name) if given is None else schema_arguments(name, given, function)
    return Tool(function, arguments, **settings)


@overload
def tool(
    function: Callable[..., Any],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    terminal: bool = False,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    max_output: int = DEFAULT_MAX_OUTPUT,
    inline: bool = False,
) -> Tool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    terminal: bool = False,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    max_output: int = DEFAULT_MAX_OUTPUT,
    inline: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    terminal: bool = False,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    max_output: int = DEFAULT_MAX_OUTPUT,
    inline: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool from a function: `@tool`, `@tool(timeout=5)` or `tool(thing.method)`.

    The JSON Schema is made from the parameters' types (also `Annotated[int, "text"]`, `Annotated[int, Field(ge=0)]`,
    `Literal`, defaults and pydantic models), and the descriptions from the docstring, in Google's, NumPy's or Sphinx's
    style. A sync function runs in a thread, an async one in the event loop.

    Args:
        function: sync or async; a generator's pieces are partial output.
        name: by default the function's own.
        description: by default the docstring's text before its sections.
        terminal: whether its call ends the chain.
        timeout: seconds, or None for no limit.
        max_output: the most characters in an observation.
        inline: run a sync function in the event loop. It saves the hop to a thread (0.25 ms when it was measured), but
            no timeout can interrupt it and everything waits for it: only for what takes microseconds.

    Raises:
        ToolDefinitionError: it cannot be described to a model; the message names the parameter.
    """
    if function is None:
        return functools.partial(
            tool,
            name=name,
            description=description,
            terminal=terminal,
            timeout=timeout,
            max_output=max_output,
            inline=inline,
        )
    if isinstance(function, staticmethod):
        function = function.__func__
    known = name or _name_of(function)
    arguments = arguments_of(function, known)
    text = arguments.summary if description is None else inspect.cleandoc(description)
    return Tool(function, arguments, known, text, terminal, timeout, max_output, inline)


def _name_of(function: Any) -> str:
    if isinstance(function, Tool):
        raise ToolDefinitionError(
            f"{function.name!r} is a tool already; use dataclasses.replace(it, name=…) for another under a new name"
        )
    if isinstance(function, type) or not callable(function):
        raise ToolDefinitionError(
            f"{function!r} is not a function; make a tool from a function or a bound method"
        )
    name = getattr(function, "__name__", None)
    if name == "<lambda>":
        raise ToolDefinitionError("a lambda has neither types nor a docstring; write the tool with def")
    if name is None:
        raise ToolDefinitionError(
            f"a {type(function).__name__} has no name of its own; give one: tool(it, name=…)"
        )
    return str(name)
