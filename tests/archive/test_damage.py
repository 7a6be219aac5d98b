"""Whatever becomes of a record's files, what is left of them is read, and nothing but an ArchiveError is raised."""

import json
import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast import StreamEvent, StreamEventType, StreamingManager
from rollcast.archive import Archive, ArchiveObserver, list_records, recover
from rollcast.archive.figures import figures_of
from rollcast.archive.story import story_of
from rollcast.errors import ArchiveError, InputError

T = StreamEventType


class Whole:
    """A record and its events."""

    def __init__(self, path, events):
        self.path = path
        self.events = events


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A record with everything that one may have: several segments, training steps, notes, open generations; and its events."""
    path = tmp_path_factory.mktemp("damage") / "r"
    manager = StreamingManager()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollcast.archive.line_log.is_full", lambda lines, size: lines >= 60)
        manager.add_observer(observer := ArchiveObserver(path, level="tokens", masker=False))
        for step in range(4):
            with manager.run(chains=3, groups=2, run_id=f"r{step}") as run:
                for number in range(3):
                    with run.chain(
                        [{"role": "user", "content": "?"}], group_id=f"group_{number % 2}"
                    ) as chain:
                        with chain.generation(prompt_ids=[1]) as generation:
                            for token in range(8):
                                generation.chunk(f"{token} ", [token], [-0.5])
                        with chain.tool_call("look", {"at": number}) as call:
                            call.observation("seen " * 20)
                        chain.reward(float(number))
                    manager.drain_sync()
                    observer._worker.flush().result(60)
            learned = {f"r{step}": {"chain_0": {"advantage": 0.5, "staleness": 0}}}
            data = {"train_step": step, "policy_version": step, "metrics": {}, "chains": learned}
            manager.emit(StreamEvent(T.TRAIN_STEP, "", None, data, run_id="training"))
        manager.close()
    archive = Archive.open(path)
    archive.add_note("look", author="ann", chain_id="chain_1")
    (path / "open.jsonl").write_bytes(
        b'{"run_id":"r3","chain_id":"chain_9","step":1,"content":"x","offset":0}\n'
    )
    assert len(list((path / "events").glob("*.zst"))) >= 3
    return Whole(path, list(archive.events()))


def files_of(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.stat().st_size)


def harm(path, draw_random, how):
    """Do this to the file."""
    data = bytearray(path.read_bytes())
    at = draw_random.randrange(len(data))
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[:at])
    elif how == "flip":
        data[at] ^= 1 << draw_random.randrange(8)
        path.write_bytes(data)
    elif how == "zero":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
        path.write_bytes(data)
    elif how == "lines":
        lines = bytes(data).splitlines(keepends=True)
        draw_random.shuffle(lines)
        path.write_bytes(b"".join(lines))
    elif how == "retype":
        with suppress(ValueError):  # a compressed file has no fields
            path.write_bytes(retyped(bytes(data), draw_random))
    else:
        path.write_bytes(data + bytes(draw_random.randrange(256) for _ in range(100)))


def retyped(data, draw_random):
    """Give a field another value than its writer did, of any type."""
    lines = [data] if data.startswith(b"{\n") else data.splitlines()
    at = draw_random.randrange(len(lines))
    value = node = json.loads(lines[at])
    while isinstance(node, dict | list) and node:
        key = draw_random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or draw_random.random() < 0.3:
            node[key] = draw_random.choice([None, True, -1, 2**70, 0.5, "", "x", [], [1], {}, {"a": 1}])
            break
        node = node[key]
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def read_everything(path):
    """All that a reader has; the events, and what was damaged."""
    archive = Archive.open(path)
    reader = archive.events()
    events = list(reader)
    assert archive.length >= 0
    for row in archive.chains(sort="-reward").rows:
        with suppress(ArchiveError):
            archive.trajectory(row["chain_id"], row["run_id"])
        with suppress(ArchiveError, InputError):  # a row may name another record's place
            list(archive.events_of(row["chain_id"], row["run_id"]))
        with suppress(ArchiveError):
            story_of(archive, row)
    archive.train_rows(), archive.notes(), archive.open_parts(), figures_of(archive)
    return events, reader.damage


@settings(max_examples=120)
@given(
    st.lists(
        st.sampled_from(["delete", "truncate", "flip", "flip", "zero", "lines", "append"]),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 2**32),
)
def test_whatever_becomes_of_its_files_the_rest_is_read(whole, hows, seed):
    """Cut off, flipped, zeroed, shuffled, appended to or deleted: events that are read were recorded, and recovery can be done twice."""
    events = whole.events
    rng = random.Random(seed)
    known = {(e.run_id, e.seq, e.event_type): e for e in events}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r"
        shutil.copytree(whole.path, path)
        harmed = set()
        for how in hows:
            name = rng.choice(files_of(path))
            harmed.add(name)
            harm(path / name, rng, how)
        list_records(path.parent)
        found = []
        try:
            found, damage = read_everything(path)
        except ArchiveError:
            assert "run.json" in harmed
        else:
            if not any(name.startswith("events/") and not name.endswith(".idx.json") for name in harmed):
                assert found == events
            if all(name.endswith(".zst") for name in harmed) and len(found) < len(events):
                assert damage
            # A checksum guards what is compressed: an event of a sealed segment that is read is as it was written.
            assert all(known.get((e.run_id, e.seq, e.event_type)) == e for e in found)
        with suppress(ArchiveError):
            recover(path)
            recovered, _ = read_everything(path)
            assert not recover(path).needed
            assert [e for e in recovered if e.event_type is not T.GAP] == found or "run.json" in harmed


@settings(max_examples=60)
@given(
    st.sampled_from(["run.json", "chains.jsonl", "open.jsonl", "train.jsonl", "notes.jsonl", "trajectories"]),
    st.integers(0, 2**32),
)
def test_a_field_may_have_any_value(whole, name, seed):
    """The events are read as they are, and recovery can be done twice."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r"
        shutil.copytree(whole.path, path)
        files = [each for each in files_of(path) if each.startswith(name)]
        harm(path / rng.choice(files), rng, "retype")
        list_records(path.parent)
        with suppress(ArchiveError):
            crash(path)
            assert read_everything(path)[0][: len(whole.events)] == whole.events
            recover(path)
            assert [e for e in read_everything(path)[0] if e in whole.events] == whole.events
            assert not recover(path).needed


