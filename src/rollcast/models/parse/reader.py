"""What the parsers share: a turn that is read by states, and bounded bodies."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable

from rollcast.models.parse.reading import Reading
from rollcast.records.message import ToolCall

__all__ = [
    "CALL_LIMIT",
    "Body",
    "LineTurnReader",
    "State",
    "TaggedTurnReader",
    "TurnParser",
    "TurnReader",
    "Words",
]

CALL_LIMIT = 1 << 20
"""The most characters in one call; the rest is not kept."""

State = Callable[[str, int], int]

_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}


class Body:
    """The text of a call, up to a limit of characters."""

    def __init__(self, limit: int = CALL_LIMIT) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._pieces: list[str] = []
        self._length = 0

    def add(self, text: str) -> None:
        """Take a piece."""
        kept = text[: self.limit + 1 - self._length]
        if kept:
            self._pieces.append(kept)
            self._length += len(kept)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    def take(self) -> tuple[str, str | None]:
        """Return the text, and an error if it was longer than the limit; then begin anew."""
        text, too_long = "".join(self._pieces), self._length > self.limit
        self.clear()
        return (text[: self.limit], "error: call too long") if too_long else (text, None)


class Words:
    """Words to look for in a text that is still arriving.

    All begin with the same character, which occurs nowhere else in them: so the last such character of a text is the only
    place where a word may be cut, and a text without it, like most tokens, costs one search.
    """

    def __init__(self, *words: str) -> None:
        self._first = words[0][0]
        assert all(word[0] == self._first and self._first not in word[1:] for word in words)
        self._pattern = re.compile("|".join(map(re.escape, words)))
        self._beginnings = frozenset(word[:size] for word in words for size in range(1, len(word)))
        self._longest = max(map(len, words)) - 1

    def find(self, text: str, at: int) -> tuple[int, str | None]:
        """The place of the first word, and the word; or the place where one may have begun at the end, and None."""
        if text.find(self._first, at) < 0:
            return len(text), None
        found = self._pattern.search(text, at)
        if found:
            return found.start(), found[0]
        place = text.rfind(self._first, max(at, len(text) - self._longest))
        return (place if place >= 0 and text[place:] in self._beginnings else len(text)), None

    def may_begin(self, text: str) -> bool:
        """Whether the text is the beginning of a word, and not yet a word."""
        return text in self._beginnings


class TurnReader(ABC):
    """The text of one turn, read by states.

    A state is a method that takes the text and a place in it, and returns the place up to which it has read. If it
    returns the same place and sets no other state, it has to see more: the rest is held until then. A state's decisions
    may depend on characters that it has seen, never on how the text was cut, and what it holds has a fixed limit: so
    any way to cut the text gives the same result, in time that is linear in the text.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.ended_calls = 0  # calls whose end was seen
        self.body = Body()
        self.state: State = self.begin
        self.ended_at: int | None = None  # the place in the turn's text where the format says that it is over
        self._outside: list[str] = []
        self.held = ""  # the end of the text, after which more has to be seen
        self._before = 0  # characters of the turn before what was held
        self.finished = False  # the format says that the turn is over
        self._closed = False

    # -- what a format defines ---------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, text: str, at: int) -> int:
        """The first state."""

    @abstractmethod
    def end(self, held: str) -> None:
        """End the text: nothing follows what was held."""

    @property
    @abstractmethod
    def in_call(self) -> bool:
        """Whether what is held belongs to a call; it may also be an attribute."""

    # -- what its states use -----------------------------------------------------------------------------------------

    def add_text(self, text: str) -> None:
        """Add text outside calls."""
        if text:
            self._outside.append(text)

    def add(self, call: ToolCall) -> None:
        """Add the next call."""
        self.calls.append(call)
        self.ended_calls += 1

    @property
    def next_id(self) -> str:
        """The id of the next call."""
        return f"call_{len(self.calls)}"

    def finish(self) -> None:
        """Let the generation end here, though more may be read."""
        self.finished = True

    def over(self, at: int) -> None:
        """End the turn at this place in the text; what follows is neither content nor calls."""
        self.finish()
        self.ended_at = self._before + at
        self.state = self.ignored

    def ignored(self, text: str, at: int) -> int:
        """The state after the end."""
        return len(text)

    # -- IncrementalParser -------------------------------------------------------------------------------------------

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of text; return the calls that it finished, malformed ones too."""
        if self.held:
            text = self.held + text
        done, at, size = len(self.calls), 0, len(text)
        while at < size:
            place, state = at, self.state
            at = state(text, at)
            if at == place and self.state == state:
                break
        self.held = text[at:]
        self._before += at
        return self.calls[done:]

    def close(self) -> list[ToolCall]:
        """End the text; return all calls of the turn in order, one that was left open as malformed."""
        if not self._closed:
            self._closed = True
            held, self.held = self.held, ""
            self.end(held)
        return list(self.calls)

    @property
    def content(self) -> str:
        """The text so far without the calls."""
        return "".join(self._outside) + ("" if self.in_call else self.held)


class TaggedTurnReader(TurnReader):
    """Text and calls alternate between tags; text other than whitespace after a call finishes the turn.

    A tag that is only mentioned is text: in quotes or backticks; or with words around it, as in `the <tool_call> tag`,
    until a tag that is followed by a call.
    """

    opening = "<tool_call>"
    in_call = False
    deciding = False  # whether an opening tag begins a call
    _close = Words("</tool_call>")
    _either = Words("<tool_call>", "</tool_call>")

    @abstractmethod
    def call(self, body: str, error: str | None) -> ToolCall:
        """Make the next call from the text between its tags; it is malformed if there is an error."""

    def add_text(self, text: str) -> None:
        """Add text outside calls, which may finish the turn. Every token passes here."""
        if text:
            self._outside.append(text)
            if self.calls and not text.isspace():
                self.finish()

    def end_call(self, error: str | None = None) -> None:
        """End the call: its body is complete, or has an error."""
        body, too_long = self.body.take()
        self.add(self.call(body, error or too_long))

    def end(self, held: str) -> None:
        """End the text: a call that was not closed is malformed."""
        if self.state == self._words:
            self._add_words(held)
        elif self.in_call:
            self.body.add(held)
            self.end_call("error: unclosed call")
        else:
            self.add_text(held)

    def opened(self, text: str, end: int, tag: str) -> int:
        """The opening tag was found, and ends here; the text before it has been added."""
        quote = _QUOTES.get(self._outside[-1][-1:]) if self._outside else None
        if quote is not None:
            if end == len(text):
                return end - len(tag)  # what follows decides
            if text[end] == quote:
                self.add_text(tag)
                return end
        self.state, self.in_call, self.deciding = self._head, True, True
        return end

    def _head(self, text: str, at: int) -> int:
        """Right after the opening tag: a word after a space is not a call."""
        if text[at] == " " and at + 1 == len(text):
            return at
        self.deciding = text[at] == " " and text[at + 1].isalpha()
        self.state = self._words if self.deciding else self._inside
        return at

    def _inside(self, text: str, at: int) -> int:
        place, tag = self._close.find(text, at)
        self.body.add(text[at:place])
        if tag is None:
            return place
        self.end_call()
        self._leave()
        return place + len(tag)

    def _leave(self) -> None:
        self.state, self.in_call, self.deciding = self.begin, False, False

    def _words(self, text: str, at: int) -> int:
        place, tag = self._either.find(text, at)
        self.body.add(text[at:place])
        if tag is None:
            return place
        if tag == self.opening:
            self._add_words("")
            return self.opened(text, place + len(tag), tag)
        words = self.body.text
        in_a_line = bool(self._outside) and not self._outside[-1].endswith("\n")
        if in_a_line and words.endswith(" ") and "{" not in words and "<" not in words:
            self._add_words(tag)
        else:
            self.end_call()
            self._leave()
        return place + len(tag)

    def _add_words(self, more: str) -> None:
        self._leave()
        self.add_text(self.opening + self.body.take()[0] + more)


class LineTurnReader(TurnReader):
    """A turn that is read line by line: `begin` looks at the head of a line, and `rest` takes the rest of it."""

    @abstractmethod
    def put(self, text: str) -> None:
        """Add text to what this line belongs to."""

    def rest(self, text: str, at: int) -> int:
        """The state in the rest of a line."""
        newline = text.find("\n", at)
        end = len(text) if newline < 0 else newline + 1
        self.put(text[at:end])
        if newline >= 0:
            self.state = self.begin
        return end


class TurnParser(ABC):
    """A `Parser` whose turns are read by a `TurnReader`: a format defines its name, its stop strings and its turn."""

    name: str
    stop: tuple[str, ...] = ()

    def parse(self, text: str) -> list[ToolCall]:
        """Return the calls in the whole text of a turn; those in its reasoning do not count."""
        turn = self.incremental()
        turn.feed(text)
        return turn.close()

    def incremental(self) -> Reading:
        """Return a parser for one turn, including its reasoning."""
        return Reading(parser=self.turn)

    @abstractmethod
    def turn(self) -> TurnReader:
        """Return a parser for one turn's output, which is its text without reasoning."""
