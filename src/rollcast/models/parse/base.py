"""The seam between a model's text and the tool calls in it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rollcast.records.message import ToolCall

__all__ = ["IncrementalParser", "Parser"]


class IncrementalParser(Protocol):
    """Reads the text of one turn as it arrives; how it is cut into pieces changes nothing."""

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of text; the calls that it finished, malformed ones too.

        Those of the package may be withdrawn: a closing tag of reasoning can make a draft of what was a call. `close` has
        the calls that count.
        """
        ...

    def close(self) -> list[ToolCall]:
        """The text ends here; all calls of the turn in order, one that was left open as malformed."""
        ...

    @property
    def content(self) -> str:
        """The text so far without the calls."""
        ...

    @property
    def finished(self) -> bool:
        """The format says that the turn is over, so the generation may end early. Never turns false again."""
        ...


@runtime_checkable
class Parser(Protocol):
    """One format of tool calls. It has no state, so one instance serves every chain, which gives it output alone.

    Attributes:
        name: of the format, `hermes`.
        stop: strings after which the format wants a generation to end. In reasoning they do not end it.
    """

    @property
    def name(self) -> str:
        """Of the format."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings after which the format wants a generation to end."""
        ...

    def parse(self, text: str) -> list[ToolCall]:
        """The calls in the whole text of a turn; their ids are `call_0`, `call_1` … A malformed one has an `error`."""
        ...

    def incremental(self) -> IncrementalParser:
        """For one turn."""
        ...
