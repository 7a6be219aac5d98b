"""Rollcast's plugin for vLLM: with `ROLLCAST_HUB` in the environment, what an engine samples is published there (docs/attach/vllm.md).

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Without the variable it imports nothing.
"""

import os

__all__ = ["register"]


def register() -> None:
    """Watch the engines of this process if `ROLLCAST_HUB` names a hub. This never raises."""
    if not os.environ.get("ROLLCAST_HUB", "").strip():
        return
    try:
        from rollcast.attaching.vllm_engine import watch_process  # noqa: PLC0415  (only with a hub)

        watch_process()
    except Exception:  # an engine must start whatever is wrong here
        import logging  # noqa: PLC0415

        logging.getLogger("rollcast.attach").exception("Rollcast steps aside from vLLM; its engine goes on")
