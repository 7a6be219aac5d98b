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

import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from rollcast.models.parse.base import IncrementalParser
from rollcast.models.parse.output import Output, is_fenced
from rollcast.models.parse.tags import BLANKS, TagUse, finder, tags_in_output
from rollcast.models.reasoning import UNKNOWN, Family, Thinking
from rollcast.records.message import ToolCall

__all__ = ["Reading", "split"]

_A_FEW_WORDS = re.compile(r" [\w ,./&+-]{0,30} |[,/]? ?")
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
        self._now.use.sampled(token_ids)
        if self._now.other is not None:
            self._now.other.use.sampled(token_ids)

    def take(self, text: str) -> bool:
        """Feed text, and return whether the generation may end here. Most tokens, which all pass here, have no part of a tag."""
        now = self._now
        if now.is_plain and not ("<" in text or "[" in text or "◁" in text):
            now.pieces.append(text)
            turn = now.plain_turn
            if turn is None:
                return False
            turn.feed(text)
            return now.may_be_over and turn.finished
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
        now.other.was_over = now.other.was_over or now.was_over or now.output.is_over
        self._now = now.other
        return self._now.output.calls

    # -- what was read -------------------------------------------------------------------------------------------------

    @property
    def reasoning(self) -> str:
        """The reasoning, without tags and the whitespace next to them; several blocks with an empty line between."""
        return self._now.thought.text(self._now.held)

    @property
    def has_reasoning(self) -> bool:
        """Whether there is a block of reasoning, an empty one too."""
        return self._now.thought.is_there

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
        return "".join(self._now.output.pieces) + self._now.pending

    @property
    def content(self) -> str:
        """The output without the calls."""
        return self._now.output.content(self._now.pending)

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far, if the parser keeps them."""
        return self._now.output.calls

    @property
    def ended_at(self) -> int | None:
        """The place in the output at which the format ends the turn; None if it does not."""
        return self._now.output.ended_at

    @property
    def finished(self) -> bool:
        """Whether the format says that the output is over. Stays true once true."""
        return self._now.output.is_over or self._now.was_over

    @property
    def over(self) -> bool:
        """Whether the generation may end: the output is over, and nothing that may still come makes it reasoning."""
        return self._now.may_be_over and self._now.output.is_over

    @property
    def complete(self) -> bool:
        """Whether the output is over, even if the generation went on."""
        return self._now.output.is_over and self._now.thought.inside is None

    @property
    def overran(self) -> bool:
        """Whether the generation went on after the end of its output, since it could still have become reasoning."""
        return self._now.output.overran(self._now.pending)

    @property
    def is_cut(self) -> bool:
        """Whether a stop string was found: what follows it is not output."""
        return self._now.output.is_cut


class _Thought:
    """The reasoning of a turn: the blocks so far, and the one that is open.

    Attributes:
        inside: the family whose block is open; None: none is.
        doubtful: the opening tag of a block that counts only if it is closed.
        block: the text of the open block.
        blocks: those that were closed.
    """

    def __init__(self, inside: Family | None) -> None:
        self.inside = inside
        self.doubtful = ""
        self.block: list[str] = []
        self.blocks: list[str] = []

    @property
    def is_inside(self) -> bool:
        """Whether a block is open that counts."""
        return self.inside is not None and not self.doubtful

    @property
    def is_there(self) -> bool:
        """Whether there is a block, an empty one too."""
        return bool(self.blocks) or self.is_inside

    def text(self, held: str) -> str:
        """The reasoning, if the text ends here; `held` is what was not decided yet."""
        blocks = self.blocks if not self.is_inside else [*self.blocks, "".join(self.block) + held]
        return "\n\n".join(filter(None, map(str.strip, blocks)))


class _Pass:
    """One way to read a turn. There is a second one only while it is undecided what a closing tag inside a call means."""

    def __init__(
        self, thinking: Thinking, parser: Callable[[], IncrementalParser] | None, stops: tuple[str, ...]
    ) -> None:
        self.thinking = thinking
        self.thought = _Thought(thinking.inside)
        self.use = TagUse(thinking.token_ids)
        self.other: _Pass | None = None  # reads the turn as if a lone tag inside a call had closed reasoning
        self.superseded = False  # the other is right
        self.interleaved = False
        self.was_over = False  # the output was over before it was known to be reasoning
        self.tags: list[tuple[int, int]] = []
        self.held = ""
        self._closings = thinking.lone  # families whose closing tag makes all before it reasoning
        self._may_repeat = (
            thinking.inside is not None
        )  # whether the model may repeat the prompt's opening tag
        self._make = parser
        self._stops = stops
        self._heads = tuple(head for family in thinking.families for head in family.heads)
        self._calls_before = 0  # calls before the one with a closing tag inside
        self._thought_before = ""  # what a doubtful closing tag has closed
        self._since: list[str] | None = None  # the text from that tag on
        self._doubted_at = 0
        self._raw = 0  # characters of the turn before what is held
        self._begin_output()
        self._ready()

    def _begin_output(self) -> None:
        """Start the output afresh: everything so far is reasoning."""
        self.output = Output(None if self._make is None else self._make(), self._stops)
        self._has_output = False  # there was anything but whitespace
        self._in_front = True  # there was only whitespace since the beginning, or since a block
        self._skips = _ALL if self.thought.blocks else ""  # the whitespace after a block that belongs to it
        self.lead = self._raw
        self._look_for_tags()

    def _look_for_tags(self) -> None:
        self._known = tags_in_output(self.thinking.families, self._closings)
        self._find = finder(tuple(self._known))

    @property
    def pending(self) -> str:
        """The held text that is output if the text ends here."""
        if self.output.is_cut or self.thought.is_inside:
            return ""
        return self.thought.doubtful + "".join(self.thought.block) + self.held

    # -- reading -------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Prepare the fast path for text with no part of a tag: where it goes, and whether there is more to do."""
        inside = self.thought.inside
        if inside is not None:
            find = finder((inside.closing, *inside.before))
            self.pieces, self.plain_turn, waits = self.thought.block, None, self._may_repeat
        else:
            self.pieces, self.plain_turn, find = self.output.pieces, self.output.turn, self._find
            waits = self._in_front or self.output.looks_for_stops
        self.is_plain = find.is_usual and not (waits or self.held or self.other is not None)
        self._counted = len(self.pieces)
        self.may_be_over = not self._closings and inside is None and self.other is None

    def _catch_up(self) -> None:
        """Add the text that took the fast path."""
        text = "".join(self.pieces[self._counted :])
        if text:
            self._raw += len(text)
            self.use.passed(text)
            if self._since is not None:
                self._since.append(text)

    def read(self, text: str, *, final: bool = False) -> list[ToolCall]:
        """Read on; return the calls that were finished."""
        self._catch_up()
        given: list[ToolCall] = []
        text, at = self.held + text, 0
        self.held = ""
        while at < len(text) and not self.superseded:
            state, since = self.thought.inside, self._since
            end = self._read_block(text, at, final) if state else self._read_output(text, at, final, given)
            if end == at and self.thought.inside is state:
                break
            self.use.passed(text[max(at, end - 2) : end])
            self._raw += end - at
            if since is not None:
                since.append(text[at:end])
            at = end
        self.held = text[at:]
        if self.superseded and self.other is not None:
            self.other.read(self.held)
        self._ready()
        return given

    def close(self) -> list[ToolCall]:
        """End the text; return all calls in the output."""
        self.read("", final=True)
        thought = self.thought
        if thought.doubtful:
            self.tags.pop()
            said = thought.doubtful + "".join(thought.block)
            thought.inside, thought.doubtful, thought.block = None, "", []
            self._add_output(said)
            self._ready()
        calls = [] if self.output.turn is None else self.output.turn.close()
        if self.other is not None:
            others = self.other.close()
            is_whole = bool(calls) and calls[-1].error is None
            self.superseded = self.superseded or bool(others) or not is_whole
        return calls

    # -- reasoning -----------------------------------------------------------------------------------------------------

    def _read_block(self, text: str, at: int, final: bool) -> int:
        family = self.thought.inside
        assert family is not None
        if self._may_repeat:
            return self._read_front(family, text, at, final)
        place, tag = finder((family.closing, *family.before)).find(text, at)
        if final and not tag:
            place = len(text)
        if place > at:
            self.thought.block.append(text[at:place])
            return place
        if tag in family.before:
            self._close_block("")
            return at
        if not tag:
            return at
        end = at + len(tag)
        is_word = self.use.is_word(text, end, final)
        mentioned = None if is_word is None else self.use.is_mentioned(tag, text, end, final)
        if mentioned is None:
            return at
        if mentioned:
            self.thought.block.append(tag)
        else:
            self._close_block(tag, is_word=bool(is_word))
        return end

    def _read_front(self, family: Family, text: str, at: int, final: bool) -> int:
        """Before the reasoning, if the prompt has opened it: the model may repeat the opening tag."""
        if text[at].isspace():
            end = len(text) - len(text[at:].lstrip())
            self.thought.block.append(text[at:end])
            return end
        openings = family.openings
        if not final and any(opening.startswith(text[at:]) for opening in openings if opening != text[at:]):
            return at
        self._may_repeat = False
        tag = next(filter(lambda opening: text.startswith(opening, at), openings), "")
        end = at + len(tag)
        if not tag or self.use.is_mentioned(tag, text, end, final):
            return self._read_block(text, at, final)
        self.tags.append((self._raw, self._raw + len(tag)))
        return end

    def _close_block(self, tag: str, *, is_word: bool = False) -> None:
        thought = self.thought
        block, doubtful, family = "".join(thought.block), thought.doubtful, thought.inside
        thought.block, thought.doubtful, thought.inside = [], "", None
        assert family is not None
        if doubtful and _A_FEW_WORDS.fullmatch(block):
            self.tags.pop()
            self._add_output(doubtful + block + tag)
            return
        if tag:
            self.tags.append((self._raw, self._raw + len(tag)))
        self.interleaved = self.interleaved or self._has_output
        thought.blocks.append(block)
        self._closings, self._since = (), None
        if self._has_output:
            last = self.output.pieces[-1][-1:]
            self._in_front, self._skips = True, _ALL if last in "\n\r" else BLANKS if last.isspace() else ""
            self._look_for_tags()
        else:
            self._begin_answer(tag, family, doubtful=is_word or is_fenced(block))

    def _begin_answer(self, tag: str, family: Family, *, doubtful: bool) -> None:
        """Begin the output after reasoning. If the tag may only have been mentioned, a later one may close all before it."""
        self._closings, self._since = (), None
        if doubtful and tag and family.lone:
            self._closings, self._since, self._doubted_at = (family,), [], self._raw
            self._thought_before = self.thought.blocks[-1] + tag
        self._begin_output()
        self.lead = self._raw + len(tag)

    # -- output --------------------------------------------------------------------------------------------------------

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
        is_word = False if opens else self.use.is_word(text, end, final)
        mentioned = None if is_word is None else self.use.is_mentioned(tag, text, end, final)
        if mentioned is None:
            return at
        if not mentioned and opens and not self.output.in_call and self.other is None:
            return self._open_block(family, tag, text, end, final, given)
        given += (
            self._add_output(tag)
            if mentioned or opens
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
            lines = self.output.lines()
            if lines.fenced:
                given += self._add_output(tag)
                return end
            if end == len(text) and not final:
                return end - len(tag)
            sure = lines.blank and text[end : end + 1] != " "
            sure = sure or self.use.last.endswith((">", "]", "}"))  # after a call
        elif not self._has_output and self.output.pieces:
            self._begin_output()
        self.tags.append((self._raw, self._raw + len(tag)))
        self.thought.doubtful, self.thought.inside = "" if sure else tag, family
        return end

    def _close_output(self, tag: str, family: Family, *, is_word: bool) -> list[ToolCall]:
        """Take a lone closing tag, which makes the output so far reasoning; inside a call that is undecided at first."""
        if self.other is not None or (self._since is not None and is_word):
            return self._add_output(tag)
        if not self.output.in_call or self.output.is_cut:
            self._make_all_reasoning(self, tag, family, is_word=is_word)
            return []
        other = _Pass(self.thinking, self._make, self._stops)
        other._make_all_reasoning(self, tag, family, is_word=is_word)
        other._raw, other.use = self._raw + len(tag), self.use.after(tag)
        calls, self._calls_before = self._add_output(tag), self.output.ended_calls
        self.other = other
        return calls

    def _make_all_reasoning(self, that: _Pass, tag: str, family: Family, *, is_word: bool) -> None:
        """Make all output so far reasoning, which this tag has closed."""
        if that._since is None:
            begin, thought = that.lead, "".join(that.output.pieces + that.output.behind_stop)
            doubtful = is_word or is_fenced(thought)
        else:
            begin, thought, doubtful = that._doubted_at, that._thought_before + "".join(that._since), False
        self.tags = [
            *(where for where in that.tags if where[1] <= begin),
            (that._raw, that._raw + len(tag)),
        ]
        self.thought.blocks = [thought]
        self.was_over = that.output.is_over or that.was_over
        self._raw = that._raw
        self._begin_answer(tag, family, doubtful=doubtful)

    def _add_output(self, text: str) -> list[ToolCall]:
        """Add output. With two passes, it goes character by character: the call's end decides, not that of a piece."""
        calls: list[ToolCall] = []
        for place, character in enumerate(text):
            if self.superseded and self.other is not None:
                return calls + self.other.read(text[place:])
            if self.other is None:
                return calls + self._append_output(text[place:])
            self.other.read(character)
            calls += self._append_output(character)
            self._decide()
        return calls

    def _append_output(self, text: str) -> list[ToolCall]:
        if self._in_front and not text.isspace():
            self._in_front, self._skips = False, ""
            self._has_output = True
        calls = self.output.add(text)
        self.was_over = self.was_over or self.output.is_cut
        return calls

    def _decide(self) -> None:
        """Decide, if the call with a closing tag inside is over: the tag is an argument's, unless a call begins after it."""
        assert self.other is not None
        is_over, others = self.output.ended_calls > self._calls_before, self.other.output
        if is_over and not (others.ended_calls or others.in_call):
            self.other = self.other if self.other.held or others.held else None
        elif is_over or not self.output.in_call:
            self.superseded = True


def split(text: str, thinking: Thinking = UNKNOWN) -> Reading:
    """Read a whole turn without a parser and without its ids."""
    reading = Reading(msgspec.structs.replace(thinking, token_ids={}))
    reading.feed(text)
    reading.close()
    return reading
