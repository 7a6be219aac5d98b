"""The run that the processes of one training share: each is a source of it.

The first process says the run's id in the store that torch.distributed has for such things; the others read it there. Nobody waits in
the training's own thread, and no collective operation is added to it, since one process that does not attach would hold up all others.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
import uuid
from typing import Any

from rollcast.stream.processes import SharedRun
from rollcast.stream.run import new_run_id

__all__ = ["SharedTraining", "id_of_batch"]

logger = logging.getLogger("rollcast.attach")

WAIT_S = 20.0  # for what the first process says
_POLL_S = 0.02

_attachments = itertools.count()


class SharedTraining:
    """Agrees with the other processes on the id of each training. All processes attach in the same order.

    Args:
        first: whether this is the first process.
        store: a store of torch.distributed; None if the process has no process group.
    """

    def __init__(self, first: bool, store: Any) -> None:
        self._first = first
        self._store = store
        self._attachment = next(_attachments)
        self._trainings = itertools.count()

    def next_id(self) -> str:
        """The id of the next training: what `ROLLCAST_RUN_ID` says, or the first process. It is called on the watch's thread."""
        given = SharedRun.take()
        if given is not None:
            return given
        key = f"rollcast/attach/{self._attachment}/{next(self._trainings)}"
        if self._first:
            own = new_run_id()
            self._say(key, own)
            return own
        return self._heard(key) or self._alone()

    def _say(self, key: str, run_id: str) -> None:
        try:
            if self._store is not None:
                self._store.set(key, run_id)
        except RuntimeError as error:  # the store is gone, as at the end of the training
            logger.debug("the other processes are not told of the run: %s", error)

    def _heard(self, key: str) -> str | None:
        give_up = time.monotonic() + WAIT_S
        try:
            while self._store is not None and time.monotonic() < give_up:
                if self._store.check([key]):
                    return bytes(self._store.get(key)).decode()
                time.sleep(_POLL_S)
        except RuntimeError as error:  # as above
            logger.debug("the first process's run is not known: %s", error)
        return None

    def _alone(self) -> str:
        logger.warning(
            "the first process of this training says no run, so what is seen here is a run of its own; attach in every process, "
            "or set ROLLCAST_RUN_ID"
        )
        return new_run_id()


def id_of_batch(training: str, number: int) -> str:
    """The id of a training's generation batch, which is the same in every process.

    It sorts after that of the training and of the batches before: a UUIDv7 with the training's time, whose next 26 bits count. If the
    training has a name instead, it is the name with the number.
    """
    try:
        value = uuid.UUID(training)
    except ValueError:
        return f"{training}-{number}"
    rest = int.from_bytes(hashlib.sha256(f"{training}/{number}".encode()).digest()[:6])
    count = number % (1 << 26)
    fields = (
        (value.int >> 80 << 80)
        | (7 << 76)
        | (count >> 14 << 64)
        | (2 << 62)
        | ((count & 0x3FFF) << 48)
        | rest
    )
    return str(uuid.UUID(int=fields))
