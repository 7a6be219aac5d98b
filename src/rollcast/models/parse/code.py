"""The CodeAct format: fenced blocks of Python are one call of a tool that runs them.

    I multiply.
    ```python
    print(2 * 21)
    ```

Source: CodeAct, https://arxiv.org/abs/2402.01030; the output block is that of ToRA, https://arxiv.org/abs/2309.17452.
"""

from __future__ import annotations

import re

from rollcast.models.parse.reader import LineTurnReader, TurnParser
from rollcast.records.message import ToolCall

__all__ = ["CodeParser", "CodeTurnReader"]

_HEAD = 64  # characters that the line that opens a fence may have
_FENCE = re.compile(r" {0,3}```")
_OPENING = re.compile(r" {0,3}```([^`\n]*)\n")
_MAY_OPEN = re.compile(r" {0,3}(`{0,2}|```[^`\n]*)")
_OUTPUT = re.compile(r" {0,3}```output|observation:", re.IGNORECASE | re.ASCII)
_MAY_BE_OUTPUT = tuple("observation:"[:size] for size in range(1, len("observation:")))
_PYTHON = frozenset({"python", "py", "python3"})


class CodeParser(TurnParser):
    """All ```` ```python ```` blocks of a turn are one call, in their order, with an empty line between them.

    They are one call, since the calls of a turn run concurrently and code depends on what precedes it. A fence is at the
    beginning of a line; a line in the code that begins with one ends the block. Blocks of other languages are text. A
    block ```` ```output ```` or a line `Observation:`, where the model would make up what its code prints, ends the turn.

    Errors: `error: unclosed code block`, `error: empty code block`, `error: call too long`.

    Args:
        tool_name: the tool that runs code; the package has none.
        argument: the tool's parameter.
    """

    name = "code"
    stop = ("\n```output", "\nObservation:")

    def __init__(self, tool_name: str = "python", argument: str = "code") -> None:
        self.tool_name = tool_name
        self.argument = argument

    def turn(self) -> CodeTurnReader:
        return CodeTurnReader(self)

    def read(self, text: str) -> CodeTurnReader:
        """Read the whole output of a turn."""
        turn = CodeTurnReader(self)
        turn.feed(text)
        turn.close()
        return turn


class CodeTurnReader(LineTurnReader):
    """One turn."""

    def __init__(self, parser: CodeParser) -> None:
        super().__init__()
        self._parser = parser
        self._blocks = 0
        self._fence = ""  # the open fence: "python", "other" or ""

    def begin(self, text: str, at: int) -> int:
        """The state at the beginning of a line."""
        head = text[at : at + _HEAD]
        whole = len(head) == _HEAD or "\n" in head
        if self._fence:
            if _FENCE.match(head):
                return self._close_fence(text, at)
            if not whole and _MAY_OPEN.fullmatch(head):
                return at
        else:
            if _OUTPUT.match(head):
                self.over(at)
                return at
            if not whole and (_MAY_OPEN.fullmatch(head) or head.lower() in _MAY_BE_OUTPUT):
                return at
            opening = _OPENING.match(head)
            if opening:
                return self._open_fence(opening, at)
        self.state = self.rest
        return at

    def _open_fence(self, opening: re.Match[str], at: int) -> int:
        if opening[1].strip().lower() not in _PYTHON:
            self._fence = "other"
            self.add_text(opening[0])
        else:
            self._fence = "python"
            if self._blocks:
                self.body.add("\n")
            self._blocks += 1
        return at + opening.end()

    def _close_fence(self, text: str, at: int) -> int:
        end = text.index("```", at) + 3
        if self._fence == "other":
            self.add_text(text[at:end])
        else:
            self.ended_calls += 1
        self._fence = ""
        self.state = self.rest
        return end

    def put(self, text: str) -> None:
        """Add to the code, or to the text beside it."""
        if self._fence == "python":
            self.body.add(text)
        else:
            self.add_text(text)

    def end(self, held: str) -> None:
        if self.ended_at is not None:
            held = ""
        unclosed = self._fence == "python"
        self.put(held)
        if not self._blocks:
            return
        code, error = self.body.take()
        code = code.removesuffix("\n")
        error = error or ("error: unclosed code block" if unclosed else None)
        error = error or (None if code.strip() else "error: empty code block")
        parser = self._parser
        arguments = code if error else {parser.argument: code}
        self.add(ToolCall(self.next_id, parser.tool_name, arguments, error))

    @property
    def in_call(self) -> bool:
        return self._fence == "python"
