"""How fast records are read: lists, chains and replays."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import msgspec
from msgspec.structs import replace

from benchmarks.measure import Figure, figure
from rollcast import (
    ConsoleStreamObserver,
    JSONStreamObserver,
    StreamEvent,
    StreamEventType,
    StreamObserver,
)
from rollcast.archive import Archive, list_records
from rollcast.archive.format import ChainRow, RunFile, index_name
from rollcast.archive.line_log import LineLog
from rollcast.archive.segments import index_bytes, read_index, segments_in
from rollcast.archive.skeleton import Skeleton
from rollcast.records import encode_lines
from rollcast.stream.playback import Playback

__all__ = ["run"]

RUN = "01a22362-9796-7bd9-b031-b70bcfaca05b"

T = StreamEventType


def run(quick: bool) -> list[Figure]:
    """A record of 10⁵ chains, one of 10⁷ events, and a directory of 1,000 records."""
    with tempfile.TemporaryDirectory(prefix="rollcast-archive-") as folder:
        root = Path(folder)
        return [
            *_read(root / "large", 200 if quick else 100_000),
            *_replayed(root / "replayed", 50 if quick else 10_000),
            *_read_long(root / "large", root / "long", 5_000 if quick else 10_000_000),
            *_listed(root / "many", 10 if quick else 1000),
        ]


# -- read ------------------------------------------------------------------------------------------------------------------


def _read(path: Path, chains: int) -> Iterator[Figure]:
    _large(path, chains)
    archive = Archive.open(path)
    length = archive.length
    rng = random.Random(0)

    def first_event() -> None:
        next(Archive.open(path).events(rng.randrange(length)))

    def one_chain() -> None:
        list(Archive.open(path).events_of(f"chain_{rng.randrange(chains)}"))

    yield figure(
        f"archive: the first of {length:,} events from any cursor",
        _milliseconds(first_event, 41),
        "ms",
        "<= 50",
    )
    yield figure(
        f"archive: one of {chains:,} chains, its story", _milliseconds(one_chain, 21), "ms", "<= 200"
    )
    best = _milliseconds(lambda: archive.chains(sort="-reward", limit=20), 3)
    yield figure(f"archive: the best 20 of {chains:,} chains", best, "ms")
    began = time.process_time()
    count = sum(1 for _ in archive.events())
    rate = count / (time.process_time() - began)
    yield figure("archive: all events flat out, a CPU second", rate, "events/s", ">= 200000")


def _replayed(path: Path, chains: int) -> Iterator[Figure]:
    """All events of a record as fast as possible, as `rollcast replay --speed max` gives them to its observers."""
    _large(path, chains)
    length = Archive.open(path).length

    class Counting(StreamObserver):
        events = 0

        async def on_event(self, event: StreamEvent) -> None:
            raise AssertionError("it takes batches")

        async def on_batch(self, events: list[StreamEvent]) -> None:
            self.events += len(events)

    def copied(file: TextIO) -> None:
        for found in Archive.open(path).events().new_lines():
            if found is not None:
                file.write(found[0].decode() + "\n")

    def console(file: TextIO, hints: bool) -> StreamObserver:
        return ConsoleStreamObserver(file=file, hints=hints)

    observers: dict[str, Callable[[TextIO], StreamObserver]] = {
        "counted": lambda _file: Counting(),
        "written as JSON lines": lambda _file: JSONStreamObserver(os.devnull),
        "printed, without hints": lambda file: console(file, hints=False),
        "printed": lambda file: console(file, hints=True),
    }
    with Path(os.devnull).open("w") as file:
        began = time.process_time()
        copied(file)
        rate = length / (time.process_time() - began)
        yield figure(
            "archive: reference: every line read, decoded and written, a CPU second", rate, "events/s"
        )
        for name, make in observers.items():
            began = time.process_time()
            asyncio.run(Playback([make(file)]).play(Archive.open(path).events(), lambda: None))
            rate = length / (time.process_time() - began)
            target = ">= 200000" if name in {"counted", "printed"} else None
            yield figure(f"archive: a replay flat out, {name}, a CPU second", rate, "events/s", target)


def _read_long(large: Path, path: Path, events: int) -> Iterator[Figure]:
    """A record of at least so many events: the segments of the large one, again and again."""
    (path / "events").mkdir(parents=True)
    (path / "run.json").write_bytes((large / "run.json").read_bytes())
    first = 0
    for segment in itertools.cycle(segments_in(large / "events")):
        index = read_index(segment)
        if first >= events or index is None:
            break
        by = first - index.first
        frames = [replace(frame, first=frame.first + by, last=frame.last + by) for frame in index.frames]
        moved = replace(index, first=first, last=index.last + by, frames=frames)
        (path / "events" / segment.path.name.replace(f"{index.first:012}", f"{first:012}")).hardlink_to(
            segment.path
        )
        (path / "events" / index_name(first)).write_bytes(index_bytes(moved))
        first = moved.last + 1
    rng = random.Random(0)
    found = _milliseconds(lambda: next(Archive.open(path).events(rng.randrange(first))), 41)
    yield figure(f"archive: the first of {first:,} events from any cursor", found, "ms", "<= 50")


def _large(path: Path, chains: int) -> None:
    """A record of so many chains of eight events each, one after another."""
    path.mkdir(parents=True)
    (path / "run.json").write_bytes(msgspec.json.encode(RunFile(id="large", status="completed")))
    log, skeleton = LineLog(path / "events"), Skeleton()
    with (path / "chains.jsonl").open("wb") as rows:
        for number in range(0, chains, 100):
            events = [event for n in range(number, min(number + 100, chains)) for event in _chain(n)]
            first = log.position
            log.append(encode_lines(events), len(events))
            for position, event in enumerate(events, first):
                skeleton.feed(event, position)
            rows.write(b"".join(_line(row) for row in skeleton.take_rows()))
    log.close()


def _line(row: ChainRow) -> bytes:
    return msgspec.json.encode(row) + b"\n"


def _chain(number: int) -> list[StreamEvent]:
    call = {"call_id": "call_0", "tool_name": "look"}
    said = {"content": "a generation of some length " * 5, "finish_reason": "tool_call", "prompt_tokens": 3}
    data = [
        (T.CHAIN_START, {"messages": [{"role": "user", "content": f"question {number}"}], "tools": ["look"], "index": 0, "policy_version": 0}),
        (T.LLM_GENERATION_START, {"prompt_tokens": 3, "model": "m", "policy_version": 0, "sampling": {}}),
        (T.LLM_GENERATION_END, said | {"completion_tokens": 30, "ttft_s": 0.1, "duration_s": 0.4}),
        (T.TOOL_CALL_START, call | {"arguments": {"at": number}}),
        (T.TOOL_OBSERVATION, call | {"observation": "seen", "status": "success", "partial": False}),
        (T.TOOL_CALL_END, call | {"status": "success", "duration_s": 0.1}),
        (T.REWARD, {"reward": number % 7 / 7, "metrics": {}}),
        (T.CHAIN_END, {"finish_reason": "answered", "final_response": "so", "steps": 1, "completion_tokens": 30, "reward": number % 7 / 7, "metrics": {}, "duration_s": 1.0}),
    ]  # fmt: skip
    return [
        StreamEvent(
            kind, f"chain_{number}", 1e9 + number, payload, 1, 1, number * 8 + i, RUN, f"group_{number % 100}"
        )
        for i, (kind, payload) in enumerate(data)
    ]


def _listed(path: Path, records: int) -> Iterator[Figure]:
    for number in range(records):
        folder = path / f"20261128-{number:04d}-guess-aaaa"
        folder.mkdir(parents=True)
        facts = RunFile(id="a", name="guess", status="completed", settings={"chains": 8, "steps": [1, 2, 3]})
        (folder / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
    yield figure(
        f"archive: a list of {records:,} records",
        _milliseconds(lambda: list_records(path), 7),
        "ms",
        "<= 300",
    )


def _milliseconds(work: Callable[[], object], times: int) -> list[float]:
    """Wall-clock of each call."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1e3)
    return found
