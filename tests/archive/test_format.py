"""Names, limits and rows of a record."""

import hashlib
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.archive import format as fmt
from rollcast.errors import ArchiveError, InputError

AT = time.mktime((2026, 11, 28, 15, 32, 10, 0, 0, -1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("guess", "20261128-1532-guess-3f2a"),
        ("My Task: v2!", "20261128-1532-my-task-v2-3f2a"),
        ("../../etc/passwd", "20261128-1532-etc-passwd-3f2a"),
        ("", "20261128-1532-3f2a"),
        ("日本", "20261128-1532-3f2a"),
        ("x" * 100, f"20261128-1532-{'x' * 40}-3f2a"),
    ],
)
def test_a_record_is_named_by_time_task_and_a_suffix(name, expected):
    """The name sorts by time, and whatever the task is called, it is one plain folder."""
    assert fmt.record_name(name, AT, "3f2a") == expected


@given(st.integers(0, 10**17))
def test_a_segment_is_named_by_its_first_position(first):
    """Each of its files names it, and their order by name is that of positions below 10^12."""
    for name, kind in [
        (fmt.live_name(first), "jsonl"),
        (fmt.sealed_name(first), "jsonl.zst"),
        (fmt.index_name(first), "idx.json"),
    ]:
        assert fmt.first_of(name) == (first, kind)
    if first < 10**12:
        assert fmt.live_name(first) < fmt.live_name(first + 1) or first + 1 == 10**12


@pytest.mark.parametrize(
    "name",
    ["", "notes.jsonl", "1.jsonl", "000000000000.jsonl.zst.tmp", "000000000000.txt", "00000000000x.jsonl"],
)
def test_other_files_are_no_segments(name):
    """What a writer left half-made, or somebody put there, is not read."""
    assert fmt.first_of(name) is None


@given(st.lists(st.sampled_from([1, 10, 2_000, 400_000, 3 << 20]), max_size=60))
def test_frames_keep_the_limits(sizes):
    """A frame has at most 1,000 lines and 1 MiB, or one line alone; together they are the lines."""
    lines = [b"x" * size for size in sizes]
    frames = list(fmt.frames_of(lines))
    assert [line for frame in frames for line in frame] == lines
    for frame in frames:
        assert len(frame) == 1 or sum(map(len, frame)) <= fmt.FRAME_BYTES


def test_a_frame_has_a_thousand_lines():
    """The limit of lines is kept too."""
    assert [len(frame) for frame in fmt.frames_of([b"x\n"] * 2500)] == [1000, 1000, 500]


def test_the_hash_of_a_prompt_is_that_of_its_canonical_json():
    """12 hex digits of SHA-256; the order of keys is all one, and every character counts."""
    messages = [{"role": "user", "content": "Café?"}]
    canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert fmt.prompt_hash(messages) == hashlib.sha256(canonical).hexdigest()[:12]
    assert fmt.prompt_hash([{"content": "Café?", "role": "user"}]) == fmt.prompt_hash(messages)
    assert fmt.prompt_hash([{"role": "user", "content": "Cafe?"}]) != fmt.prompt_hash(messages)


def test_a_newer_format_is_refused_in_one_sentence():
    """It says what was found, what can be read, and what to do; this version's format and older ones are read."""
    fmt.check_format(1, "x")
    with pytest.raises(ArchiveError, match=r"x has format 2, and .* reads formats up to 1: pip install"):
        fmt.check_format(2, "x")
    for nonsense in (0, -1, None, "1", True, 1.0):
        with pytest.raises(ArchiveError, match="not a record, or it is damaged"):
            fmt.check_format(nonsense, "x")


def test_unknown_fields_of_a_row_do_no_harm():
    """A later version's `run.json`, index and rows are read, whatever they have more."""
    run = msgspec.json.decode(b'{"format":1,"name":"a","mood":3,"writer":{"pid":4,"x":1}}', type=fmt.RunFile)
    assert (run.name, run.writer.pid, run.status) == ("a", 4, "running")
    row = msgspec.json.decode(b'{"row":"end","run_id":"r","chain_id":"c","x":1}', type=fmt.ChainRow)
    assert row.chain_id == "c"


def test_a_row_has_what_is_known():
    """Fields that are not known when a row is written are left out, so that they replace nothing."""
    row = fmt.ChainRow(row="trained", run_id="r", chain_id="c", advantage=-0.5)
    assert json.loads(msgspec.json.encode(row)) == {
        "row": "trained", "run_id": "r", "chain_id": "c", "advantage": -0.5,
    }  # fmt: skip


def test_a_level_that_does_not_exist_is_refused():
    """The message names the four."""
    assert fmt.types_of("auto") is None
    assert fmt.types_of("tokens") is None
    summary = fmt.types_of("summary")
    assert "chain_end" in summary
    assert "tool_observation" not in summary
    with pytest.raises(InputError, match="auto, turns, tokens, summary"):
        fmt.types_of("everything")
