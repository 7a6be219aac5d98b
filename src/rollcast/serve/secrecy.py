"""Hides passwords and tokens in addresses, in other libraries' messages and in logs."""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import unquote_plus, urlsplit

__all__ = ["HANDSHAKE_FAILED", "WithoutSecrets", "has_token", "shown_url", "without_secrets"]

TOKEN_FIELDS = frozenset({"token", "access_token"})
# A log shows only the names of all other headers, since people put secrets into their own headers, such as X-Api-Key.
_SHOWN_HEADERS = frozenset({
    "connection", "content-length", "content-type", "date", "host", "origin", "retry-after", "sec-websocket-accept",
    "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-version", "server", "transfer-encoding", "upgrade",
    "user-agent", "www-authenticate",
})  # fmt: skip
_USER = re.compile(r"^((?:wss?|https?):/*)?.*@", re.DOTALL)
_USER_OF_A_PATHLESS = re.compile(r"//[^/?#\s]*@")
_AFTER_PATH = re.compile(r"([?#;&]).+", re.DOTALL)
_A_TOKEN = re.compile(rf"[?#;&]\s*(?:{'|'.join(sorted(TOKEN_FIELDS))})\s*(?:[=?#;&]|$)", re.IGNORECASE)
HANDSHAKE_FAILED = "opening handshake failed"  # the message of websockets
_CONTENTS = (0, 1, 2)  # opcodes of frames with a message or a part of one


def shown_url(url: str) -> str:
    """The address without a user, a password, or what follows `?` or `#`, so that it may be shown.

    It need not be a valid address. If it is not, everything before an @ counts as a password.
    """
    if "@" in url and not _only_in_path(url):
        url = _USER.sub(r"\1", url, count=1)
    return _AFTER_PATH.sub(r"\1…", url, count=1)


def _only_in_path(url: str) -> bool:
    """Whether each @ is in the path or after it, so that none ends a password."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme and parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False


def without_secrets(text: str) -> str:
    """Another library's message, without the user, password and query of addresses in it."""
    words = _USER_OF_A_PATHLESS.sub("//", text).split(" ")
    return " ".join(_AFTER_PATH.sub(r"\1…", word) if "/" in word else word for word in words)


def has_token(url: str) -> bool:
    """Whether the address has a token in its query or its fragment. It need not be a valid address."""
    return _A_TOKEN.search(unquote_plus(url)) is not None


class WithoutSecrets(logging.Filter):
    """A filter for a logger of websockets, which at DEBUG logs each header and the beginning of each message.

    For an error in what the other side sent, only the error's class is kept, since its text repeats what was sent.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, without its secrets."""
        if isinstance(record.args, tuple):
            record.args = tuple(_harmless(record.args))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (record.levelno <= logging.DEBUG or record.msg == HANDSHAKE_FAILED):
            record.msg, record.exc_info, record.exc_text = f"{record.msg} ({_kinds(error)})", None, None
        return True


def _kinds(error: BaseException | None) -> str:
    """The classes of the error and of its causes."""
    kinds: list[str] = []
    while error is not None and len(kinds) < 8:
        kinds.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return ", from ".join(kinds)


def _harmless(args: tuple[Any, ...]) -> list[Any]:
    if len(args) == 2 and all(isinstance(arg, str) for arg in args):  # a header
        return [args[0], shown_url(args[1]) if args[0].lower() in _SHOWN_HEADERS else "…"]
    shown: list[Any] = []
    for arg in args:
        if getattr(arg, "opcode", None) in _CONTENTS:
            shown.append(f"{arg.opcode.name} … [{len(arg.data)} bytes]")
        else:
            shown.append(shown_url(arg) if isinstance(arg, str) else arg)
    return shown
