"""Where the events of a chain go: looked up once, and anew when observers come or go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.records import StreamEventType
from rollcast.stream.delivery import Delivery

if TYPE_CHECKING:
    from rollcast.stream.manager import StreamingManager
    from rollcast.stream.producer import RunStream

__all__ = ["Route", "Targets"]

Targets = tuple[Delivery, ...]


class Route:
    """Where the events of one chain (or of a run as a whole) go.

    `chunk` caches the deliveries that want its tokens: None where that must be looked up anew.
    """

    __slots__ = ("__weakref__", "by_type", "chain_id", "chunk", "group_id", "manager", "run")

    def __init__(
        self, manager: StreamingManager, run: RunStream | None, chain_id: str, group_id: str | None
    ) -> None:
        self.manager = manager
        self.run = run
        self.chain_id = chain_id
        self.group_id = group_id
        self.by_type: dict[StreamEventType, Targets] = {}
        self.chunk: Targets | None = None

    def targets(self, event_type: StreamEventType) -> Targets:
        """The deliveries that want this type. The lock is held."""
        targets = self.by_type.get(event_type)
        if targets is None:
            run_id = self.run.run_id if self.run is not None else ""
            targets = self.manager.interested(event_type, self.chain_id, self.group_id, run_id)
            self.by_type[event_type] = targets
            if event_type is StreamEventType.LLM_GENERATION_CHUNK:
                self.chunk = targets
        return targets

    def forget(self) -> None:
        """Observers came or went."""
        self.by_type.clear()
        self.chunk = None
