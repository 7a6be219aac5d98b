"""A model on a server that speaks OpenAI: vLLM, SGLang, llama.cpp, `transformers serve`, a hosted one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.models.openai.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]


def __getattr__(name: str) -> Any:
    # aiohttp, an extra, is loaded when the backend is asked for.
    if name == "OpenAIBackend":
        from rollcast.models.openai.backend import OpenAIBackend  # noqa: PLC0415  (lazy, see above)

        return OpenAIBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
