"""Completes events that were made by hand, or refuses them with one warning for each cause.

The specification's own examples have fewer fields than [the events of a run](docs/events.md): a chunk with only its `content`,
an observation without a `call_id`. Missing fields are filled in from the chain's earlier events.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from rollcast.failures import class_name_of
from rollcast.records import PAYLOADS, StreamEvent, StreamEventType
from rollcast.records.jsonable import as_json, described, plain_scalar

__all__ = ["HandMade", "NotAnEvent"]

logger = logging.getLogger("rollcast.stream")

T = StreamEventType
CHAINS_LIMIT = 4096  # how many chains are remembered, the latest ones
CAUSES_LIMIT = 100  # how many causes are counted apart
TEXT_LIMIT = 1 << 20  # about how many characters of an open generation are kept for its end
_OF_A_CHAIN = frozenset(T) - {T.RUN_START, T.RUN_END, T.TRAIN_STEP, T.ERROR, T.REWARD, T.GAP}


class NotAnEvent(Exception):
    """An event that cannot be accepted.

    Args:
        field: the wrong field, such as `data.token_ids`.
        found: what it is, and what was expected.
        cause: distinguishes this cause from others in the same field.
    """

    def __init__(self, field: str, found: str, cause: str = "") -> None:
        super().__init__(f"{field} {found}")
        self.field = field
        self.cause = cause


@dataclass
class _Chain:
    """What a chain's handmade events have said so far."""

    began: float
    step: int = 0
    generation_began: float | None = None  # None: no generation is open
    pieces: list[str] = field(default_factory=list)
    chars: int = 0
    deltas: int = 0  # how many tokens the open generation has, or how many chunks if it has no ids
    calls: dict[str, tuple[str, float, str]] = field(
        default_factory=dict
    )  # the open calls: name, start time, status
    calls_made: int = 0
    tokens: int = 0
    final_response: str = ""
    reward: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    def next_generation(self, began: float | None) -> None:
        """Begin another generation; None means that one has ended."""
        self.generation_began, self.pieces, self.chars, self.deltas = began, [], 0, 0


