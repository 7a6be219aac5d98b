"""Makes the managers of a process producers of a hub, if `ROLLCAST_HUB` names one.

The producer's side is in `rollcast.serve`, a room above this one, so it is named as text, and loaded only then.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from rollcast.errors import RollcastError

__all__ = ["HUB", "publish_if_asked"]

logger = logging.getLogger("rollcast.stream")

HUB = "ROLLCAST_HUB"
_ATTACH = ("rollcast.serve.hub_observer", "attach")
_told: set[str] = set()


def publish_if_asked(manager: Any) -> bool:
    """Have the manager publish to the hub that the environment names. False if there is none, or it cannot be one; a warning says why, once."""
    url = os.environ.get(HUB)
    if not url or not url.strip():
        return False
    module, attach = _ATTACH
    try:
        getattr(importlib.import_module(module), attach)(manager, url)
    except RollcastError as error:
        sentence = f"{HUB} names no hub, and nothing is published: {error}"
        if sentence not in _told:
            _told.add(sentence)
            logger.warning("%s", sentence)
        return False
    return True
