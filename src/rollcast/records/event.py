"""The event, which is the data contract of everything that streams (docs/events.md).

Six fields come from the streaming specification and keep their names, order and meaning, in Python and in JSON:
`event_type`, `chain_id`, `timestamp`, `data`, `step`, `depth`. The manager adds `seq`, `run_id`, `group_id`, `source`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from rollcast.errors import DecodeError

__all__ = [
    "PAYLOADS",
    "ChainFinishReason",
    "ChainStatus",
    "ExtendedEvent",
    "GenerationFinishReason",
    "RunStatus",
    "StreamEvent",
    "StreamEventType",
    "ToolStatus",
    "TypedData",
    "checked_event",
    "event_from_dict",
    "foreign_event",
]


class StreamEventType(StrEnum):
    """What happened: the nine types of the specification, then those that complete them."""

    LLM_GENERATION_START = "llm_generation_start"
    LLM_GENERATION_CHUNK = "llm_generation_chunk"
    LLM_GENERATION_END = "llm_generation_end"
    TOOL_CALL_START = "tool_call_start"
    TOOL_CALL_END = "tool_call_end"
    TOOL_OBSERVATION = "tool_observation"
    CHAIN_START = "chain_start"
    CHAIN_END = "chain_end"
    ERROR = "error"
    REWARD = "reward"
    RUN_START = "run_start"
    RUN_END = "run_end"
    TRAIN_STEP = "train_step"
    MESSAGE = "message"
    CHAIN_SNAPSHOT = "chain_snapshot"
    GAP = "gap"

    @classmethod
    def of(cls, value: str) -> StreamEventType:
        """The type of this name.

        One that a later version added is a pseudo-member: it has its `value`, and is none of these.
        """
        known = cls._value2member_map_.get(value)
        if isinstance(known, StreamEventType):
            return known
        pseudo = str.__new__(cls, value)
        pseudo._name_ = pseudo._value_ = value
        return pseudo

    @property
    def known(self) -> bool:
        """Whether it is a type of this version."""
        return self._value_ in StreamEventType._value2member_map_

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[[str], StreamEventType], tuple[str]]:
        return StreamEventType.of, (self._value_,)


class TypedData(msgspec.Struct, gc=False):
    """The `data` of an event that was read from JSON into a struct with the fields of its type's payload; one that is not there is UNSET."""


