"""Takes a turn apart while it arrives: its reasoning, its output, and the calls in the output.

These rules decide. They look only at the characters so far, never at how the text was cut into pieces:

- A turn that begins with an opening tag begins with reasoning; so does one whose prompt ends with such a tag.
- Text before a lone closing tag is reasoning, since many prompts end with the opening one; unless it is known that the
  model does not reason.
- Reasoning that is never closed stays reasoning.
- A block later in the turn counts too, if its opening tag begins a line or follows a call. In the middle of a line it
  counts if it is closed, and is more than a few words (`between <think> and </think>`).
- A tag in quotes or backticks is text: it is mentioned, not used. So is one in a fenced block of an answer, one inside a
  call, and one that the model spelt in letters although its vocabulary has a token for it.
- The reasoning may only mention a closing tag that is like a word in a sentence (`the </think> tag`) or in a fenced block:
  if a tag that is clearly used follows later, that one closes the reasoning.
- A lone closing tag inside a call belongs to an argument if the call ends, and no other begins between the tag and that end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from rollcast.models.parse.base import IncrementalParser
from rollcast.models.reasoning import UNKNOWN, Family, Thinking
from rollcast.models.text import StopStrings
from rollcast.records.message import ToolCall

__all__ = ["Reading", "split"]

_QUOTES = {"`": "`", '"': '"', "'": "'", "*": "*", "“": "”", "‘": "’", "«": "»"}
_BEFORE_QUOTES = frozenset(" \t\n\r([{<:,=-*_/|\"'`“‘«")
_A_FEW_WORDS = re.compile(r" [\w ,./&+-]{0,30} |[,/]? ?")
_LABEL = 32  # the most characters in a label that ends a turn
_FENCE = re.compile(r" {0,3}```")
_BLANKS = " \t"
_ALL = " \t\n\r"


class Reading:
    """One turn, read while it arrives: an `IncrementalParser` around another, which sees only the output.

    A call that `feed` returned may be withdrawn if a lone closing tag later shows that it was reasoning. `close` returns
    the calls that count.

    Args:
        thinking: what is known about the turn's reasoning.
        parser: makes a parser for the output; None: nothing is parsed.
        stops: strings after which the output is over, if the backend was not given them.
    """

    def __init__(
        self,
        thinking: Thinking = UNKNOWN,
        parser: Callable[[], IncrementalParser] | None = None,
        stops: Sequence[str] = (),
    ) -> None:
        self._now = _Pass(thinking, parser, tuple(stops))

    def sampled(self, token_ids: Iterable[int]) -> None:
        """Note the ids that the next text was sampled as."""
        self._now.sampled(token_ids)
        if self._now.other is not None:
            self._now.other.sampled(token_ids)

    def take(self, text: str) -> bool:
        """Feed text, and return whether the generation may end here. Most tokens, which all pass here, have no part of a tag."""
        now = self._now
        if now.is_plain and not ("<" in text or "[" in text or "◁" in text):
            now.pieces.append(text)
            if now.turn is None or now.inside is not None:
                return False
            now.turn.feed(text)
            return now.may_be_over and now.turn.finished
        self.feed(text)
        return self.over

    def feed(self, text: str) -> list[ToolCall]:
        """See `IncrementalParser.feed`."""
        return self._settled(self._now.read(text))

    def close(self) -> list[ToolCall]:
        """End the text; return all calls in the output."""
        return self._settled(self._now.close())

    def _settled(self, calls: list[ToolCall]) -> list[ToolCall]:
        """Settle whether a tag inside a call has closed reasoning, or is part of an argument."""
        now = self._now
        if not now.superseded:
            return calls
        assert now.other is not None
        now.other.was_over = now.other.was_over or now.was_over or now.is_over
        self._now = now.other
        return self._now.calls

    # -- what was read -------------------------------------------------------------------------------------------------

    @property
    def reasoning(self) -> str:
        """The reasoning, without tags and the whitespace next to them; several blocks with an empty line between."""
        return self._now.reasoning

    @property
    def has_reasoning(self) -> bool:
        """Whether there is a block of reasoning, an empty one too."""
        return self._now.has_reasoning

    @property
    def interleaved(self) -> bool:
        """Whether a block of reasoning comes after output."""
        return self._now.interleaved

    @property
    def tags(self) -> list[tuple[int, int]]:
        """The places in the turn of the tags that count."""
        return self._now.tags

    @property
    def lead(self) -> int:
        """The place in the turn where its output begins."""
        return self._now.lead

    @property
    def output(self) -> str:
        """The turn without its reasoning."""
        return self._now.output

    @property
    def content(self) -> str:
        """The output without the calls."""
        return self._now.content

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far, if the parser keeps them."""
        return self._now.calls

    @property
    def ended_at(self) -> int | None:
        """The place in the output at which the format ends the turn; None if it does not."""
        return self._now.ended_at

    @property
    def finished(self) -> bool:
        """Whether the format says that the output is over. Stays true once true."""
        return self._now.is_over or self._now.was_over

    @property
    def over(self) -> bool:
        """Whether the generation may end: the output is over, and nothing that may still come makes it reasoning."""
        return self._now.may_be_over and self._now.is_over

    @property
    def complete(self) -> bool:
        """Whether the output is over, even if the generation went on."""
        return self._now.is_over and self._now.inside is None

    @property
    def overran(self) -> bool:
        """Whether the generation went on after the end of its output, since it could still have become reasoning."""
        return self._now.overran

    @property
    def is_cut(self) -> bool:
        """Whether a stop string was found: what follows it is not output."""
        return self._now.is_cut


