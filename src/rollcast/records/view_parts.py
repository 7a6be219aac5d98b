"""The parts of a chain's view: bounded plain JSON, which is read back whatever it contains."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rollcast.records.bounded import Tail, number, plain, tail_of, weight, whole, word

__all__ = [
    "MAX_CALLS",
    "MAX_MESSAGES",
    "MAX_OUTPUT",
    "MAX_REWARDS",
    "MAX_SMALL",
    "MAX_TEXT",
    "MAX_TOOLS",
    "MAX_WEIGHT",
    "ChainState",
    "Conversation",
    "NoConversation",
    "OpenCall",
    "StateClock",
    "StateTime",
    "ToolUse",
    "answered",
    "arguments_of",
    "count_of",
    "count_use",
    "generated",
    "moment",
    "seconds_of",
    "seed_of",
    "seq_of",
    "small",
    "text_of",
    "total_of",
    "total_seconds_of",
    "words",
]

MAX_TEXT = 262_144  # characters of a message, a generation, an answer
MAX_OUTPUT = 65_536  # characters of a tool call's output, of its arguments, of reasoning
MAX_MESSAGES = 1_024
MAX_WEIGHT = 1_048_576  # weight of all messages together
MAX_CALLS = 128  # calls that are open at once, or that one message lists
MAX_TOOLS = 128  # tool names that are counted apart, or listed
MAX_REWARDS = 256  # the latest ones are kept
MAX_SMALL = 8_192  # weight of metrics or of a reference

ChainState = Literal["unknown", "waiting", "generating", "tool", "scoring", "ended", "lost"]

OTHER_TOOLS = "(others)"  # the name under which tools beyond the first 128 count
FAILED = ("error", "timeout")  # statuses of a failed tool call; a cancelled one did not fail

_CALL_DEPTH = 24  # nesting of arguments; less than that of the message that lists their call
_MAX_COUNT = 2**40  # so that sums of counts stay exact in a double
_MAX_SECONDS = 1e11  # about the year 5138; so that sums of times stay finite


def count_of(value: Any) -> int | None:
    """The value if it can be a count, otherwise None."""
    found = whole(value)
    return found if found is not None and 0 <= found <= _MAX_COUNT else None


def seconds_of(value: Any) -> float | None:
    """The value if it can be a duration in seconds, otherwise None."""
    found = number(value)
    return found if found is not None and 0 <= found <= _MAX_SECONDS else None


def total_of(value: Any) -> int:
    """The value if it can be a sum of counts, otherwise 0."""
    return max(whole(value) or 0, 0)


def total_seconds_of(value: Any) -> float:
    """The value if it can be a sum of durations, otherwise 0."""
    return max(number(value) or 0.0, 0.0)


def seq_of(value: Any) -> int:
    """The value if it can be a `seq`, otherwise -1."""
    found = whole(value)
    return -1 if found is None else max(found, -1)


def seed_of(value: Any) -> int | None:
    """The value if it can be a seed, which is the one number that may be larger than a double holds exactly; else None."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        return whole(value)
    return int(value)


def moment(value: Any) -> float | None:
    """The value if it can be a timestamp, otherwise None."""
    found = number(value)
    return found if found is not None and abs(found) < _MAX_SECONDS else None


def text_of(value: Any) -> str:
    """The value if it is text, otherwise an empty text."""
    return value if isinstance(value, str) else ""


def words(value: Any) -> list[str] | None:
    """The texts in a list, at most 128; None if it is not a list."""
    if not isinstance(value, list | tuple):
        return None
    return [found for found in map(word, value[:MAX_TOOLS]) if found is not None]


def small(value: Any) -> Any:
    """A copy as plain JSON if it is not too heavy, otherwise None."""
    return plain(value, MAX_SMALL)[0]


def arguments_of(value: Any) -> tuple[dict[str, Any] | str, bool]:
    """The arguments of a tool call, an object or text, and False; or `""` and True if they are too heavy to keep."""
    copied, kept = plain(value, MAX_OUTPUT, _CALL_DEPTH)
    return (copied if isinstance(copied, dict | str) else ""), not kept


class StateTime(msgspec.Struct):
    """How long a chain was in a state: the total, the number of stays, and the longest one. Seconds, for stays that are over."""

    seconds: float = 0.0
    stays: int = 0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Add a stay that is over."""
        self.seconds += seconds
        self.stays += 1
        if seconds > self.longest:  # noqa: PLR1730  (a third of what `max` costs)
            self.longest = seconds

    @classmethod
    def restored(cls, value: Any) -> StateTime:
        """Read it from the form that a view's `to_dict` has."""
        value = value if isinstance(value, dict) else {}
        return cls(
            total_seconds_of(value.get("seconds")),
            total_of(value.get("stays")),
            total_seconds_of(value.get("longest")),
        )


