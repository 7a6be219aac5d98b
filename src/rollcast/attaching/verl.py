"""Watches the agent loops of verl, whichever they are: all of them call `LLMServerClient.generate`, and all run in an `AgentLoopWorker`.

    actor_rollout_ref.rollout.agent.agent_loop_manager_class=rollcast.attaching.verl.WatchedAgentLoopManager

    _run_agent_loop ── generate, generate, … ── _agent_loop_postprocess      a chain: its turns, then its reward

verl's server client returns whole turns, so a turn is one event, with its ids and log-probabilities. verl is imported only where a
configuration names the manager; `rollcast.attach.verl(worker)` takes a worker that is there already.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.verl_chains import Begun, Chains, Place, Settings, Turn
from rollcast.errors import InputError

if TYPE_CHECKING:
    from rollcast.attaching.verl_manager import WatchedAgentLoopManager

__all__ = ["WatchedAgentLoopManager", "attach"]

logger = logging.getLogger("rollcast.attach")

WRITTEN_FOR = "0.9.1"

_keys = itertools.count()
_here: ContextVar[int | None] = ContextVar("rollcast_verl_chain", default=None)

_SHOWN_OF_ROW = ("uid", "index", "data_source", "ability", "extra_info", "agent_name", "session_id")


def __getattr__(name: str) -> Any:
    if name == "WatchedAgentLoopManager":
        from rollcast.attaching.verl_manager import WatchedAgentLoopManager  # noqa: PLC0415  (imports verl)

        return WatchedAgentLoopManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def attach(worker: Any, attachment: Attachment) -> None:
    """Hook one `AgentLoopWorker`, in the process in which it runs its loops.

    Raises:
        InputError: it is not such a worker, or its methods are not those that are hooked.
    """
    for name, first in (("_run_agent_loop", "sampling_params"), ("_agent_loop_postprocess", "output")):
        if _first_parameter(worker, name) != first:
            raise InputError(
                f"{type(worker).__name__} has no method {name}({first}, …); expected an AgentLoopWorker of verl {WRITTEN_FOR}, or of a "
                "version like it"
            )
    client = worker.llm_client
    settings = Settings.of(worker)
    hooks = _Hooks(attachment, Chains(attachment, worker.tokenizer, settings))
    for name, hook in (
        ("_run_agent_loop", hooks.run_agent_loop),
        ("_agent_loop_postprocess", hooks.postprocess),
        ("_run_prompt", hooks.run_prompt),  # only the trainer's version 1 has it
    ):
        if (method := getattr(worker, name, None)) is not None:
            hooked = hook(method)
            setattr(worker, name, hooked)
            attachment.on_detach(partial(_unset, worker, name, hooked))
    worker.llm_client = watched = _watched_client(client, hooks)
    attachment.on_detach(partial(_put_back, worker, watched, client))
    _hook_tools(hooks, attachment)


def _first_parameter(owner: Any, name: str) -> str | None:
    method = getattr(owner, name, None)
    return next(iter(inspect.signature(method).parameters), None) if callable(method) else None


def _unset(owner: Any, name: str, value: Any) -> None:
    """Take out what was set on an instance, unless somebody has set something else since."""
    if vars(owner).get(name) is value:
        delattr(owner, name)


def _put_back(worker: Any, watched: Any, client: Any) -> None:
    if worker.llm_client is watched:
        worker.llm_client = client


class _Hooks:
    """What is put around the methods of a worker. Whatever verl's own code raises goes on unchanged.

    Args:
        attachment: what is watched.
        chains: what is told, on the watch's thread.
    """

    def __init__(self, attachment: Attachment, chains: Chains) -> None:
        self._watch = attachment.watch
        self._chains = chains
        self.guarded = attachment.watch.guarded

    def run_prompt(self, original: Any) -> Any:
        """Around all loops of one prompt: the run of its step lasts at least as long."""

        @wraps(original)
        async def method(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
            place = None
            with self.guarded():
                place = _place_of(kwargs["trajectory"] if "trajectory" in kwargs else args[0])
                self._watch.tell(self._chains.hold, place)
            try:
                return await original(prompt, sampling_params, *args, **kwargs)
            finally:
                if place is not None:
                    self._watch.tell(self._chains.release, place)

        return method

    def run_agent_loop(self, original: Any) -> Any:
        """Around one agent loop, which is a chain."""

        @wraps(original)
        async def method(sampling_params: Any, trajectory: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._watch.on:
                return await original(sampling_params, trajectory, *args, **kwargs)
            key, token = next(_keys), None
            with self.guarded():
                self._watch.tell(self._chains.begin, _begun(key, sampling_params, trajectory, kwargs))
                token = _here.set(key)
            try:
                result = await original(sampling_params, trajectory, *args, **kwargs)
            except BaseException as error:
                self._watch.tell(self._chains.end, key, error)
                raise
            finally:
                if token is not None:
                    _here.reset(token)
            self._watch.tell(self._chains.end, key, None)
            return result

        return method

    def postprocess(self, original: Any) -> Any:
        """Around what computes the reward of a loop's output."""

        @wraps(original)
        async def method(output: Any, *args: Any, **kwargs: Any) -> Any:
            result = await original(output, *args, **kwargs)
            key = _here.get()
            if key is not None:
                with self.guarded():
                    last = output[-1] if isinstance(output, list) else output
                    about = dict(last.extra_fields.get("reward_extra_info") or {})
                    self._watch.tell(self._chains.reward, key, last.reward_score, about)
            return result

        return method

    def generate(self, original: Any) -> Any:
        """Around a request to the server, which is a turn."""

        @wraps(original)
        async def method(*args: Any, **kwargs: Any) -> Any:
            key, call = _here.get(), None
            if key is not None and self._watch.on:
                with self.guarded():
                    asked = [*kwargs["prompt_ids"]], dict(kwargs["sampling_params"])
                    call = next(_keys)
                    self._watch.tell(self._chains.turn_begins, key, call, *asked)
            try:
                output = await original(*args, **kwargs)
            except BaseException as error:
                if call is not None:
                    self._watch.tell(self._chains.turn_fails, key, call, error)
                raise
            if call is not None:
                with self.guarded():
                    self._watch.tell(self._chains.turn_ends, key, call, _turn(output))
            return output

        return method

    def call_tool(self, original: Any) -> Any:
        """Around a tool call of verl's `ToolAgentLoop`."""

        @wraps(original)
        async def method(loop: Any, tool_call: Any, *args: Any, **kwargs: Any) -> Any:
            key, call = _here.get(), None
            if key is not None and self._watch.on:
                with self.guarded():
                    told = tool_call.name, tool_call.arguments
                    call = next(_keys)
                    self._watch.tell(self._chains.tool_begins, key, call, *told)
            try:
                result = await original(loop, tool_call, *args, **kwargs)
            except BaseException as error:
                if call is not None:
                    self._watch.tell(self._chains.tool_fails, key, call, error)
                raise
            if call is not None:
                with self.guarded():
                    response, reward, _ = result
                    self._watch.tell(self._chains.tool_ends, key, call, response.text or "", reward)
            return result

        return method


