"""Measures what a server takes and gives, before anything is generated for a chain.

A server says little about itself, and proxies drop fields, so it is tried: a few tokens from `/v1/completions`, ids in and ids
out. Whether log-probabilities are of the distribution that was sampled from shows if only the most probable token is left
(`top_k` 1): then each of them is 0.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from rollcast.errors import BackendError, InputError, RollcastError
from rollcast.models.backend import Sampling
from rollcast.models.openai.bodies import adapted, chat_body, completion_body
from rollcast.models.openai.client import ADAPTATIONS, Client, version_in
from rollcast.models.openai.facts import Level, Logprobs, ServerFacts
from rollcast.models.openai.trouble import NoSuchPathError, TroubleError
from rollcast.records.openai_piece import Piece

__all__ = ["measured"]

logger = logging.getLogger("rollcast.models.openai")

_PROMPT = [1, 2, 3]  # every vocabulary has these ids
_TOKENS = 4
_AGAIN_S = 0.2
_BREAKS = 2  # a connection that is used again may have been closed


async def measured(client: Client, model: str | None, level: Level | None, wait_s: float) -> ServerFacts:
    """What a server takes and gives.

    Args:
        client: talks to the server.
        model: the name of the model; None takes the only one that is served.
        level: what is wanted; None takes the best that there is.
        wait_s: how long to wait for a server that is not there yet.

    Raises:
        BackendError: the server cannot be reached, refuses the key, or does not speak OpenAI.
        InputError: it does not serve the model, or does not have the level.
    """
    cards = await _cards(client, model, wait_s)
    facts = ServerFacts(model) if cards is None and model else await _named(client, cards or [], model)
    if level == "text":
        return facts
    found = await _sampled(client, facts)
    if found is None:
        if level == "tokens":
            raise InputError(
                f"the server at {client.address.api} does not take and give token ids at /completions; expected vLLM, or "
                "SGLang from August 2026 on: leave level out to use its chat route, which gives text alone"
            )
        return facts
    facts.level = "tokens"
    facts.logprobs = found
    facts.version = version_in(await _quietly(client, client.address.root + "/weight_info"))
    return facts


async def _cards(client: Client, model: str | None, wait_s: float) -> list[dict[str, Any]] | None:
    """What `/v1/models` lists; None if the server cannot tell, and the model is named."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        try:
            listed = await client.get(client.address.api + "/models")
            break
        except TroubleError as error:
            if loop.time() >= until:
                if (
                    error.answered and model is not None
                ):  # `transformers serve` fails here if the Hugging Face cache does not exist
                    return None
                raise BackendError(str(error)) from error
            await asyncio.sleep(_AGAIN_S)
    if listed is None and model is not None:
        return None  # some services do not have the path
    cards = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(cards, list):
        raise BackendError(
            f"{client.address.api}/models does not list any models; expected a server that speaks OpenAI: check base_url"
        )
    return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]


async def _named(client: Client, cards: list[dict[str, Any]], model: str | None) -> ServerFacts:
    """What the list says of the model."""
    where, names = client.address.api, [card["id"] for card in cards]
    if model is None:
        bases = [card for card in cards if not card.get("parent")]  # not an adapter
        if len(bases) != 1:
            raise InputError(
                f"{where} serves {', '.join(names[:8]) or 'no model'}; name one of them as model"
            )
        card = bases[0]
    else:
        found = [card for card in cards if model in {card["id"], card.get("root")}]
        if not found:
            return await _unlisted(client, model, names)
        card = found[0]
    root, context = card.get("root"), card.get("max_model_len")
    return ServerFacts(
        card["id"],
        root if isinstance(root, str) else None,
        context if type(context) is int and context > 0 else None,
    )


async def _unlisted(client: Client, model: str, names: list[str]) -> ServerFacts:
    """Ask a model that is not in the list for a token: `transformers serve` lists its cache, and loads any folder that it is asked for.

    Raises:
        InputError: it does not answer.
    """
    facts = ServerFacts(model)
    sampling = Sampling(max_tokens=1, seed=1)
    said = ""
    for _ in range(ADAPTATIONS):
        body = chat_body(facts, [{"role": "user", "content": "Hello"}], (), sampling)
        try:
            pieces = [piece async for piece in client.pieces("/chat/completions", body)]
            said = next((piece.error for piece in pieces if piece.error is not None), "")
            if not said:
                return facts
            break
        except RollcastError as error:
            said = str(error)
            if not isinstance(error, InputError) or adapted(facts, body, said) is None:
                break
    raise InputError(
        f"{client.address.api} does not serve the model {model!r}; it serves {', '.join(names[:8]) or 'none'}, and asked for "
        f"{model!r} it says: {said}"
    )


async def _sampled(client: Client, facts: ServerFacts) -> Logprobs | None:
    """Sample a few tokens with ids, and tell what their log-probabilities are of; None if there are no ids."""
    sampling = Sampling(temperature=1.0, top_k=1, max_tokens=_TOKENS, seed=1)
    asked = msgspec.structs.replace(facts, logprobs="processed")  # what is refused is noted in both
    found: list[Piece] = []
    breaks = 0
    for _ in range(ADAPTATIONS + _BREAKS):
        body = completion_body(asked, _PROMPT, sampling, _TOKENS, [])
        body.pop("stop_token_ids", None)
        try:
            found = [piece async for piece in client.pieces("/completions", body)]
            break
        except InputError as error:
            if "logprobs" in str(error) and "logprobs" in body:
                asked.logprobs = "none"
            elif adapted(asked, body, str(error)) is None:
                return None
        except TroubleError as error:
            breaks += 1
            if breaks > _BREAKS:
                if not error.answered:
                    raise BackendError(str(error)) from error
                logger.warning("%s: the server fails if it gets token ids, so its chat route is used", error)
                return None
            await asyncio.sleep(error.wait_s(breaks))
        except NoSuchPathError:
            return None
    ids = [token for piece in found for token in piece.token_ids or ()]
    values = [value for piece in found for value in piece.logprobs or ()]
    if not ids or any(piece.error for piece in found):
        return None
    if len(values) != len(ids):
        return "none"
    return "plain" if any(values) else "processed"


async def _quietly(client: Client, url: str) -> Any:
    try:
        return await client.get(url)
    except RollcastError:
        return None  # not every engine has the path