class StateClock(msgspec.Struct, eq=False):
    """The state that a chain is in, since when, and how long it was in each."""

    state: str = "unknown"
    since: float | None = None
    times: dict[str, StateTime] = {}

    def enter(self, state: ChainState, at: float | None) -> None:
        """Enter this state."""
        if state == self.state:
            return
        if self.since is not None and at is not None:  # if the clock was set back, no time has passed
            time = self.times.get(self.state)
            if time is None:
                time = self.times[self.state] = StateTime()
            time.add(at - self.since if at > self.since else 0.0)
        self.state, self.since = state, at


class ToolUse(msgspec.Struct):
    """Totals of one tool's ended calls: how many, how many failed (`error`, `timeout`), and their seconds."""

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0

    @classmethod
    def restored(cls, value: Any) -> ToolUse:
        """Read it from the form that a view's `to_dict` has."""
        value = value if isinstance(value, dict) else {}
        return cls(
            total_of(value.get("calls")),
            total_of(value.get("failed")),
            total_seconds_of(value.get("seconds")),
        )


def count_use(by_tool: dict[str, ToolUse], name: str, status: str | None, duration_s: float | None) -> None:
    """Count an ended call. Tools beyond the first 128 names count as one."""
    if name not in by_tool and len(by_tool) >= MAX_TOOLS:
        name = OTHER_TOOLS
    use = by_tool.setdefault(name, ToolUse())
    use.calls += 1
    use.failed += status in FAILED
    use.seconds += duration_s or 0.0


