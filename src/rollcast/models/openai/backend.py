"""A model on a server that speaks OpenAI, as a `Backend`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import weakref
from pathlib import Path
from typing import Any

from rollcast.errors import BackendClosedError, InputError, MissingExtraError, RollcastError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.chat import TemplateRenderer
from rollcast.models.checks import check_version
from rollcast.models.engine_backend import InboxBackend, room_for
from rollcast.models.openai.bodies import is_plain
from rollcast.models.openai.client import Client
from rollcast.models.openai.facts import Address, Level
from rollcast.models.openai.generation import ChatGeneration, Generation, TokenGeneration
from rollcast.models.openai.probe import measured
from rollcast.models.openai.sync import Sync
from rollcast.models.text import TokenTexts, token_texts
from rollcast.models.vllm.tokens import end_ids, model_folder, read_tokenizer

__all__ = ["OpenAIBackend"]

logger = logging.getLogger("rollcast.models.openai")

_COLDEST = 0.01  # vLLM silently raises what is below, except 0


class OpenAIBackend(InboxBackend[Generation]):
    """A model on a server that speaks OpenAI.

    At the start the server is tried (docs/backends.md has a table). If its completions route takes and gives token ids, as vLLM's
    and SGLang's do, prompts are rendered and parsed here, and trajectories can be trained on. Otherwise its chat route is
    used: text alone, which cannot. Requests may come from several event loops and threads at once.

    An attempt that fails is repeated, and shown as an `error` event of the chain. With token ids an answer that was cut is
    continued from the prompt and the ids so far; so is one that the server ended for a weight update.

    Args:
        model: the name by which the server knows the model; `default` is the only one that it serves.
        base_url: such as `http://127.0.0.1:8000/v1`; None is the environment's OPENAI_BASE_URL.
        api_key: None is the environment's OPENAI_API_KEY; a server of your own may need none.
        level: `tokens` insists on token ids, `text` on the chat route; None takes ids if the server has them.
        tokenizer: a folder, or a name on the hub, with the model's tokenizer and chat template; None is what the server names.
        context: how many tokens a prompt and its completion may have; None is what the server says.
        retries: how many attempts in a row may fail before a generation does.
        stall_s: seconds without a byte after which an attempt has failed.
        wait_s: seconds to wait at the start for a server that is not there yet.
        control_url: the base of the engine's own paths, for new weights; several if there are several engines behind a
            router. None is the address without `/v1`.
        verify_weights: compare, after each `update_weights`, with a forward pass of transformers on the CPU.
        template_kwargs: variables of the chat template, such as `{"enable_thinking": False}`.

    Raises:
        MissingExtraError: aiohttp is not installed.
        InputError: an option is wrong, the server does not have the model, or its tokenizer is not here.
        BackendError: no server is there, or it refuses the key.
    """

    name = "openai"

    _engine: Client

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        level: Level | None = None,
        tokenizer: str | Path | None = None,
        context: int | None = None,
        retries: int = 6,
        stall_s: float = 600.0,
        wait_s: float = 0.0,
        control_url: str | list[str] | None = None,
        verify_weights: bool = True,
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        address = Address.of(_required(base_url))
        _check_options(level, context, retries, stall_s, wait_s)
        controls = [control_url] if isinstance(control_url, str) else control_url or [address.root]
        client = Client(address, api_key or os.environ.get("OPENAI_API_KEY"), retries, stall_s)
        self._finalizer = weakref.finalize(self, client.close, _closed())
        try:
            wanted = None if model == "default" else model
            client.facts = facts = client.wait_for(measured(client, wanted, level, wait_s))
            client.version = facts.version or 0
            client.follows = facts.version is not None
            self.model_name = facts.model
            self.token_exact = facts.level == "tokens"
            self.logprobs = facts.logprobs != "none"
            self.renderer = None
            self._texts: TokenTexts | None = None
            folder = None
            if self.token_exact:
                folder = _folder(tokenizer, facts.root, facts.model)
                self._read(folder, context or facts.context, template_kwargs)
        except BaseException:
            self._finalizer()
            raise
        super().__init__(client)
        self._said_plain = facts.logprobs != "plain"
        self._sync = Sync(client, [Address.of(url).root for url in controls], folder, verify=verify_weights)

    def _read(self, folder: Path, context: int | None, template_kwargs: dict[str, Any] | None) -> None:
        """Read the tokenizer, the chat template and the sizes."""
        tokenizer = read_tokenizer(folder)
        self._ends = end_ids(folder, tokenizer)
        self.renderer = TemplateRenderer.from_folder(folder, self._ends, **(template_kwargs or {}))
        config = _config(folder)
        self.vocab_size: int = config.get("vocab_size") or tokenizer.get_vocab_size()
        found = context or config.get("max_position_embeddings")
        if found is None:
            raise InputError(
                f"neither the server nor {folder} tells how long a context may be; give context, in tokens"
            )
        self.context: int = found
        self._texts = token_texts(json.loads(tokenizer.to_str()), self.vocab_size)
        self.renderer.max_characters = self.context * max(map(len, self._texts.bytes))

    def _asked(self, request: GenerationRequest) -> tuple[Generation, int | None]:
        if self._texts is None or self.renderer is None:
            return ChatGeneration(request), None
        rendered = request.prompt_ids is None
        prompt_ids = self.renderer.render(request.messages, request.tools) if rendered else request.prompt_ids
        assert prompt_ids is not None
        sampling = request.sampling
        limit = room_for(
            prompt_ids,
            sampling.max_tokens,
            self.vocab_size,
            self.context,
            self.model_name,
            "start the server with a longer one (--max-model-len)",
        )
        self._check(sampling)
        generation = TokenGeneration(prompt_ids, sampling, limit, self._texts, self._ends)
        return generation, len(prompt_ids) if rendered else None

    def _check(self, sampling: Sampling) -> None:
        if 0 < sampling.temperature < _COLDEST:
            raise InputError(
                f"temperature is {sampling.temperature}; expected 0, which is greedy, or {_COLDEST} upward"
            )
        if not self._said_plain and not is_plain(sampling):
            self._said_plain = True
            logger.warning(
                "the server's log-probabilities are not of the distribution that this temperature, top-k or top-p leave, so "
                "they are left out and these trajectories cannot be trained on: sample at temperature 1 without top-k and "
                "top-p, or start vLLM with --logprobs-mode processed_logprobs"
            )

    async def update_weights(self, weights: Any, version: int) -> None:
        """Have the server load a checkpoint; from the next token on, it samples from these weights.

        When this returns, no token is sampled from the old ones any more. Running generations wait, and go on from where
        they are. vLLM has to run with VLLM_SERVER_DEV_MODE=1.

        Args:
            weights: the path of a folder that the server can read, with a checkpoint of the same model.
            version: their number, which every token that they sample carries.

        Raises:
            InputError: it is not such a folder, or the server has no path for new weights.
            BackendClosedError: the backend was closed.
            BackendError: the server could not load them, or samples from something else since. Then running and later
                generations fail, until new weights are verified.
        """
        check_version(version)
        await self._engine.ask(self._sync.update(weights, version))

    async def close(self) -> None:
        """Close the connections. Running and later generations raise BackendClosedError. May be called twice."""
        await asyncio.to_thread(self._finalizer)


def _closed() -> BackendClosedError:
    return BackendClosedError("the openai backend was closed; make another OpenAIBackend to generate")


def _required(base_url: str | None) -> str:
    found = base_url or os.environ.get("OPENAI_BASE_URL")
    if not found:
        raise InputError(
            "the backend 'openai' needs the server's address: give base_url, such as http://127.0.0.1:8000/v1 "
            "(--backend-option base_url=…), or set OPENAI_BASE_URL"
        )
    return found


def _check_options(level: Any, context: Any, retries: Any, stall_s: Any, wait_s: Any) -> None:
    number = (int, float)
    rules = (
        ("level", level, level in {None, "tokens", "text"}, "tokens, text or None"),
        (
            "context",
            context,
            context is None or (type(context) is int and context > 1),
            "a whole number of tokens",
        ),
        ("retries", retries, type(retries) is int and retries >= 0, "a whole number from 0 upward"),
        ("stall_s", stall_s, isinstance(stall_s, number) and stall_s > 0, "seconds above 0"),
        ("wait_s", wait_s, isinstance(wait_s, number) and wait_s >= 0, "seconds from 0 upward"),
    )
    for name, value, holds, expected in rules:
        if not holds:
            raise InputError(f"{name} is {value!r}; expected {expected}")


def _folder(tokenizer: str | Path | None, root: str | None, model: str) -> Path:
    """The folder with the tokenizer and the chat template."""
    given = tokenizer if tokenizer is not None else root if root and Path(root).is_dir() else root or model
    try:
        return model_folder(str(given))
    except ImportError as error:
        raise MissingExtraError("reading a tokenizer from the Hugging Face hub", "transformers") from error
    except RollcastError as error:
        raise InputError(
            f"the server takes token ids, but the tokenizer of {model!r} is not here ({error}); give tokenizer, a folder or "
            "a name on the hub, or level='text' to use the chat route, which gives text alone"
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_bytes())
    text = found.get("text_config")
    return {**found, **(text if isinstance(text, dict) else {})}