class HandMade:
    """Completes events that were made by hand. Its owner guards it with a lock."""

    def __init__(self) -> None:
        self._chains: dict[tuple[str, str], _Chain] = {}
        self._train_steps: dict[str, int] = {}
        self.refused: dict[str, int] = {}  # how many events, by cause
        self._told = 0  # how many there were when they were last logged

    def completed(self, event: Any, at: Callable[[str, str], tuple[int, int] | None]) -> StreamEvent | None:
        """The event with all its fields; None if it cannot be accepted, which is logged once for each cause.

        Args:
            event: what was emitted, which may be anything.
            at: gives the step and the characters so far of a chain that a run of this manager writes.
        """
        try:
            return self._completed(event, at)
        except NotAnEvent as error:
            self._refuse(event, error)
        except Exception as error:  # noqa: BLE001  (the user's own classes may raise anything when they are read)
            self._refuse(event, NotAnEvent("it", f"raised {class_name_of(error)} when it was read"))
        return None

    def tell_refused(self) -> None:
        """Log how many events were refused in all, if more were refused since this was last logged."""
        total = sum(self.refused.values())
        if total > max(self._told, len(self.refused)):
            causes = ", ".join(f"{cause} ({count})" for cause, count in self.refused.items())
            logger.warning("%d events made by hand were dropped: %s", total, causes)
        self._told = total

    def _refuse(self, event: Any, error: NotAnEvent) -> None:
        is_event = issubclass(type(event), StreamEvent)  # isinstance may run the object's code
        kind = f"{event.event_type}: " if is_event and type(event.event_type) is T else ""
        cause = re.sub(
            r"\[\d+\]", "[…]", f"{kind}{error.field} {error.cause}".strip()
        )  # without the item's number, which does not matter
        if cause not in self.refused and len(self.refused) >= CAUSES_LIMIT:
            cause = "other causes"
        self.refused[cause] = self.refused.get(cause, 0) + 1
        if self.refused[cause] == 1:
            logger.warning(
                "what was emitted is not a valid StreamEvent and is dropped: %s%s; docs/events.md has the fields. More of "
                "this cause are counted, and not logged",
                kind,
                error,
            )

    # -- the event -----------------------------------------------------------------------------------------------------

    def _completed(self, event: Any, at: Callable[[str, str], tuple[int, int] | None]) -> StreamEvent:
        if not isinstance(event, StreamEvent):
            raise NotAnEvent("it", f"is {described(event)}; expected a StreamEvent", type(event).__name__)
        kind = _event_type(event.event_type)
        chain_id = _text("chain_id", event.chain_id, None if kind in _OF_A_CHAIN else "")
        if not chain_id and kind in _OF_A_CHAIN:
            raise NotAnEvent("chain_id", "is empty; expected the name of a chain", "is empty")
        run_id = _text("run_id", event.run_id, "")
        now = _timestamp(event.timestamp)
        made: Any = event.data
        given = {} if made is None else made
        if not isinstance(given, Mapping):
            raise NotAnEvent("data", f"is {described(given)}; expected a dict", type(given).__name__)
        chain = self._chain(run_id, chain_id, now, kind, at) if chain_id else None
        data = _without_none(given, kind)
        step, depth = _whole("step", event.step), _whole("depth", event.depth)
        if chain is not None and step is None:
            step = chain.step + (kind is T.LLM_GENERATION_START) or None
        if chain is not None and kind is T.LLM_GENERATION_CHUNK and step is not None and step != chain.step:
            chain.next_generation(None)  # it has no `llm_generation_start`
        self._fill(data, kind, chain, now, run_id)
        _check(kind, data)
        if chain is not None:
            self._note(chain, kind, data, now, step)
            if kind is T.CHAIN_END:
                del self._chains[run_id, chain_id]
        group_id = None if event.group_id is None else _text("group_id", event.group_id, None)
        source = _text("source", event.source, "")
        return StreamEvent(
            kind, chain_id, now, data, step, step if depth is None else depth, -1, run_id, group_id, source
        )

    def _chain(
        self,
        run_id: str,
        chain_id: str,
        now: float,
        kind: StreamEventType,
        at: Callable[[str, str], tuple[int, int] | None],
    ) -> _Chain:
        key = (run_id, chain_id)
        chain = None if kind is T.CHAIN_START else self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = _Chain(now)
            if (place := at(run_id, chain_id)) is not None:
                chain.step, chain.chars = place
            if len(self._chains) > CHAINS_LIMIT:
                del self._chains[next(iter(self._chains))]
        return chain

    # -- what is left out ------------------------------------------------------------------------------------------------

    def _fill(
        self, data: dict[str, Any], kind: StreamEventType, chain: _Chain | None, now: float, run_id: str
    ) -> None:
        for name, value in _USUAL.get(kind, {}).items():
            data.setdefault(name, value)
        if kind is T.TRAIN_STEP:
            data.setdefault("train_step", self._train_steps.get(run_id, 0) + 1)
            if type(data["train_step"]) is int:
                self._train_steps = {run_id: data["train_step"]}
        if chain is None:
            return
        if kind is T.LLM_GENERATION_CHUNK:
            data.setdefault("offset", chain.chars)
        elif kind is T.LLM_GENERATION_END:
            data.setdefault("content", "".join(chain.pieces))
            data.setdefault("completion_tokens", chain.deltas)
            data.setdefault("duration_s", max(0.0, now - (chain.generation_began or now)))
        elif kind in (T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.TOOL_CALL_END):
            _fill_call(data, kind, chain, now)
        elif kind is T.CHAIN_END:
            data.setdefault("final_response", chain.final_response)
            data.setdefault("steps", chain.step)
            data.setdefault("completion_tokens", chain.tokens)
            data.setdefault("reward", chain.reward)
            data.setdefault("metrics", chain.metrics)
            data.setdefault("duration_s", max(0.0, now - chain.began))

    def _note(
        self, chain: _Chain, kind: StreamEventType, data: dict[str, Any], now: float, step: int | None
    ) -> None:
        """Remember what the event says about its chain."""
        if step is not None:
            chain.step = step
        match kind:
            case T.LLM_GENERATION_START:
                chain.next_generation(now)
            case T.LLM_GENERATION_CHUNK:
                chain.generation_began = chain.generation_began or now
                if chain.chars < TEXT_LIMIT:
                    chain.pieces.append(data["content"])
                chain.chars = data["offset"] + len(data["content"])
                chain.deltas += len(data["token_ids"]) if "token_ids" in data else 1
            case T.LLM_GENERATION_END:
                chain.final_response = data["content"]
                chain.tokens += data["completion_tokens"]
                chain.next_generation(None)
            case T.TOOL_CALL_START:
                chain.calls[data["call_id"]] = (data["tool_name"], now, "success")
            case T.TOOL_OBSERVATION:
                name, began, _ = chain.calls.get(data["call_id"], (data["tool_name"], now, ""))
                chain.calls[data["call_id"]] = (name, began, data["status"])
            case T.TOOL_CALL_END:
                chain.calls.pop(data["call_id"], None)
            case T.REWARD if data.get("final") is not False:
                chain.reward, chain.metrics = data["reward"], data["metrics"]


_USUAL: dict[StreamEventType, dict[str, Any]] = {
    T.CHAIN_START: {"messages": [], "tools": [], "index": 0, "policy_version": 0},
    T.LLM_GENERATION_START: {"prompt_tokens": None, "model": "", "policy_version": 0, "sampling": {}},
    T.LLM_GENERATION_END: {"finish_reason": "stop", "prompt_tokens": None, "ttft_s": None},
    T.TOOL_CALL_START: {"arguments": {}},
    T.TOOL_OBSERVATION: {"partial": False, "status": "success"},
    T.REWARD: {"metrics": {}},
    T.CHAIN_END: {"finish_reason": "unknown"},
    T.ERROR: {"error_type": "", "where": "agent"},
    T.RUN_START: {"groups": 0, "agent": "", "model": "", "backend": "", "policy_version": 0},
    T.RUN_END: {"mean_reward": None},
    T.TRAIN_STEP: {"policy_version": 0, "metrics": {}},
    T.CHAIN_SNAPSHOT: {"content": None},
}


