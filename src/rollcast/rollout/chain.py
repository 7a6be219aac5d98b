"""One chain: the loop of generations and tool calls, from the prompt to the reward."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from rollcast.errors import BackendError, PromptTooLongError, RewardError
from rollcast.models.backend import Delta, GenerationRequest
from rollcast.records import Message, ToolCall, Trajectory
from rollcast.records.event import ChainFinishReason, GenerationFinishReason
from rollcast.rollout.context import ChainContext
from rollcast.rollout.rows import derived_seed
from rollcast.stream.producer import ChainStream, GenerationStream
from rollcast.tools import ToolResult, unknown_tool

if TYPE_CHECKING:
    from rollcast.rollout.agent import BaseAgent
    from rollcast.rollout.run import RunSettings

__all__ = ["ChainGeneration", "ended"]


class ChainGeneration:
    """Runs one chain of an agent and streams it.

    A failed chain is data: `run` ends it with `error` and returns. Only cancellation is raised, after the chain has ended.

    Args:
        agent: backend, tools, parser and reward.
        stream: the chain to write; its trajectory has the prompt.
        settings: of the run.
        seed: of this chain; what it samples depends on nothing else.
        prompts: ids of the rows' prompts, by group; the first chain of a row puts them in, its siblings take them.
    """

    def __init__(
        self,
        agent: BaseAgent,
        stream: ChainStream,
        settings: RunSettings,
        seed: int,
        prompts: dict[str | None, list[int]] | None = None,
    ) -> None:
        self.agent = agent
        self.stream = stream
        self.settings = settings
        self.seed = seed
        self.trajectory = stream.trajectory
        self.ids: list[int] = []  # the exact ids so far, where the backend is token-exact
        self._prompts = {} if prompts is None else prompts
        self._unsaid = len(self.trajectory.messages)  # messages at the end that are not in the ids yet
        self.context = ChainContext(
            row=self.trajectory.row,
            state={},
            chain_id=self.trajectory.chain_id,
            group_id=self.trajectory.group_id,
            rng=random.Random(derived_seed(seed, "rng")),
            run_id=self.trajectory.run_id,
        )

    async def run(self) -> Trajectory:
        """The whole chain, reward included."""
        stream = self.stream.start()
        try:
            try:
                reason = await self._turns()
                await self._score()
            except _Failed as failure:
                self.trajectory.error = str(failure.error) or type(failure.error).__name__
                stream.error(failure.error, failure.where)
                reason = "error"
            stream.end(reason)
        finally:
            stream.end("cancelled")  # where it has not ended yet
        return self.trajectory

    async def _turns(self) -> ChainFinishReason:
        """Generate, parse, call tools, until the chain is decided."""
        for step in range(1, self.settings.max_steps + 1):
            try:
                new_ids = self._render()
                finish, calls = await self._generate(step, new_ids)
            except PromptTooLongError as error:
                if step == 1:
                    raise _Failed(error, "backend") from error
                return "max_tokens"
            if finish == "length":
                return "max_tokens"
            if not calls:
                return "answered"
            if await self._call_tools(calls):
                return "terminal_tool"
        return "max_steps"

    # 1. Render the new messages to token ids, after the ids so far.

    def _render(self) -> list[int]:
        renderer = self.agent.backend.renderer
        if renderer is None:
            return []
        messages, tools = self.trajectory.messages, self.agent.tool_schemas
        try:
            if not self.ids:
                group = self.trajectory.group_id
                if group not in self._prompts:
                    self._prompts[group] = renderer.render(messages, tools)
                new_ids = list(self._prompts[group])
            else:
                new_ids = renderer.extend(self.ids, messages, self._unsaid, tools)
        except Exception as error:  # a template can raise anything; the chain ends with what it says
            raise _Failed(error, "backend") from error
        self.ids += new_ids
        self._unsaid = 0
        return new_ids

    # 2. Generate: each delta becomes a chunk, if anybody wants it. 3. Parse the text so far.

    async def _generate(self, step: int, new_ids: list[int]) -> tuple[GenerationFinishReason, list[ToolCall]]:
        agent, manager = self.agent, self.stream.run.manager
        sampling = msgspec.structs.replace(
            self.settings.sampling,
            seed=derived_seed(self.seed, step),
            stop=agent.stop_strings(self.settings.sampling),
        )
        request = GenerationRequest(
            request_id=f"{self.trajectory.run_id}/{self.trajectory.chain_id}/{step}",
            messages=self.trajectory.messages,
            tools=agent.tool_schemas,
            sampling=sampling,
            prompt_ids=self.ids if agent.backend.token_exact else None,
        )
        generation = self.stream.generation(
            prompt_ids=new_ids,
            prompt_tokens=len(self.ids) if agent.backend.token_exact else None,
            sampling=self.settings.sampling_data,
            policy_version=agent.backend.policy_version,
        )
        parser = agent.parser.incremental() if agent.parses_incrementally else None
        finish: GenerationFinishReason | None = None
        backend_calls: list[ToolCall] = []
        with generation:
            async with _deltas(agent, request) as deltas:
                async for delta in deltas:
                    generation.chunk(delta.text, delta.token_ids, delta.logprobs, delta.policy_version)
                    if manager.congested:
                        await manager.ready()
                    if delta.finish_reason is not None:
                        finish = "length" if delta.finish_reason == "length" else "stop"
                    if delta.prompt_tokens is not None:
                        generation.turn.prompt_tokens = delta.prompt_tokens
                    if delta.tool_calls:
                        backend_calls += delta.tool_calls
                    if parser is not None and delta.text:
                        parser.feed(delta.text)
                        if parser.finished:
                            break
            calls = [
                msgspec.structs.replace(call, call_id=f"call_{step}_{i}")
                for i, call in enumerate(backend_calls or self._parse(generation, parser))
            ]
            finish = finish if finish == "length" or not calls else "tool_call"
            generation.end(finish or "stop")
        self._say(generation, calls, parser)
        return finish or "stop", calls

    def _parse(self, generation: GenerationStream, parser: Any) -> list[ToolCall]:
        if not self.agent.tools:
            return []
        try:
            return parser.close() if parser is not None else self.agent.parse(generation.turn.text)
        except Exception as error:  # an agent's own parser can raise anything
            raise _Failed(error, "parser") from error

    def _say(self, generation: GenerationStream, calls: list[ToolCall], parser: Any) -> None:
        """Put what was generated into the conversation."""
        turn = generation.turn
        self.ids += turn.token_ids
        text = turn.text
        message: Message = {"role": "assistant", "content": text}
        if calls and all(call.error is None for call in calls):
            message["content"] = parser.content if parser is not None else text
            message["tool_calls"] = [
                {
                    "id": c.call_id,
                    "type": "function",
                    "function": {"name": c.tool_name, "arguments": c.arguments},
                }
                for c in calls
            ]
        self.stream.message(message)
        self.trajectory.final_response = "" if calls else text

    # 4. Run the tool calls, concurrently, each with its timeout; a failure is an observation.

    async def _call_tools(self, calls: list[ToolCall]) -> bool:
        """Whether a terminal tool was among them and succeeded."""
        if len(calls) == 1:
            results = [await self._call(calls[0])]
        else:
            results = await self._call_all(calls)
        for call, result in zip(calls, results, strict=True):
            self.stream.message(
                {
                    "role": "tool",
                    "content": result.observation,
                    "tool_call_id": call.call_id,
                    "name": call.tool_name,
                }
            )
            self._unsaid += 1
        for call, result in zip(calls, results, strict=True):
            tool = self.agent.tools.get(call.tool_name)
            if tool is not None and tool.terminal and result.status == "success":
                self.trajectory.final_response = result.observation
                return True
        return False

    async def _call_all(self, calls: list[ToolCall]) -> list[ToolResult]:
        """All at once; whatever happens, none is running any more afterwards."""
        tasks = [asyncio.create_task(self._call(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                if not task.cancelling():  # a second time would interrupt its cleanup
                    task.cancel()
            await ended(tasks)

    async def _call(self, call: ToolCall) -> ToolResult:
        with self.stream.tool_call(call.tool_name, call.arguments, call.call_id) as stream:
            tool = self.agent.tools.get(call.tool_name)
            if call.error is not None:
                result = ToolResult(call.error, "error", 0.0)
            elif tool is None:
                result = ToolResult(unknown_tool(call.tool_name, self.agent.tools), "error", 0.0)
            else:
                result = await tool.invoke(
                    call.arguments, self.context, lambda text: stream.observation(text, partial=True)
                )
            with self.stream.lock:  # a snapshot shows the call open, or not at all
                stream.observation(result.observation, result.status)
                stream.end()
        return result

    # 5. The reward; the trajectory has the rest.

    async def _score(self) -> None:
        reward = self.agent.reward
        if reward is None:
            return
        try:
            value, metrics = await reward.score(self.trajectory, self.context)
        except RewardError as error:
            self.stream.error(error, "reward")
            return
        self.stream.reward(value, metrics)


async def ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait until all have ended, however often the caller is cancelled meanwhile: he is on his way out already."""
    while not all(task.done() for task in tasks):
        with suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


class _Failed(Exception):
    """What ends a chain with `error`, and where it came from."""

    def __init__(self, error: Exception, where: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.where = where


@asynccontextmanager
async def _deltas(agent: BaseAgent, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta], None]:
    """The agent's deltas; leaving the block early ends the generation. Failures are the backend's."""
    deltas: Any = None
    try:
        deltas = agent.generate(request)
        yield deltas
    except PromptTooLongError:
        raise
    except BackendError as error:
        raise _Failed(error, "backend") from error
    except Exception as error:  # a model library can raise anything; this is where it enters
        raise _Failed(error, "backend") from error
    finally:
        if hasattr(deltas, "aclose"):
            await deltas.aclose()
