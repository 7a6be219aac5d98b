"""Rows of the chains and training steps that events in memory tell of: what a server has of runs that leave no record. No I/O.

The events may come in portions, so that they can be handed to another process (`readings.PastWanted`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.skeleton import Skeleton
from rollcast.records.codec import decode_unchecked

__all__ = ["PastRows"]

READ = 64  # events that are read before others get their turn


class PastRows:
    """Adds events up to rows.

    Attributes:
        steps: the rows of training steps and evaluations so far.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._skeleton = Skeleton()
        self._merged: dict[tuple[str, str], dict[str, Any]] = {}

    def feed(self, lines: list[bytes]) -> Iterator[None]:
        """Take events, each as its JSON, in the order in which they were emitted. It yields now and then."""
        skeleton = self._skeleton
        for number, line in enumerate(lines, 1):
            skeleton.feed(decode_unchecked(line), -1)
            if number % READ == 0:
                self._take()
                yield
        self._take()

    def _take(self) -> None:
        for row in self._skeleton.take_rows():
            known = self._merged.setdefault((row.run_id, row.chain_id), {})
            merge_row(known, msgspec.to_builtins(row))
        self.steps += self._skeleton.take_train_rows()

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """The merged rows of chains, in the order in which they began; of those that are over only this many, those that began last."""
        is_open = set(self._skeleton.open_chains())
        told: deque[tuple[int, dict[str, Any]]] = deque(maxlen=most)
        running: list[tuple[int, dict[str, Any]]] = []
        for number, (key, row) in enumerate(self._merged.items()):
            if row.get("state") == "running" and key not in is_open:  # its run ended without its end
                row["state"] = "lost"
            if "state" in row:
                (running if row["state"] == "running" else told).append((number, row))
        return [row for _, row in sorted([*told, *running], key=lambda each: each[0])]