class OpenCall(msgspec.Struct, eq=False):
    """A tool call whose end was not seen.

    Attributes:
        call_id, tool_name: as in its events.
        output: its output so far.
        arguments: an object or text; `""` with `arguments_omitted` if they were too heavy.
        step: the chain's step.
        started_at: the timestamp of its start, None if that was not seen.
        status: the status of its final observation, None before that.
    """

    call_id: str
    tool_name: str
    output: Tail
    arguments: dict[str, Any] | str = ""
    arguments_omitted: bool = False
    step: int | None = None
    started_at: float | None = None
    status: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields in a `chain_snapshot`, and the others that are known."""
        return {
            "call_id": self.call_id,
            "tool_name": self.tool_name,
            "arguments": msgspec.to_builtins(self.arguments),
            "arguments_omitted": self.arguments_omitted,
            "observation": self.output.text,
            "omitted": self.output.omitted,
            "step": self.step,
            "started_at": self.started_at,
            "status": self.status,
        }

    @classmethod
    def restored(cls, value: dict[str, Any]) -> OpenCall:
        """Read it from the form of `to_dict`, or from a `chain_snapshot` in its short form."""
        arguments, too_heavy = arguments_of(value.get("arguments"))
        return cls(
            word(value.get("call_id")) or "",
            word(value.get("tool_name")) or "",
            Tail.of(text_of(value.get("observation")), MAX_OUTPUT, total_of(value.get("omitted"))),
            arguments,
            too_heavy or value.get("arguments_omitted") is True,
            whole(value.get("step")),
            moment(value.get("started_at")),
            word(value.get("status")),
        )


class Conversation(msgspec.Struct, eq=False):
    """Messages, at most 1,024 with a total weight of 1,048,576; the oldest after the prompt are dropped first.

    Attributes:
        messages: plain JSON; a message is replaced, never changed in place.
        weights: the weight of each message.
        weight: the weight of all messages.
        prompt_length: how many of them are the prompt; None if that is not known.
        omitted: how many were dropped, or were not messages.
    """

    messages: list[dict[str, Any]] = []
    weights: list[int] = []
    weight: int = 0
    prompt_length: int | None = None
    omitted: int = 0

    @classmethod
    def of(cls, messages: Any, prompt_length: int | None = None, omitted: int = 0) -> Conversation:
        """Make a conversation from a list, which may contain anything."""
        conversation = cls(omitted=omitted)
        for i, message in enumerate(messages if isinstance(messages, list | tuple) else ()):
            if i == prompt_length:
                conversation.prompt_length = len(conversation.messages)
            conversation.take(message)
        if prompt_length is not None and conversation.prompt_length is None:
            conversation.prompt_length = len(conversation.messages)
        return conversation

    def anew(self, messages: Any = (), prompt_length: int | None = None, omitted: int = 0) -> Conversation:
        """Make a conversation of the same kind from these messages. The arguments are those of `of`."""
        return Conversation.of(messages, prompt_length, omitted)

    def take(self, message: Any) -> None:
        """Add a message, which may be anything."""
        if not isinstance(message, dict):
            self.omitted += 1
            return
        rest, kept = plain({name: item for name, item in message.items() if name != "content"}, MAX_WEIGHT)
        if not kept:
            rest = {
                name: word(message.get(name)) for name in ("role", "tool_call_id", "name") if name in message
            }
            rest["omitted"] = -1
        content, cut = message.get("content"), 0
        if isinstance(content, str):
            content, cut = tail_of(content, MAX_TEXT)
        elif content is not None:
            content, kept = plain(content, MAX_TEXT)
            cut = 0 if kept else -1
        if cut:
            before = whole(rest.get("omitted")) or 0
            rest["omitted"] = -1 if min(cut, before) < 0 else before + cut
        role = rest.pop("role", None)
        self.add({"role": role, "content": content, **rest})

    def add(self, message: dict[str, Any]) -> None:
        """Add a message that is plain and bounded."""
        self.messages.append(message)
        self.weights.append(weight(message))
        self.weight += self.weights[-1]
        self._bound()

    def replace(self, i: int, message: dict[str, Any]) -> None:
        """Put another message in the place of message `i`."""
        self.messages[i] = message
        self.weight += weight(message) - self.weights[i]
        self.weights[i] = weight(message)
        self._bound()

    def _bound(self) -> None:
        while len(self.messages) > 1 and (len(self.messages) > MAX_MESSAGES or self.weight > MAX_WEIGHT):
            kept = self.prompt_length or 0
            if (
                kept > MAX_MESSAGES // 2
                or kept == len(self.messages)
                or sum(self.weights[:kept]) > MAX_WEIGHT // 2
            ):
                kept = 0
                self.prompt_length = None if self.prompt_length is None else self.prompt_length - 1
            del self.messages[kept]
            self.weight -= self.weights.pop(kept)
            self.omitted += 1

    def list_call(self, call: OpenCall) -> None:
        """List a call in this turn's assistant message; if there is none, one without text is added."""
        listed = {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.tool_name, "arguments": call.arguments},
        }
        i = self._turn_begins()
        if i is None:
            self.add({"role": "assistant", "content": None, "tool_calls": [listed], "step": call.step})
            return
        message = self.messages[i]
        calls = message.get("tool_calls")
        calls = calls if isinstance(calls, list) else []
        known = any(isinstance(c, dict) and c.get("id") == call.call_id for c in calls)
        room = len(calls) < MAX_CALLS and self.weights[i] + weight(listed) <= MAX_WEIGHT // 2
        if room and not known:
            self.replace(i, {**message, "tool_calls": [*calls, listed]})

    def answers(self, call_id: str) -> bool:
        """Whether this turn has a tool's answer to that call."""
        for message in reversed(self.messages):
            if message.get("role") != "tool":
                return False
            if message.get("tool_call_id") == call_id:
                return True
        return False

    def _turn_begins(self) -> int | None:
        for i in range(len(self.messages) - 1, (self.prompt_length or 0) - 1, -1):
            role = self.messages[i].get("role")
            if role != "tool":
                return i if role == "assistant" else None
        return None


class NoConversation(Conversation, eq=False):
    """A conversation that stays empty, for a watcher that needs none."""

    def anew(self, messages: Any = (), prompt_length: int | None = None, omitted: int = 0) -> Conversation:
        """See `Conversation.anew`."""
        return NoConversation()

    def take(self, message: Any) -> None:
        """See `Conversation.take`."""

    def add(self, message: dict[str, Any]) -> None:
        """See `Conversation.add`."""

    def list_call(self, call: OpenCall) -> None:
        """See `Conversation.list_call`."""


def generated(text: Tail | str, finish_reason: str | None, step: int | None) -> dict[str, Any]:
    """An assistant's message with the generated text."""
    kept, omitted = (text.text, text.omitted) if isinstance(text, Tail) else tail_of(text, MAX_TEXT)
    message: dict[str, Any] = {"role": "assistant", "content": kept}
    if omitted:
        message["omitted"] = omitted
    return {**message, "finish_reason": finish_reason, "step": step}


def answered(call: OpenCall, status: str | None, duration_s: float | None) -> dict[str, Any]:
    """A tool's message with a call's output; `content` is None if no output was seen."""
    output = call.output
    message: dict[str, Any] = {
        "role": "tool",
        "content": output.text if output.end or call.status is not None else None,
        "tool_call_id": call.call_id,
        "name": call.tool_name,
    }
    if output.omitted:
        message["omitted"] = output.omitted
    return {**message, "status": status, "duration_s": duration_s, "step": call.step}