def _fill_call(data: dict[str, Any], kind: StreamEventType, chain: _Chain, now: float) -> None:
    """Fill in the call of a tool's event: the one that it names, otherwise the oldest open call of its tool."""
    if "call_id" not in data:
        name = data.get("tool_name")
        of_it = [call_id for call_id, (tool_name, _, _) in chain.calls.items() if name in (None, tool_name)]
        if of_it and kind is not T.TOOL_CALL_START:
            data["call_id"] = of_it[0]
        else:
            data["call_id"], chain.calls_made = f"call_{chain.calls_made}", chain.calls_made + 1
    known = chain.calls.get(data["call_id"]) if isinstance(data["call_id"], str) else None
    if known is not None:
        data.setdefault("tool_name", known[0])
    if kind is T.TOOL_OBSERVATION and "observation" in data and not isinstance(data["observation"], str):
        data["observation"] = msgspec.json.encode(data["observation"]).decode()
    if kind is T.TOOL_CALL_END:
        data.setdefault("status", known[2] if known is not None else "success")
        data.setdefault("duration_s", max(0.0, now - (known[1] if known is not None else now)))


def _without_none(given: Mapping[Any, Any], kind: StreamEventType) -> dict[str, Any]:
    """A copy of the data as JSON, without keys whose value is None; an exception as `error` becomes its text."""
    data = dict(given)
    if kind is T.ERROR and isinstance(data.get("error"), BaseException):
        data.setdefault("error_type", type(data["error"]).__name__)
        data["error"] = str(data["error"])
    data = as_json(data)
    return (
        {name: value for name, value in data.items() if value is not None} if None in data.values() else data
    )


def _check(kind: StreamEventType, data: dict[str, Any]) -> None:
    try:
        msgspec.convert(data, PAYLOADS[kind])
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        if what.startswith("Object missing required field `"):
            path = f"{path.rstrip('`')}." if path else ""
            raise NotAnEvent(f"data.{path}{what.split('`')[1]}", "is missing", "is missing") from None
        found = what[0].lower() + what[1:]
        value = _at(data, path)
        if value in _NOT_FINITE and "`float" in found:  # JSON has no number for it
            raise NotAnEvent(
                f"data.{path.rstrip('`')}", f"is {value}; expected a finite number", "not finite"
            ) from None
        raise NotAnEvent(f"data.{path.rstrip('`')}", f"is wrong: {found}", found) from None
    if kind is T.LLM_GENERATION_CHUNK and "logprobs" in data:
        ids, logprobs = len(data.get("token_ids", ())), len(data["logprobs"])
        if ids != logprobs:
            raise NotAnEvent(
                "data.logprobs",
                f"has {logprobs} for {ids} token ids; expected one for each id",
                "and token_ids differ",
            )


_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def _at(data: Any, path: str) -> Any:
    """The value at a path such as `logprobs[0]`."""
    for part in re.findall(r"[^][.`]+", path):
        data = (
            data[int(part)] if isinstance(data, list) else data.get(part) if isinstance(data, dict) else None
        )
    return data


def _event_type(given: object) -> StreamEventType:
    if isinstance(given, StreamEventType):
        return given
    try:
        return StreamEventType(str(plain_scalar(given)))
    except ValueError:
        name = plain_scalar(given)
        shown = repr(name[:60]) if isinstance(name, str) else described(given)
        raise NotAnEvent("event_type", f"is the unknown type {shown}", "is unknown") from None


def _text(name: str, given: object, absent: str | None) -> str:
    """The text of a field, also if it is a number or a UUID; for None, `absent` if that is not None."""
    if type(given) is str and given.isascii():
        return given
    if given is None and absent is not None:
        return absent
    plain = str(given) if isinstance(given, UUID) else plain_scalar(given)
    if isinstance(plain, bool) or not isinstance(plain, str | int):
        raise NotAnEvent(name, f"is {described(given)}; expected text", type(given).__name__)
    return str(as_json(str(plain)))


def _timestamp(given: object) -> float:
    if given is None:
        return time.time()
    if isinstance(given, datetime):
        return given.timestamp()
    plain = plain_scalar(given)
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        raise NotAnEvent(
            "timestamp", f"is {described(given)}; expected seconds since the epoch", type(given).__name__
        )
    return float(plain)


def _whole(name: str, given: object) -> int | None:
    plain = plain_scalar(given)
    if plain is None or type(plain) is int:
        return plain
    raise NotAnEvent(name, f"is {described(given)}; expected a whole number or None", type(given).__name__)
