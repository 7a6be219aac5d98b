"""Whose tokens the watchers of a hub want: what producers are told, so that they send no others. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rollcast.records import EventFilter, StreamEventType
from rollcast.serve.protocol import FilterFrame

__all__ = ["interest_of"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
MOST_NAMES = 16_384  # in all filters together; with more, everything is wanted, which costs less to check
NAMES_IN_ONE = 1024  # as many as a filter of the protocol may have
EVERYTHING = [FilterFrame()]

_Where = tuple[frozenset[str] | None, frozenset[str] | None]  # runs and groups


def interest_of(filters: Iterable[EventFilter]) -> list[FilterFrame]:
    """The filters of an `interest` frame, which lets a token pass if one of these filters wants it; empty if none wants tokens.

    Filters that differ only in their chains become one, and the order depends on nothing but what is wanted.
    """
    chains: dict[_Where, frozenset[str] | None] = {}
    for wanted in filters:
        for part in wanted.alternatives:
            if part.types is not None and CHUNK not in part.types:
                continue
            where = (part.runs, part.groups)
            known = chains.get(where, frozenset())
            chains[where] = None if known is None or part.chains is None else known | part.chains
    if chains.get((None, None), frozenset()) is None:
        return EVERYTHING
    names = sum(len(each or ()) for where, named in chains.items() for each in (*where, named))
    if names > MOST_NAMES:
        return EVERYTHING
    frames = [frame for (runs, groups), named in chains.items() for frame in _frames(runs, groups, named)]
    return sorted(frames, key=lambda frame: (frame.runs or [], frame.groups or [], frame.chains or []))


def _frames(
    runs: frozenset[str] | None, groups: frozenset[str] | None, chains: frozenset[str] | None
) -> Iterable[FilterFrame]:
    """One filter, or as many as it takes for no list of names to be too long."""
    for some_runs in _portions(runs):
        for some_groups in _portions(groups):
            for some_chains in _portions(chains):
                yield FilterFrame(some_runs, some_chains, some_groups)


def _portions(names: frozenset[str] | None) -> list[list[str] | None]:
    if names is None:
        return [None]
    known = sorted(names)
    return [known[i : i + NAMES_IN_ONE] for i in range(0, len(known), NAMES_IN_ONE)]
