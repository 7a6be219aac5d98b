"""Keeps text from outside text: guards, and the encoding of guarded text.

A tokenizer turns every occurrence of an added token's string (`<|im_end|>`, `<tool_call>` …) into that token, no matter
who wrote it. Here only the template may write them. Before rendering, a *guard*, a private-use character that occurs in none
of the texts, is put into every such string in text from outside; the rendered text is then cut at the added tokens, and
the pieces between are encoded, without their guards, by a tokenizer that has no added tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from rollcast.errors import MessagesError
from rollcast.models.parse.reading import split
from rollcast.text import replace_surrogates

__all__ = ["Codec"]

_PRIVATE_USE = range(0xE000, 0xF900)


# Templates compare the values of these with words of their own: they are no prose.
_COMPARED_KEYS = frozenset({"role", "type"})

# The keys inside of these are the caller's words, not the format's.
_CALLERS_NAMES = {
    **dict.fromkeys(("arguments", "default", "const", "enum", "examples"), "all"),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions", "mapping"), "here"),
}


class Codec:
    """Guards text from outside, and encodes guarded text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self._ids = {token.content: index for index, token in added.items()}
        # In the order of the tokenizers package: first the tokens that are matched in the raw text, then the others.
        by_pass = [[t for t in added.values() if t.normalized is normalized] for normalized in (False, True)]
        self._splitters = [_splitter(tokens) for tokens in by_pass if tokens]
        self._encoded: dict[tuple[bool, str], list[int]] = {}
        words = [token.content for token in added.values() if not token.content.isspace()]
        self._word = re.compile(_any_of(words)) if words else None
        self._occurrence = re.compile(f"(?=(?:{_any_of(words)}))(.)", re.DOTALL)
        self._harmless = {
            ""
        }  # short texts that need no guard: roles, names and common words come again and again
        # An added token may also arise where text from outside meets the template's.
        self._heads = tuple({word[:end] for word in words for end in range(1, len(word))})
        self._tails = tuple({word[start:] for word in words for start in range(1, len(word))})
        self._inner = "\0".join(word[1:-1] for word in words)
        self._added_ids = frozenset(self._ids.values())
        self._first, self._later = _plain_tokenizers(tokenizer)

    def free_character(self, value: Any) -> str:
        """A private-use character that occurs in none of the texts of a value, nor in an added token.

        Raises:
            MessagesError: the texts use all of them.
        """
        texts = [*_searchable(value), *self._ids]
        for code in _PRIVATE_USE:
            if not any(chr(code) in text for text in texts):
                return chr(code)
        raise MessagesError(
            f"the messages use all {len(_PRIVATE_USE)} private-use characters U+E000 to U+F8FF; one has to be left free"
        )

    def occurs(self, character: str, value: Any) -> bool:
        """Whether a character occurs in any of the texts of a value."""
        return any(character in text for text in _searchable(value))

    def token_ids(self, words: Iterable[str]) -> dict[int, str]:
        """The words that are added tokens, by their ids."""
        return {self._ids[word]: word for word in words if word in self._ids}

    def pattern(self, ids: Collection[int]) -> re.Pattern[str] | None:
        """A pattern that finds these added tokens in rendered text (guarded text has none); None if none of them is added."""
        tokens = [
            token for tokens, _ in self._splitters for token in tokens if self._ids[token.content] in ids
        ]
        return _splitter(tokens)[1] if tokens else None

    def guarded_turn(self, text: str, guard: str) -> str:
        """Do what `guarded` does, for a turn that the model wrote: the tags around its reasoning are left as they are.

        Templates look for them, and the model sampled them. Only the tags that `Reading` recognizes are left; any other
        is text, as everywhere.
        """
        pieces, end = [], 0
        for start, stop in split(text).tags:
            pieces += [self._guarded_text(text[end:start], guard), text[start:stop]]
            end = stop
        return "".join(pieces) + self._guarded_text(text[end:], guard)

    def guarded(self, value: Any, guard: str, names: str = "") -> Any:
        """A copy with guards in every text that could be taken for an added token or be a part of one.

        Keys are guarded if they are the caller's: `names` is "here" for this mapping's, "all" for those below too.
        """
        if isinstance(value, str):
            return self._guarded_text(value, guard)
        if isinstance(value, list | tuple):
            return [self.guarded(item, guard, names) for item in value]
        if not isinstance(value, Mapping):
            return value
        copied = {}
        for key, item in value.items():
            if not names and key in _COMPARED_KEYS and isinstance(item, str) and item.isidentifier():
                copied[key] = item
                continue
            below = {"": _CALLERS_NAMES.get(key, ""), "here": "", "all": "all"}[names]
            name = self._guarded_text(key, guard) if names and isinstance(key, str) else key
            copied[name] = self.guarded(item, guard, below)
        return copied

    def _guarded_text(self, text: str, guard: str) -> str:
        if self._word is None or text in self._harmless:
            return text
        guarded = self._with_guards(text, guard)
        if len(text) <= 64 and guarded == text:
            if len(self._harmless) >= 4096:
                self._harmless.clear()
            self._harmless.add(text)
        return guarded

    def _with_guards(self, text: str, guard: str) -> str:
        text = replace_surrogates(text)
        before = guard if text.startswith(self._tails) or text in self._inner else ""
        after = guard if text.endswith(self._heads) else ""
        if self._word is not None and self._word.search(text) is not None:
            text = self._occurrence.sub(rf"\1{guard}", text)
        return before + text + after if before or after else text

    def encode(self, text: str, guard: str) -> list[int]:
        """Return the ids of a rendered text, shape (T,); guarded text never gives the id of an added token."""
        ids: list[int] = []
        tokenizer = self._first
        for piece, added in self._pieces(text):
            if added is not None:
                ids.append(added)
            elif piece != guard:
                ids += (
                    self._plain_ids(tokenizer, piece, guard)
                    if len(piece) > 64
                    else self._known(tokenizer, piece, guard)
                )
            tokenizer = self._later
        return ids

    def _known(self, tokenizer: Tokenizer, piece: str, guard: str) -> list[int]:
        """The ids of a short piece: tool names, roles and common words come again and again."""
        key = (tokenizer is self._first, piece.replace(guard, "\0"))
        ids = self._encoded.get(key)
        if ids is None:
            if len(self._encoded) >= 4096:
                self._encoded.clear()
            ids = self._encoded[key] = self._plain_ids(tokenizer, piece, guard)
        return ids

    def _plain_ids(self, tokenizer: Tokenizer, piece: str, guard: str) -> list[int]:
        ids: list[int] = tokenizer.encode(piece.replace(guard, ""), add_special_tokens=False).ids
        if self._added_ids.isdisjoint(ids):
            return ids
        # A few vocabularies reach an added token by ordinary pieces too: then the text is also cut at the guards.
        return [
            index
            for part in piece.split(guard)
            for index in tokenizer.encode(part, add_special_tokens=False).ids
        ]

    def _pieces(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text cut at its added tokens: each piece with the token's id, or None between them."""
        pieces: list[tuple[str, int | None]] = [(text, None)]
        for tokens, pattern in self._splitters:
            pieces = [
                cut
                for piece, added in pieces
                for cut in ([(piece, added)] if added is not None else self._cut(piece, tokens, pattern))
            ]
        return iter(pieces)

    def _cut(
        self, text: str, tokens: list[AddedToken], pattern: re.Pattern[str]
    ) -> Iterator[tuple[str, int | None]]:
        end = 0
        for match in pattern.finditer(text):
            if match.start() > end:
                yield text[end : match.start()], None
            assert match.lastindex is not None
            yield match.group(), self._ids[tokens[match.lastindex - 1].content]
            end = match.end()
        if end < len(text):
            yield text[end:], None


def _any_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


def _splitter(tokens: list[AddedToken]) -> tuple[list[AddedToken], re.Pattern[str]]:
    """The tokens, longest first, and a pattern with one group for each."""
    tokens = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    return tokens, re.compile("|".join(map(_token_pattern, tokens)) or r"(?!)")


def _token_pattern(token: AddedToken) -> str:
    pattern = re.escape(token.content)
    if len(token.content) == 1 and not token.content.isspace():
        # It is one character, so the guard comes after it.
        pattern += f"(?![{chr(_PRIVATE_USE[0])}-{chr(_PRIVATE_USE[-1])}])"
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    left, right = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
    return f"({left}{pattern}{right})"


def _plain_tokenizers(tokenizer: Tokenizer) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer without added tokens: one for the first piece of a text, and one for pieces after a token."""
    parts = json.loads(tokenizer.to_str())
    parts |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    first = json.dumps(parts)
    # Metaspace tokenizers may mark the beginning of the text and no other piece.
    later = first.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
    plain = Tokenizer.from_str(first)
    return plain, plain if later == first else Tokenizer.from_str(later)


def _searchable(value: Any) -> list[str]:
    """Texts with every character of a value's texts; a single one if the value can be written as JSON."""
    try:
        return [msgspec.json.encode(value).decode()]
    except (TypeError, ValueError):
        return list(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