class StreamEvent(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Something that happened in a run.

    `timestamp` (seconds since the epoch) is for information; `seq` gives the order. Do not change an event or its `data` once it
    is emitted, since every observer gets the same object.

    Attributes:
        event_type: what happened.
        chain_id: `chain_0 …` within a run; `""` if the event concerns the whole run or no run.
        timestamp: seconds since the epoch.
        data: the payload, JSON-serialisable; `PAYLOADS` has its type.
        step: the turn within the chain, from 1.
        depth: how many turns the chain has had since its prompt; equals `step` unless a prompt was rendered afresh, whose turn
            has 1.
        seq: the event's number, which the manager sets; within one run from one source it increases by one. -1: not set yet.
        run_id: the run, which is one `run_async` call.
        group_id: `group_0 …`, the row (prompt) that the chain is a repeat of.
        source: the worker that emitted it; `""` in a single process.
    """

    event_type: StreamEventType
    chain_id: str
    timestamp: float
    data: dict[str, Any]
    step: int | None = None
    depth: int | None = None
    seq: int = -1
    run_id: str = ""
    group_id: str | None = None
    source: str = ""

    @classmethod
    def now(cls, event_type: StreamEventType, chain_id: str = "", /, **data: Any) -> StreamEvent:
        """Make an event with the current time and the keywords as its payload."""
        return cls(StreamEventType(event_type), chain_id, time.time(), data)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as Python builtins. `data` is the event's own dict, not a copy."""
        return {
            "event_type": self.event_type.value,
            "chain_id": self.chain_id,
            "timestamp": self.timestamp,
            "data": self.data,
            "step": self.step,
            "depth": self.depth,
            "seq": self.seq,
            "run_id": self.run_id,
            "group_id": self.group_id,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> StreamEvent:
        """The event that `to_dict` (or JSON) described; fields beyond the specified six may be absent.

        Raises:
            DecodeError: the dict is not an event, or its `data` lacks a field that its type requires.
        """
        return event_from_dict(value)


class ExtendedEvent(StreamEvent, frozen=True, gc=False):
    """An event with fields that this version does not know. They are carried, and written where they stood.

    Attributes:
        beyond: the fields by name.
    """

    beyond: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """See `StreamEvent.to_dict`."""
        return super().to_dict() | {n: v for n, v in self.beyond.items() if n not in _FIELDS}


_FIELDS = frozenset(StreamEvent.__struct_fields__)
_MAX_TYPE = 256  # characters of the name of an unknown type

GenerationFinishReason = Literal["stop", "length", "tool_call", "cancelled", "error"]
ToolStatus = Literal["success", "error", "timeout", "cancelled"]
ChainFinishReason = Literal[
    "answered", "max_steps", "max_tokens", "terminal_tool", "cancelled", "error", "unknown"
]
RunStatus = Literal["completed", "cancelled", "failed"]
ChainStatus = Literal["running", "completed", "cancelled", "failed"]


class ChainStart(TypedDict):
    """A chain begins. `index` is its number within its group, from 0.

    `seed` is the chain's own, a whole number of up to 63 bits; `reference` the row's answer, and `row` its other fields;
    `prompt_hash` names the messages (see `prompt_hash` in `records/message.py`); `attempt` counts from 1; `parent_chain_id` is
    the chain that a sub-agent's chain was begun by, of the run that `run_start` names as its parent.
    """

    messages: list[dict[str, Any]]
    tools: list[str]
    index: int
    policy_version: int
    reference: NotRequired[Any]
    seed: NotRequired[int]
    prompt_hash: NotRequired[str]
    row: NotRequired[dict[str, Any]]
    attempt: NotRequired[int]
    parent_chain_id: NotRequired[str]


class LlmGenerationStart(TypedDict):
    """A generation begins. `prompt_tokens` is None if the backend cannot count them beforehand."""

    prompt_tokens: int | None
    model: str
    policy_version: int
    sampling: dict[str, Any]


class LlmGenerationChunk(TypedDict):
    """New text of a generation, never the text so far. `offset`: how many characters of this generation came before it.

    `reasoning` is new reasoning text, if the server sends that apart. `dt_ms`: milliseconds from each token to the next one, so
    it has one number fewer than `token_ids`; the chunk's timestamp is that of its last token. `lengths`: how many characters of
    `content` each token gave, if chunks were merged in a record or on their way to a hub.
    """

    content: str
    offset: int
    token_ids: NotRequired[list[int]]
    logprobs: NotRequired[list[float]]
    from_seq: NotRequired[int]
    reasoning: NotRequired[str]
    dt_ms: NotRequired[list[float]]
    lengths: NotRequired[list[int]]


class LlmGenerationEnd(TypedDict):
    """A generation ended. `content` is its whole text; times are in seconds.

    `reasoning` is its whole reasoning text, if the server sent that apart. `token_ids` and `logprobs` are those that it sampled, for
    an observer whose filter asks for them (`ids=True`); it then also has `dt_ms`, as in a chunk, if the observer asked since the
    generation began.
    """

    content: str
    finish_reason: GenerationFinishReason
    prompt_tokens: int | None
    completion_tokens: int
    ttft_s: float | None
    duration_s: float
    reasoning: NotRequired[str]
    token_ids: NotRequired[list[int]]
    logprobs: NotRequired[list[float]]
    dt_ms: NotRequired[list[float]]


class ToolCallStart(TypedDict):
    """A tool call begins. `arguments` is the object, or the raw text if that is not valid."""

    call_id: str
    tool_name: str
    arguments: dict[str, Any] | str


class ToolObservation(TypedDict):
    """Output of a tool. `partial`: whether the tool is still running."""

    call_id: str
    tool_name: str
    observation: str
    status: ToolStatus
    partial: bool


class ToolCallEnd(TypedDict):
    """A tool call ended, after `duration_s` seconds."""

    call_id: str
    tool_name: str
    status: ToolStatus
    duration_s: float


class Reward(TypedDict):
    """A reward. With `final` false it is a step's; otherwise it is the chain's own, and the last before its `chain_end`."""

    reward: float
    metrics: dict[str, Any]
    final: NotRequired[bool]


class MessageFromOutside(TypedDict):
    """A message that enters a chain from outside after its start, such as a user's next turn."""

    role: str
    content: str | list[Any] | None


class ChainEnd(TypedDict):
    """A chain ended; `unknown` means that no reason was given. `reward` is None if there is none or it failed."""

    finish_reason: ChainFinishReason
    final_response: str
    steps: int
    completion_tokens: int
    reward: float | None
    metrics: dict[str, Any]
    duration_s: float


class Error(TypedDict):
    """Something failed. `where`: `backend`, `tool:NAME`, `parser`, `reward`, `observer:NAME`, `agent` (the agent's or loop's own code)."""

    error: str
    error_type: str
    where: str


class RunStart(TypedDict):
    """A run begins with this many chains in this many groups.

    `seed` is what to pass to get the same run again; `sampling` that of its generations; `settings` how it goes otherwise; `tools`
    the schemas of the agent's tools. `train_step`: the training step that its chains are for, or after which they evaluate.

    In a run of several sources each has its own. `leader`: the source that tells what the run as a whole is; when that has ended, so
    has this one.
    """

    chains: int
    groups: int
    agent: str
    model: str
    backend: str
    policy_version: int
    parent_run_id: NotRequired[str]
    split: NotRequired[Literal["train", "eval"]]
    seed: NotRequired[int]
    sampling: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, Any]]
    name: NotRequired[str]
    tags: NotRequired[list[str]]
    tools: NotRequired[list[dict[str, Any]]]
    train_step: NotRequired[int]
    leader: NotRequired[str]


