"""Filters say which events a reader wants. Events that they leave out are not even made for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rollcast.errors import FilterError
from rollcast.records.event import StreamEvent, StreamEventType

__all__ = ["EventFilter"]

Names = str | Iterable[str] | None
_FIELDS = ("runs", "chains", "groups", "types", "sources")  # of the JSON form


@dataclass(frozen=True, init=False)
class EventFilter:
    """A set of events: those whose run, chain, group, type and source are all among the named ones.

    `None` means all. A single name need not be in a list. `a & b` wants what both want, `a | b` what either wants.
    An event about the run as a whole (`chain_id == ""`) does not pass a filter that names chains or groups.

    Args:
        runs: run ids.
        chains: chain ids, `chain_0 …`.
        groups: group ids, `group_0 …`.
        types: `StreamEventType` members or their values.
        sources: the processes that emitted them, as `StreamEvent.source` names them.
        ids: each `llm_generation_end` also has the token ids and log-probabilities of the generation, for observers of this
            process; over a connection there is no such thing. It does not change which events pass.

    Raises:
        FilterError: a type does not exist, or a name is not a string.
    """

    runs: frozenset[str] | None
    chains: frozenset[str] | None
    groups: frozenset[str] | None
    types: frozenset[StreamEventType] | None
    sources: frozenset[str] | None
    ids: bool
    others: tuple[EventFilter, ...] = field(default=(), repr=False)

    def __init__(
        self,
        runs: Names = None,
        chains: Names = None,
        groups: Names = None,
        types: Names = None,
        *,
        sources: Names = None,
        ids: bool = False,
    ) -> None:
        set_ = object.__setattr__
        set_(self, "runs", _names("runs", runs))
        set_(self, "chains", _names("chains", chains))
        set_(self, "groups", _names("groups", groups))
        names = _names("types", types)
        set_(self, "types", None if names is None else frozenset(map(_event_type, names)))
        set_(self, "sources", _names("sources", sources))
        set_(self, "ids", ids)
        set_(self, "others", ())

    @classmethod
    def coerce(cls, value: EventFilter | Names) -> EventFilter:
        """Make a filter from a `chain_filter` argument: a filter, a chain id, several, or None for everything.

        Raises:
            FilterError: it is not one of these.
        """
        return value if isinstance(value, EventFilter) else cls(chains=value)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> EventFilter:
        """Make a filter from `{"runs": …, "chains": …, "groups": …, "types": …, "sources": …}`; an absent key means all.

        Raises:
            FilterError: a key or a type does not exist.
        """
        unknown = sorted(set(value) - set(_FIELDS))
        if unknown:
            raise FilterError(
                f"a filter has no field {unknown[0]!r}; its fields are runs, chains, groups, types and sources"
            )
        return cls(**value)

    def to_dict(self) -> dict[str, list[str]]:
        """The JSON form; fields that want all are absent.

        Raises:
            FilterError: this is a union (`|`), or asks for `ids`: neither has such a form.
        """
        if self.others:
            raise FilterError("a union of filters has no JSON form; send its parts one by one")
        if self.ids:
            raise FilterError(
                "a filter with ids=True has no JSON form; ids are for observers of the same process"
            )
        named = {name: getattr(self, name) for name in _FIELDS}
        return {name: sorted(value) for name, value in named.items() if value is not None}

    @property
    def alternatives(self) -> tuple[EventFilter, ...]:
        """The simple filters that this is the union of; only itself if it is simple."""
        return (self, *self.others) if self.others else (self,)

    def matches(self, event: StreamEvent) -> bool:
        """Whether the event passes."""
        return self.wants(event.event_type, event.chain_id, event.group_id, event.run_id, event.source)

    def wants(
        self,
        event_type: StreamEventType,
        chain_id: str = "",
        group_id: str | None = None,
        run_id: str = "",
        source: str = "",
    ) -> bool:
        """Whether an event of this type and place would pass."""
        return (
            (self.types is None or event_type in self.types)
            and (self.chains is None or chain_id in self.chains)
            and (self.groups is None or group_id in self.groups)
            and (self.runs is None or run_id in self.runs)
            and (self.sources is None or source in self.sources)
        ) or any(other.wants(event_type, chain_id, group_id, run_id, source) for other in self.others)

    def matches_chain(
        self, chain_id: str, group_id: str | None, run_id: str, source: str | None = None
    ) -> bool:
        """Whether events of this chain could pass, whatever their types. A `source` of None may be any."""
        return any(_names_chain(a, chain_id, group_id, run_id, source) for a in self.alternatives)

    def wants_snapshot(
        self, chain_id: str, group_id: str | None, run_id: str, source: str | None = None
    ) -> bool:
        """Whether a reader with this filter needs the chain's state, since it wants its tokens or snapshots."""
        kinds = {StreamEventType.CHAIN_SNAPSHOT, StreamEventType.LLM_GENERATION_CHUNK}
        return any(
            _names_chain(a, chain_id, group_id, run_id, source) and (a.types is None or a.types & kinds)
            for a in self.alternatives
        )

    def wants_ids(self, chain_id: str, group_id: str | None, run_id: str, source: str | None = None) -> bool:
        """Whether the ends of this chain's generations are to have their token ids and log-probabilities."""
        return any(a.ids and _names_chain(a, chain_id, group_id, run_id, source) for a in self.alternatives)

    def wants_gap(self, run_id: str, source: str = "") -> bool:
        """Whether a `gap` in this run may stand for events that pass, whatever types and chains the filter names.

        A gap without a source may stand for events of any.
        """
        return any(
            (a.runs is None or run_id in a.runs) and (a.sources is None or not source or source in a.sources)
            for a in self.alternatives
        )

    def __and__(self, other: EventFilter) -> EventFilter:
        return _union(tuple(_both(a, b) for a in self.alternatives for b in other.alternatives))

    def __or__(self, other: EventFilter) -> EventFilter:
        return _union(self.alternatives + other.alternatives)


