"""What is known about a server: its addresses, and what it takes and gives. Pure."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from rollcast.errors import InputError

__all__ = ["Address", "Level", "Logprobs", "ServerFacts"]

Level = Literal["tokens", "text"]
"""`tokens`: the completions route takes token ids and gives them; `text`: the chat route takes messages and gives text."""

Logprobs = Literal["processed", "plain", "none"]
"""`processed`: of the distribution that was sampled from; `plain`: that only at temperature 1 without top-k and top-p."""


class Address(msgspec.Struct, frozen=True):
    """Where a server is.

    Attributes:
        api: the base of the OpenAI routes, such as `http://127.0.0.1:8000/v1`.
        root: the base of the engine's own routes, such as `http://127.0.0.1:8000`.
    """

    api: str
    root: str

    @classmethod
    def of(cls, base_url: Any) -> Address:
        """Read what a user gives: `http://host:8000`, with or without `/v1`, or the base of a hosted service.

        Raises:
            InputError: it is not an HTTP address, or it holds a password.
        """
        expected = "expected an address such as http://127.0.0.1:8000/v1"
        if not isinstance(base_url, str):
            raise InputError(f"base_url is {base_url!r}; {expected}")
        try:
            parts = urlsplit(base_url)
            host = parts.hostname
            parts.port  # noqa: B018  (raises if it is not a number)
        except ValueError as error:
            raise InputError(f"base_url is {base_url!r} ({error}); {expected}") from None
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "base_url holds a name or a password; give a key as api_key or in OPENAI_API_KEY"
            )
        if parts.scheme not in {"http", "https"} or not host:
            raise InputError(f"base_url is {base_url!r}; {expected}")
        if parts.query or parts.fragment:
            raise InputError(f"base_url is {base_url!r}, which has a query; {expected}")
        base = base_url.rstrip("/")
        api = base if parts.path.strip("/") else f"{base}/v1"
        return cls(api, api.removesuffix("/v1"))


class ServerFacts(msgspec.Struct):
    """What a server takes and gives, as it was measured.

    Attributes:
        model: the name by which it knows the model.
        root: the folder or the hub's name of the model, if it tells.
        context: how many tokens a prompt and its completion may have; None if it does not tell.
        level: which route is used.
        logprobs: what its log-probabilities are of.
        refused: fields that it does not take, found when it refused a request; they are left out.
        renamed: fields that it takes under another name.
        version: the version of its weights when it was asked last; None if it does not tell.
    """

    model: str
    root: str | None = None
    context: int | None = None
    level: Level = "text"
    logprobs: Logprobs = "none"
    refused: set[str] = msgspec.field(default_factory=set)
    renamed: dict[str, str] = msgspec.field(default_factory=dict)
    version: int | None = None
