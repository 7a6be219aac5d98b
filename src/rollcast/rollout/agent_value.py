"""The agent as a value: a backend, tools, a parser and a reward, and what a chain needs from them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

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
from rollcast.models.parse.reader import TurnParser
from rollcast.models.parse.reading import Reading
from rollcast.models.reasoning import Thinking
from rollcast.records import Message, ToolCall, Trajectory
from rollcast.rollout.context import ChainContext
from rollcast.rollout.reward import Reward, as_reward
from rollcast.stream import StreamingManager
from rollcast.tools import Tool, ToolResult, execution, tool_set

__all__ = ["AgentValue"]


class AgentValue:
    """The parts of an agent, and what a chain needs from it. `BaseAgent` adds the methods that start runs.

    The arguments are those of `BaseAgent`.

    Attributes:
        cancel_grace_s: how many seconds a tool, a reward or a generation may take to clean up after it was cancelled. If it is
            still running then, it is left behind, and a warning names it. None: 1 second.
    """

    cancel_grace_s: float | None = None

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
        """Everything except the streaming manager: a copy or an unpickled agent gets one of its own."""
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
        """The end of every conversation's system message; empty if the model's own template describes the tools."""
        return ""

    def assistant_message(self, text: str, content: str, calls: list[ToolCall]) -> Message:
        """The message in the conversation for a turn of the model.

        Args:
            text: the whole output of the turn: its text without reasoning.
            content: the text without the calls if the parser is incremental, otherwise the whole text.
            calls: the calls, also malformed ones.

        The turn's reasoning is added as `reasoning_content`, unless the message has that key; an empty value leaves it out.
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
        """The message in the conversation for a tool's result."""
        return {
            "role": "tool",
            "content": result.observation,
            "tool_call_id": call.call_id,
            "name": call.tool_name,
        }

    def final_response(self, text: str) -> str:
        """The answer in the output of a turn without calls."""
        return text

    async def next_message(self, trajectory: Trajectory, ctx: ChainContext) -> Message | None:
        """What is said to the model after a turn that calls no tool, such as a simulated user's reply.

        None, as here, ends the chain. After the last turn that `max_steps` allows this is not asked.
        """
        return None

    # -- what the chain asks -------------------------------------------------------------------------------------------

    @cached_property
    def converses(self) -> bool:
        """Whether somebody may answer a turn that calls no tool: a subclass has its own `next_message`."""
        return type(self).next_message is not AgentValue.next_message

    @property
    def grace_s(self) -> float:
        """`cancel_grace_s`, or the default."""
        return execution.GRACE_S if self.cancel_grace_s is None else self.cancel_grace_s

    @cached_property
    def tool_schemas(self) -> list[dict[str, Any]]:
        """The tools as they are described to the model."""
        return [tool.schema for tool in self.tools.values()]

    @cached_property
    def parses_incrementally(self) -> bool:
        """Whether the parser is incremental; it is not if a subclass parses whole turns itself."""
        return bool(self.tools) and type(self).parse is AgentValue.parse

    def reading(self, thinking: Thinking) -> Reading | None:
        """The incremental reader of a turn; None if the turn has no reasoning and is parsed only at its end."""
        stops = tuple(self.parser.stop) if self.tools and thinking.reasons else ()
        if self.parses_incrementally:
            parser = self.parser.turn if isinstance(self.parser, TurnParser) else self.parser.incremental
            return Reading(thinking, parser, stops)
        return Reading(thinking, stops=stops) if thinking.reasons else None

    @cached_property
    def keeps_turns(self) -> bool:
        """Whether the model reads its turns as it wrote them; a subclass may change them."""
        return type(self).assistant_message is AgentValue.assistant_message

    def keeps_turn(self, message: Message, text: str, content: str, calls: list[ToolCall]) -> bool:
        """Whether a message matches the turn: it has the same calls, and the turn began with its content."""
        usual = AgentValue.assistant_message(self, text, content, calls)
        if message == usual:
            return True
        said = message.get("content") or ""
        if message["role"] != "assistant" or not isinstance(said, str):
            return False
        if message.get("tool_calls") not in (None, usual.get("tool_calls")):
            return False
        if not said.strip():  # the turn may be all calls, which only an incremental parser can tell apart
            return not (self.parses_incrementally and content.strip())
        return text.lstrip().startswith(said.strip())

    def stop_strings(self, sampling: Sampling) -> tuple[str, ...]:
        """The strings that end a generation: the caller's and, if there are tools, the parser's."""
        return sampling.stop + (tuple(self.parser.stop) if self.tools else ())


def _callable_in_chains(tools: dict[str, Tool]) -> dict[str, Tool]:
    """The tools, after a check that a chain can give each of them the context that it asks for."""
    for tool in tools.values():
        for name, kind in tool.arguments.injected.items():
            if not issubclass(ChainContext, kind) and name not in tool.arguments.optional:
                raise InputError(
                    f"tool {tool.name!r} takes a {kind.__name__} as its parameter {name!r}, and chains give a "
                    "ChainContext; annotate it with that, or give the parameter a default"
                )
    return tools