def _names_chain(
    a: EventFilter, chain_id: str, group_id: str | None, run_id: str, source: str | None
) -> bool:
    """Whether this alternative, without the others of its union, lets events of the chain pass as far as its place goes."""
    return (
        (a.chains is None or chain_id in a.chains)
        and (a.groups is None or group_id in a.groups)
        and (a.runs is None or run_id in a.runs)
        and (a.sources is None or source is None or source in a.sources)
    )


def _both(a: EventFilter, b: EventFilter) -> EventFilter:
    def narrow(x: frozenset[Any] | None, y: frozenset[Any] | None) -> frozenset[Any] | None:
        return y if x is None else x if y is None else x & y

    return EventFilter(
        narrow(a.runs, b.runs),
        narrow(a.chains, b.chains),
        narrow(a.groups, b.groups),
        narrow(a.types, b.types),
        sources=narrow(a.sources, b.sources),
        ids=a.ids or b.ids,
    )


def _union(parts: tuple[EventFilter, ...]) -> EventFilter:
    first, *rest = _joined(parts)
    union = EventFilter(
        first.runs, first.chains, first.groups, first.types, sources=first.sources, ids=first.ids
    )
    object.__setattr__(union, "others", tuple(rest))
    return union


def _joined(parts: tuple[EventFilter, ...]) -> list[EventFilter]:
    """The parts; those that differ only in the chains that they name are joined into one."""
    chains: dict[tuple[Any, ...], frozenset[str] | None] = {}
    for part in parts:
        key = (part.runs, part.groups, part.types, part.sources, part.ids)
        if key in chains:
            known = chains[key]
            chains[key] = None if known is None or part.chains is None else known | part.chains
        else:
            chains[key] = part.chains
    return [
        EventFilter(runs, named, groups, types, sources=sources, ids=ids)
        for (runs, groups, types, sources, ids), named in chains.items()
    ]


def _names(field_name: str, value: Names) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset((value,))
    try:
        names = frozenset(value)
    except TypeError:
        names = frozenset((value,))  # type: ignore[arg-type]  # refused below, with its name
    for name in names:
        if not isinstance(name, str):
            raise FilterError(
                f"{field_name} of a filter takes names, found {name!r}; give a string, several, or None for all"
            )
    return names


def _event_type(name: str) -> StreamEventType:
    try:
        return StreamEventType(name)
    except ValueError:
        known = ", ".join(t.value for t in StreamEventType)
        raise FilterError(f"there is no event type {str(name)!r}; the types are: {known}") from None
