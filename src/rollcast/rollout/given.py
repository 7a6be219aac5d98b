"""What a chain's tools and reward give it while it is busy, kept until it is between two turns."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from rollcast.errors import InputError
from rollcast.records import Message, validated_messages
from rollcast.records.jsonable import as_json, plain_scalar

__all__ = ["Given", "GivenReward"]


class GivenReward(msgspec.Struct, frozen=True):
    """A reward of a step: a finite number, and numbers beside it."""

    reward: float
    metrics: dict[str, Any]


class Given:
    """Messages and rewards of steps, in the order in which they came. Call it from any thread.

    Attributes:
        closed: whether the chain takes nothing more.
    """

    __slots__ = ("_items", "_lock", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._items: list[Message | GivenReward] = []

    def reward(self, reward: Any, metrics: Mapping[str, Any] | None) -> None:
        """Keep a reward.

        Raises:
            InputError: it is not a finite number, or the chain takes nothing more.
        """
        number = plain_scalar(reward)
        try:
            number = float(number)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"the reward of a step is {type(reward).__name__}; expected a finite number"
            ) from None
        if not math.isfinite(number):
            raise InputError(f"the reward of a step is {number}; expected a finite number")
        self._keep(GivenReward(number, as_json(dict(metrics or {}))))

    def message(self, message: Mapping[str, Any]) -> None:
        """Keep a message.

        Raises:
            MessagesError: it has the wrong shape.
            InputError: the chain takes nothing more.
        """
        (checked,) = validated_messages([message], "the message")
        self._keep(checked)

    def _keep(self, item: Message | GivenReward) -> None:
        with self._lock:
            if self.closed:
                raise InputError(
                    "the chain takes no more messages and rewards of steps: it has ended, or has its own reward"
                )
            self._items.append(item)

    def take(self, *, last: bool = False) -> list[Message | GivenReward]:
        """What came since this was last called; nothing more is taken after the `last` call."""
        with self._lock:
            items, self._items = self._items, []
            self.closed = self.closed or last
            return items