class _Pass:
    """One way to read a turn. There is a second one only while it is undecided what a closing tag inside a call means."""

    def __init__(
        self, thinking: Thinking, parser: Callable[[], IncrementalParser] | None, stops: tuple[str, ...]
    ) -> None:
        self.thinking = thinking
        self._closings = thinking.lone  # families whose closing tag makes all before it reasoning
        self.inside = thinking.inside
        self._may_repeat = self.inside is not None  # whether the model may repeat the prompt's opening tag
        self.other: _Pass | None = None  # reads the turn as if a lone tag inside a call had closed reasoning
        self.superseded = False  # the other is right
        self.interleaved = False
        self.was_over = False  # the output was over before it was known to be reasoning
        self.tags: list[tuple[int, int]] = []
        self._make = parser
        self._stops = stops
        self._heads = tuple(head for family in thinking.families for head in family.heads)
        self._by_ids = False  # tags are recognized by their tokens
        self._tokens: dict[str, int] = dict.fromkeys(
            thinking.token_ids.values(), 0
        )  # sampled, and not found in the text yet
        self._doubtful = ""  # the opening tag of a block that counts only if it is closed
        self._block: list[str] = []
        self._blocks: list[str] = []
        self._calls_before = 0  # calls before the one with a closing tag inside
        self._thought = ""  # what a doubtful closing tag has closed
        self._since: list[str] | None = None  # the text from that tag on
        self._doubted_at = 0
        self._held = ""
        self._last = ""  # the two characters before what is held
        self._raw = 0  # characters of the turn before what is held
        self._begin_output()
        self._ready()

    def _begin_output(self) -> None:
        """Start the output afresh: everything so far is reasoning."""
        self.turn = None if self._make is None else self._make()
        self._output: list[str] = []
        self._has_output = False  # there was anything but whitespace
        self._in_front = True  # there was only whitespace since the beginning, or since a block
        self._skips = _ALL if self._blocks else ""  # the whitespace after a block that belongs to it
        self._lines, self._lines_taken = _Lines(), 0
        self._stop = StopStrings(self._stops) if self._stops else None
        self._stopped = False
        self._behind_stop: list[str] = []
        self.lead = self._raw
        self._look_for_tags()

    def _look_for_tags(self) -> None:
        self._known = _tags(self.thinking.families, self._closings)
        self._find = _finder(tuple(self._known))

    # -- what was read -------------------------------------------------------------------------------------------------

    @property
    def reasoning(self) -> str:
        blocks = self._blocks if not self._is_inside else [*self._blocks, "".join(self._block) + self._held]
        return "\n\n".join(filter(None, map(str.strip, blocks)))

    @property
    def _is_inside(self) -> bool:
        return self.inside is not None and not self._doubtful

    @property
    def has_reasoning(self) -> bool:
        return bool(self._blocks) or self._is_inside

    @property
    def output(self) -> str:
        return "".join(self._output) + self._pending

    @property
    def content(self) -> str:
        if self.turn is None:
            return self.output
        return self.turn.content + ("" if self.in_call else self._pending)

    @property
    def _pending(self) -> str:
        """The held text that is output if the text ends here."""
        if self._stopped or self._is_inside:
            return ""
        return self._doubtful + "".join(self._block) + self._held

    @property
    def is_over(self) -> bool:
        turn = self.turn
        return self._stopped or (turn is not None and turn.finished)

    @property
    def is_cut(self) -> bool:
        return self._stopped

    @property
    def in_call(self) -> bool:
        return bool(getattr(self.turn, "in_call", False))

    @property
    def waits(self) -> bool:
        """Whether the last characters may be the beginning of something."""
        return bool(self._held or getattr(self.turn, "held", ""))

    @property
    def ended_calls(self) -> int:
        return int(getattr(self.turn, "ended_calls", 0))

    @property
    def calls(self) -> list[ToolCall]:
        return list(getattr(self.turn, "calls", ()))

    @property
    def ended_at(self) -> int | None:
        place: int | None = getattr(self.turn, "ended_at", None)
        return place

    @property
    def overran(self) -> bool:
        place = self.ended_at
        made_up = "" if place is None else self.output[place:].strip()
        return len(made_up) > _LABEL or bool("".join(self._behind_stop).strip())

    # -- reading -------------------------------------------------------------------------------------------------------

    def sampled(self, token_ids: Iterable[int]) -> None:
        self._by_ids = True
        for index in token_ids:
            tag = self.thinking.token_ids.get(index)
            if tag is not None:
                self._tokens[tag] += 1

    def _ready(self) -> None:
        """Prepare the fast path for text with no part of a tag: where it goes, and whether there is more to do."""
        if self.inside is not None:
            find = _finder((self.inside.closing, *self.inside.before))
            self.pieces, waits = self._block, self._may_repeat
        else:
            self.pieces, find, waits = self._output, self._find, self._in_front or self._stop is not None
        self.is_plain = find.is_usual and not (waits or self._held or self.other is not None)
        self._counted = len(self.pieces)
        self.may_be_over = not self._closings and self.inside is None and self.other is None

    def _catch_up(self) -> None:
        """Add the text that took the fast path."""
        for text in self.pieces[self._counted :]:
            self._raw += len(text)
            self._last = (self._last + text[-2:])[-2:]
            if self._since is not None:
                self._since.append(text)

    def read(self, text: str, *, final: bool = False) -> list[ToolCall]:
        self._catch_up()
        given: list[ToolCall] = []
        text, at = self._held + text, 0
        self._held = ""
        while at < len(text) and not self.superseded:
            state, since = self.inside, self._since
            end = self._read_block(text, at, final) if state else self._read_output(text, at, final, given)
            if end == at and self.inside is state:
                break
            self._last = (self._last + text[max(at, end - 2) : end])[-2:]
            self._raw += end - at
            if since is not None:
                since.append(text[at:end])
            at = end
        self._held = text[at:]
        if self.superseded and self.other is not None:
            self.other.read(self._held)
        self._ready()
        return given

    def close(self) -> list[ToolCall]:
        self.read("", final=True)
        if self._doubtful:
            self.inside = None
            self.tags.pop()
            said, self._doubtful, self._block = self._doubtful + "".join(self._block), "", []
            self._add_output(said)
            self._ready()
        calls = [] if self.turn is None else self.turn.close()
        if self.other is not None:
            others = self.other.close()
            is_whole = bool(calls) and calls[-1].error is None
            self.superseded = self.superseded or bool(others) or not is_whole
        return calls

    def _read_block(self, text: str, at: int, final: bool) -> int:
        assert self.inside is not None
        if self._may_repeat:
            return self._read_front(text, at, final)
        place, tag = _finder((self.inside.closing, *self.inside.before)).find(text, at)
        if final and not tag:
            place = len(text)
        if place > at:
            self._block.append(text[at:place])
            return place
        if tag in self.inside.before:
            self._close_block("")
            return at
        if not tag:
            return at
        end = at + len(tag)
        is_word = self._is_word(text, end, final)
        named = None if is_word is None else self._is_mentioned(tag, text, end, final)
        if named is None:
            return at
        if named:
            self._block.append(tag)
        else:
            self._close_block(tag, is_word=bool(is_word))
        return end

    def _read_front(self, text: str, at: int, final: bool) -> int:
        """Before the reasoning, if the prompt has opened it: the model may repeat the opening tag."""
        assert self.inside is not None
        if text[at].isspace():
            end = len(text) - len(text[at:].lstrip())
            self._block.append(text[at:end])
            return end
        openings = self.inside.openings
        if not final and any(opening.startswith(text[at:]) for opening in openings if opening != text[at:]):
            return at
        self._may_repeat = False
        tag = next(filter(lambda opening: text.startswith(opening, at), openings), "")
        end = at + len(tag)
        if not tag or self._is_mentioned(tag, text, end, final):
            return self._read_block(text, at, final)
        self.tags.append((self._raw, self._raw + len(tag)))
        return end

    def _close_block(self, tag: str, *, is_word: bool = False) -> None:
        block, self._block = "".join(self._block), []
        doubtful, self._doubtful = self._doubtful, ""
        family, self.inside = self.inside, None
        assert family is not None
        if doubtful and _A_FEW_WORDS.fullmatch(block):
            self.tags.pop()
            self._add_output(doubtful + block + tag)
            return
        if tag:
            self.tags.append((self._raw, self._raw + len(tag)))
        self.interleaved = self.interleaved or self._has_output
        self._blocks.append(block)
        self._closings, self._since = (), None
        if self._has_output:
            last = self._output[-1][-1:]
            self._in_front, self._skips = True, _ALL if last in "\n\r" else _BLANKS if last.isspace() else ""
            self._look_for_tags()
        else:
            self._begin_answer(tag, family, doubtful=is_word or _is_fenced(block))

    def _begin_answer(self, tag: str, family: Family, *, doubtful: bool) -> None:
        """Begin the output after reasoning. If the tag may only have been mentioned, a later one may close all before it."""
        self._closings, self._since = (), None
        if doubtful and tag and family.lone:
            self._closings, self._thought, self._since = (family,), self._blocks[-1] + tag, []
            self._doubted_at = self._raw
        self._begin_output()
        self.lead = self._raw + len(tag)

    def _read_output(self, text: str, at: int, final: bool, given: list[ToolCall]) -> int:
        if self._in_front:
            end = self._skipped(text, at)
            if end > at:
                self.lead = self.lead if self._has_output else self._raw + end - at
                return end
            if not final and any(head.startswith(text[at:]) for head in self._heads):
                return at
            if text[at].isspace():
                end = len(text) - len(text[at:].lstrip())
                self._skips = ""
                given += self._add_output(text[at:end])
                return end
        place, tag = self._find.find(text, at)
        if final and not tag:
            place = len(text)
        if place > at:
            given += self._add_output(text[at:place])
            return place
        if not tag:
            return at
        end = at + len(tag)
        family, opens = self._known[tag]
        is_word = False if opens else self._is_word(text, end, final)
        named = None if is_word is None else self._is_mentioned(tag, text, end, final)
        if named is None:
            return at
        if not named and opens and not self.in_call and self.other is None:
            return self._open_block(family, tag, text, end, final, given)
        given += (
            self._add_output(tag)
            if named or opens
            else self._close_output(tag, family, is_word=bool(is_word))
        )
        return end

    def _skipped(self, text: str, at: int) -> int:
        """Skip the whitespace after a block and the head of an answer, which are not part of the output."""
        if text[at] in self._skips:
            return len(text) - len(text[at:].lstrip(self._skips))
        for head in self._heads:
            if text.startswith(head, at):
                self.tags.append((self._raw, self._raw + len(head)))
                return at + len(head)
        return at

    def _open_block(
        self, family: Family, tag: str, text: str, end: int, final: bool, given: list[ToolCall]
    ) -> int:
        sure = self._in_front
        if not sure:
            self._lines.take("".join(self._output[self._lines_taken :]))
            self._lines_taken = len(self._output)
            if self._lines.fenced:
                given += self._add_output(tag)
                return end
            if end == len(text) and not final:
                return end - len(tag)
            sure = self._lines.blank and text[end : end + 1] != " "
            sure = sure or self._last.endswith((">", "]", "}"))  # after a call
        elif not self._has_output and self._output:
            self._begin_output()
        self._doubtful = "" if sure else tag
        self.tags.append((self._raw, self._raw + len(tag)))
        self.inside = family
        return end

    def _close_output(self, tag: str, family: Family, *, is_word: bool) -> list[ToolCall]:
        """Take a lone closing tag, which makes the output so far reasoning; inside a call that is undecided at first."""
        if self.other is not None or (self._since is not None and is_word):
            return self._add_output(tag)
        if not self.in_call or self._stopped:
            self._make_all_reasoning(self, tag, family, is_word=is_word)
            return []
        other = _Pass(self.thinking, self._make, self._stops)
        other._by_ids, other._tokens = self._by_ids, dict(self._tokens)
        other._make_all_reasoning(self, tag, family, is_word=is_word)
        other._raw, other._last = self._raw + len(tag), tag[-2:]
        calls, self._calls_before = self._add_output(tag), self.ended_calls
        self.other = other
        return calls

    def _make_all_reasoning(self, that: _Pass, tag: str, family: Family, *, is_word: bool) -> None:
        """Make all output so far reasoning, which this tag has closed."""
        if that._since is None:
            begin, thought = that.lead, "".join(that._output + that._behind_stop)
            doubtful = is_word or _is_fenced(thought)
        else:
            begin, thought, doubtful = that._doubted_at, that._thought + "".join(that._since), False
        self.tags = [
            *(where for where in that.tags if where[1] <= begin),
            (that._raw, that._raw + len(tag)),
        ]
        self._blocks = [thought]
        self.was_over = that.is_over or that.was_over
        self._raw = that._raw
        self._begin_answer(tag, family, doubtful=doubtful)

    def _add_output(self, text: str) -> list[ToolCall]:
        """Add output. With two passes, it goes character by character: the call's end decides, not that of a piece."""
        calls: list[ToolCall] = []
        for place, character in enumerate(text):
            if self.other is None or self.superseded:
                return calls + self._add_rest(text[place:])
            self.other.read(character)
            calls += self._append_output(character)
            self._decide()
        return calls

    def _add_rest(self, text: str) -> list[ToolCall]:
        if self.superseded and self.other is not None:
            return self.other.read(text)
        return self._append_output(text)

    def _append_output(self, text: str) -> list[ToolCall]:
        if not text:
            return []
        if self._in_front and not text.isspace():
            self._in_front, self._skips = False, ""
            self._has_output = True
        if self._stopped:
            self._behind_stop.append(text)
            return []
        if self._stop is not None:
            cut = self._stop.cut(text)
            if cut is not None:
                self._stopped = True
                self._behind_stop.append(text[len(cut) :])
                text = cut
        self._output.append(text)
        if self.turn is None:
            return []
        calls = self.turn.feed(text)
        self.was_over = self.was_over or self._stopped
        return calls

    def _decide(self) -> None:
        """Decide, if the call with a closing tag inside is over: the tag is an argument's, unless a call begins after it."""
        assert self.other is not None
        is_over = self.ended_calls > self._calls_before
        if is_over and not (self.other.ended_calls or self.other.in_call):
            self.other = self.other if self.other.waits else None
        elif is_over or not self.in_call:
            self.superseded = True

    def _is_word(self, text: str, end: int, final: bool) -> bool | None:
        """Whether a closing tag looks like a word in a sentence. None: the next characters have to be seen."""
        if self._last[-1:] not in _BLANKS:
            return False
        behind = text[end : end + 2]
        if not final and len(behind) < 2 and behind in {"", " "}:
            return None
        return behind[:1] == " " and behind[1:].islower()

    def _is_mentioned(self, tag: str, text: str, end: int, final: bool) -> bool | None:
        """Whether a tag is only mentioned: in quotes, or spelt in letters. None: the next character has to be seen."""
        by_id = self._by_ids and tag in self._tokens
        if by_id and not self._tokens[tag]:
            return True
        quote = _QUOTES.get(self._last[-1:])
        named = False
        if quote is not None and (len(self._last) < 2 or self._last[0] in _BEFORE_QUOTES):
            if end == len(text) and not final:
                return None
            named = text.startswith(quote, end)
        if by_id:
            self._tokens[tag] -= 1
        return named


