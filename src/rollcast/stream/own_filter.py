"""Filters of a class of the user's own, whose code may raise, take long, or never return.

No producer asks one. The fanout sees a filter that wants everything, and whoever calls the reader asks, event by event, before
it hands the event over: so such a filter slows and breaks nobody but its own reader.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple, TypeVar

from rollcast.records import EventFilter, StreamEvent, StreamEventType

__all__ = ["OwnFilter", "guarded"]

F = TypeVar("F")
_OURS = (EventFilter.wants, EventFilter.wants_snapshot)


class _Part(NamedTuple):
    """What all of these filters of the user's want, and the plain one does too."""

    own: tuple[EventFilter, ...]
    limits: EventFilter

    def passes(self, event: StreamEvent) -> bool:
        place = (event.chain_id, event.group_id, event.run_id)
        if event.event_type is StreamEventType.CHAIN_SNAPSHOT:
            return self.limits.wants_snapshot(*place, event.source) and all(
                each.wants_snapshot(*place, *_source_for(each.wants_snapshot, 4, event)) for each in self.own
            )
        return self.limits.wants(event.event_type, *place, event.source) and all(
            each.wants(event.event_type, *place, *_source_for(each.wants, 5, event)) for each in self.own
        )


def _source_for(method: Callable[..., bool], most: int, event: StreamEvent) -> tuple[str, ...]:
    """The event's source if the method takes it as its last argument: one that was written before there were sources does not."""
    if getattr(method, "__func__", None) in _OURS:
        return (event.source,)
    try:
        signature(method).bind(*[None] * most)
    except (TypeError, ValueError):
        return ()
    return (event.source,)


class OwnFilter(EventFilter):
    """Wants whatever its parts may want, as far as the fanout asks; `passes` asks the user's filters.

    Args:
        parts: what one of them lets pass, passes.
    """

    parts: tuple[_Part, ...]

    def __init__(self, *parts: _Part) -> None:
        super().__init__()
        limits = parts[0].limits
        for part in parts[1:]:
            limits = limits | part.limits
        for name in ("runs", "chains", "groups", "types", "sources", "ids", "others"):
            object.__setattr__(self, name, getattr(limits, name))
        object.__setattr__(self, "parts", parts)

    def passes(self, event: StreamEvent) -> bool:
        """Whether the event is to be handed over. Raises whatever the user's code does.

        A `gap` always is: it may stand for events that would be.
        """
        return event.event_type is StreamEventType.GAP or any(part.passes(event) for part in self.parts)

    matches = passes

    def __and__(self, other: EventFilter) -> EventFilter:
        return OwnFilter(
            *(_Part(a.own + b.own, a.limits & b.limits) for a in self.parts for b in _parts_of(other))
        )

    def __or__(self, other: EventFilter) -> EventFilter:
        return OwnFilter(*self.parts, *_parts_of(other))

    def __ror__(self, other: EventFilter) -> EventFilter:
        return OwnFilter(*_parts_of(other), *self.parts)

    __rand__ = __and__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OwnFilter) or len(other.parts) != len(self.parts):
            return False
        return all(
            [*map(id, a.own)] == [*map(id, b.own)] and a.limits == b.limits
            for a, b in zip(self.parts, other.parts, strict=True)
        )

    __hash__ = object.__hash__


def _parts_of(other: EventFilter) -> tuple[_Part, ...]:
    if isinstance(other, OwnFilter):
        return other.parts
    plain = guarded(other)
    return plain.parts if isinstance(plain, OwnFilter) else (_Part((), other),)


def guarded(wanted: F) -> F | OwnFilter:
    """The filter, if it is safe to be asked on a producer's path; else one that is. What is no filter stays what it is."""
    if not isinstance(wanted, EventFilter) or type(wanted) in (EventFilter, OwnFilter):
        return wanted
    return OwnFilter(_Part((wanted,), EventFilter(ids=_may_want_ids(wanted))))


def _may_want_ids(own: EventFilter) -> bool:
    """Whether the filter asks for ids, or its class decides that itself: it then gets them, since its code is not asked."""
    stored = object.__getattribute__(own, "__dict__").get("ids")
    return stored is True or type(own).wants_ids is not EventFilter.wants_ids
