"""Brings new weights to a server, and verifies that they arrived. Everything here runs in the client's loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rollcast.errors import BackendError, InputError, RollcastError
from rollcast.models.backend import Sampling
from rollcast.models.checksums import check_folder
from rollcast.models.openai.bodies import completion_body
from rollcast.models.openai.client import Client
from rollcast.models.vllm.verify import reference_logprobs

__all__ = ["Sync"]

_PROMPT = [1, 2, 3]
_TOKENS = 32
_LEAST_ERROR = 2e-4  # that float32 on both sides leaves; for other types it is measured
_MARGIN = 4.0  # a later checkpoint may round a little worse than the first
_USELESS = 1.0  # two implementations that differ by more, in nats per token, do not compute the same function


class Sync:
    """Brings weights to a server, one after the other.

    Args:
        client: talks to the server.
        controls: the bases of the engines' own paths; every engine gets the weights.
        folder: the folder of the model that the server was started with; None if it is not known.
        verify: compare what arrived with a reference.
    """

    def __init__(self, client: Client, controls: list[str], folder: Path | None, *, verify: bool) -> None:
        self._client = client
        self._controls = controls
        self._folder = folder
        self._verify = verify
        self._error: float | None = None
        self._lock = asyncio.Lock()

    async def update(self, weights: Any, version: int) -> None:
        """See `OpenAIBackend.update_weights`."""
        async with self._lock:
            folder = await asyncio.to_thread(self._checked, weights)
            if self._verify and self._error is None:
                assert self._folder is not None
                self._error = await self._difference(self._folder, _LEAST_ERROR)
                if not self._error <= _USELESS:
                    raise BackendError(
                        f"the server and transformers differ by {self._error:.2g} nats per token on the weights that the server "
                        "was started with, so that new weights cannot be verified; give verify_weights=False if you check "
                        "them yourself"
                    )
            await self._load(folder, version)
            if self._verify:
                await self._judge(Path(folder), version)
            self._client.fail_all(None)

    def _checked(self, weights: Any) -> str:
        if not isinstance(weights, str | Path):
            raise InputError(
                f"weights is {type(weights).__name__}; expected the path of a folder that the server can read"
            )
        if not self._verify:
            return str(weights)
        if self._folder is None or self._client.facts.logprobs == "none":
            raise InputError(
                "new weights cannot be verified, since the server gives no token ids with log-probabilities; give "
                "verify_weights=False if you check them yourself"
            )
        if not Path(weights).is_dir():
            raise InputError(
                f"there is no folder {weights} here, so the weights cannot be verified; if only the server sees it, give "
                "verify_weights=False"
            )
        check_folder(Path(weights))
        return str(Path(weights).resolve())

    async def _load(self, folder: str, version: int) -> None:
        """Pause, load and resume every engine. What runs is frozen, and goes on with keys and values computed anew."""
        client = self._client
        kind = await self._kind()
        client.hold()
        try:
            if kind == "vllm":
                await self._everywhere("/pause?mode=keep&clear_cache=true", None)
            else:
                await self._everywhere("/pause_generation", {"mode": "retract"})
            await client.settled()
            try:
                if kind == "vllm":
                    kwargs = {"weights_path": folder}
                    await self._everywhere("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
                    await self._everywhere("/update_weight_version", {"new_version": str(version)})
                else:
                    given = {"model_path": folder, "weight_version": str(version), "flush_cache": True}
                    await self._everywhere("/update_weights_from_disk", given)
                client.version = version
            finally:
                await self._everywhere("/resume" if kind == "vllm" else "/continue_generation", None)
        except RollcastError as error:
            failure = BackendError(
                f"the server could not load the weights of version {version} ({error}); it may now have parts of both: give it "
                "a whole checkpoint of this model, or start it anew"
            )
            client.fail_all(failure)
            raise failure from error
        finally:
            client.go_on()

    async def _kind(self) -> str:
        """Which engine's paths there are."""
        base = self._controls[0]
        if await self._client.get(base + "/is_paused") is not None:
            return "vllm"
        if await self._client.get(base + "/get_model_info") is not None:
            return "sglang"
        raise InputError(
            f"{base} has no path for new weights; start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, or give "
            "control_url if they are at another address"
        )

    async def _everywhere(self, path: str, body: Any) -> None:
        """Post to every engine.

        Raises:
            BackendError: one has no such path, or failed.
        """
        answers = await asyncio.gather(*(self._client.post(base + path, body) for base in self._controls))
        for base, answer in zip(self._controls, answers, strict=True):
            if answer is None:
                raise BackendError(f"{base} has no {path.partition('?')[0]}")
            if isinstance(answer, dict) and answer.get("success") is False:
                raise BackendError(f"{base}{path} failed: {answer.get('message')}")

    async def _judge(self, folder: Path, version: int) -> None:
        assert self._error is not None
        limit = max(_LEAST_ERROR, _MARGIN * self._error)
        error = await self._difference(folder, limit)
        if error <= limit:
            return
        failure = BackendError(
            f"the server took the weights of version {version} without an error, but its log-probabilities are not those of "
            f"the checkpoint: they are off by {error:.2g} nats per token, expected at most {limit:.2g}. On a CPU vLLM keeps "
            "the old output layer of a model with tied embeddings: untie them (tie_word_embeddings=false, with an "
            "lm_head.weight of its own), or start a server with the new checkpoint"
        )
        self._client.fail_all(failure)
        raise failure

    async def _difference(self, folder: Path, limit: float) -> float:
        """How far the log-probabilities of some sampled tokens are from the reference's, in nats per token.

        The server may have rounded the weights to the type that the checkpoint's configuration names, or not: if the first is
        off by more than the limit, the second is compared.
        """
        sampling = Sampling(max_tokens=_TOKENS, seed=1)
        body = completion_body(self._client.facts, _PROMPT, sampling, _TOKENS, [])
        body["ignore_eos"] = True
        ids: list[int] = []
        found: list[float] = []
        async for piece in self._client.pieces("/completions", body):
            ids += piece.token_ids or ()
            found += piece.logprobs or ()
        if not ids or len(found) != len(ids):
            raise BackendError(f"the server gave {len(ids)} token ids and {len(found)} log-probabilities")
        error = float("inf")
        for dtype in ("auto", "float32"):
            expected = await asyncio.to_thread(reference_logprobs, folder, dtype, [*_PROMPT, *ids])
            off = sum(abs(a - b) for a, b in zip(found, expected[-len(ids) :], strict=True)) / len(ids)
            error = min(error, off)
            if error <= limit:
                break
        return error