class _Lines:
    """Tracks the current line of an output, and whether it is in a fenced block; it looks at each character once."""

    def __init__(self) -> None:
        self.fenced = False
        self.blank = True  # there is only whitespace on this line
        self._head = ""  # its first characters

    def take(self, text: str) -> None:
        first, *others = text.split("\n")
        self._go_on(first)
        for line in others:
            self.fenced ^= _FENCE.match(self._head) is not None
            self._head, self.blank = "", True
            self._go_on(line)

    def _go_on(self, text: str) -> None:
        self._head = (self._head + text[:8])[:8]
        self.blank = self.blank and not text.strip()


def _is_fenced(text: str) -> bool:
    """Whether a text ends inside a fenced block."""
    lines = _Lines()
    lines.take(text)
    return lines.fenced


class _Finder:
    """Finds the first of some words in a text that is still arriving."""

    def __init__(self, words: Iterable[str]) -> None:
        ordered = sorted(words, key=len, reverse=True)
        self.is_usual = {word[0] for word in ordered} <= set("<[◁")
        self._first = re.compile(f"[{''.join(sorted({re.escape(word[0]) for word in ordered}))}]")
        self._pattern = re.compile("|".join(map(re.escape, ordered)))
        self._beginnings = frozenset(word[:size] for word in ordered for size in range(1, len(word)))
        self._longest = len(ordered[0])

    def find(self, text: str, at: int) -> tuple[int, str]:
        """The place of the first word, and the word; or the place where one may have begun at the end, and ""."""
        found = self._pattern.search(text, at)
        if found:
            return found.start(), found[0]
        place = self._first.search(text, max(at, len(text) - self._longest + 1))
        while place is not None and text[place.start() :] not in self._beginnings:
            place = self._first.search(text, place.end())
        return len(text) if place is None else place.start(), ""


@functools.lru_cache(64)
def _finder(words: tuple[str, ...]) -> _Finder:
    return _Finder(words)


@functools.lru_cache(64)
def _tags(families: tuple[Family, ...], lone: tuple[Family, ...]) -> dict[str, tuple[Family, bool]]:
    """The tags that count in output, each with its family and whether it opens reasoning."""
    tags = {opening: (family, True) for family in families for opening in family.openings}
    return tags | {family.closing: (family, False) for family in lone}


def split(text: str, thinking: Thinking = UNKNOWN) -> Reading:
    """Read a whole turn without a parser and without its ids."""
    reading = Reading(msgspec.structs.replace(thinking, token_ids={}))
    reading.feed(text)
    reading.close()
    return reading
