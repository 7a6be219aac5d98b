"""The agent: a value made of a backend, tools, a parser and a reward."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import msgspec

from rollcast.errors import InputError
from rollcast.models import (
    Backend,
    Delta,
    GenerationRequest,
    Parser,
    Sampling,
    resolve_backend,
    resolve_parser,
)
from rollcast.models.parse.reading import Reading
from rollcast.models.parse.turn import TurnParser
from rollcast.models.reasoning import Thinking
from rollcast.records import EventFilter, Message, ToolCall
from rollcast.records.filter import Names
from rollcast.rollout.choice import chosen_tools, with_other_instructions
from rollcast.rollout.context import ChainContext
from rollcast.rollout.result import RunResult
from rollcast.rollout.reward import Reward, as_reward
from rollcast.rollout.rows import Row, as_rows, count
from rollcast.rollout.run import Run, RunSettings
from rollcast.rollout.streaming import StreamingRun
from rollcast.stream import StreamingManager
from rollcast.tools import Tool, ToolResult, tool_set

__all__ = ["BaseAgent"]


class BaseAgent:
    """A tool-using agent. It holds no state of a run, so two runs of one agent may overlap.

    Override `generate` to change how tokens come about, `parse` to read tool calls from a turn's text differently,
    `assistant_message` and `tool_message` to change what the model reads of its turns and of what its tools gave.

    Args:
        model_name: `rollcast/tiny`, or what the backend loads.
        tools: functions or `Tool`s that the model may call.
        backend: `tiny`, `transformers`, `async_vllm`, or a `Backend` of your own; None chooses by the model's name.
        system_prompt: put before conversations that have none.
        parser: reads tool calls from text: a name (`hermes`) or a `Parser`.
        reward: scores a finished chain: a `@reward` or a plain function.
        streaming_manager: who watches; one of its own where None.
        name: how events call the agent; its class where None.
        backend_options: keyword arguments of the backend that is named, such as `{"device": "cuda"}`.

    Raises:
        InputError: there is no such backend, option or parser, two tools have one name, or one cannot be described to a model
            or asks for a context that chains do not give.
    """

    def __init__(
        self,
        model_name: str = "rollcast/tiny",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        backend: str | Backend | None = None,
        system_prompt: str | None = None,
        parser: str | Parser | None = None,
        reward: Reward | Callable[..., Any] | None = None,
        *,
        streaming_manager: StreamingManager | None = None,
        name: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.tools = _callable_in_chains(tool_set(tools))
        self.backend = resolve_backend(backend, model_name, backend_options)
        self.system_prompt = system_prompt
        self.parser = resolve_parser(parser)
        self.reward = None if reward is None else as_reward(reward)
        self.streaming_manager = streaming_manager if streaming_manager is not None else StreamingManager()
        self.name = name if name is not None else type(self).__name__
        self._owns_backend = backend is None or isinstance(backend, str)

    def __repr__(self) -> str:
        tools = ", ".join(self.tools) or "no tools"
        return f"<{self.name}: {self.backend.model_name} on {self.backend.name}, {tools}>"

    def __getstate__(self) -> dict[str, Any]:
        """All but who watches: a copy, and what was pickled, has a streaming manager of its own."""
        return {name: value for name, value in vars(self).items() if name != "streaming_manager"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.streaming_manager = StreamingManager()

    # -- what a subclass may change ------------------------------------------------------------------------------------

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """The deltas of one generation."""
        return self.backend.generate(request)

    def parse(self, text: str) -> list[ToolCall]:
        """The tool calls in a turn's whole output: its text without reasoning."""
        return self.parser.parse(text)

    @property
    def instructions(self) -> str:
        """What every conversation's system message ends with; nothing where the model's own template tells of tools."""
        return ""

    def assistant_message(self, text: str, content: str, calls: list[ToolCall]) -> Message:
        """What stands in the conversation for a turn of the model.

        Args:
            text: the whole output of the turn: its text without reasoning.
            content: the text without the calls, where the parser reads along; else the whole.
            calls: what was called; malformed ones too.

        The turn's reasoning is added as `reasoning_content`, unless the message has that key: an empty one forgets it.
        """
        if not calls or any(call.error is not None for call in calls):
            return {"role": "assistant", "content": text}
        return {
            "role": "assistant",
            "content": content,
            "tool_calls": [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.tool_name, "arguments": call.arguments},
                }
                for call in calls
            ],
        }

    def tool_message(self, call: ToolCall, result: ToolResult) -> Message:
        """What stands in the conversation for what a tool gave."""
        return {
            "role": "tool",
            "content": result.observation,
            "tool_call_id": call.call_id,
            "name": call.tool_name,
        }

    def final_response(self, text: str) -> str:
        """The answer in the output of a turn that calls nothing."""
        return text

    # -- running -------------------------------------------------------------------------------------------------------

    async def run_async(
        self,
        max_steps: int,
        start_messages: Sequence[Mapping[str, Any]],
        num_chains: int = 1,
        enable_streaming: bool = False,
        streaming_callback: Callable[..., Any] | None = None,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        max_concurrent_chains: int | None = None,
        seed: int | None = None,
    ) -> RunResult:
        """Run `num_chains` chains of each row and give back their trajectories.

        Args:
            max_steps: generations that a chain may have.
            start_messages: one conversation; or rows `{"messages": […], …fields}`, or `{"prompt": text or messages, …}`, in a
                list, a `datasets.Dataset` or a table of pandas, polars or pyarrow. A row's field `tools` names those of the
                agent's tools that its chains have.
            num_chains: repeats of each row.
            enable_streaming: whether the observers of `streaming_manager` see the run.
            streaming_callback: called with the text of each chunk, sync or async; with a second parameter it gets the
                event too.
            sampling: temperature, top_p, top_k, max_tokens (of one generation), stop.
            max_concurrent_chains: how many chains run at once; None: all.
            seed: with the embedded and scripted backends the same seed gives the same trajectories, streaming or not.

        Raises:
            InputError: an argument is wrong; no chain has started.
            asyncio.CancelledError: the caller was cancelled; every chain has ended by then.
        """
        run = self.prepare(
            max_steps, start_messages, num_chains, enable_streaming, streaming_callback,
            sampling=sampling, max_concurrent_chains=max_concurrent_chains, seed=seed,
        )  # fmt: skip
        return await run.execute()

    def run_async_streaming(
        self,
        max_steps: int,
        start_messages: Sequence[Mapping[str, Any]],
        num_chains: int = 1,
        streaming_callback: Callable[..., Any] | None = None,
        *,
        chain_filter: EventFilter | Names = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        max_concurrent_chains: int | None = None,
        seed: int | None = None,
    ) -> StreamingRun:
        """As `run_async` with streaming, and the events are the items of what is returned.

            async with agent.run_async_streaming(5, messages, num_chains=4) as stream:
                async for event in stream:
                    ...
            stream.result

        `chain_filter` chooses the events: a chain id, several, or an `EventFilter`. The other arguments are those of
        `run_async`.

        Raises:
            InputError: an argument is wrong; no chain has started.
        """
        run = self.prepare(
            max_steps, start_messages, num_chains, True, streaming_callback,
            sampling=sampling, max_concurrent_chains=max_concurrent_chains, seed=seed,
        )  # fmt: skip
        return StreamingRun(run, chain_filter)

    def run(
        self,
        max_steps: int,
        start_messages: Sequence[Mapping[str, Any]],
        num_chains: int = 1,
        enable_streaming: bool = False,
        streaming_callback: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> RunResult:
        """As `run_async`, where there is no event loop.

        Raises:
            InputError: an argument is wrong, or an event loop runs in this thread.
        """
        if asyncio._get_running_loop() is not None:  # noqa: SLF001  (documented; None instead of an exception)
            raise InputError(
                "run() was called inside an event loop; expected none; use: await agent.run_async(…)"
            )

        async def whole() -> RunResult:
            return await self.run_async(
                max_steps, start_messages, num_chains, enable_streaming, streaming_callback, **settings
            )

        return asyncio.run(whole())

    def prepare(
        self,
        max_steps: int,
        start_messages: Any,
        num_chains: int = 1,
        enable_streaming: bool = False,
        streaming_callback: Callable[..., Any] | None = None,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        max_concurrent_chains: int | None = None,
        seed: int | None = None,
        about: dict[str, Any] | None = None,
    ) -> Run:
        """The run that `run_async` would execute, checked and not begun. The arguments are the same.

        Raises:
            InputError: an argument is wrong.
        """
        rows = as_rows(start_messages, self.system_prompt, self.instructions)
        agents = self._of_rows(rows)
        rows = [
            row if agent is self else with_other_instructions(row, self.instructions, agent.instructions)
            for row, agent in zip(rows, agents, strict=True)
        ]
        if self.reward is not None:
            self.reward.check_fields([row.fields for row in rows])
        if seed is not None:
            count("seed", seed, at_least=0)
        if max_concurrent_chains is not None:
            count("max_concurrent_chains", max_concurrent_chains)
        settings = RunSettings(
            max_steps=count("max_steps", max_steps),
            num_chains=count("num_chains", num_chains),
            sampling=_sampling(sampling),
            max_concurrent_chains=max_concurrent_chains,
            seed=seed,
            streaming=enable_streaming,
            callback=streaming_callback,
            about=about or {},
        )
        return Run(self, rows, settings, agents)

    def _of_rows(self, rows: list[Row]) -> list[Self]:
        """This agent for each row; with the tools that the row names, if it names some.

        Raises:
            MessagesError: a row names a tool that there is not.
        """
        made: dict[tuple[str, ...] | None, Self] = {None: self}
        agents = []
        for i, row in enumerate(rows):
            tools = chosen_tools(row.fields, self.tools, f"start_messages[{i}]")
            names = None if tools is None else tuple(tools)
            if names not in made:
                made[names] = self._with_tools(tools or {})
            agents.append(made[names])
        return agents

    def _with_tools(self, tools: dict[str, Tool]) -> Self:
        """The agent, with other tools; all else is shared."""
        view = object.__new__(type(self))
        kept = {
            name
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, cached_property)
        }
        vars(view).update(
            {name: value for name, value in vars(self).items() if name not in kept}, tools=tools
        )
        return view

    async def aclose(self) -> None:
        """Let go of the observers, and of the backend where this agent made it."""
        await self.streaming_manager.aclose()
        if self._owns_backend:
            await self.backend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- what the chain asks -------------------------------------------------------------------------------------------

    @cached_property
    def tool_schemas(self) -> list[dict[str, Any]]:
        """The tools as the model is told of them."""
        return [tool.schema for tool in self.tools.values()]

    @cached_property
    def parses_incrementally(self) -> bool:
        """Whether the parser reads along; not where a subclass parses whole turns itself."""
        return bool(self.tools) and type(self).parse is BaseAgent.parse

    def reading(self, thinking: Thinking) -> Reading | None:
        """What reads a turn along; None where a turn without reasoning is not parsed before its end."""
        stops = tuple(self.parser.stop) if self.tools and thinking.reasons else ()
        if self.parses_incrementally:
            parser = self.parser.turn if isinstance(self.parser, TurnParser) else self.parser.incremental
            return Reading(thinking, parser, stops)
        return Reading(thinking, stops=stops) if thinking.reasons else None

    @cached_property
    def keeps_turns(self) -> bool:
        """Whether the model reads its turns as it wrote them; a subclass may change what it reads."""
        return type(self).assistant_message is BaseAgent.assistant_message

    def keeps_turn(self, message: Message, text: str, content: str, calls: list[ToolCall]) -> bool:
        """Whether a message says what the turn did: its calls are those, and its content is how the turn began."""
        usual = BaseAgent.assistant_message(self, text, content, calls)
        if message == usual:
            return True
        said = message.get("content") or ""
        if message["role"] != "assistant" or not isinstance(said, str):
            return False
        if message.get("tool_calls") not in (None, usual.get("tool_calls")):
            return False
        if not said.strip():  # all may have been calls, which only a parser that reads along tells apart
            return not (self.parses_incrementally and content.strip())
        return text.lstrip().startswith(said.strip())

    def stop_strings(self, sampling: Sampling) -> tuple[str, ...]:
        """What ends a generation: the caller's and, where there are tools, the parser's."""
        return sampling.stop + (tuple(self.parser.stop) if self.tools else ())