def _watched_client(client: Any, hooks: _Hooks) -> Any:
    """A client with the class, state and methods of this one, whose `generate` is watched.

    Where verl, or a loop, sends it to another process, the client itself is sent.
    """
    kind = type(client)
    names = {
        "generate": staticmethod(hooks.generate(client.generate)),
        "__reduce__": lambda _: (_itself, (client,)),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    watched: Any = object.__new__(type(kind.__name__, (kind,), names))
    watched.__dict__ = client.__dict__
    return watched


def _itself(client: Any) -> Any:
    return client


def _hook_tools(hooks: _Hooks, attachment: Attachment) -> None:
    """Hook the tool calls of verl's own loop, on its class, since each chain has an instance that nobody else sees."""
    module = sys.modules.get("verl.experimental.agent_loop.tool_agent_loop")
    owner = getattr(module, "ToolAgentLoop", None)
    original = getattr(owner, "_call_tool", None)
    if original is None:
        logger.info(
            "this verl has no ToolAgentLoop._call_tool; tools are seen in the next turn's prompt alone"
        )
        return
    hooked = hooks.call_tool(original)
    owner._call_tool = hooked  # type: ignore[union-attr]  # noqa: SLF001  (what is hooked)

    def undo() -> None:
        if owner._call_tool is hooked:  # type: ignore[union-attr]  # noqa: SLF001  (what is hooked)
            owner._call_tool = original  # type: ignore[union-attr]  # noqa: SLF001  (what is hooked)

    attachment.on_detach(undo)


# -- what is read at once, since verl may change it ----------------------------------------------------------------------


def _place_of(trajectory: Mapping[str, Any]) -> Place:
    return Place(int(trajectory["step"]), bool(trajectory["validate"]))


def _begun(
    key: int, sampling: Mapping[str, Any], trajectory: Mapping[str, Any], row: Mapping[str, Any]
) -> Begun:
    messages = [dict(message) for message in row.get("raw_prompt", ())]
    asked = row.get("reward_model")
    group = row.get("uid")
    repeat = row.get("session_id", trajectory["rollout_n"])
    return Begun(
        key,
        _place_of(trajectory),
        f"sample_{trajectory['sample_index']}" if group is None else str(group),
        int(repeat),
        messages,
        {name: row[name] for name in _SHOWN_OF_ROW if name in row},
        asked.get("ground_truth") if isinstance(asked, Mapping) else None,
        dict(sampling),
    )


def _turn(output: Any) -> Turn:
    version = output.extra_fields.get("max_global_steps", output.extra_fields.get("global_steps"))
    return Turn(
        [*output.token_ids],
        [*output.log_probs] if output.log_probs else None,
        output.stop_reason,
        None if version is None else int(version),
    )
