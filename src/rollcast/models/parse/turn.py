"""What the parsers share: a turn that is read by states, bounded bodies, and calls in JSON."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable

from rollcast.models.parse.reading import Reading
from rollcast.records.message import ToolCall

__all__ = [
    "CALL_LIMIT",
    "Body",
    "LineTurn",
    "State",
    "TaggedTurn",
    "Turn",
    "TurnParser",
    "Words",
]

CALL_LIMIT = 1 << 20
"""Characters of one call; what goes beyond is not kept."""

State = Callable[[str, int], int]

_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}


class Body:
    """The text of a call: its beginning, up to a limit of characters."""

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
        """What was taken so far."""
        return "".join(self._pieces)

    def take(self) -> tuple[str, str | None]:
        """The text and, where it was longer than the limit, an error; and begin anew."""
        text, too_long = "".join(self._pieces), self._length > self.limit
        self.clear()
        return (text[: self.limit], "error: call too long") if too_long else (text, None)


class Words:
    """Words to look for in a text that is still arriving.

    All begin with one character, which stands nowhere else in them: so the last such character of a text is the only
    place where a word may be cut, and a text without it, as most tokens are, costs one search.
    """

    def __init__(self, *words: str) -> None:
        self._first = words[0][0]
        assert all(word[0] == self._first and self._first not in word[1:] for word in words)
        self._pattern = re.compile("|".join(map(re.escape, words)))
        self._beginnings = frozenset(word[:size] for word in words for size in range(1, len(word)))
        self._longest = max(map(len, words)) - 1

    def find(self, text: str, at: int) -> tuple[int, str | None]:
        """The place of the first word and the word; or the place where one may have begun at the end, and None."""
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


class Turn(ABC):
    """The text of one turn, read by states.

    A state is a method that takes the text and a place in it, and gives the place up to which it has read. Where it
    gives the same place and no other state, it has to see more: the rest is held until then. What a state decides may
    depend on characters that it has seen, never on where the text was cut, and what it holds has a fixed limit: then
    any cut gives the same, in time that is linear in the text.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.ended_calls = 0  # of which the format has shown the end
        self.body = Body()
        self.state: State = self.begin
        self.ended_at: int | None = None  # the place in the turn's text where the format says that it is over
        self._outside: list[str] = []
        self.held = ""  # the end of the text, of which more has to be seen
        self._before = 0  # characters of the turn before what was held
        self.finished = False  # the format says that the turn is over
        self._closed = False

    # -- what a format says ------------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, text: str, at: int) -> int:
        """The first state."""

    @abstractmethod
    def end(self, held: str) -> None:
        """The text ends, and nothing follows on what was held."""

    @property
    @abstractmethod
    def in_call(self) -> bool:
        """Whether what is held belongs to a call; an attribute will do."""

    # -- what its states use -----------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Text outside of calls."""
        if text:
            self._outside.append(text)

    def add(self, call: ToolCall) -> None:
        """The next call."""
        self.calls.append(call)
        self.ended_calls += 1

    @property
    def next_id(self) -> str:
        """Of the next call."""
        return f"call_{len(self.calls)}"

    def finish(self) -> None:
        """The generation may end here, though more may be read."""
        self.finished = True

    def over(self, at: int) -> None:
        """The format ends the turn at this place of the text; what follows is neither content nor calls."""
        self.finish()
        self.ended_at = self._before + at
        self.state = self.ignored

    def ignored(self, text: str, at: int) -> int:
        """The state after the end."""
        return len(text)

    # -- IncrementalParser -------------------------------------------------------------------------------------------

    def feed(self, text: str) -> list[ToolCall]:
        """Take the next piece of text; the calls that it finished, malformed ones too."""
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
        """The text ends here; all calls of the turn in order, one that was left open as malformed."""
        if not self._closed:
            self._closed = True
            held, self.held = self.held, ""
            self.end(held)
        return list(self.calls)

    @property
    def content(self) -> str:
        """The text so far without the calls."""
        return "".join(self._outside) + ("" if self.in_call else self.held)


class TaggedTurn(Turn):
    """Text and calls in turn, as tags say; other text than whitespace after a call finishes the turn.

    A tag that is only named is text: in quotes or backticks; or with words around it, as in `the <tool_call> tag`, until the
    tag comes that is followed by a call.
    """

    opening = "<tool_call>"
    in_call = False
    deciding = False  # whether an opening tag begins a call
    _close = Words("</tool_call>")
    _either = Words("<tool_call>", "</tool_call>")

    @abstractmethod
    def call(self, body: str, error: str | None) -> ToolCall:
        """The next call, from what stands between its tags; malformed where there is an error."""

    def say(self, text: str) -> None:
        """Text outside of calls, which may finish the turn. It is on the path of every token."""
        if text:
            self._outside.append(text)
            if self.calls and not text.isspace():
                self.finish()

    def end_call(self, error: str | None = None) -> None:
        """The body is whole, or ends with an error."""
        body, too_long = self.body.take()
        self.add(self.call(body, error or too_long))

    def end(self, held: str) -> None:
        """A call that was not closed is malformed."""
        if self.state == self._words:
            self._say_words(held)
        elif self.in_call:
            self.body.add(held)
            self.end_call("error: unclosed call")
        else:
            self.say(held)

    def opened(self, text: str, end: int, tag: str) -> int:
        """The opening tag was found, and ends here; the text before it has been said."""
        quote = _QUOTES.get(self._outside[-1][-1:]) if self._outside else None
        if quote is not None:
            if end == len(text):
                return end - len(tag)  # what follows decides
            if text[end] == quote:
                self.say(tag)
                return end
        self.state, self.in_call, self.deciding = self._head, True, True
        return end

    def _head(self, text: str, at: int) -> int:
        """Right behind the opening tag: a word after a space is no call."""
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
            self._say_words("")
            return self.opened(text, place + len(tag), tag)
        words = self.body.text
        in_a_line = bool(self._outside) and not self._outside[-1].endswith("\n")
        if in_a_line and words.endswith(" ") and "{" not in words and "<" not in words:
            self._say_words(tag)
        else:
            self.end_call()
            self._leave()
        return place + len(tag)

    def _say_words(self, more: str) -> None:
        self._leave()
        self.say(self.opening + self.body.take()[0] + more)


class LineTurn(Turn):
    """A turn that is read line by line: `begin` looks at the head of a line, and `rest` takes the rest of it."""

    @abstractmethod
    def put(self, text: str) -> None:
        """Keep text where this line belongs."""

    def rest(self, text: str, at: int) -> int:
        """In the rest of a line."""
        newline = text.find("\n", at)
        end = len(text) if newline < 0 else newline + 1
        self.put(text[at:end])
        if newline >= 0:
            self.state = self.begin
        return end


class TurnParser(ABC):
    """A `Parser` whose turns are read by a `Turn`: a format writes its name, its stop strings and its turn."""

    name: str
    stop: tuple[str, ...] = ()

    def parse(self, text: str) -> list[ToolCall]:
        """The calls in the whole text of a turn; those in its reasoning are none."""
        turn = self.incremental()
        turn.feed(text)
        return turn.close()

    def incremental(self) -> Reading:
        """For one turn, its reasoning included."""
        return Reading(parser=self.turn)

    @abstractmethod
    def turn(self) -> Turn:
        """For the output of one turn: its text without reasoning."""
