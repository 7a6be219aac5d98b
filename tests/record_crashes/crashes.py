"""Kill a run at a random moment, recover its record, and check what it promises.

What a watcher outside of the process saw is the measure: an event that it had and the record lacks is lost.
"""

import argparse
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import rollcast
from rollcast.archive.reader import Archive
from rollcast.archive.recovery import recover
from rollcast.records import GrammarChecker, StreamEvent, decode

TESTS = Path(__file__).parent.parent


class Outcome(NamedTuple):
    """What came of one kill.

    Attributes:
        seen: events that the watcher had.
        recorded: events of the record before its gaps.
        lost: that the watcher had and the record lacks.
        lost_s: the time that they span, up to the last event that the watcher had.
        broken: promises that were not kept.
    """

    seed: int
    level: str
    seen: int
    recorded: int
    lost: int
    lost_s: float
    broken: list[str]


def killed(folder: Path, seed: int) -> list[StreamEvent]:
    """Start a victim, kill it at a random moment after its first event, and give what the watcher had."""
    rng = random.Random(seed * 7919)
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{Path(rollcast.__file__).parent.parent}",
        "PYTHONHASHSEED": "0",
    }
    command = [sys.executable, "-m", "record_crashes.victim", str(folder), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    fd, seen, deadline = process.stdout.fileno(), b"", None
    try:
        while deadline is None or time.monotonic() < deadline:
            ready, _, _ = select.select([fd], [], [], 0.005)
            data = os.read(fd, 1 << 20) if ready else b""
            if ready and not data:
                raise AssertionError(f"the victim ended by itself: {process.wait()}")
            if data and deadline is None:
                deadline = time.monotonic() + rng.random() * rng.choice([0.3, 1.5])
            seen += data
    finally:
        os.kill(process.pid, signal.SIGKILL)
        while data := os.read(fd, 1 << 20):
            seen += data
        process.wait()
        process.stdout.close()
    return [decode(line) for line in seen[: seen.rfind(b"\n") + 1].splitlines()]


def play(seed: int, folder: Path) -> Outcome:
    """One kill, and what is wrong with the record that it left."""
    seen = killed(folder, seed)
    if not (folder / "run.json").exists():  # it was killed before the record began
        return Outcome(seed, "", len(seen), 0, len(seen), _span(seen), [])
    broken: list[str] = []
    before = Archive.open(folder)
    if before.state != "crashed":
        broken.append(f"its state is {before.state} before recovery")
    unrecovered = list(before.events())
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
    return Outcome(seed, archive.facts.level, len(seen), len(kept), len(lost), _span(lost, seen), broken)


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
    first, _, last = arguments.seeds.partition(":")
    outcomes = []
    for seed in range(int(first), int(last or int(first) + 1)):
        folder = Path(tempfile.mkdtemp(prefix="record-crashes-"))
        try:
            outcome = play(seed, folder / "r")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        outcomes.append(outcome)
        if outcome.broken:
            print(f"seed {seed} ({outcome.level}): {'; '.join(outcome.broken)}", flush=True)
    bad = sum(bool(outcome.broken) for outcome in outcomes)
    worst = max(outcomes, key=lambda outcome: outcome.lost_s)
    recorded = sum(outcome.recorded for outcome in outcomes)
    print(
        f"{len(outcomes)} kills, {bad} with a broken promise; {recorded:,} events recorded, "
        f"{sum(o.lost for o in outcomes):,} lost; at most {worst.lost_s:.3f} s (seed {worst.seed})"
    )
    return 1 if bad else 0
