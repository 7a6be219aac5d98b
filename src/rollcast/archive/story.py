"""What a record tells of chains: one of them from its start to its end, or what hints need of many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from rollcast.archive.reader import Archive, EventReader
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.view import ChainView
from rollcast.records.view_fields import object_of
from rollcast.records.view_parts import count_of

__all__ = ["Sampled", "Story", "stories_of", "story_of", "views_of"]

T = StreamEventType


class Sampled(msgspec.Struct):
    """The tokens of one generation, as far as the record has them.

    Attributes:
        dt_ms: milliseconds from each token to the next; of another length than one fewer if not all times are known.
        missing: how many tokens the record lacks, as a hub's does of a chain that nobody watched all along.
        arrived_at: timestamp of the latest token.
    """

    token_ids: list[int] = []
    logprobs: list[float] = []
    dt_ms: list[float] = []
    missing: int = 0
    arrived_at: float = 0.0

    def add(self, ids: list[int], logprobs: list[float], dt_ms: list[float], timestamp: float) -> None:
        """Add the tokens of a chunk, the last of which arrived at `timestamp`."""
        if self.token_ids:
            self.dt_ms.append(max(timestamp - self.arrived_at, 0.0) * 1000 - sum(dt_ms))
        self.token_ids += ids
        self.logprobs += logprobs
        self.dt_ms += dt_ms
        self.arrived_at = timestamp


class Story(msgspec.Struct):
    """One chain.

    Attributes:
        row: of it, as `Archive.chain` gives it.
        view: what its events add up to.
        sampled: by the step of each generation.
        reader: which read them, for what is damaged.
        level: what the record keeps.
        sampling: how its latest generation was sampled.
        fields: the fields of its row, besides messages and reference.
        lacks_end: the chain ended, and the events that say how are not in the record; the view has it from the row.
    """

    row: dict[str, Any]
    view: ChainView
    sampled: dict[int, Sampled]
    reader: EventReader
    level: str
    sampling: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    lacks_end: bool = False


def stories_of(archive: Archive, filter: EventFilter, rows: list[dict[str, Any]]) -> Iterator[Story]:
    """The chains that a filter names, in the order in which they ended; then those that have no end.

    All events are read once, and the chains that are open at one time are in memory.
    """
    row_of = {(row["run_id"], row["chain_id"]): row for row in rows}
    reader = archive.events(filter=filter)
    level = archive.facts.level
    open_now: dict[tuple[str, str], tuple[Story, set[int]]] = {}
    for event in reader:
        key = (event.run_id, event.chain_id)
        if event.event_type is T.GAP:
            for (run_id, _), (story, _) in open_now.items():
                if run_id == event.run_id:
                    story.view.apply(event)
        elif key in row_of:
            if key not in open_now:
                open_now[key] = (Story(row_of[key], ChainView(), {}, reader, level), set())
            story, whole = open_now[key]
            _take(story, event, whole)
            if event.event_type is T.CHAIN_END:
                del open_now[key], row_of[key]  # what comes later of it is in its row
                yield story
    for story, _ in open_now.values():
        _complete(story)
        yield story


def story_of(archive: Archive, row: dict[str, Any]) -> Story:
    """The chain of this row, from its events."""
    reader = archive.events_of_row(row)
    story = Story(row, ChainView(), {}, reader, archive.facts.level)
    whole: set[int] = set()  # steps whose end has their ids
    for event in reader:
        _take(story, event, whole)
    _complete(story)
    return story


_OF_THE_END = ("completion_tokens", "duration_s", "ended_at", "final_response", "finish_reason", "metrics", "reward", "steps")  # fmt: skip


def _complete(story: Story) -> None:
    """Take from the row how the chain ended, if the record lacks the events that say so: damaged, or taken out for a budget."""
    if story.row.get("state") != "ended" or story.view.state == "ended":
        return
    story.lacks_end = True
    (told,) = views_of([story.row])
    for name in _OF_THE_END:
        setattr(story.view, name, getattr(told, name))
    story.view.generation_tokens = 0


def _take(story: Story, event: StreamEvent, whole: set[int]) -> None:
    story.view.apply(event)
    _note_tokens(story, event, whole)
    if event.event_type is T.CHAIN_START:
        story.fields = object_of(object_of(event.data).get("row"))
    elif event.event_type is T.LLM_GENERATION_START:
        story.sampling = object_of(object_of(event.data).get("sampling"))


def _note_tokens(story: Story, event: StreamEvent, whole: set[int]) -> None:
    if event.event_type not in (T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END) or event.step is None:
        return
    if event.step in whole:
        return
    data = object_of(event.data)
    ids, logprobs, times = (_numbers(data.get(name)) for name in ("token_ids", "logprobs", "dt_ms"))
    if event.event_type is T.LLM_GENERATION_END and ids:
        whole.add(event.step)
        story.sampled[event.step] = Sampled(ids, logprobs, times)
    elif ids:
        story.sampled.setdefault(event.step, Sampled()).add(ids, logprobs, times, event.timestamp)
    elif event.step in story.sampled:  # the end of a generation whose tokens came in chunks
        sampled = story.sampled[event.step]
        sampled.missing = max((count_of(data.get("completion_tokens")) or 0) - len(sampled.token_ids), 0)


def _numbers(value: Any) -> list[Any]:
    """The list, if it holds nothing but numbers."""
    if not isinstance(value, list) or not all(isinstance(each, int | float) for each in value):
        return []
    return list(value)


def views_of(rows: list[dict[str, Any]]) -> list[ChainView]:
    """What the rows tell of their chains: enough for hints about what is over, without reading an event."""
    return [ChainView.from_dict(_as_view(row)) for row in rows]


def _as_view(row: dict[str, Any]) -> dict[str, Any]:
    state = row.get("state")
    return row | {
        "state": state if state in ("ended", "lost") else "unknown",
        "final_response": row.get("answer"),
        "as_of": -1,
        "times": {},
        "error": None,
    }