def _callable_in_chains(tools: dict[str, Tool]) -> dict[str, Tool]:
    """The tools, where a chain can give each of them what it asks for."""
    for tool in tools.values():
        for name, kind in tool.arguments.injected.items():
            if not issubclass(ChainContext, kind) and name not in tool.arguments.optional:
                raise InputError(
                    f"tool {tool.name!r} takes a {kind.__name__} as its parameter {name!r}, and chains give a "
                    "ChainContext; annotate it with that, or give the parameter a default"
                )
    return tools


def _sampling(value: Sampling | Mapping[str, Any] | None) -> Sampling:
    if value is None:
        return Sampling()
    if isinstance(value, Sampling):
        return value
    if not isinstance(value, Mapping):
        raise InputError(
            f"sampling is {type(value).__name__}; expected a Sampling or a dict such as {{'temperature': 0.5}}"
        )
    unknown = sorted(set(value) - set(Sampling.__struct_fields__))
    if unknown:
        raise InputError(f"sampling has no {unknown[0]!r}; it has {', '.join(Sampling.__struct_fields__)}")
    try:
        return msgspec.convert(dict(value), Sampling)
    except msgspec.ValidationError as error:
        raise InputError(f"sampling is wrong: {error}; expected what rollcast.Sampling takes") from None
