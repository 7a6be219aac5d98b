"""One chain: the loop of generations and tool calls, from the prompt to the reward."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from rollcast.aio import others_run, wait_uncancelled, why_left
from rollcast.errors import BackendError, InputError, PromptTooLongError, RewardError
from rollcast.failures import by_signal, place_of_wait
from rollcast.grace import Driven, first_left_behind
from rollcast.models.backend import Backend, ChatRenderer, Delta, GenerationRequest
from rollcast.models.conversation import Conversation, conversation_of
from rollcast.models.parse.reading import Reading, split
from rollcast.models.reasoning import FIELDS, UNKNOWN, TellsThinking, Thinking
from rollcast.models.sampled import reasoning_of
from rollcast.records import Message, ToolCall, Trajectory, Turn
from rollcast.records.event import ChainFinishReason, GenerationFinishReason
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.context import ChainContext
from rollcast.rollout.given import GivenReward
from rollcast.rollout.rows import derived_seed
from rollcast.rollout.settings import RunSettings
from rollcast.stream import ChainWriter
from rollcast.stream.chain import error_data
from rollcast.text import well_formed
from rollcast.tools import ToolResult, unknown_tool
from rollcast.tools.execution import CancelledItself, StoppedItself, in_task

__all__ = ["ChainGeneration", "LatestChain", "Prompts"]

logger = logging.getLogger("rollcast.rollout")

MAX_CALLS = 128  # that one turn may ask for
TURN_S = 0.02  # a backend that gives tokens without ever waiting lets others run after so many seconds
DELTAS_A_LOOK = 4  # how many deltas of a chain that lets no other run go by between two looks at the clock
CLOSE_S = 5.0  # how long a backend may take to close an iterator before its end

Prompts = dict[str | None, tuple[Conversation, list[int]]]


class LatestChain:
    """Which chain of a run took the latest delta.

    Attributes:
        chain: it, or None.
    """

    __slots__ = ("chain",)

    def __init__(self) -> None:
        self.chain: ChainGeneration | None = None


class ChainGeneration:
    """Runs one chain of an agent and streams it.

    A failed chain is data: `run` ends it with `error` and returns. Only cancellation is raised, after the chain has ended.

    Args:
        agent: has the backend, tools, parser and reward.
        stream: the writer of the chain; its trajectory has the prompt.
        settings: the run's settings.
        seed: the chain's seed; its sampling depends on nothing else.
        prompts: the rows' rendered prompts, by group; the first chain of a row adds its prompt, and its siblings use it.
        cancelled: the ids of chains that were cancelled, since a backend may swallow the cancellation.
        latest: shared by the chains of a run: while each has a turn in between, none looks at the clock.
    """

    def __init__(
        self,
        agent: AgentValue,
        stream: ChainWriter,
        settings: RunSettings,
        seed: int,
        prompts: Prompts | None = None,
        cancelled: Collection[str] = (),
        latest: LatestChain | None = None,
    ) -> None:
        self.agent = agent
        self.stream = stream
        self.settings = settings
        self.seed = seed
        self.trajectory = stream.trajectory
        self.ids: list[int] = []  # the exact ids so far, if the backend is token-exact
        self._prompts = {} if prompts is None else prompts
        self._cancelled = cancelled
        self._latest = latest or LatestChain()
        self._generating: Coroutine[Any, Any, Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._conversation: Conversation | None = None
        self._sampled: dict[
            int, str
        ] = {}  # by the index of its message: what the model wrote and will read again
        self.context = ChainContext(
            row=self.trajectory.row,
            state={},
            chain_id=self.trajectory.chain_id,
            group_id=self.trajectory.group_id,
            run_id=self.trajectory.run_id,
            seed=derived_seed(seed, "rng"),
        )

    async def run(self) -> Trajectory:
        """Run the whole chain, with its reward."""
        stream = self.stream.start()
        self._task = asyncio.current_task()
        try:
            try:
                reason: ChainFinishReason = await self._turns()
                self._take_given()
                await self._score()
            except BaseException as error:  # of this chain alone: the agent's own code can raise anything
                if stream.ended or self._was_stopped(error):  # ended: it was left behind
                    raise
                failure = error if isinstance(error, _Failed) else _Failed(error, "agent")
                self.trajectory.error = error_data(failure.error, failure.where)["error"]
                stream.error(failure.error, failure.where)
                reason = "cancelled" if self._was_asked_to_end else "error"
            stream.end(reason)
        finally:
            stream.end("cancelled")  # if it has not ended yet
            self.context.given.take(last=True)
        return self.trajectory

    @property
    def _was_asked_to_end(self) -> bool:
        return self.trajectory.chain_id in self._cancelled

    def _was_stopped(self, error: BaseException) -> bool:
        """Whether the exception came from outside: not so if code of the chain's own raised GeneratorExit."""
        if isinstance(error, GeneratorExit) and self._task is not None:
            return asyncio.current_task(self._task.get_loop()) is not self._task
        return _stops(error)

    def leave(self, seconds: float) -> bool:
        """End the chain if its backend is still running so many seconds after it was cancelled. Returns whether it was.

        What runs of it then is the caller's to close; later tokens are not written. Tools and rewards are left behind by
        `tools/execution.py`.
        """
        if getattr(self._generating, "cr_frame", None) is None:
            return False
        place = place_of_wait(self._generating)
        error = BackendError(
            f"backend {self.agent.backend.name} is still running {seconds:g} s after {self.trajectory.chain_id} was cancelled"
            f"{'' if place is None else f', at {place}'}; it is left behind"
        )
        said = not first_left_behind(place or self.agent.backend.name)
        logger.log(logging.DEBUG if said else logging.WARNING, "%s", error)
        self.stream.error(error, "backend")
        self.stream.end("cancelled")
        return True

    async def _turns(self) -> ChainFinishReason:
        """Generate, parse and call tools until the chain's finish reason is known."""
        for step in range(1, self.settings.max_steps + 1):
            try:
                new_ids, fresh = self._render()
                self._generating = self._generate(step, new_ids, fresh)
                finish, calls = await self._generating
                if self._was_asked_to_end:
                    raise asyncio.CancelledError  # the backend kept it to itself
            except asyncio.CancelledError as error:
                if self._was_asked_to_end or (self._task is not None and self._task.cancelling()):
                    raise
                name = self.agent.backend.name
                raise _Failed(
                    BackendError(f"backend {name} raised CancelledError, and nobody cancelled the chain"),
                    "backend",
                ) from error
            except PromptTooLongError as error:
                if step == 1:
                    raise _Failed(error, "backend") from error
                return "max_tokens"
            if finish == "length":
                return "max_tokens"
            if not calls:
                if step == self.settings.max_steps or not await self._is_answered_back():
                    return "answered"
                continue
            if await self._call_tools(calls):
                return "terminal_tool"
            self._take_given()
        return "max_steps"

    async def _is_answered_back(self) -> bool:
        """Add what somebody says after a turn without calls. Returns whether there was anything."""
        if not self.agent.converses:
            return False
        message = await self._next_message()
        self._take_given()
        if message is not None:
            self.stream.message(message, from_outside=True)
        return message is not None

    async def _next_message(self) -> Message | None:
        """What the agent's `next_message` returns. One that ignores its cancellation is left behind, as a tool is."""
        where = f"next_message of agent {self.agent.name}"
        asked: Any = self.agent.next_message(self.trajectory, self.context)
        if not asyncio.iscoroutine(asked):
            raise InputError(f"{where} returned {type(asked).__name__}; define it with `async def`")
        try:
            return await in_task(asked, where, None)
        except CancelledItself:
            raise _Failed(InputError(f"{where} was cancelled from within"), "agent") from None
        except StoppedItself as stopped:
            raise _Failed(stopped.__cause__ or stopped, "agent") from stopped

    def _take_given(self, *, last: bool = False) -> None:
        """Take over the messages and the rewards of steps that tools, or the reward's function, gave."""
        for item in self.context.given.take(last=last):
            if isinstance(item, GivenReward):
                self.stream.step_reward(item.reward, item.metrics)
            else:
                self.stream.message(item, from_outside=True)

    # 1. Render the new messages to token ids after the ids so far; if they do not continue those, render everything afresh.

    def _render(self) -> tuple[list[int], bool]:
        """The new ids, and whether they are a whole prompt that does not continue the ids so far."""
        renderer = self.agent.backend.renderer
        if renderer is None:
            return [], False
        messages = self.trajectory.messages
        with _attributed_to("backend"):  # a template can raise anything; the chain then ends with that error
            if self._conversation is None:
                self._conversation, new_ids, fresh = *self._first_prompt(renderer), False
            else:
                new_ids, fresh = self._conversation.prompt(messages, self.ids, self._sampled)
        if fresh:
            self.ids = []
        self.ids += new_ids
        return new_ids, fresh

    def _first_prompt(self, renderer: ChatRenderer) -> tuple[Conversation, list[int]]:
        group = self.trajectory.group_id
        if group not in self._prompts:
            conversation = conversation_of(renderer, self.agent.tool_schemas)
            self._prompts[group] = conversation, conversation.prompt(self.trajectory.messages)[0]
        conversation, ids = self._prompts[group]
        return conversation.copy(), list(ids)

    def _thinking(self) -> Thinking:
        """What is known about the reasoning in the turn after the last prompt."""
        told_by: tuple[Any, ...] = (self._conversation, self.agent.backend)
        for knows in told_by:
            if isinstance(knows, TellsThinking):
                return knows.thinking
        return UNKNOWN

    # 2. Generate: each delta becomes a chunk if an observer wants it. 3. Parse the text so far, without its reasoning.

    def _request(self, step: int, thinking: Thinking) -> GenerationRequest:
        agent, sampling = self.agent, self.settings.sampling
        return GenerationRequest(
            request_id=f"{self.trajectory.run_id}/{self.trajectory.chain_id}/{step}",
            messages=list(self.trajectory.messages),  # a copy, since the chain's messages grow
            tools=agent.tool_schemas,
            sampling=msgspec.structs.replace(
                sampling,
                seed=derived_seed(self.seed, step),
                stop=sampling.stop if thinking.reasons else agent.stop_strings(sampling),
            ),
            prompt_ids=list(self.ids) if agent.backend.token_exact else None,
        )

    async def _generate(
        self, step: int, new_ids: list[int], fresh: bool
    ) -> tuple[GenerationFinishReason, list[ToolCall]]:
        agent, fanout = self.agent, self.stream.run.fanout
        thinking = self._thinking()
        request = self._request(step, thinking)
        generation = self.stream.generation(
            prompt_ids=new_ids,
            prompt_tokens=len(self.ids) if agent.backend.token_exact else None,
            sampling=self.settings.sampling_data,
            policy_version=agent.backend.policy_version,
            fresh=fresh,
        )
        reading = agent.reading(thinking)
        tells_ids = reading is not None and bool(thinking.token_ids)
        finish: GenerationFinishReason | None = None
        backend_calls: list[ToolCall] = []
        with generation:
            looks_after, others_run_at, latest = DELTAS_A_LOOK, math.inf, self._latest
            async with _deltas(agent, request) as deltas:
                async for delta in deltas:
                    generation.chunk(delta.text, delta.token_ids, delta.logprobs, delta.policy_version)
                    if fanout.congested:
                        await fanout.ready()
                    if latest.chain is not self:  # another one has had a turn since this one's last delta
                        latest.chain = self
                        looks_after, others_run_at = DELTAS_A_LOOK, math.inf
                    elif looks_after > 1:
                        looks_after -= 1
                    else:
                        looks_after = DELTAS_A_LOOK
                        now = time.perf_counter()
                        if now >= others_run_at:
                            await others_run()
                            now = time.perf_counter()
                            others_run_at = now + TURN_S
                        elif others_run_at == math.inf:
                            others_run_at = now + TURN_S
                    if delta.finish_reason is not None:
                        finish = "length" if delta.finish_reason == "length" else "stop"
                    if delta.prompt_tokens is not None:
                        generation.turn.prompt_tokens = delta.prompt_tokens
                    if delta.tool_calls:
                        backend_calls += delta.tool_calls
                    if reading is not None and delta.text:
                        if tells_ids and delta.token_ids:
                            reading.sampled(delta.token_ids)
                        if reading.take(well_formed(delta.text)):
                            break
            with _attributed_to("backend"):
                _check(generation.turn, agent.backend)
            with _attributed_to("backend" if backend_calls else "parser"):
                reading = reading if reading is not None else split(generation.turn.text, thinking)
                found = self._parse(generation.turn, reading)
                calls = _numbered(backend_calls or found, step)
            if thinking.reasons and finish == "length" and reading.complete:
                finish = "stop"  # the turn was complete before the limit
            finish = finish if finish == "length" or not calls else "tool_call"
            generation.end(finish or "stop")
        self._say(generation.turn, calls, reading)
        return finish or "stop", calls

    def _parse(self, turn: Turn, reading: Reading) -> list[ToolCall]:
        found = reading.close()
        if self.agent.tools and not self.agent.parses_incrementally:
            return self.agent.parse(_output(turn, reading))
        return found

    def _say(self, turn: Turn, calls: list[ToolCall], reading: Reading) -> None:
        """Add the generated turn to the conversation: its output, and its reasoning besides."""
        agent = self.agent
        self.ids += turn.token_ids
        text, reasoning = _output(turn, reading), reading.reasoning
        content = reading.content if agent.parses_incrementally else text
        message = agent.assistant_message(text, content, calls)
        keeps = agent.keeps_turns or agent.keeps_turn(message, text, content, calls)
        if reasoning and message["role"] == "assistant" and not any(key in message for key in FIELDS):
            message = {**message, "reasoning_content": reasoning}
        if keeps and not reading.overran and reasoning_of(message).strip() == reasoning:
            self._sampled[len(self.trajectory.messages)] = turn.text
        self.stream.message(message)
        self.trajectory.final_response = "" if calls else agent.final_response(text)

    # 4. Run the tool calls, concurrently, each with its timeout; a failure is an observation.

    async def _call_tools(self, calls: list[ToolCall]) -> bool:
        """Run the calls. Returns whether a terminal tool was among them and succeeded."""
        if len(calls) == 1:
            results = [await self._call(calls[0])]
        else:
            results = await self._call_all(calls)
        for call, result in zip(calls, results, strict=True):
            self.stream.message(self.agent.tool_message(call, result))
        for call, result in zip(calls, results, strict=True):
            tool = self.agent.tools.get(call.tool_name)
            if tool is not None and tool.terminal and result.status == "success":
                self.trajectory.final_response = result.observation
                return True
        return False

    async def _call_all(self, calls: list[ToolCall]) -> list[ToolResult]:
        """Run all calls at once. Whatever happens, none is running afterwards."""
        tasks = [asyncio.create_task(self._call(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                if not task.cancelling():  # a second time would interrupt its cleanup
                    task.cancel()
            await wait_uncancelled(tasks)

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
                if result.failure is not None:
                    self.stream.error(result.failure, f"tool:{call.tool_name}")
                stream.observation(result.observation, result.status)
                stream.end()
        return result

    # 5. Compute the reward.

    async def _score(self) -> None:
        reward = self.agent.reward
        if reward is None:
            return
        try:
            value, metrics = await reward.score(self.trajectory, self.context)
        except RewardError as error:
            self._take_given(last=True)
            self.trajectory.error = error_data(error, "reward")["error"]
            self.stream.error(error, "reward")
            return
        self._take_given(last=True)
        self.stream.reward(value, metrics)


class _Failed(Exception):
    """An error that ends a chain with `error`, and where it came from."""

    def __init__(self, error: BaseException, where: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.where = where


@contextmanager
def _attributed_to(where: str) -> Iterator[None]:
    """Attribute any error in the block to `where`; it ends the chain. A library can raise anything."""
    try:
        yield
    except (PromptTooLongError, _Failed):
        raise
    except BaseException as error:
        if _stops(error):
            raise
        raise _Failed(error, where) from error


def _stops(error: BaseException) -> bool:
    """Whether it ends more than what raised it: a cancellation, or what a signal raised."""
    if isinstance(error, KeyboardInterrupt):
        return by_signal(error)
    return why_left(error) == "cancelled"


def _output(turn: Turn, reading: Reading) -> str:
    """The turn's text without its reasoning."""
    return reading.output if reading.tags or reading.is_cut or reading.has_reasoning else turn.text


def _check(turn: Turn, backend: Backend) -> None:
    """Refuse a generation whose ids, logprobs and versions do not match, since training needs them complete."""
    ids = turn.token_ids
    problem = None
    if backend.token_exact and turn.chars and not ids:
        problem = "says that it is token-exact, and gave text without token ids"
    elif turn.logprobs and len(turn.logprobs) != len(ids):
        problem = f"gave {len(ids)} token ids and {len(turn.logprobs)} logprobs"
    elif turn.policy_versions and len(turn.policy_versions) != len(ids):
        problem = "gave some of its tokens a policy_version and others none"
    elif not ({*map(type, ids)} <= {int} and {*map(type, turn.logprobs)} <= {int, float}):
        problem = "gave token ids or logprobs that are not int and float"
    elif not all(map(math.isfinite, turn.logprobs)):
        problem = "gave a logprob that is not a finite number"
    if problem is not None:
        raise BackendError(
            f"backend {backend.name} {problem}; expected one of each per token, as plain Python numbers"
        )


def _numbered(found: Iterable[Any], step: int) -> list[ToolCall]:
    """The calls, each with an id that is unique in its chain; those beyond `MAX_CALLS` become one refused call."""
    calls = list(found)
    for call in calls:
        if not _is_call(call):
            raise InputError(
                f"this is not a tool call: {call!r:.200}; expected a ToolCall with a name, and an object or text as arguments"
            )
    if len(calls) > MAX_CALLS:
        first = calls[MAX_CALLS]
        error = f"error: too many calls in one turn ({len(calls)}); at most {MAX_CALLS}"
        calls = [*calls[:MAX_CALLS], ToolCall("", first.tool_name, first.arguments, error)]
    return [msgspec.structs.replace(call, call_id=f"call_{step}_{i}") for i, call in enumerate(calls)]


def _is_call(value: Any) -> bool:
    if not isinstance(value, ToolCall):
        return False
    name: Any = value.tool_name
    arguments: Any = value.arguments
    return isinstance(name, str) and isinstance(arguments, dict | str)


@asynccontextmanager
async def _deltas(
    agent: AgentValue, request: GenerationRequest
) -> AsyncGenerator[AsyncIterator[Delta], None]:
    """The agent's deltas; leaving the block early ends the generation. Errors are attributed to the backend."""
    deltas: Any = None
    try:
        with _attributed_to("backend"):  # a model library's errors come from here
            deltas = agent.generate(request)
            yield deltas
    finally:
        if hasattr(deltas, "aclose") and getattr(deltas, "ag_frame", deltas) is not None:  # not at its end
            closing = Driven(_closed(deltas))
            closing.let_go_after(CLOSE_S)
            try:
                await closing
            except asyncio.CancelledError:
                if not closing.gone:
                    raise
                logger.warning(
                    "backend %s did not close its iterator within %g s; it is left behind",
                    agent.backend.name,
                    CLOSE_S,
                )


async def _closed(deltas: Any) -> None:
    await deltas.aclose()
