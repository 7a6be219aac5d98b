"""Attach LangChain and LangGraph: `rollcast.attach.langchain()`.

The handle is a callback handler. LangChain calls it for every run in this process, since `register_configure_hook` gives it to each
callback manager; with `everywhere=False` only for what it is given to: `config={"callbacks": [handle]}`. The hooks copy what the
program may change, and tell the watch's thread; langchain_runs.py decides there which run is which chain.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.langchain_messages import (
    answer_of,
    as_messages,
    observation_of,
    piece_of,
    piece_of_event,
)
from rollcast.attaching.langchain_runs import Beginning, RunTree
from rollcast.errors import InputError
from rollcast.failures import text_of
from rollcast.records.jsonable import as_json, detached

__all__ = ["attach", "check"]

_SAMPLING = (
    "model", "model_name", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop", "seed",
    "presence_penalty", "frequency_penalty", "n",
)  # fmt: skip


def check(x: Any, *, everywhere: bool = True) -> None:
    """Check what `attach` is given, before anything is made.

    Raises:
        InputError: langchain-core is not installed, or `x` cannot hold a callback handler.
    """
    try:
        import langchain_core.callbacks  # noqa: F401, PLC0415  (LangChain is loaded by who uses it)
    except ImportError as error:
        raise InputError(
            "attach.langchain needs langchain-core, which is not installed here; run: pip install langchain-core"
        ) from error
    if not isinstance(everywhere, bool):
        raise InputError(f"everywhere is {everywhere!r}; expected True or False")
    if x is not None and _place_in(x) is None:
        raise InputError(
            f"a {type(x).__name__} has no place for a callback handler; call rollcast.attach.langchain() without it, which "
            'watches every run of this process, or pass the handle in config={"callbacks": [handle]}'
        )


def attach(x: Any, attachment: Attachment, *, everywhere: bool = True) -> Any:
    """Watch LangChain: all of this process, or one model or graph.

    Args:
        x: a compiled graph, a model, or a runnable with a configuration of its own; None: what `everywhere` says.
        attachment: where it goes.
        everywhere: without `x`: whether every run of this process is watched, or only those that the handle is given to.

    Returns:
        The handle, which is a callback handler.
    """
    handle = _handler_class()(attachment)
    if x is not None:
        _put_in(x, handle, attachment)
    elif everywhere:
        _put_everywhere(handle, attachment)
    return handle


# -- where the handle goes ---------------------------------------------------------------------------------------------


def _put_everywhere(handle: Any, attachment: Attachment) -> None:
    from langchain_core.tracers import context  # noqa: PLC0415  (as above)

    # A variable with a default has its value in every thread and task, whoever began it.
    var: ContextVar[Any] = ContextVar("rollcast_langchain", default=handle)
    context.register_configure_hook(var, inheritable=True)

    def undo() -> None:
        # LangChain has no public call that removes a hook. If a later version drops this list, the handle stays registered and does nothing.
        hooks = getattr(context, "_configure_hooks", [])
        hooks[:] = [hook for hook in hooks if hook[0] is not var]

    attachment.on_detach(undo)


def _place_in(x: Any) -> str | None:
    """The attribute of `x` that has its callback handlers, or a configuration with them."""
    if isinstance(getattr(x, "callbacks", ()), list | None):
        return "callbacks"
    if isinstance(getattr(x, "config", ()), dict | None):
        return "config"
    return None


def _put_in(x: Any, handle: Any, attachment: Attachment) -> None:
    place = _place_in(x)
    assert place is not None  # `check` has looked
    before = getattr(x, place)
    if place == "callbacks":
        after: Any = [*(before or ()), handle]
    else:
        given = (before or {}).get("callbacks")
        if isinstance(given, Sequence) or given is None:
            after = {**(before or {}), "callbacks": [*(given or ()), handle]}
        else:  # a callback manager
            manager = given.copy()
            manager.add_handler(handle, inherit=True)
            after = {**before, "callbacks": manager}
    setattr(x, place, after)

    def undo() -> None:
        if (
            getattr(x, place) is after
        ):  # otherwise somebody else has set it since; the handle does nothing from now on
            setattr(x, place, before)

    attachment.on_detach(undo)


# -- the handle --------------------------------------------------------------------------------------------------------


@functools.cache
def _handler_class() -> Any:
    """The class of the handle, made when LangChain is there: its models take only instances of its own base class."""
    from langchain_core.callbacks import BaseCallbackHandler  # noqa: PLC0415  (as above)

    return type("LangChainAttachment", (_Hooks, BaseCallbackHandler), {"__doc__": _Hooks.__doc__})


class _Hooks:
    """The handle of `rollcast.attach.langchain()`: a callback handler that any thread and any task may call.

    It has more than twenty methods, since LangChain has that many callbacks.

    Args:
        attachment: where it goes.
    """

    raise_error = False
    run_inline = (
        True  # called in order in an event loop, rather than on threads; no hook takes longer than that would
    )

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._watch = attachment.watch
        self._tell = attachment.watch.tell
        self._tree = RunTree(lambda: attachment.run)
        attachment.on_close(self._tree.close)
        self._as_answers: set[Any] = set()  # models whose tool calls are their answer

    host = property(lambda self: self._attachment.host)
    streaming_manager = property(lambda self: self._attachment.streaming_manager, doc="See `Attachment`.")
    attached = property(lambda self: self._attachment.attached, doc="See `Attachment`.")

    def detach(self, timeout: float | None = None) -> None:
        """See `Attachment.detach`."""
        self._attachment.detach(timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was seen so far has been told, for at most `timeout` seconds; whether it has."""
        return self._watch.flush(timeout)

    def __repr__(self) -> str:
        return repr(self._attachment)

    def __copy__(self) -> _Hooks:
        return self

    def __deepcopy__(self, memo: Any) -> _Hooks:
        return self  # a copy of a configuration is watched as well

    @property
    def _off(self) -> bool:
        return not self._watch.on

    # LangChain asks these before each call.
    ignore_llm = ignore_chain = ignore_agent = ignore_retriever = ignore_chat_model = _off
    ignore_retry = _off
    ignore_custom_event = True

    # -- models --------------------------------------------------------------------------------------------------------

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: Any, **about: Any) -> None:
        with self._watch.guarded():
            self._model_starts(run_id, serialized, list(messages[0]), about)

    def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: Any, **about: Any) -> None:
        with self._watch.guarded():
            self._model_starts(run_id, serialized, list(prompts), about)

    def _model_starts(self, run_id: Any, serialized: Any, messages: list[Any], about: dict[str, Any]) -> None:
        parameters = about.get("invocation_params") or {}
        sampling = {name: value for name in _SAMPLING if (value := parameters.get(name)) is not None}
        tools = [_name_of_tool(tool) for tool in parameters.get("tools") or ()]
        options = about.get("options") or {}
        asks = "ls_structured_output_format" not in options
        self._tell(
            self._model_began,
            _picked(run_id, serialized, about),
            messages,
            detached(as_json(sampling)),
            tools,
            asks,
        )

    def _model_began(
        self, about: Beginning, messages: list[Any], sampling: dict[str, Any], tools: list[str], asks: bool
    ) -> None:
        if not asks:
            self._as_answers.add(about.run_id)
        self._tree.model_began(about._replace(messages=as_messages(messages)), sampling, tools)

    def on_llm_new_token(self, token: Any, *, run_id: Any, chunk: Any = None, **about: Any) -> None:
        self._tell(self._token, run_id, token, chunk)

    def _token(self, run_id: Any, token: Any, chunk: Any) -> None:
        self._tree.token(run_id, piece_of(token, chunk), "on_llm_new_token")

    def on_stream_event(self, event: Any, *, run_id: Any, **about: Any) -> None:
        self._tell(self._event, run_id, event)

    def _event(self, run_id: Any, event: Any) -> None:
        piece = piece_of_event(event)
        if piece is not None:
            self._tree.token(run_id, piece, "on_stream_event")

    def on_llm_end(self, response: Any, *, run_id: Any, **about: Any) -> None:
        with self._watch.guarded():
            self._tell(self._answered, run_id, response.generations[0][0], response.llm_output)

    def _answered(self, run_id: Any, generation: Any, about_all: Any) -> None:
        asks = run_id not in self._as_answers
        self._as_answers.discard(run_id)
        self._tree.answered(run_id, answer_of(generation, about_all), asks=asks)

    def on_llm_error(self, error: BaseException, *, run_id: Any, **about: Any) -> None:
        self._tell(self._failed, run_id, error)

    def _failed(self, run_id: Any, error: BaseException) -> None:
        self._as_answers.discard(run_id)
        self._tree.failed(run_id, error)

    def on_retry(self, retry_state: Any, *, run_id: Any, **about: Any) -> None:
        self._tell(self._tree.again, run_id)

    # -- tools ---------------------------------------------------------------------------------------------------------

    def on_tool_start(
        self, serialized: Any, input_str: Any, *, run_id: Any, inputs: Any = None, **about: Any
    ) -> None:
        with self._watch.guarded():
            # The tool may change its arguments, so they are copied now.
            arguments = detached(as_json(dict(inputs))) if isinstance(inputs, Mapping) else str(input_str)
            call_id = about.get("tool_call_id")
            self._tell(self._tree.tool_began, _picked(run_id, serialized, about), arguments, call_id)

    def on_tool_end(self, output: Any, *, run_id: Any, **about: Any) -> None:
        with self._watch.guarded():
            observation, is_error = observation_of(output)
            self._tell(self._tree.tool_ended, run_id, observation, "error" if is_error else "success")

    def on_tool_error(self, error: BaseException, *, run_id: Any, **about: Any) -> None:
        self._tell(self._tool_failed, run_id, error)

    def _tool_failed(self, run_id: Any, error: BaseException) -> None:
        self._tree.tool_ended(run_id, f"error: {text_of(error)}", "error", error)

    # -- chains, graphs and retrievers ---------------------------------------------------------------------------------

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **about: Any) -> None:
        with self._watch.guarded():
            messages = _messages_in(inputs) if about.get("parent_run_id") is None else []
            self._tell(self._chain_began, _picked(run_id, serialized, about), messages)

    def _chain_began(self, about: Beginning, messages: list[Any]) -> None:
        self._tree.began(about._replace(messages=as_messages(messages)))

    def on_chain_end(self, outputs: Any, *, run_id: Any, **about: Any) -> None:
        if about.get("parent_run_id") is not None:
            self._tell(self._tree.ended, run_id)
            return
        with self._watch.guarded():
            self._tell(self._ended, run_id, _last_of(outputs))

    def _ended(self, run_id: Any, last: Any) -> None:
        messages = [] if last is None else as_messages(last)
        content = messages[-1]["content"] if messages else None
        self._tree.ended(run_id, response=content if isinstance(content, str) else None)

    def on_chain_error(self, error: BaseException, *, run_id: Any, **about: Any) -> None:
        self._tell(self._tree.ended, run_id, error)

    def on_retriever_start(self, serialized: Any, query: Any, *, run_id: Any, **about: Any) -> None:
        with self._watch.guarded():
            self._tell(self._tree.began, _picked(run_id, serialized, about))

    def on_retriever_end(self, documents: Any, *, run_id: Any, **about: Any) -> None:
        self._tell(self._tree.ended, run_id)

    def on_retriever_error(self, error: BaseException, *, run_id: Any, **about: Any) -> None:
        self._tell(self._tree.ended, run_id, error)