class RunEnd(TypedDict):
    """A run ended; the last event that carries its `run_id` and its source.

    `leader`: as in `run_start`; then the totals are 0, since those of the leader count all chains.
    """

    status: RunStatus
    chains: int
    failed: int
    mean_reward: float | None
    completion_tokens: int
    duration_s: float
    leader: NotRequired[str]


class LearnedFrom(TypedDict):
    """A chain's part in a training step: its advantage over its group (0 in a group of equal rewards), and its staleness.

    `staleness` is the age in policy versions of the weights that sampled its oldest token; it is absent if the backend does not
    report versions.
    """

    advantage: float
    staleness: NotRequired[int]


class TrainStep(TypedDict):
    """The trainer took a step; its `run_id` is the training run's.

    `chains` has the chains of the rollouts since the previous event, by the `run_id` of their rollout and their id.
    """

    train_step: int
    policy_version: int
    metrics: dict[str, Any]
    chains: NotRequired[dict[str, dict[str, LearnedFrom]]]


class OpenToolCall(TypedDict):
    """A tool call that has not ended when a snapshot is taken.

    `observation` is the output so far; `status` is that of its final observation, if that has come. A view's snapshot also
    has `omitted` (how many characters came before `observation`), `arguments_omitted` (whether they were too heavy), `step`
    and `started_at`.
    """

    call_id: str
    tool_name: str
    arguments: dict[str, Any] | str
    observation: str
    status: NotRequired[ToolStatus | None]
    omitted: NotRequired[int]
    arguments_omitted: NotRequired[bool]
    step: NotRequired[int | None]
    started_at: NotRequired[float | None]


class UnlistedMessage(TypedDict):
    """A message that comes before number `at` of a snapshot's `messages` and is not among them."""

    at: int
    message: dict[str, Any]


class TimeInState(TypedDict):
    """How long a chain was in a state: the total, the number of stays, and the longest one, for stays that are over."""

    seconds: float
    stays: int
    longest: float


class ToolTotals(TypedDict):
    """Totals of one tool's ended calls: how many, how many failed, and their seconds."""

    calls: int
    failed: int
    seconds: float


class ChainSnapshot(TypedDict):
    """The state of an open chain for a late observer, up to and including event `as_of` of its run.

    `content` is the text of the open generation, None if none is open. The required fields are the short form, which 0.1 wrote.
    The long form has everything that a `ChainView` knows; docs/events.md describes its fields.
    """

    messages: list[dict[str, Any]]
    content: str | None
    tool_calls: list[OpenToolCall]
    as_of: int
    run_id: NotRequired[str]
    chain_id: NotRequired[str]
    group_id: NotRequired[str | None]
    source: NotRequired[str]
    prompt_length: NotRequired[int | None]
    messages_omitted: NotRequired[int]
    unlisted_messages: NotRequired[list[UnlistedMessage]]
    content_omitted: NotRequired[int]
    reasoning: NotRequired[str | None]
    reasoning_omitted: NotRequired[int]
    calls_started_at: NotRequired[dict[str, float]]
    state: NotRequired[str]
    since: NotRequired[float | None]
    times: NotRequired[dict[str, TimeInState]]
    started_at: NotRequired[float | None]
    last_event_at: NotRequired[float | None]
    ended_at: NotRequired[float | None]
    joined_late: NotRequired[bool]
    gaps: NotRequired[int]
    step: NotRequired[int | None]
    depth: NotRequired[int | None]
    generation_step: NotRequired[int | None]
    generation_tokens: NotRequired[int]
    prompt_tokens: NotRequired[int | None]
    model: NotRequired[str | None]
    policy_version: NotRequired[int | None]
    generations: NotRequired[int]
    truncated: NotRequired[int | dict[str, int]]  # an object in the plain feed, which says what was cut
    completion_tokens: NotRequired[int]
    first_token_s: NotRequired[float]
    tool_use: NotRequired[dict[str, ToolTotals]]
    calls_omitted: NotRequired[int]
    rewards: NotRequired[list[dict[str, Any]]]
    reward: NotRequired[float | None]
    metrics: NotRequired[dict[str, Any]]
    train_step: NotRequired[int | None]
    advantage: NotRequired[float | None]
    staleness: NotRequired[int | None]
    errors: NotRequired[int]
    error: NotRequired[dict[str, Any] | None]
    finish_reason: NotRequired[str | None]
    final_response: NotRequired[str | None]
    final_response_omitted: NotRequired[int]
    steps: NotRequired[int | None]
    duration_s: NotRequired[float | None]
    index: NotRequired[int | None]
    tools: NotRequired[list[str] | None]
    reference: NotRequired[Any]
    prompt_hash: NotRequired[str | None]
    seed: NotRequired[int | None]
    attempt: NotRequired[int | None]
    parent_chain_id: NotRequired[str | None]


