"""What goes wrong between a client and a server: what is tried again, and what is not. Pure."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from rollcast.errors import BackendError, InputError, PromptTooLongError
from rollcast.text import one_line

__all__ = ["AbortedError", "NoSuchPathError", "TroubleError", "error_of", "message_in"]

_AGAIN = {408, 409, 425, 429}
_FIRST_S, _LONGEST_S = 0.25, 30.0
_LONGEST_ASKED_S = 300.0  # a server that asks for more than that is not waited for so long
_TOO_LONG = re.compile(
    r"context length|context window|maximum (model|input|sequence) length|max_model_len|too long|longer than the maximum"
    r"|context_length_exceeded",
    re.IGNORECASE,
)


class TroubleError(BackendError):
    """An attempt failed, and another may succeed.

    Args:
        reason: what happened, as a sentence.
        after_s: how long the server asks to wait; None if it does not.
        answered: whether there was an answer, whose status says that the server failed.
    """

    def __init__(self, reason: str, after_s: float | None = None, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.answered = answered

    def wait_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row: twice as long each time, and not all chains at once."""
        if self.after_s is not None:
            return min(self.after_s, _LONGEST_ASKED_S)
        return min(_FIRST_S * 2.0 ** (failures - 1), _LONGEST_S) * random.uniform(0.5, 1.0)


class AbortedError(TroubleError):
    """The server ended the generation early, as one does for a weight update; it is continued."""


class NoSuchPathError(BackendError):
    """The server does not have the path."""


def error_of(status: int, body: bytes, headers: Mapping[str, str], where: str) -> Exception:
    """The error for an answer whose status is not 200: a `TroubleError` if another attempt may succeed.

    Args:
        status: the answer's, as body and headers are.
        body: see status.
        headers: see status.
        where: the address that was asked.
    """
    said = message_in(body)
    tail = f": {said}" if said else ""
    if status in _AGAIN or status >= 500:
        what = "asks to wait" if status == 429 else "failed"
        said = f"the server {what} ({status} from {where}){tail}"
        return TroubleError(said, _after(headers), answered=True)
    if status in {401, 403}:
        return BackendError(
            f"the server refuses the API key ({status} from {where}){tail}; set OPENAI_API_KEY, or give api_key"
        )
    if status in {400, 413, 422}:
        if _TOO_LONG.search(said):
            return PromptTooLongError(
                f"the server refuses the prompt ({status}){tail}; shorten the conversation"
            )
        return InputError(f"the server refuses the request ({status} from {where}){tail}")
    kind = NoSuchPathError if status in {404, 405} else BackendError
    return kind(f"the server answered {status} to {where}{tail}; check base_url and model")


def message_in(body: bytes) -> str:
    """The message of an error's body, in one line of at most 400 characters; empty if the body has no message."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return one_line(body[:2000].decode("utf-8", "replace"))[:400]
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return one_line(found if isinstance(found, str) else msgspec.json.encode(found).decode())[:400]


def _after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, which is a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(seconds, 0.0)
