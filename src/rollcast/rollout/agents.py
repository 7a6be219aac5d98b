"""Agents for the ways in which a model calls tools: each has a parser, and tells the model how to call."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from rollcast.errors import InputError
from rollcast.models import Backend
from rollcast.models.parse import CodeParser, ReactParser
from rollcast.records import Message, ToolCall
from rollcast.rollout.agent import BaseAgent
from rollcast.rollout.reward import Reward
from rollcast.stream import StreamingManager
from rollcast.tools import Tool, ToolResult

__all__ = ["CODE_PROMPT", "REACT_PROMPT", "CodeAgent", "ReactAgent", "ToolAgent"]

REACT_PROMPT = """\
You can use these tools:

{tools}

Work in this format, each label at the beginning of a line:

Thought: what you think
Action: the tool to use, one of {tool_names}
Action Input: its arguments as a JSON object
Observation: what the tool gave; it is written for you, so stop after the action input

Thought, Action, Action Input and Observation can come again and again. When you know the answer, write:

Thought: I know the answer.
Final Answer: the answer to the question"""

CODE_PROMPT = """\
You can run Python. Write the code in a block that begins with ```python and ends with ```, and print what you want to \
know; then stop. What it printed comes back in a block ```output. When you know the answer, write it without code.

{tools}"""


class ToolAgent(BaseAgent):
    """An agent whose model has its own format of tool calls, which its chat template describes.

    It is a `BaseAgent` under a name that says what it does: `parser` names the model's format (by default Hermes), and
    nothing is added to the prompt.
    """


class _PlainTextAgent(BaseAgent, ABC):
    """An agent that describes its tools in the prompt; calls and observations are plain text, so any template will do."""

    prompt_template: str

    @cached_property
    def tool_schemas(self) -> list[dict[str, Any]]:
        """An empty list: the instructions have the tools."""
        return []

    @cached_property
    def instructions(self) -> str:
        """The prompt template with the tools filled in; empty if there is no tool."""
        if not self.tools:
            return ""
        described = "\n".join(_described(tool) for tool in self.tools.values())
        return self.prompt_template.replace("{tools}", described).replace(
            "{tool_names}", ", ".join(self.tools)
        )

    @abstractmethod
    def observed(self, observation: str) -> str:
        """The text of an observation for the model."""

    def tool_message(self, call: ToolCall, result: ToolResult) -> Message:
        """A user message, since such models have no tool role."""
        return {"role": "user", "content": self.observed(result.observation)}


class ReactAgent(_PlainTextAgent):
    """Thought, action, observation in plain text (`ReactParser`), for models without a format of tool calls.

    The system message ends with the tools and the format; an observation comes back as `Observation: …` from the user.
    `final_response` is what the model wrote after `Final Answer:`, or the whole turn if it did not write that.

    Args:
        model_name, tools, backend, system_prompt, reward, streaming_manager, name, backend_options: as in `BaseAgent`.
        prompt_template: what is added to the system message; `{tools}` and `{tool_names}` are filled in.

    Raises:
        InputError: as in `BaseAgent`; or the template has no `{tools}`.
    """

    def __init__(
        self,
        model_name: str = "rollcast/tiny",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        backend: str | Backend | None = None,
        system_prompt: str | None = None,
        reward: Reward | Callable[..., Any] | None = None,
        *,
        prompt_template: str = REACT_PROMPT,
        streaming_manager: StreamingManager | None = None,
        name: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.prompt_template = _with_place(prompt_template)
        self._react = ReactParser()
        super().__init__(
            model_name, tools, backend, system_prompt, self._react, reward,
            streaming_manager=streaming_manager, name=name, backend_options=backend_options,
        )  # fmt: skip

    def assistant_message(self, text: str, content: str, calls: list[ToolCall]) -> Message:
        """The turn as it was written, up to where the format ended it."""
        return {"role": "assistant", "content": text[: self._react.read(text).ended_at]}

    def final_response(self, text: str) -> str:
        """The text after `Final Answer:`."""
        answer = self._react.read(text).answer
        return text if answer is None else answer

    def observed(self, observation: str) -> str:
        """`Observation: …`."""
        return f"Observation: {observation}"


class CodeAgent(_PlainTextAgent):
    """The model acts with Python in ```` ```python ```` blocks (`CodeParser`), which one of your tools runs.

    Rollcast does not execute code: give a tool that does, in a sandbox that you trust, under the name `tool_name`; its one
    required argument gets the code. Its result comes back as a block ```` ```output ````. Other tools are described to the
    model as functions that its code can call; your sandbox has to provide them.

    Args:
        model_name, tools, backend, system_prompt, reward, streaming_manager, name, backend_options: as in `BaseAgent`.
        tool_name: the name of the tool that runs code.
        prompt_template: what is added to the system message; `{tools}` is filled in.

    Raises:
        InputError: as in `BaseAgent`; or no tool of that name takes code, or the template has no `{tools}`.
    """

    def __init__(
        self,
        model_name: str = "rollcast/tiny",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        backend: str | Backend | None = None,
        system_prompt: str | None = None,
        reward: Reward | Callable[..., Any] | None = None,
        *,
        tool_name: str = "python",
        prompt_template: str = CODE_PROMPT,
        streaming_manager: StreamingManager | None = None,
        name: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.prompt_template = _with_place(prompt_template)
        self._code = CodeParser(tool_name)
        super().__init__(
            model_name, tools, backend, system_prompt, self._code, reward,
            streaming_manager=streaming_manager, name=name, backend_options=backend_options,
        )  # fmt: skip
        runner = self.tools.get(tool_name)
        if runner is None:
            known = ", ".join(self.tools) or "none"
            raise InputError(
                f"CodeAgent has no tool {tool_name!r} to run code (tools: {known}); Rollcast does not execute code itself, so "
                f"give one: def {tool_name}(code: str) -> str"
            )
        if runner.arguments.only is None:
            raise InputError(
                f"tool {tool_name!r} has several required arguments; CodeAgent gives it one, the code: "
                f"def {tool_name}(code: str) -> str"
            )
        self._code.argument = runner.arguments.only

    def assistant_message(self, text: str, content: str, calls: list[ToolCall]) -> Message:
        """The turn as it was written, up to where the format ended it."""
        return {"role": "assistant", "content": text[: self._code.read(text).ended_at]}

    def observed(self, observation: str) -> str:
        """The observation in a block ```` ```output ````."""
        return f"```output\n{observation}\n```"


def _with_place(template: str) -> str:
    if "{tools}" not in template:
        raise InputError("prompt_template has no {tools}; write it where the tools should be described")
    return template


def _described(tool: Tool) -> str:
    """One line: name, description, JSON Schema of the arguments."""
    schema = json.dumps(tool.parameters, ensure_ascii=False)
    return f"- {tool.name}: {' '.join(tool.description.split())} Arguments: {schema}"
