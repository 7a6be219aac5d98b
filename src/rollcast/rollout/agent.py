"""The agent, and how its runs start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import msgspec

from rollcast.aio import running_loop
from rollcast.errors import InputError
from rollcast.grace import run_to_the_end
from rollcast.models import Sampling
from rollcast.records import EventFilter
from rollcast.records.filter import Names
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.choice import chosen_tools, with_other_instructions
from rollcast.rollout.recording import RunRecording
from rollcast.rollout.result import RunResult
from rollcast.rollout.rows import PromptRow, as_rows, count
from rollcast.rollout.run import Run
from rollcast.rollout.settings import ChainPlace, RunSettings
from rollcast.rollout.streaming import StreamingRun
from rollcast.rollout.workers import Workers
from rollcast.tools import Tool

if TYPE_CHECKING:
    import os

    from rollcast.archive import ArchiveObserver

__all__ = ["BaseAgent"]


class BaseAgent(AgentValue):
    """A tool-using agent. It has no state of a run, so two runs of one agent may overlap.

    Override `generate` to change how tokens are made, `parse` to read tool calls from a turn's text differently, and
    `assistant_message` and `tool_message` to change how the model reads its turns and its tools' results.

    Args:
        model_name: `rollcast/tiny`, or a model that the backend loads.
        tools: functions or `Tool`s that the model may call.
        backend: `tiny`, `transformers`, `async_vllm`, `openai`, or a `Backend` of your own; None chooses by the model's name.
        system_prompt: put before conversations that have none.
        parser: reads tool calls from text: a name (`hermes`) or a `Parser`.
        reward: scores a finished chain: a `@reward` or a plain function.
        streaming_manager: the manager whose observers watch; None: the agent makes its own.
        name: the agent's name in events; None: the name of its class.
        backend_options: keyword arguments for the named backend, such as `{"device": "cuda"}`.

    Raises:
        InputError: there is no such backend, option or parser, two tools have the same name, or a tool cannot be described to
            a model or asks for a context that chains do not have.
    """

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
        record: str | os.PathLike[str] | ArchiveObserver | None = None,
        workers: Workers | None = None,
    ) -> RunResult:
        """Run `num_chains` chains of each row and return their trajectories.

        Args:
            max_steps: how many generations a chain may have.
            start_messages: one conversation; or rows `{"messages": […], …fields}`, or `{"prompt": text or messages, …}`, in a
                list, a `datasets.Dataset` or a table of pandas, polars or pyarrow. A row's field `tools` names the agent's
                tools that its chains have.
            num_chains: how many chains each row gets.
            enable_streaming: whether the observers of `streaming_manager` see the run.
            streaming_callback: called with the text of each chunk, sync or async; with a second parameter it gets the
                event too.
            sampling: temperature, top_p, top_k, max_tokens (of one generation), stop.
            max_concurrent_chains: how many chains run at once; None: all.
            seed: with the embedded and scripted backends the same seed gives the same trajectories, streaming or not.
            record: leave a record of the run, with streaming. A level (`auto`, `turns`, `tokens` or `summary`): a new record in
                `rollcast-runs`, or where `ROLLCAST_RECORDS` says; a `Path`: a record in that folder; or an `ArchiveObserver`, to
                which several runs may be given. None: there is no record.
            workers: processes that run the chains, such as `rollcast.fleet.RayWorkers`. None: this process does.

        Raises:
            InputError: an argument is wrong, or the workers cannot run this agent; no chain has started.
            WorkersError: no worker can be started, or none is left.
            asyncio.CancelledError: the caller was cancelled; every chain has ended by then.
        """
        run = self.prepare(
            max_steps, start_messages, num_chains, enable_streaming, streaming_callback,
            sampling=sampling, max_concurrent_chains=max_concurrent_chains, seed=seed, record=record, workers=workers,
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
        record: str | os.PathLike[str] | ArchiveObserver | None = None,
        workers: Workers | None = None,
    ) -> StreamingRun:
        """Do the same as `run_async` with streaming, and return the events as an async iterator.

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
            sampling=sampling, max_concurrent_chains=max_concurrent_chains, seed=seed, record=record, workers=workers,
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
        """Do the same as `run_async` in code without an event loop.

        Raises:
            InputError: an argument is wrong, or an event loop runs in this thread.
        """
        if running_loop() is not None:
            raise InputError(
                "run() was called inside an event loop; expected none; use: await agent.run_async(…)"
            )

        async def whole() -> RunResult:
            return await self.run_async(
                max_steps, start_messages, num_chains, enable_streaming, streaming_callback, **settings
            )

        return run_to_the_end(whole(), self.grace_s)

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
        record: str | os.PathLike[str] | ArchiveObserver | None = None,
        workers: Workers | None = None,
        about: dict[str, Any] | None = None,
        places: Sequence[ChainPlace] | None = None,
    ) -> Run:
        """Make the run that `run_async` would execute, with its arguments checked. The arguments are the same.

        `places` says where each chain stands in a run that other processes have chains of too; `about` has its `run_id` then.

        Raises:
            InputError: an argument is wrong.
        """
        if not self.grace_s >= 0:
            raise InputError(
                f"cancel_grace_s of the agent is {self.cancel_grace_s!r}; expected seconds from 0 upward"
            )
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
            streaming=enable_streaming or record is not None or self.streaming_manager.publishes,
            callback=streaming_callback,
            about=about or {},
            places=None if places is None else tuple(places),
        )
        run = Run(self, rows, settings, agents, workers)
        if record is not None:
            run.recording = RunRecording(record, name=self.name, about=run.described)
        return run

    def _of_rows(self, rows: list[PromptRow]) -> list[Self]:
        """This agent for each row, with only the tools that the row names if it names some.

        Raises:
            MessagesError: a row names a tool that does not exist.
        """
        made: dict[tuple[str, ...] | None, Self] = {None: self}
        agents = []
        for i, row in enumerate(rows):
            tools = chosen_tools(row.fields, self.tools, f"start_messages[{i}]")
            names = None if tools is None else tuple(tools)
            if names not in made:
                made[names] = self.with_tools(tools or {})
            agents.append(made[names])
        return agents

    def with_tools(self, tools: dict[str, Tool]) -> Self:
        """The agent with other tools; everything else is shared."""
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
        """Remove and close the observers, and close the backend if this agent made it."""
        await self.streaming_manager.aclose()
        if self._owns_backend:
            await self.backend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


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
