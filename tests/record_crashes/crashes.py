"""Kill a run or a training at a random moment, recover its record, and check what it promises.

What a watcher outside of the process saw is the measure: an event that it had and the record lacks is lost. The watcher is a
client of the victim's server. Another reader follows the record throughout.
"""

import argparse
import asyncio
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import rollcast
from record_crashes.victim import KINDS, SEED_OF_MOMENTS, kind_of
from rollcast.archive.reader import Archive
from rollcast.archive.recovery import recover
from rollcast.errors import ArchiveError
from rollcast.records import GrammarChecker, StreamEvent
from rollcast.serve import WebSocketStreamingClient

TESTS = Path(__file__).parent.parent
LONGEST_S = {"handmade": 1.5, "agent": 1.5, "training": 4.0}  # from the first event to the kill


class Outcome(NamedTuple):
    """What came of one kill.

    Attributes:
        kind: what was killed.
        seen: events that the watcher had.
        recorded: events of the record before its gaps.
        lost: that the watcher had and the record lacks.
        lost_s: the time that they span, up to the last event that the watcher had.
        broken: promises that were not kept.
    """

    seed: int
    kind: str
    level: str
    seen: int
    recorded: int
    lost: int
    lost_s: float
    broken: list[str]


class Follower(threading.Thread):
    """Follows the record from when it is there until its writer is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.events: list[StreamEvent] = []
        self.damage: list[str] = []
        self.failure: Exception | None = None
        self.give_up = threading.Event()
        self._folder = folder

    def run(self) -> None:
        """See the class."""
        try:
            while not (self._folder / "run.json").exists():
                if self.give_up.wait(0.01):
                    return
            reader = Archive.open(self._folder).follow(poll_s=0.02)
            self.events += reader
            self.damage = [str(each) for each in reader.damage]
        except Exception as error:
            self.failure = error


async def _watch(client: WebSocketStreamingClient, seen: list[StreamEvent], first: asyncio.Event) -> None:
    async for event in client:
        seen.append(event)
        first.set()


async def _killed(folder: Path, seed: int) -> list[StreamEvent]:
    rng = random.Random(seed * SEED_OF_MOMENTS)
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{Path(rollcast.__file__).parent.parent}",
        "PYTHONHASHSEED": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "record_crashes.victim", str(folder), str(seed),
        stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    seen: list[StreamEvent] = []
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        assert address, f"the victim ended by itself: {await process.wait()}"
        client = WebSocketStreamingClient(address, since="start")
        first = asyncio.Event()
        async with client:
            watching = asyncio.create_task(_watch(client, seen, first))
            async with asyncio.timeout(60):
                await first.wait()
            await asyncio.sleep(rng.random() * rng.choice([0.3, LONGEST_S[kind_of(seed)]]))
            assert process.returncode is None, "the victim ended by itself"
            process.send_signal(signal.SIGKILL)
            await process.wait()
            while not client.reconnections:  # until then it reads what was on its way
                await asyncio.sleep(0.005)
                assert not watching.done(), watching.exception()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [event for event in seen if event.event_type not in ("gap", "chain_snapshot")]


def play(seed: int, folder: Path) -> Outcome:
    """One kill, and what is wrong with the record that it left."""
    follower = Follower(folder)
    follower.start()
    seen = asyncio.run(_killed(folder, seed))
    follower.give_up.set()
    follower.join(60)
    kind = kind_of(seed)
    if not (folder / "run.json").exists():  # it was killed before the record began
        return Outcome(seed, kind, "", len(seen), 0, len(seen), _span(seen), [])
    broken: list[str] = []
    before = Archive.open(folder)
    if before.state != "crashed":
        broken.append(f"its state is {before.state} before recovery")
    unrecovered = list(before.events())
    if follower.is_alive() or follower.failure or follower.damage:
        broken.append(f"the follower: alive {follower.is_alive()}, {follower.failure!r}, {follower.damage}")
    elif follower.events != unrecovered:
        broken.append(f"the follower had {len(follower.events)} events, the record has {len(unrecovered)}")
    recover(folder)
    archive = Archive.open(folder)
    files = _files(folder)
    if recover(folder).needed or _files(folder) != files:
        broken.append("doing it twice changed something")
    events = list(archive.events())
    if events[: len(unrecovered)] != unrecovered:
        broken.append("recovery changed what was there")
    broken += _of_the_grammar(events)
    broken += _of_the_gaps(events)
    broken += _of_the_rows(archive, events)
    broken += _of_the_train_rows(archive, events)
    broken += [f"left half-made: {name}" for name in files if name.endswith(".tmp") or name == "open.jsonl"]
    kept = {(e.run_id, e.seq) for e in events if e.event_type not in ("gap", "chain_snapshot")}
    merged = {
        (e.run_id, s)
        for e in events
        for s in range(e.data.get("from_seq", e.seq), e.seq)
        if "content" in e.data
    }
    chunks = archive.facts.level == "tokens" or any(e.event_type == "llm_generation_chunk" for e in events)
    lost = [
        e
        for e in seen
        if (e.run_id, e.seq) not in kept | merged and (chunks or e.event_type != "llm_generation_chunk")
    ]
    broken += _of_what_is_lost(seen, lost)
    level = archive.facts.level
    return Outcome(seed, kind, level, len(seen), len(kept), len(lost), _span(lost, seen), broken)


def _span(lost: list[StreamEvent], seen: list[StreamEvent] | None = None) -> float:
    last = max((e.timestamp for e in seen or lost), default=0.0)
    return last - min((e.timestamp for e in lost), default=last)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _of_the_grammar(events: list[StreamEvent]) -> list[str]:
    checker = GrammarChecker()
    try:
        for event in events:
            checker.feed(event)
    except Exception as error:
        return [f"the grammar: {error}"]
    return []


def _of_the_gaps(events: list[StreamEvent]) -> list[str]:
    opened = {e.run_id for e in events if e.event_type == "run_start"}
    ended = {e.run_id for e in events if e.event_type == "run_end"}
    gaps = [e.run_id for e in events if e.event_type == "gap"]
    if sorted(gaps) != sorted(opened - ended):
        return [f"gaps stand for {sorted(gaps)}, open were {sorted(opened - ended)}"]
    return []


def _of_the_rows(archive: Archive, events: list[StreamEvent]) -> list[str]:
    rows = {(r["run_id"], r["chain_id"]): r for r in archive.chains().rows}
    started = {(e.run_id, e.chain_id) for e in events if e.event_type == "chain_start"}
    ended = {(e.run_id, e.chain_id): e for e in events if e.event_type == "chain_end"}
    broken = [f"no row of {key}" for key in started - rows.keys()]
    broken += [
        f"{key} is {rows[key]['state']}"
        for key in ended.keys() & rows.keys()
        if rows[key]["state"] != "ended"
    ]
    broken += [
        f"{key} has an end that never came"
        for key in rows
        if rows[key]["state"] == "ended" and key not in ended
    ]
    for key, event in list(ended.items())[-5:]:
        row = rows.get(key, {})
        if row and (events[row["last"]] != event or row.get("reward") != event.data["reward"]):
            broken.append(f"the row of {key} does not agree with its end")
        if row.get("trajectory") is not None and archive.trajectory(key[1], key[0]).chain_id != key[1]:
            broken.append(f"the trajectory of {key} is another's")
    return broken


def _of_the_train_rows(archive: Archive, events: list[StreamEvent]) -> list[str]:
    """A row for each training step and each evaluation that ended, and for nothing else."""
    evaluations = {e.run_id for e in events if e.event_type == "run_start" and e.data.get("split") == "eval"}
    expected = [("train_step", e.data["train_step"]) for e in events if e.event_type == "train_step"]
    ended = [e.run_id for e in events if e.event_type == "run_end" and e.run_id in evaluations]
    found = archive.train_rows()
    broken = []
    if [("train_step", row["train_step"]) for row in found if row["row"] == "train_step"] != expected:
        broken.append(f"rows of training steps are not those of {expected}")
    if [row["run_id"] for row in found if row["row"] == "evaluation"] != ended:
        broken.append(f"rows of evaluations are not those of {ended}")
    return broken


def _of_what_is_lost(seen: list[StreamEvent], lost: list[StreamEvent]) -> list[str]:
    """Only what came last may be missing, of each run."""
    first: dict[str, int] = defaultdict(lambda: 1 << 60)
    for event in lost:
        first[event.run_id] = min(first[event.run_id], event.seq)
    missing = {(e.run_id, e.seq) for e in lost}
    later = [
        e.seq
        for e in seen
        if e.seq > first[e.run_id]
        and (e.run_id, e.seq) not in missing
        and e.event_type != "llm_generation_chunk"
    ]
    return [f"a hole before seq {later[0]}"] if later else []


def main() -> int:
    """The campaign: how many kills broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:200", help="first and last + 1")
    arguments: Any = parser.parse_args()
    logging.getLogger("rollcast.serve").setLevel(logging.ERROR)  # that the victim is gone is no news
    first, _, last = arguments.seeds.partition(":")
    outcomes = []
    began = time.monotonic()
    for seed in range(int(first), int(last or int(first) + 1)):
        folder = Path(tempfile.mkdtemp(prefix="record-crashes-"))
        try:
            outcome = play(seed, folder / "r")
        except (AssertionError, ArchiveError) as error:
            outcome = Outcome(seed, kind_of(seed), "", 0, 0, 0, 0.0, [str(error)])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        outcomes.append(outcome)
        if outcome.broken:
            print(f"seed {seed} ({outcome.kind}, {outcome.level}): {'; '.join(outcome.broken)}", flush=True)
    bad = sum(bool(outcome.broken) for outcome in outcomes)
    worst = max(outcomes, key=lambda outcome: outcome.lost_s)
    counts = Counter(outcome.kind for outcome in outcomes)
    late = sorted(outcome.lost_s for outcome in outcomes)
    print(
        f"{len(outcomes)} kills ({', '.join(f'{counts[kind]} {kind}' for kind in KINDS)}) in "
        f"{time.monotonic() - began:.0f} s, {bad} with a broken promise; "
        f"{sum(o.recorded for o in outcomes):,} events recorded, {sum(o.lost for o in outcomes):,} lost: "
        f"half of the kills at most {late[len(late) // 2]:.3f} s, 95 % at most {late[len(late) * 95 // 100]:.3f} s, "
        f"the worst {worst.lost_s:.3f} s (seed {worst.seed})"
    )
    return 1 if bad else 0
