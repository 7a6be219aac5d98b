"""The folder of a run: its names, its limits and the shape of its rows. Nothing here touches a disk.

    rollcast-runs/                        the record directory, mode 0700
      .gitignore                          `*`
      20261128-1532-guess-3f2a/           one record: a run, or a training with all its rollouts
        run.json                          `RunFile`: what it is, who writes it, how it stands; replaced by rename
        lock                              held by the writer while it lives
        events/
          000000000000.jsonl.zst          a sealed segment, named by the position of its first event: zstd frames
          000000000000.idx.json           `SegmentIndex` of it; can be rebuilt from the segment
          000000064000.jsonl              the live segment: an event a line, whole lines
        chains.jsonl                      `ChainRow`: a row at a chain's start, at its end and when it was learned from
        trajectories/…                    `Trajectory.to_dict()` lines, in segments as those of events
        train.jsonl                       `train_step` rows
        open.jsonl                        the text of the generations that are open, replaced every 10 s
        notes.jsonl                       what people add

The **position** of an event is how many events were recorded before it. A segment holds positions `first` up to the first of
the next one. Without a zstd library sealed segments stay plain, `.jsonl` with an index beside them.

The rows of one chain in `chains.jsonl` complete each other: a field of a later row replaces that of an earlier one.

Growing: fields may be added, and readers ignore what they do not know. `FORMAT` rises if an old reader would misread a record.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from rollcast.errors import ArchiveError, InputError, NewerFormatError
from rollcast.records import StreamEventType, prompt_hash

__all__ = [
    "CHAINS_FILE",
    "DIRECTORY",
    "EVENTS",
    "FORMAT",
    "FRAME_BYTES",
    "FRAME_LINES",
    "LEVELS",
    "LOCK_FILE",
    "NOTES_FILE",
    "OPEN_FILE",
    "RUN_FILE",
    "SEGMENT_BYTES",
    "TRAIN_FILE",
    "TRAJECTORIES",
    "ChainRow",
    "Frame",
    "Level",
    "NoteRow",
    "Place",
    "RunFile",
    "SegmentIndex",
    "Status",
    "Totals",
    "WriterFacts",
    "check_format",
    "first_of",
    "frames_of",
    "index_name",
    "is_full",
    "live_name",
    "prompt_hash",
    "record_name",
    "sealed_name",
    "types_of",
]

FORMAT = 1
DIRECTORY = "rollcast-runs"
RUN_FILE = "run.json"
LOCK_FILE = "lock"
EVENTS = "events"
TRAJECTORIES = "trajectories"
CHAINS_FILE = "chains.jsonl"
TRAIN_FILE = "train.jsonl"
OPEN_FILE = "open.jsonl"
NOTES_FILE = "notes.jsonl"

FRAME_LINES = 1000
FRAME_BYTES = 1 << 20  # of lines before compression; one line that is longer has a frame to itself
SEGMENT_LINES = 64 * FRAME_LINES
SEGMENT_BYTES = 8 << 20  # of a live segment; one that has as much, or as many lines, is sealed

Level = Literal["auto", "turns", "tokens", "summary"]
LEVELS: tuple[str, ...] = get_args(Level)
Status = Literal["running", "completed", "cancelled", "failed", "crashed"]

T = StreamEventType
_SUMMARY = (T.RUN_START, T.RUN_END, T.CHAIN_START, T.CHAIN_END, T.TRAIN_STEP, T.ERROR, T.GAP)

_WIDTH = 12  # digits of a position in a name
_SEGMENT = re.compile(r"(\d{12,18})\.(jsonl\.zst|jsonl|idx\.json)")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_NAME_CHARS = 40


# -- names ---------------------------------------------------------------------------------------------------------------


def record_name(name: str, at: float, suffix: str) -> str:
    """The name of a record's folder: `20261128-1532-guess-3f2a`.

    Args:
        name: of the task, or what its owner calls it; letters and digits of it stay.
        at: when it began, in seconds since the epoch; shown in local time.
        suffix: tells it from others of the same minute.
    """
    words = _NOT_IN_A_NAME.sub("-", name.lower()).strip("-")[:_NAME_CHARS].rstrip("-")
    return "-".join(
        part for part in (time.strftime("%Y%m%d-%H%M", time.localtime(at)), words, suffix) if part
    )


def live_name(first: int) -> str:
    """The file of a segment that is plain: the live one, or a sealed one if there was no zstd."""
    return f"{first:0{_WIDTH}d}.jsonl"


def sealed_name(first: int) -> str:
    """The file of a compressed segment."""
    return f"{first:0{_WIDTH}d}.jsonl.zst"


def index_name(first: int) -> str:
    """The file of a sealed segment's index."""
    return f"{first:0{_WIDTH}d}.idx.json"


def first_of(name: str) -> tuple[int, str] | None:
    """The first position of a segment's file, and its kind: `jsonl`, `jsonl.zst` or `idx.json`. None for any other file."""
    found = _SEGMENT.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


