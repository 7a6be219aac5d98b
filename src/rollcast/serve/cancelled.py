"""The answer to a `cancel` frame."""

from __future__ import annotations

import logging

import msgspec

from rollcast.errors import InputError
from rollcast.failures import text_and_place
from rollcast.serve.protocol import Cancel, CancelRun, Done, ErrorCode, ErrorFrame
from rollcast.serve.runs import fitting_names
from rollcast.stream import StreamingManager
from rollcast.stream.cancelling import Cancelled, cancel

__all__ = ["answer_to_cancel", "done_of"]

logger = logging.getLogger("rollcast.serve")


def answer_to_cancel(asked: Cancel, manager: StreamingManager | None) -> Done | ErrorFrame:
    """Cancel what is asked for, and say what becomes of it.

    Args:
        asked: by a hub.
        manager: that has the run; None: no manager has it open.
    """
    if manager is None:
        return ErrorFrame(ErrorCode.NOT_FOUND, f"no run {asked.run_id!r} is open", asked.id)
    try:
        cancelled = cancel(manager.fanout, asked.run_id, asked.chain_id, asked.group_id)
    except InputError as error:
        return ErrorFrame(ErrorCode.NOT_FOUND, str(error), asked.id)
    except Exception as error:  # `on_cancel` is the code of whoever made the run
        logger.exception("run %s could not be cancelled", asked.run_id)
        return ErrorFrame(
            ErrorCode.UNAVAILABLE, f"the run could not be cancelled: {text_and_place(error)}", asked.id
        )
    return done_of(asked, cancelled)


def done_of(asked: Cancel | CancelRun, cancelled: Cancelled) -> Done:
    """What became of the chains."""
    done = Done(asked.id, asked.run_id, asked.chain_id, group_id=asked.group_id)
    if asked.chain_id is not None:
        return done
    return msgspec.structs.replace(
        done,
        chains=fitting_names(cancelled.ending),
        ending=len(cancelled.ending),
        not_begun=len(cancelled.not_begun),
        over=cancelled.over,
    )
