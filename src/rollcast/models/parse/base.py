"""The seam between a model's text and the tool calls in it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rollcast.records.message import ToolCall

__all__ = ["IncrementalParser", "Parser"]


class IncrementalParser(Protocol):
    """Reads the text of one turn as it arrives; how it is cut into pieces makes no difference."""

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of text; return the calls that it finished, malformed ones too.

        The package's own parsers may withdraw a call later: a closing tag can show that it was part of the reasoning.
        `close` returns the calls that count.
        """
        ...

    def close(self) -> list[ToolCall]:
        """End the text; return all calls of the turn in order, one that was left open as malformed."""
        ...

    @property
    def content(self) -> str:
        """The text so far without the calls."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the format says that the turn is over, so that the generation may end early. Stays true once true."""
        ...


@runtime_checkable
class Parser(Protocol):
    """One format of tool calls. It has no state, so one instance serves every chain, which gives it only output.

    Attributes:
        name: the format's name, such as `hermes`.
        stop: strings after which the format wants a generation to end. In reasoning they do not end it.
    """

    @property
    def name(self) -> str:
        """The format's name."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings after which the format wants a generation to end."""
        ...

    def parse(self, text: str) -> list[ToolCall]:
        """Return the calls in the whole text of a turn; their ids are `call_0`, `call_1` … A malformed one has an `error`."""
        ...

    def incremental(self) -> IncrementalParser:
        """Return a parser for one turn."""
        ...
