"""ReAct in plain text, for models without a format of their own.

    Thought: I need the product.
    Action: calculator
    Action Input: {"expression": "2 * 21"}
    Observation: 42
    Thought: I know it now.
    Final Answer: 42

Source: https://arxiv.org/abs/2210.03629, in the form that LangChain made common,
https://python.langchain.com/api_reference/langchain/agents/langchain.agents.react.agent.create_react_agent.html.
"""

from __future__ import annotations

import re

from rollcast.models.parse.json_calls import json_value
from rollcast.models.parse.reader import Body, LineTurnReader, TurnParser
from rollcast.records.message import ToolCall

__all__ = ["ReactParser", "ReactTurnReader"]

_HEAD = 32  # characters that the label of a line may have
_LABEL = re.compile(
    r"[ \t*_#>]{0,8}(final answer|action input|action|observation|thought)[ \t]?\d{0,3}[*_ \t]{0,4}:",
    re.IGNORECASE | re.ASCII,
)
_NAME_LIMIT = 256


class ReactParser(TurnParser):
    """One action per turn. The first complete action or final answer counts; any label that follows it ends the turn.

    So an observation that the model makes up is never read. Labels are at the beginning of a line, in upper or lower case,
    and may be numbered (`Action 2:`) or in bold. An action input is a JSON object, in a code fence or not; any other text
    is kept as it is, for a tool that takes one argument; an empty one means no arguments. A turn with neither an action nor
    a final answer is an answer.

    Errors: `error: bad json` (it begins with `{`), `error: repeated argument`, `error: no tool name`, `error: bad tool name`,
    `error: no action input` (other text follows the action), `error: action given twice`, `error: action input given twice`
    (the label comes again at once), `error: nested too deeply`, `error: call too long`.
    """

    name = "react"
    stop = ("\nObservation:",)

    def turn(self) -> ReactTurnReader:
        return ReactTurnReader()

    def read(self, text: str) -> ReactTurnReader:
        """Read the whole output of a turn."""
        turn = ReactTurnReader()
        turn.feed(text)
        turn.close()
        return turn


class ReactTurnReader(LineTurnReader):
    """One turn, with its call and its final answer."""

    def __init__(self) -> None:
        super().__init__()
        self._section = "thought"
        self._name = Body(_NAME_LIMIT)
        self._answer: list[str] = []

    @property
    def answer(self) -> str | None:
        """The text after `Final Answer:`; None if there is none."""
        if self._section != "final answer":
            return None
        return "".join(self._answer).strip()

    def begin(self, text: str, at: int) -> int:
        """The state at the beginning of a line."""
        head = text[at : at + _HEAD]
        label = _LABEL.match(head)
        if label:
            bold = "**" if "**" in label[0] and not label[0].rstrip(":").endswith("*") else ""
            return self._labelled(label[1].lower(), text, at, at + label.end(), bold)
        if len(head) < _HEAD and ":" not in head and "\n" not in head:
            return at
        self.state = self.rest
        return at

    def _labelled(self, label: str, text: str, at: int, end: int, bold: str) -> int:
        section = self._section
        ends_action = section == "action input" or (section == "action" and label != "action input")
        if ends_action or section == "final answer" or label == "observation":
            self._end_section(None if label != section else f"error: {label} given twice")
            self.over(at)
            return at
        self._section = label
        if label in {"thought", "final answer"}:
            self.add_text(text[at:end])
        # The bold of `**Action:** calculator` closes after the colon.
        self.state = self._after_bold if bold else self.rest
        return end

    def _after_bold(self, text: str, at: int) -> int:
        if text[at:] == "*":
            return at
        self.state = self.rest
        if not text.startswith("**", at):
            return at
        if not self.in_call:
            self.add_text("**")
        return at + 2

    def put(self, text: str) -> None:
        """Add to the open section."""
        if self._section == "action":
            self._name.add(text)
        elif self._section == "action input":
            self.body.add(text)
        else:
            self.add_text(text)
            if self._section == "final answer":
                self._answer.append(text)

    def end(self, held: str) -> None:
        if self.ended_at is None:
            self.put(held)
            self._end_section()

    @property
    def in_call(self) -> bool:
        return self._section in {"action", "action input"}

    def _end_section(self, error: str | None = None) -> None:
        if self.in_call:
            name, name_error = self._name.take()
            body, too_long = self.body.take()
            name = name.strip().strip("`\"'*").strip()
            self.add(_call(self.next_id, name, body.strip(), error or too_long, name_error))


def _call(call_id: str, name: str, body: str, error: str | None, name_error: str | None) -> ToolCall:
    if not name:
        return ToolCall(call_id, "", body, "error: no tool name")
    if "\n" in name:
        name, _, rest = name.partition("\n")
        return ToolCall(call_id, name.strip(), body or rest, "error: no action input")
    if name_error:
        return ToolCall(call_id, name[:64], body, "error: bad tool name")
    if error:
        return ToolCall(call_id, name, body, error)
    text = _unfenced(body)
    if not text:
        return ToolCall(call_id, name, {})
    if not text.startswith("{"):
        return ToolCall(call_id, name, text)
    try:
        value = json_value(text)
    except ValueError as problem:
        return ToolCall(call_id, name, text, problem.args[0])
    return ToolCall(call_id, name, value)


def _unfenced(body: str) -> str:
    """The content of the code fence if the body is one."""
    if body.startswith("```") and body.endswith("```"):
        info, newline, inside = body[:-3].partition("\n")
        if newline and (info == "```" or info[3:].strip().isalpha()):
            return inside.strip()
    return body
