"""Turns token ids into text, one at a time: bytes that are half a character wait for the other half."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from rollcast.errors import InputError

__all__ = ["StopStrings", "TextStream", "TokenTexts", "token_bytes", "token_texts"]

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")

# What the decoders of SentencePiece's models are made of.
_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


def token_texts(tokenizer: dict[str, Any], size: int = 0) -> TokenTexts:
    """The text of every token in a `tokenizer.json`, by id.

    Args:
        tokenizer: the file's content: byte-level BPE, as in Qwen, Llama 3 and GPT-2, or SentencePiece's pieces, as in
            Llama 2, Mistral and Gemma.
        size: the size of the model's vocabulary, which is often padded beyond the tokenizer's.

    Raises:
        InputError: the tokenizer is of another kind.
    """
    pieces = token_bytes(tokenizer)
    pieces += [b""] * (size - len(pieces))
    kinds = {decoder["type"]: decoder for decoder in _decoders(tokenizer)}
    strips = "Strip" in kinds or kinds.get("Metaspace", {}).get("prepend_scheme", "never") != "never"
    return TokenTexts(pieces, strips_first_space=strips)


def token_bytes(tokenizer: dict[str, Any]) -> list[bytes]:
    """The bytes of every token in a `tokenizer.json`, by id.

    Raises:
        InputError: the tokenizer is of another kind than `token_texts` takes.
    """
    kinds = {decoder["type"] for decoder in _decoders(tokenizer)}
    plain = _plain(tokenizer)
    if kinds == {"ByteLevel"}:
        alphabet = _byte_alphabet()
        ids = {index: bytes(alphabet[char] for char in token) for token, index in plain.items()}
    elif kinds <= _SENTENCEPIECE and kinds & {"Replace", "Metaspace"}:
        ids = {index: _piece_bytes(token, "ByteFallback" in kinds) for token, index in plain.items()}
    else:
        raise InputError(
            f"tokenizer.json has a decoder of type {' + '.join(sorted(kinds)) or None!r}; expected a byte-level one, as "
            "Qwen and Llama 3 have, or one of SentencePiece's pieces, as Mistral and Gemma have"
        )
    ids |= {token["id"]: token["content"].encode() for token in tokenizer["added_tokens"]}
    return [ids.get(index, b"") for index in range(max(ids) + 1)]


def _decoders(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    decoder = tokenizer.get("decoder") or {}
    if decoder.get("type") == "Sequence":
        return list(decoder["decoders"])
    return [decoder] if decoder else []


def _piece_bytes(piece: str, byte_fallback: bool) -> bytes:
    """`▁` is a space, and `<0xE2>` a byte of a character that has no piece."""
    if byte_fallback and (byte := _BYTE_PIECE.fullmatch(piece)):
        return bytes([int(byte[1], 16)])
    return piece.replace("▁", " ").encode()


def _plain(tokenizer: dict[str, Any]) -> dict[str, int]:
    added = {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # a unigram model: pieces with their scores
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return {token: index for token, index in vocabulary.items() if token not in added}


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level BPE (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + index): byte for index, byte in enumerate(others)}
    return alphabet


class TokenTexts:
    """The texts of a vocabulary's tokens, shared by all generations.

    Attributes:
        bytes: each token's bytes, by id.
        texts: each token's text, by id; None if its bytes are not whole characters.
        strips_first_space: whether a text loses the space that its first piece begins with.
    """

    def __init__(self, bytes_by_id: Sequence[bytes], *, strips_first_space: bool = False) -> None:
        self.bytes = list(bytes_by_id)
        self.strips_first_space = strips_first_space
        self.texts = [_whole(data) for data in self.bytes]


def _whole(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class TextStream:
    """The text of one generation, token by token. Joined, it equals the bytes of all tokens decoded with replacement."""

    __slots__ = ("_decoder", "_strip", "_tokens")

    def __init__(self, tokens: TokenTexts) -> None:
        self._tokens = tokens
        # Present only while a character is incomplete, which is rare.
        self._decoder: codecs.IncrementalDecoder | None = None
        self._strip = tokens.strips_first_space

    def feed(self, token: int) -> str:
        """The text that this token completes."""
        text = self._completed(token)
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def _completed(self, token: int) -> str:
        if self._decoder is None:
            text = self._tokens.texts[token]
            if text is not None:
                return text
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._decoder.decode(self._tokens.bytes[token])
        if not self._decoder.getstate()[0]:
            self._decoder = None
        return text

    def end(self) -> str:
        """A replacement character if the generation ends inside a character; else an empty text."""
        return "" if self._decoder is None else self._decoder.decode(b"", final=True)


class StopStrings:
    """Finds the first of some strings in a text that arrives in pieces."""

    __slots__ = ("_keep", "_stops", "_tail")

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InputError("stop has an empty string, which every text contains; leave it out")
        self._stops = stops
        self._keep = max(len(stop) for stop in stops) - 1
        self._tail = ""

    def cut(self, text: str) -> str | None:
        """The part of `text` up to the end of the stop string that ends first; None if none has ended yet."""
        seen = self._tail + text
        found = [(seen.find(stop), stop) for stop in self._stops]
        ends = [at + len(stop) for at, stop in found if at >= 0]
        if ends:
            return text[: min(ends) - len(self._tail)]
        self._tail = seen[max(len(seen) - self._keep, 0) :]
        return None
