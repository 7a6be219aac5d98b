"""Passwords and tokens do not show: not in an address that is named, not in another library's words, not in a log."""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = ["TOKEN_FIELDS", "WithoutSecrets", "has_token", "shown_url", "without_secrets"]

TOKEN_FIELDS = frozenset({"token", "access_token"})
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "location"})
_USER = re.compile(r"^((?:wss?|https?):/*)?.*@", re.DOTALL)
_USER_OF_A_PATHLESS = re.compile(r"//[^/?#\s]*@")
_AFTER_PATH = re.compile(r"([?#]).+", re.DOTALL)
_CONTENTS = (0, 1, 2)  # opcodes of frames with a message, or a part of one


def shown_url(url: str) -> str:
    """The address as it may be named: without a user and a password, and without what follows `?` or `#`.

    It need not be an address. If it is not, everything before an @ counts as a password.
    """
    if "@" in url and not _only_in_path(url):
        url = _USER.sub(r"\1", url, count=1)
    return _AFTER_PATH.sub(r"\1…", url, count=1)


def _only_in_path(url: str) -> bool:
    """Whether each @ stands in the path or after it, so that none ends a password."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme and parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False


def without_secrets(text: str) -> str:
    """Another library's words, in which no address has a user, a password or a query."""
    words = _USER_OF_A_PATHLESS.sub("//", text).split(" ")
    return " ".join(_AFTER_PATH.sub(r"\1…", word) if "/" in word else word for word in words)


def has_token(url: str) -> bool:
    """Whether a token stands in the address, as a field of its query or its fragment.

    Raises:
        ValueError: it is no address, or has too many fields.
    """
    parts = urlsplit(url)
    return any(
        name.lower() in TOKEN_FIELDS
        for fields in (parts.query, parts.fragment)
        for name, _ in parse_qsl(fields, keep_blank_values=True, max_num_fields=256)
    )


class WithoutSecrets(logging.Filter):
    """For a logger that websockets writes to: at DEBUG it writes down each header, and how each message begins."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, without what is secret in it."""
        if isinstance(record.args, tuple):
            record.args = tuple(_harmless(record.args))
        return True


def _harmless(args: tuple[Any, ...]) -> list[Any]:
    if len(args) == 2 and str(args[0]).lower() in _SECRET_HEADERS:
        return [args[0], "…"]
    shown: list[Any] = []
    for arg in args:
        if getattr(arg, "opcode", None) in _CONTENTS:
            shown.append(f"{arg.opcode.name} … [{len(arg.data)} bytes]")
        else:
            shown.append(shown_url(arg) if isinstance(arg, str) else arg)
    return shown
