"""Gives a user's agent another model, for `rollcast run MODULE:AGENT --model FOLDER`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from rollcast.models import BACKENDS, resolve_backend
from rollcast.rollout import BaseAgent

__all__ = ["give_model"]


def give_model(agent: BaseAgent, model: str, backend: str | None, options: Mapping[str, Any]) -> None:
    """Let the agent sample from another model. Its tools, parser, reward, system prompt and observers stay.

    Args:
        agent: the agent; its own backend is closed, if the agent made it.
        model: a folder, or a name on the Hugging Face hub.
        backend: the backend that runs it; None: the kind that runs the agent's own model.
        options: the backend's options; those of the agent's own backend are not taken over.

    Raises:
        InputError: the model cannot be loaded, or no backend is known for it.
        MissingExtraError: a package that the backend needs is not installed.
    """
    own = agent.backend.name if agent.backend.name in BACKENDS else None
    made = resolve_backend(backend or own, model, options)
    asyncio.run(_close(agent))
    agent.model_name = model
    agent.backend = made
    agent._owns_backend = True  # noqa: SLF001  (the agent closes the new backend)


async def _close(agent: BaseAgent) -> None:
    if agent._owns_backend:  # noqa: SLF001  (a backend that was given to it may be in use elsewhere: by a reward, by another agent)
        await agent.backend.close()
