"""Asks an engine what it gives, with a few requests of one or two tokens, before the first caller comes (`--probe`)."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

from rollcast.proxy.rewriting import EngineTraits
from rollcast.proxy.settings import ProxySettings
from rollcast.records.openai_wire import RequestKind, SseReader, pieces_of, request_of

__all__ = ["probe"]

_SECONDS = 60.0
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_ASKS: dict[RequestKind, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "completions": (
        "/v1/completions",
        {"prompt": "1 2 3", "max_tokens": 2},
        {"return_token_ids": True, "logprobs": 0},
    ),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "1 2 3"}], "max_tokens": 2},
        {"return_token_ids": True, "logprobs": True, "top_logprobs": 0},
    ),
}


async def probe(settings: ProxySettings, traits: EngineTraits) -> list[str]:
    """Find out what the engine gives on its two usual routes, and note it in `traits`.

    Returns:
        A sentence for each route, and one if there is no engine.
    """
    headers = {} if settings.upstream_key is None else {"Authorization": f"Bearer {settings.upstream_key}"}
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(
        settings.upstream, headers=headers, timeout=timeout, trust_env=False
    ) as session:
        try:
            model = await _model(session)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return [f"the engine cannot be asked what it gives: {str(error) or type(error).__name__}"]
        return [await _route(session, kind, model, traits) for kind in _ASKS]


async def _model(session: aiohttp.ClientSession) -> str | None:
    async with session.get("/v1/models") as answer:
        try:
            found = msgspec.json.decode(await answer.read())
            return str(found["data"][0]["id"])
        except (msgspec.DecodeError, KeyError, IndexError, TypeError):
            return None


async def _route(
    session: aiohttp.ClientSession, kind: RequestKind, model: str | None, traits: EngineTraits
) -> str:
    path, asked, more = _ASKS[kind]
    fields = asked if model is None else {"model": model} | asked
    try:
        async with session.post(path, json=fields) as answer:
            body, headers = await answer.read(), [name.lower() for name in answer.headers]
            if answer.status != 200:
                return f"{path}: the engine answers {answer.status}"
        whole = msgspec.json.decode(body)
        if not isinstance(whole, dict):
            return f"{path}: the engine's answer is not a JSON object"
        traits.of(request_of(kind, fields)).learn(whole, headers, answer.headers.get("Content-Type", ""))
        found = await _first_taken(session, path, fields | _STREAM, more)
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"{path}: the engine gave no answer to a probe: {str(error) or type(error).__name__}"
    wanted = traits.wanted[kind]
    if found is None:
        wanted.clear()
        return f"{path}: no streams with usage, so calls that do not stream are shown when they are whole"
    ids, logprobs = found
    if not ids:
        wanted.discard("token_ids")
    if not logprobs:
        wanted.discard("logprobs")
    return f"{path}: {_words(ids, logprobs)}"


async def _first_taken(
    session: aiohttp.ClientSession, path: str, fields: dict[str, Any], more: dict[str, Any]
) -> tuple[bool, list[float]] | None:
    """What the engine gives if it is asked for everything, or for as much as it does not refuse; None if it refuses the stream itself."""
    without_ids = {name: value for name, value in more.items() if name != "return_token_ids"}
    for asked in (more | {"top_k": 1}, more, without_ids, {"return_token_ids": True}, {}):
        found = await _stream(session, path, fields | asked)
        if found is not None:
            return found
    return None


async def _stream(
    session: aiohttp.ClientSession, path: str, fields: dict[str, Any]
) -> tuple[bool, list[float]] | None:
    """Whether a stream has token ids, and its log-probabilities; None if the engine refuses it."""
    async with session.post(path, json=fields) as answer:
        if answer.status != 200:
            return None
        reader, ids, logprobs = SseReader(), False, list[float]()
        async for data in answer.content.iter_any():
            for payload in reader.feed(data):
                for piece in pieces_of(payload):
                    if piece.error is not None:
                        return None
                    ids = ids or piece.token_ids is not None
                    logprobs += piece.logprobs or ()
    return ids, logprobs


def _words(ids: bool, logprobs: list[float]) -> str:
    """What was seen, in a few words; with `top_k=1` a processed log-probability is 0."""
    raw = any(abs(value) > 1e-3 for value in logprobs)
    of_what = (
        "raw, as before temperature and top-k"
        if raw
        else "processed, of the distribution that is sampled from"
    )
    known = f"log-probabilities ({of_what})" if logprobs else "no log-probabilities"
    return f"{'token ids' if ids else 'no token ids'}, {known}"