def crash(path):
    """Have its writer say nothing of its end, and be gone."""
    facts = json.loads((path / "run.json").read_bytes())
    facts["status"] = "running"
    if isinstance(facts.get("writer"), dict):
        facts["writer"]["pid"] = 2**22 + 1  # more than Linux gives
    (path / "run.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["chains.jsonl", "train.jsonl", "notes.jsonl"])
def test_a_damaged_row_costs_itself(whole, tmp_path, name):
    """Those around it are read."""
    path = tmp_path / "r"
    shutil.copytree(whole.path, path)
    lines = (path / name).read_bytes().splitlines(keepends=True)
    hurt = lines[-1].replace(b'{"', b"{", 1)
    (path / name).write_bytes(
        b"".join(lines[:-1]) + hurt + b'{"run_id":"later","chain_id":"chain_0","row":"start"}\n'
    )
    archive = Archive.open(path)
    if name == "chains.jsonl":
        assert archive.chains().total == 13
        assert "advantage" not in archive.chain("chain_0", "r3")  # the row that was damaged said so
        assert archive.chain("chain_0", "r2")["advantage"] == 0.5
        assert archive.chain("chain_0")["run_id"] == "later"
    else:
        rows = archive.train_rows() if name == "train.jsonl" else archive.notes()
        assert len(rows) == len(lines)
        assert rows[-1]["run_id"] == "later"
