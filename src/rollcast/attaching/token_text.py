"""The text of token ids from a tokenizer that somebody else uses at the same time.

`Tokenizer.decode` of the `tokenizers` package lets other threads run while it reads, and whoever changes the tokenizer meanwhile, such as
an encoder that sets truncation, gets "Already borrowed". What is called here never lets go of the interpreter lock, so nobody else can
meet it half-way. It takes a few ids at a time, so that it holds the lock only briefly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

__all__ = ["CopiedTokenReader", "TextOfIds", "TokenReader"]

_PIECE = 256  # ids that are decoded at once
_HALF = "\N{REPLACEMENT CHARACTER}"  # stands at the end while bytes of a character are missing


class TokenReader:
    """Reads tokens of a fast tokenizer, from Hugging Face's `transformers` or `tokenizers`.

    Args:
        tokenizer: the tokenizer.
        special: whether special tokens have a text.

    Raises:
        AttributeError: it is of another kind.
    """

    def __init__(self, tokenizer: Any, *, special: bool = True) -> None:
        inner = getattr(tokenizer, "_tokenizer", tokenizer)
        self._token = inner.id_to_token
        self._decoder = inner.decoder
        added = {} if special else inner.get_added_tokens_decoder()
        self._textless = frozenset(i for i, token in added.items() if token.special)

    def tokens(self, ids: Sequence[int]) -> list[Any]:
        """The tokens as the vocabulary has them; ids that it lacks, as in a padded vocabulary, are left out."""
        token, textless = self._token, self._textless
        return [name for i in ids if i not in textless and (name := token(i)) is not None]

    def joined(self, tokens: list[Any]) -> str:
        """The text of tokens."""
        if self._decoder is None:
            return " ".join(tokens)
        text: str = self._decoder.decode(tokens)
        return text

    def text(self, ids: Sequence[int]) -> str:
        """The text of a whole sequence."""
        return TextOfIds(self).rest(ids)


class CopiedTokenReader(TokenReader):
    """Reads tokens of a tokenizer of `transformers` that is written in Python: it is copied, since its methods let other threads run.

    Args:
        tokenizer: the tokenizer. Nobody may use it while it is copied.
        special: whether special tokens have a text.
    """

    def __init__(self, tokenizer: Any, *, special: bool = True) -> None:
        self._copy = copy.deepcopy(tokenizer)
        self._special = special

    def tokens(self, ids: Sequence[int]) -> list[Any]:
        """The ids themselves, which `joined` decodes."""
        return list(ids)

    def joined(self, tokens: list[Any]) -> str:
        """See `TokenReader.joined`."""
        return str(self._copy.decode(tokens, skip_special_tokens=not self._special))


class TextOfIds:
    """The text of ids that come a few at a time: what is half a character waits for the other half.

    Some decoders change the start of a text, so the tokens before are decoded again as context.
    """

    __slots__ = ("_reader", "_shown", "_tokens")

    def __init__(self, reader: TokenReader) -> None:
        self._reader = reader
        self._tokens: list[Any] = []  # the context, then what is not yet given out
        self._shown = 0  # how many of them are context

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these ids complete."""
        self._tokens += self._reader.tokens(ids)
        return self._given_out(wait=True)

    def end(self) -> str:
        """What is left, with U+FFFD for half a character."""
        return self._given_out(wait=False)

    def rest(self, ids: Sequence[int]) -> str:
        """The text of these ids and what is left, when no more come."""
        pieces = [self.feed(ids[at : at + _PIECE]) for at in range(0, len(ids), _PIECE)]
        return "".join(pieces) + self.end()

    def _given_out(self, *, wait: bool) -> str:
        tokens, shown = self._tokens, self._shown
        if len(tokens) == shown:
            return ""
        before = self._reader.joined(tokens[:shown])
        whole = self._reader.joined(tokens)
        if (wait and whole.endswith(_HALF)) or len(whole) < len(before):
            return ""
        self._tokens = tokens[shown:]
        self._shown = len(self._tokens)
        return whole[len(before) :]
