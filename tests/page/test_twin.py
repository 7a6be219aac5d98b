"""The page's views and Python's make the same of streams that lost, repeated, reordered or garbled events."""

import copy
import json
import random
import subprocess
from pathlib import Path

import pytest

from nodejs import NODE, needs_node
from rollcast.records import StreamEvent
from rollcast.records.run_view import RunViews

HERE = Path(__file__).parent
CASES = sorted((HERE.parent / "records" / "view_cases").glob("*.json"))
pytestmark = needs_node

ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    7,
    1e300,
    "",
    "x",
    "🤔",
    "\ud83e",
    "\x1b[2J",
    "y" * 2_000,
    [],
    ["a", 3],
    {},
    {"a": None},
]
FIELDS = [
    "content",
    "offset",
    "token_ids",
    "call_id",
    "observation",
    "reward",
    "messages",
    "arguments",
    "status",
    "as_of",
    "to_seq",
]


def garbled(events, rng):
    """The events, some of them lost, twice, out of order or with odd fields."""
    out = []
    for event in events:
        luck = rng.random()
        if luck < 0.04:
            continue
        event = copy.deepcopy(event)
        if luck < 0.10:
            where = rng.choice(["data", "data", "data", "step", "timestamp", "seq", "group_id"])
            if where == "data" and isinstance(event["data"], dict):
                event["data"][rng.choice([*event["data"], *FIELDS])] = rng.choice(ODD)
            elif where != "data":
                event[where] = rng.choice(ODD)
        out.append(event)
        if luck > 0.97:
            out.append(copy.deepcopy(event))
        if luck > 0.94 and len(out) > 1:
            other = rng.randrange(max(0, len(out) - 5), len(out))
            out[-1], out[other] = out[other], out[-1]
        if 0.90 < luck < 0.91:
            told = {
                "from_seq": 0,
                "to_seq": rng.choice([event["seq"], None, 10_000]),
                "dropped": {},
                "reason": "test",
            }
            ends = {"run_status": "failed"} if rng.random() < 0.2 else {}
            gap = {"event_type": "gap", "chain_id": "", "data": told | ends, "step": None, "group_id": None}
            out.append(event | gap)
    return out


def in_parts(events, dice):
    """The events as if several processes had emitted them, each with its own numbers, start and end; some name a leader."""
    names = [f"source_{number}" for number in range(dice.randint(2, 4))]
    of_chain, numbers, out = {}, dict.fromkeys(names, -1), []
    for event in events:
        whole = event["event_type"] in ("run_start", "run_end")
        for name in names if whole else [of_chain.setdefault(event["chain_id"], dice.choice(names))]:
            numbers[name] += 1
            part = copy.deepcopy(event) | {"source": name, "seq": numbers[name]}
            if event["event_type"] == "run_start" and dice.random() < 0.4:
                part["data"]["leader"] = dice.choice(names)
            if not whole or dice.random() < 0.9:
                out.append(part)
    return out


def python_views(events):
    """What Python's views make of them, as JSON has it."""
    views = RunViews()
    for event in events:
        views.apply(StreamEvent(**event))
    made = {
        run_id: {**run.to_dict(), "chains": {name: view.to_dict() for name, view in run.chains.items()}}
        for run_id, run in views.runs.items()
    }
    return json.loads(json.dumps(made))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_garbled_streams_give_the_same_views(path):
    """Twelve garbled forms of each recorded case."""
    events = json.loads(path.read_text("utf-8"))["events"]
    check_same([garbled(events, random.Random(f"{path.stem} {seed}")) for seed in range(12)])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_runs_of_several_sources_give_the_same_views(path):
    """Each recorded case as if several processes had emitted it, as it is and garbled."""
    events = json.loads(path.read_text("utf-8"))["events"]
    dice = random.Random(path.stem)
    streams = [in_parts(events, dice) for _ in range(6)]
    check_same([*streams, *(garbled(stream, dice) for stream in streams)])


def check_same(streams):
    """Both make the same of each stream."""
    done = subprocess.run(
        [NODE, "--no-warnings", str(HERE / "views.js")],
        input="".join(json.dumps(stream) + "\n" for stream in streams),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for seed, (stream, line) in enumerate(zip(streams, done.stdout.splitlines(), strict=True)):
        assert json.loads(line) == python_views(stream), f"seed {seed}"
