"""Finds tags in a turn that is still arriving, and tells those that are used from those that are only mentioned."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from rollcast.models.reasoning import Family

__all__ = ["BLANKS", "Finder", "TagUse", "finder", "tags_in_output"]

BLANKS = " \t"
_QUOTES = {"`": "`", '"': '"', "'": "'", "*": "*", "“": "”", "‘": "’", "«": "»"}
_BEFORE_QUOTES = frozenset(" \t\n\r([{<:,=-*_/|\"'`“‘«")


class Finder:
    """Finds the first of some words in a text that is still arriving.

    Attributes:
        is_usual: whether every word begins with one of `<`, `[` and `◁`.
    """

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
def finder(words: tuple[str, ...]) -> Finder:
    """The finder of these words."""
    return Finder(words)


@functools.lru_cache(64)
def tags_in_output(families: tuple[Family, ...], lone: tuple[Family, ...]) -> dict[str, tuple[Family, bool]]:
    """The tags that count in output, each with its family and whether it opens reasoning."""
    tags = {opening: (family, True) for family in families for opening in family.openings}
    return tags | {family.closing: (family, False) for family in lone}


class TagUse:
    """Tells whether a tag is used or only mentioned, by what stands next to it and by the tokens that were sampled.

    Args:
        tag_of: the tag that each id of a token stands for, if the vocabulary has tokens for tags.

    Attributes:
        last: the two characters before the place that is read next.
    """

    def __init__(self, tag_of: Mapping[int, str]) -> None:
        self.last = ""
        self._tag_of = tag_of
        self._by_ids = False  # tags are recognized by their tokens
        self._sampled = dict.fromkeys(tag_of.values(), 0)  # and not found in the text yet

    def sampled(self, token_ids: Iterable[int]) -> None:
        """Note the ids that the next text was sampled as."""
        self._by_ids = True
        for index in token_ids:
            tag = self._tag_of.get(index)
            if tag is not None:
                self._sampled[tag] += 1

    def passed(self, text: str) -> None:
        """Note the text that was read last, or only its end."""
        self.last = (self.last + text[-2:])[-2:]

    def after(self, tag: str) -> TagUse:
        """What another reading of the turn goes on with behind this tag."""
        other = TagUse(self._tag_of)
        other.last, other._by_ids, other._sampled = tag[-2:], self._by_ids, dict(self._sampled)
        return other

    def is_word(self, text: str, end: int, final: bool) -> bool | None:
        """Whether a closing tag looks like a word in a sentence. None: the next characters have to be seen."""
        if self.last[-1:] not in BLANKS:
            return False
        behind = text[end : end + 2]
        if not final and len(behind) < 2 and behind in {"", " "}:
            return None
        return behind[:1] == " " and behind[1:].islower()

    def is_mentioned(self, tag: str, text: str, end: int, final: bool) -> bool | None:
        """Whether a tag is only mentioned: in quotes, or spelt in letters. None: the next character has to be seen."""
        by_id = self._by_ids and tag in self._sampled
        if by_id and not self._sampled[tag]:
            return True
        quote = _QUOTES.get(self.last[-1:])
        mentioned = False
        if quote is not None and (len(self.last) < 2 or self.last[0] in _BEFORE_QUOTES):
            if end == len(text) and not final:
                return None
            mentioned = text.startswith(quote, end)
        if by_id:
            self._sampled[tag] -= 1
        return mentioned
