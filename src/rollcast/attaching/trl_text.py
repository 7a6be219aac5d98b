"""Turns the ids that a TRL trainer samples into text, token by token, with a tokenizer of our own.

The trainer's own tokenizer is not used from another thread: a tokenizer of the `tokenizers` library refuses calls while another
thread changes its padding or truncation, and the one refused might be the trainer's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

__all__ = ["IdTexts", "TextStream"]


class IdTexts:
    """The texts of ids, without special tokens, as TRL makes them for reward functions.

    Args:
        tokenizer: a tokenizer of transformers. It is copied here, and not used afterwards.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._fast = Tokenizer.from_str(backend.to_str()) if isinstance(backend, Tokenizer) else None
        self._slow = None if self._fast is not None else copy.deepcopy(tokenizer)

    def of(self, ids: Sequence[int]) -> str:
        """The text of all these ids."""
        if self._fast is not None:
            return self._fast.decode(list(ids), skip_special_tokens=True)
        assert self._slow is not None
        return str(self._slow.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """The texts of one generation's tokens, as they come."""
        return TextStream(self, self._fast)


class TextStream:
    """The text of one generation as its ids come. Bytes that are half a character wait for the other half.

    A tokenizer that is written in Python cannot do this: then all text comes with `rest`.
    """

    def __init__(self, texts: IdTexts, fast: Tokenizer | None) -> None:
        self._texts = texts
        self._fast = fast
        self._steps = DecodeStream(skip_special_tokens=True)
        self._shown: list[str] = []

    def next(self, token_id: int) -> str:
        """The text that is known now and was not before; often empty."""
        if self._fast is None:
            return ""
        try:
            text = self._steps.step(self._fast, token_id)
        except Exception:  # noqa: BLE001  (the library refuses some sequences of bytes; their text comes with `rest`)
            self._fast = None
            return ""
        if text:
            self._shown.append(text)
        return text or ""

    def rest(self, ids: Sequence[int]) -> str:
        """The text of the whole generation that was not shown yet.

        Args:
            ids: all its ids.
        """
        shown, whole = "".join(self._shown), self._texts.of(ids)
        rest = whole[len(shown) :] if whole.startswith(shown) else ""
        self._shown.append(rest)
        return rest