# -- arithmetic ----------------------------------------------------------------------------------------------------------


def frames_of(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines in groups that make one frame each: at most 1,000 lines and 1 MiB."""
    frame: list[bytes] = []
    size = 0
    for line in lines:
        if frame and (len(frame) >= FRAME_LINES or size + len(line) > FRAME_BYTES):
            yield frame
            frame, size = [], 0
        frame.append(line)
        size += len(line)
    if frame:
        yield frame


def is_full(lines: int, size: int) -> bool:
    """Whether a live segment of so many lines and bytes is to be sealed."""
    return lines >= SEGMENT_LINES or size >= SEGMENT_BYTES


def types_of(level: str) -> tuple[StreamEventType, ...] | None:
    """The types of events that a level keeps, None for all; whether chunks are among them is another matter.

    Raises:
        InputError: there is no such level.
    """
    if level not in LEVELS:
        raise InputError(f"there is no level {level!r} of recording; the levels are {', '.join(LEVELS)}")
    return _SUMMARY if level == "summary" else None


def check_format(number: Any, where: str) -> None:
    """Refuse a record that a later version wrote.

    Args:
        number: `format` of a `run.json` or an index.
        where: names the record in the message.

    Raises:
        NewerFormatError: it is newer than this version reads.
        ArchiveError: the file names no format.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ArchiveError(
            f"{where} has format {number!r}, which is none; it is not a record, or it is damaged"
        )
    if number > FORMAT:
        raise NewerFormatError(
            f"{where} has format {number}, and this version of Rollcast reads formats up to {FORMAT}: "
            "pip install --upgrade rollcast",
            number,
        )


# -- rows ----------------------------------------------------------------------------------------------------------------


class WriterFacts(msgspec.Struct, kw_only=True):
    """Who writes a record, so that a reader can tell whether it still does.

    Attributes:
        host, boot_id, pid: of the process; the boot id is empty if the system has none.
        started: clock ticks since the boot at which that process began, since pids are used again; 0 if not known.
        heartbeat: when the writer last said that it lives, in seconds since the epoch.
    """

    host: str = ""
    boot_id: str = ""
    pid: int = 0
    started: int = 0
    heartbeat: float = 0.0


class Totals(msgspec.Struct, kw_only=True):
    """What happened in a record, counted as it was written: enough for a list of records.

    Attributes:
        events: that were recorded; the position of the next one.
        runs, chains: that began.
        open_chains: that have not ended.
        failed: chains that ended with `error`.
        reward_sum, rewarded: of the chains that have a reward; `eval_reward_sum`, `eval_rewarded`: of those among them that are a
            training's evaluations, 0 in records before 0.3.
        completion_tokens: of chains that ended.
        train_steps: the latest `train_step` of the trainer.
        lost: events that could not be recorded; a `gap` stands for them.
        trajectories_lost: that could not be recorded.
        masked: secrets that were masked, by kind.
    """

    events: int = 0
    runs: int = 0
    chains: int = 0
    open_chains: int = 0
    failed: int = 0
    reward_sum: float = 0.0
    rewarded: int = 0
    eval_reward_sum: float = 0.0
    eval_rewarded: int = 0
    completion_tokens: int = 0
    train_steps: int = 0
    lost: int = 0
    trajectories_lost: int = 0
    masked: dict[str, int] = {}

    @property
    def mean_reward(self) -> float | None:
        """The mean reward of the chains that have one: of those of rollouts, if there are any, else of evaluations. None if no chain has one."""
        count = self.rewarded - self.eval_rewarded
        if count > 0:
            return (self.reward_sum - self.eval_reward_sum) / count
        return self.reward_sum / self.rewarded if self.rewarded else None

    @property
    def mean_eval_reward(self) -> float | None:
        """The mean reward of evaluated chains; None if none of them has a reward."""
        return self.eval_reward_sum / self.eval_rewarded if self.eval_rewarded else None


class RunFile(msgspec.Struct, kw_only=True):
    """`run.json`.

    Attributes:
        format: of the record.
        id: 12 hex digits; cursors into the record begin with it.
        name: of the task, or as its owner calls it; `tags` are its owner's too.
        command: the command line that made it, if one did.
        settings: of the run or the training.
        seed: of the run.
        versions: of Rollcast and of what it ran with.
        git_commit: of the folder in which it ran.
        status: `running` until its writer closed it; see `index.state_of` for what became of one that was not closed.
        parent: the record that a resumed training goes on from.
        out: the folder of a training.
        level: what is kept.
        started_at, ended_at: seconds since the epoch.
        recovered_at: when a crashed record was recovered.
        damage: what recovery could not save, a sentence each.
        trimmed_at: when something was first taken out to keep a budget (budget.py); None if it is whole.
        trimmed: of what everything was taken out that may be: `tokens`, `events`.
        writer, totals: see there.
    """

    format: int = FORMAT
    id: str = ""
    name: str = ""
    tags: list[str] = []
    command: list[str] = []
    settings: dict[str, Any] = {}
    seed: int | None = None
    versions: dict[str, str] = {}
    git_commit: str | None = None
    status: str = "running"
    parent: str | None = None
    out: str | None = None
    level: str = "auto"
    started_at: float = 0.0
    ended_at: float | None = None
    recovered_at: float | None = None
    damage: list[str] = []
    trimmed_at: float | None = None
    trimmed: list[str] = []
    writer: WriterFacts = msgspec.field(default_factory=WriterFacts)
    totals: Totals = msgspec.field(default_factory=Totals)


class Frame(msgspec.Struct, kw_only=True):
    """One frame of a sealed segment, as its index describes it.

    Attributes:
        offset, size: bytes in the file.
        first, last: positions of its first and its last line.
        t0, t1: the earliest and the latest timestamp, None if no line has one.
        types: how many events of each type.
        places: indexes into the segment's `places`: the chains that have a line here.
    """

    offset: int
    size: int
    first: int
    last: int
    t0: float | None = None
    t1: float | None = None
    types: dict[str, int] = {}
    places: list[int] = []


class Place(NamedTuple):
    """Which chain a line belongs to; the chain id is empty for what concerns the run."""

    run_id: str
    chain_id: str


class SegmentIndex(msgspec.Struct, kw_only=True):
    """`….idx.json`: what stands where in a sealed segment. Its last field, `crc32`, is a checksum of the text before it.

    Attributes:
        first: position of the segment's first line; `last` of its last one.
        compression: `zstd`, or `none` if the segment stayed plain.
        size: bytes of the segment's file: another size tells that the index does not belong to it.
        places: the chains that have lines in it, each once.
        frames: in order.
    """

    format: int = FORMAT
    first: int
    last: int
    compression: Literal["zstd", "none"]
    size: int
    places: list[Place] = []
    frames: list[Frame] = []


class ChainRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row of `chains.jsonl`. A row has the fields that are known when it is written; the last one of a chain that has it wins.

    Attributes:
        row: `start`, `end` or `trained`.
        run_id, chain_id, group_id, source: which chain; `index` is the repeat within the group.
        state: `running` or `ended` as it was written; `lost` if its run, or its source's part of it, ended and the chain did not. A
            reader says `lost` of all that are running when the record has ended.
        train_step: of the training step whose rollout it belongs to, or that learned from it.
        split: `train` or `eval`, if its run says so.
        prompt_hash: see `prompt_hash`.
        policy_first, policy_last: versions of the weights at its start and in its last generation.
        model: of its latest generation, if it is not its run's.
        session: whose chain it is, if its caller told a proxy: `session` of the `row` in `chain_start`.
        steps, completion_tokens: as `chain_end` says.
        times: seconds in each state: waiting, generating, tool, scoring.
        stays: how often it was in each of them (`count`), and the `longest` stay in seconds; of stays that are over.
        calls, calls_failed: tool calls that ended, and those of them with `error` or `timeout`.
        tool_use: the same by tool: `calls`, `failed` and `seconds`.
        truncated: generations that ended at their limit of tokens.
        answer: the final response, at most 4,096 characters of it.
        error, error_where: the text of its latest error, and where it happened: `backend`, `tool:NAME`, `parser`, `reward`.
        first, last: positions of its events.
        trajectory: position of its line among the trajectories.
    """

    row: str
    run_id: str
    chain_id: str
    group_id: str | None = None
    source: str = ""
    index: int | None = None
    state: str | None = None
    train_step: int | None = None
    split: str | None = None
    prompt_hash: str | None = None
    seed: int | None = None
    attempt: int | None = None
    parent_chain_id: str | None = None
    reference: Any = None
    policy_first: int | None = None
    policy_last: int | None = None
    model: str | None = None
    session: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    duration_s: float | None = None
    finish_reason: str | None = None
    reward: float | None = None
    metrics: dict[str, Any] = {}
    advantage: float | None = None
    staleness: int | None = None
    steps: int | None = None
    completion_tokens: int | None = None
    times: dict[str, float] = {}
    stays: dict[str, dict[str, float]] = {}
    calls: int | None = None
    calls_failed: int | None = None
    tool_use: dict[str, dict[str, float]] = {}
    truncated: int | None = None
    answer: str | None = None
    error: str | None = None
    error_where: str | None = None
    first: int | None = None
    last: int | None = None
    trajectory: int | None = None


class NoteRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row of `notes.jsonl`: what somebody says of the record, or of a part of it.

    Attributes:
        id: 12 hex digits; a later note may name it.
        at: seconds since the epoch.
        author: who.
        text: what is said.
        flag: a word by which notes are found, such as `odd`.
        run_id, group_id, chain_id: what it is about; None of them: the whole record.
        step: the turn of the chain.
        tokens: of the turn's sampled tokens the first, and the one after the last, from 0.
    """

    id: str
    at: float
    author: str
    text: str = ""
    flag: str | None = None
    run_id: str | None = None
    group_id: str | None = None
    chain_id: str | None = None
    step: int | None = None
    tokens: tuple[int, int] | None = None