class Gap(TypedDict):
    """Events `from_seq … to_seq` of this run did not reach this observer.

    `dropped`: the count by type; empty if it is not known. `run_status`: the status in the `run_end` if that is among them, so
    that no event of this run follows; `unknown` if the run has ended and its status is not known.
    """

    from_seq: int
    to_seq: int
    dropped: dict[str, int]
    reason: str
    run_status: NotRequired[str]


class _GapOfACrash(TypedDict):
    """A gap in the record of a process that died: how far it goes, and what it stands for, may be null."""

    from_seq: int
    to_seq: int | None
    dropped: dict[str, int] | None
    reason: str
    run_status: NotRequired[str]


PAYLOADS: dict[StreamEventType, type] = {
    StreamEventType.CHAIN_START: ChainStart,
    StreamEventType.LLM_GENERATION_START: LlmGenerationStart,
    StreamEventType.LLM_GENERATION_CHUNK: LlmGenerationChunk,
    StreamEventType.LLM_GENERATION_END: LlmGenerationEnd,
    StreamEventType.TOOL_CALL_START: ToolCallStart,
    StreamEventType.TOOL_OBSERVATION: ToolObservation,
    StreamEventType.TOOL_CALL_END: ToolCallEnd,
    StreamEventType.REWARD: Reward,
    StreamEventType.MESSAGE: MessageFromOutside,
    StreamEventType.CHAIN_END: ChainEnd,
    StreamEventType.ERROR: Error,
    StreamEventType.RUN_START: RunStart,
    StreamEventType.RUN_END: RunEnd,
    StreamEventType.TRAIN_STEP: TrainStep,
    StreamEventType.CHAIN_SNAPSHOT: ChainSnapshot,
    StreamEventType.GAP: Gap,
}
_READ: dict[StreamEventType, type] = PAYLOADS | {StreamEventType.GAP: _GapOfACrash}
# Converting to a struct with the payload in it takes half the time that converting to the payload itself does.
_HOLDERS: dict[StreamEventType, type] = {
    kind: msgspec.defstruct(f"_Holder_{kind.value}", [("data", payload)]) for kind, payload in _READ.items()
}


def event_from_dict(value: dict[str, Any]) -> StreamEvent:
    """See `StreamEvent.from_dict`."""
    try:
        event = msgspec.convert(value, StreamEvent)
    except (msgspec.ValidationError, RecursionError) as error:
        event = foreign_event(value, error)
    return checked_event(event)


def foreign_event(value: Any, refused: Exception) -> StreamEvent:
    """The event that builtins describe which are no event of this version: of an unknown type, or with unknown fields.

    Args:
        value: as JSON gave it.
        refused: why it is no event of this version.

    Raises:
        DecodeError: it is no event of a later version either.
    """
    try:
        name = value["event_type"]
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_TYPE:
            raise refused
        kind = StreamEventType.of(name)
        given = {n: v for n, v in value.items() if n in _FIELDS} | {"event_type": StreamEventType.ERROR}
        event = msgspec.convert(given, StreamEvent)
    except (msgspec.ValidationError, RecursionError, TypeError, KeyError, AttributeError) as error:
        why = error if isinstance(error, msgspec.ValidationError) else refused
        raise DecodeError(f"this is not an event: {why}; expected the fields of docs/events.md") from None
    beyond = {n: v for n, v in value.items() if n not in _FIELDS}
    if not beyond:
        return msgspec.structs.replace(event, event_type=kind)
    fields = {n: getattr(event, n) for n in _FIELDS} | {"event_type": kind}
    return ExtendedEvent(**fields, beyond=beyond)


def checked_event(event: StreamEvent) -> StreamEvent:
    """Check that the event's `data` has the fields that its type requires, and return the event.

    The data of an event of an unknown type is not checked.

    Raises:
        DecodeError: a field is missing or has the wrong type.
    """
    holder = _HOLDERS.get(event.event_type)
    if holder is None:
        return event
    try:
        msgspec.convert(event, holder, from_attributes=True)
        return event
    except msgspec.ValidationError:
        pass  # the error of the payload alone names the field as it stands in `data`
    try:
        msgspec.convert(event.data, _READ[event.event_type])
    except msgspec.ValidationError as error:
        raise DecodeError(
            f"the data of this {event.event_type} event is wrong: {error}; docs/events.md has its fields"
        ) from None
    return event