def _picked(run_id: Any, serialized: Any, about: Mapping[str, Any]) -> Beginning:
    """What we want of a run that begins, copied."""
    known = about.get("metadata") or {}
    path: Sequence[Any] = known.get("langgraph_path") or ()
    thread = known.get("thread_id")
    name = about.get("name") or (serialized or {}).get("name") or ((serialized or {}).get("id") or [""])[-1]
    return Beginning(
        run_id,
        about.get("parent_run_id"),
        str(name),
        tuple(about.get("tags") or ()),
        str(known.get("langgraph_checkpoint_ns") or ""),
        # The last part tells a `Send` from the call of a task in LangGraph's functional API.
        sent=len(path) == 3 and path[0] == "__pregel_push" and path[-1] is False,
        thread_id=None if thread is None else str(thread),
    )


def _messages_in(inputs: Any) -> list[Any]:
    """The messages that a graph or a chain is called with, in a list of our own."""
    if type(inputs) is dict:
        inputs = inputs.get("messages")
    if isinstance(inputs, list | tuple):
        return list(inputs)
    return [inputs] if isinstance(inputs, str) or hasattr(inputs, "content") else []


def _last_of(outputs: Any) -> Any:
    """The message that a graph or a chain came to; None if it came to something else."""
    if type(outputs) is dict:
        outputs = outputs.get("messages")
    if isinstance(outputs, list | tuple) and outputs:
        outputs = outputs[-1]
    return outputs if isinstance(outputs, str) or hasattr(outputs, "content") else None


def _name_of_tool(tool: Any) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    named = function if isinstance(function, Mapping) else tool if isinstance(tool, Mapping) else {}
    return str(named.get("name") or named.get("type") or "tool")
