"""Notes that a chain's writer keeps besides the trajectory, and the snapshot that is made from both.

The trajectory is the source. It has no times, and no order between a message and a tool call's end, so those are noted here,
once for each thing that begins or ends and never for a token. A snapshot is made on request, under the manager's lock, so it
refers to texts and does not copy them.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from rollcast.records import Message, ToolRecord, Trajectory, Turn
from rollcast.records.bounded import Tail, word
from rollcast.records.jsonable import (
    as_json,
    bounded_fields,
    detached,
    shown_arguments,
    without_named_secrets,
)
from rollcast.records.view_fields import error_of, object_of, reward_of
from rollcast.records.view_parts import (
    MAX_CALLS,
    MAX_OUTPUT,
    MAX_REWARDS,
    OpenCall,
    StateClock,
    StateTime,
    ToolUse,
    count_use,
    small,
)
from rollcast.stream.asked import ChainSoFar

__all__ = ["ChainNotes"]

_ABOUT = ("seed", "prompt_hash", "attempt", "parent_chain_id")
_KNOWN_IF_EMPTY = frozenset({"prompt_length", "index", "tools", "policy_version", "prompt_tokens", "reward"})


class ChainNotes(StateClock, msgspec.Struct, eq=False):
    """The notes of one chain. The manager's lock guards them.

    Attributes:
        started_at, last_event_at: when it began, and when something last began, ended or failed; seconds since the epoch.
        tools, reference: as in `chain_start`; `UNSET` if there is no reference.
        about: other fields of `chain_start` that it may lack.
        policy_version, model: those of the latest generation, or of the chain's start.
        messages_before, calls_before: how many messages and ended calls there were when the latest turn began.
        unlisted: what earlier turns and calls produced that was not among the messages when the next turn began; each with
            its position and step.
        ended_calls: the calls that have ended, in that order; `tool_use`: their totals, by tool.
        generations, truncated, completion_tokens, first_token_s: of the generations that have ended.
        calls_started_at: the start times of the open calls, by id.
        calls_omitted: how many calls began while 128 were open; a view does not keep those.
        errors, error: how many errors there were, and the latest.
        converted: the messages, each with its JSON, so that long ones are converted only once.
    """

    started_at: float | None = None
    last_event_at: float | None = None
    tools: list[str] = []
    reference: Any = msgspec.UNSET
    about: dict[str, Any] = {}
    policy_version: int = 0
    model: str | None = None
    messages_before: int = 0
    listed_step: int = 0  # the latest turn that was looked at, because a message from outside came after it
    calls_before: int = 0
    unlisted: list[tuple[int, Turn | ToolRecord, int]] = []  # with the step
    ended_calls: list[ToolRecord] = []
    tool_use: dict[str, ToolUse] = {}
    generations: int = 0
    truncated: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    calls_started_at: dict[str, float] = {}
    calls_omitted: int = 0
    errors: int = 0
    error: dict[str, Any] | None = None
    converted: list[tuple[Message, Any]] = []

    # -- what happens ------------------------------------------------------------------------------------------------

    def heard(self) -> float:
        """Note that something happens now; returns the time."""
        self.last_event_at = now = time.time()
        return now

    def began(self, start: dict[str, Any]) -> None:
        """Note that the chain began; `start` is the data of its `chain_start`."""
        self.started_at = self.heard()
        self.enter("waiting", self.started_at)
        self.tools, self.policy_version = as_json(start["tools"]), start["policy_version"]
        self.reference = start.get("reference", msgspec.UNSET)
        self.about = {name: as_json(start[name]) for name in _ABOUT if name in start}

    def generation_began(self, trajectory: Trajectory, model: str, policy_version: int) -> None:
        """Note that the chain's latest turn began."""
        if len(trajectory.turns) > 1:
            self.unlisted += self._unlisted_of(trajectory.turns[-2], trajectory.messages)
        self.messages_before, self.calls_before = len(trajectory.messages), len(self.ended_calls)
        self.model, self.policy_version = model or self.model, policy_version
        self.enter("generating", self.heard())

    def message_came(self, trajectory: Trajectory) -> None:
        """Note that a message from outside is about to be added. What the turn before it left unlisted comes before it."""
        if trajectory.turns:
            self.unlisted += self._unlisted_of(trajectory.turns[-1], trajectory.messages)
            self.listed_step = trajectory.turns[-1].step
        self.messages_before, self.calls_before = len(trajectory.messages) + 1, len(self.ended_calls)
        self.enter("waiting", self.heard())

    def generation_ended(self, turn: Turn) -> None:
        """Note that the generation ended. If it calls no tool, it is taken for the chain's last."""
        why = turn.finish_reason
        self.generations += 1
        self.truncated += why == "length"
        self.completion_tokens += turn.completion_tokens
        self.first_token_s += turn.ttft_s or 0.0
        self.enter("scoring" if why in ("stop", "length") else "waiting", self.heard())

    def call_began(self, call_id: str) -> None:
        """Note that a tool call began."""
        now = self.heard()
        self.calls_omitted += len(self.calls_started_at) >= MAX_CALLS
        self.calls_started_at[call_id] = now
        self.enter("tool", now)

    def call_ended(self, record: ToolRecord) -> None:
        """Note that a tool call ended."""
        self.calls_started_at.pop(record.call.call_id, None)
        self.ended_calls.append(record)
        count_use(self.tool_use, as_json(record.call.tool_name), record.status, record.duration_s)
        self.enter("tool" if self.calls_started_at else "waiting", self.heard())

    def failed(self, data: dict[str, Any]) -> None:
        """Note a failure; `data` is that of its `error` event."""
        self.heard()
        self.errors += 1
        self.error = error_of(data)

    # -- how the chain stands ----------------------------------------------------------------------------------------

    def snapshot(self, trajectory: Trajectory, depth: int | None, as_of: int, now: float) -> dict[str, Any]:
        """The data of a `chain_snapshot`: its short form, and what a `ChainView` needs to continue as if it had seen everything."""
        t, turn = trajectory, trajectory.open_turn
        sampling = turn is not None and turn.ttft_s is not None  # the time of each token is not noted
        known: dict[str, Any] = {
            "prompt_length": t.prompt_length,
            "unlisted_messages": self._unlisted_messages(t),
            "calls_started_at": as_json(dict(self.calls_started_at)),
            "since": self.since,
            "times": msgspec.to_builtins(self.times),
            "started_at": self.started_at,
            "last_event_at": now if sampling else self.last_event_at,
            "step": len(t.turns),
            "depth": depth,
            "index": t.index,
            "tools": self.tools,
            "policy_version": self.policy_version,
            "model": self.model,
            "calls_omitted": self.calls_omitted,
            "tool_use": msgspec.to_builtins(self.tool_use),
            "errors": self.errors,
            "error": self.error,
            "reasoning": None if turn is None else turn.reasoning[-MAX_OUTPUT:],
            "reasoning_omitted": 0 if turn is None else max(0, len(turn.reasoning) - MAX_OUTPUT),
            **self._generated(t.turns),
            **self._rewarded(t),
        }
        # Fields that are empty or 0 are left out, except those that a view would then take for unknown.
        rest = {
            "content": None if turn is None else turn.text,
            "tool_calls": without_named_secrets(as_json(t.open_tool_calls)),
            "as_of": as_of,
            "state": self.state,
            "joined_late": False,
            **{name: value for name, value in known.items() if value or name in _KNOWN_IF_EMPTY},
            **({} if self.reference is msgspec.UNSET else {"reference": self.reference}),
            **self.about,
        }
        return {"messages": self._as_json(t.messages), **detached(rest)}

    def _rewarded(self, t: Trajectory) -> dict[str, Any]:
        given = [
            {"reward": each.reward, "final": False, "step": each.step or None} for each in t.step_rewards
        ]
        metrics = t.step_rewards[-1].metrics if t.step_rewards else {}
        if t.reward is not None:
            given.append({"reward": t.reward, "final": True, "step": len(t.turns) or None})
            metrics = t.metrics
        if not given:
            return {}
        return {
            "reward": given[-1]["reward"],
            "rewards": [reward_of(reward) for reward in given[-MAX_REWARDS:]],
            "metrics": bounded_fields(metrics),
        }

    def _as_json(self, messages: list[Message]) -> list[Any]:
        """The messages as JSON, not the trajectory's own; only those that are new since the last time are converted."""
        known = self.converted
        for i, message in enumerate(messages):
            if i == len(known):
                known.append(_converted(message))
            elif known[i][0] is not message:
                known[i] = _converted(message)
        del known[len(messages) :]
        return [detached(message) if converted is message else converted for message, converted in known]

    def _generated(self, turns: list[Turn]) -> dict[str, Any]:
        """The counts of the generations."""
        if not turns:
            return {}
        last = turns[-1]
        return {
            "generation_step": last.step,
            "generation_tokens": 0 if last.finish_reason is not None else len(last.token_ids),
            "prompt_tokens": last.prompt_tokens,
            "generations": self.generations,
            "truncated": self.truncated,
            "completion_tokens": self.completion_tokens,
            "first_token_s": self.first_token_s,
        }

    def so_far(
        self, trajectory: Trajectory, depth: int | None, as_of: int, *, rewarded: bool = True
    ) -> ChainSoFar:
        """What the chain adds up to. Its cost does not grow with the chain. If not `rewarded`, without the chain's own reward."""
        t = trajectory
        given, metrics = (t.reward, t.metrics) if rewarded else (None, {})
        if t.reward is None and t.step_rewards:
            given, metrics = t.step_rewards[-1].reward, t.step_rewards[-1].metrics
        return ChainSoFar(
            as_of=as_of,
            state=self.state,
            since=self.since,
            times={
                state: StateTime(time.seconds, time.stays, time.longest) for state, time in self.times.items()
            },
            last_event_at=self.last_event_at,
            step=len(t.turns) or None,
            depth=depth,
            policy_version=self.policy_version,
            truncated=self.truncated,
            completion_tokens=self.completion_tokens,
            tool_calls=self._open_calls(t) if self.calls_started_at else {},
            tool_use={
                name: ToolUse(use.calls, use.failed, use.seconds) for name, use in self.tool_use.items()
            },
            reward=given,
            metrics=object_of(small(bounded_fields(metrics))) if metrics else {},
            errors=self.errors,
            error=self.error,
        )

    def _open_calls(self, t: Trajectory) -> dict[str, OpenCall]:
        """The calls that have not ended, without arguments and output."""
        calls: dict[str, OpenCall] = {}
        for record in t.turns[-1].tools:
            if record.duration_s is None and len(calls) < MAX_CALLS:
                call_id = word(as_json(record.call.call_id)) or ""
                name = word(as_json(record.call.tool_name)) or ""
                calls[call_id] = OpenCall(
                    call_id,
                    name,
                    Tail(MAX_OUTPUT),
                    step=len(t.turns),
                    started_at=self.calls_started_at.get(record.call.call_id),
                    status=record.status,
                )
        return calls

    def _unlisted_messages(self, t: Trajectory) -> list[dict[str, Any]]:
        unlisted = self.unlisted
        if t.turns and t.turns[-1].finish_reason is not None:
            unlisted = [*unlisted, *self._unlisted_of(t.turns[-1], t.messages)]
        return [
            {"at": at, "message": _said(it) if isinstance(it, Turn) else _answer(it, step)}
            for at, it, step in unlisted
        ]

    def _unlisted_of(self, turn: Turn, messages: list[Message]) -> list[tuple[int, Turn | ToolRecord, int]]:
        """What the latest turn and its calls produced that is not among the messages, or not yet.

        If the chain's code answers calls in its own way, such as with a user message, that counts as the answer to all calls
        of the turn. If it has shortened the conversation, its messages are taken as they are.
        """
        before, step = self.messages_before, turn.step
        if len(messages) < before:
            return []
        listed = own = False
        answered: set[str | None] = set()
        for message in messages[before:]:
            role = message.get("role")
            if role == "assistant":
                listed = True
            elif role == "tool":
                answered.add(message.get("tool_call_id"))
            else:
                own = True
        if listed and own:
            return []
        listed = listed or step == self.listed_step
        unlisted: list[tuple[int, Turn | ToolRecord, int]] = [] if listed else [(before, turn, step)]
        unlisted += [
            (len(messages), record, step)
            for record in self.ended_calls[self.calls_before :]
            if record.call.call_id not in answered
        ]
        return unlisted


def _converted(message: Message) -> tuple[Message, Any]:
    """The message and its JSON: the same object, or one that shares no part with it."""
    converted = as_json(message)
    return message, message if converted is message else detached(converted)


def _said(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": turn.text,
        "finish_reason": turn.finish_reason,
        "step": turn.step,
    }
    if turn.reasoning_pieces:
        message["reasoning"] = turn.reasoning
    calls = {record.call.call_id: record.call for record in turn.tools}
    if calls:
        message["tool_calls"] = [
            {
                "id": as_json(call_id),
                "type": "function",
                "function": {
                    "name": as_json(call.tool_name),
                    "arguments": shown_arguments(call.arguments),
                },
            }
            for call_id, call in calls.items()
        ]
    return message


def _answer(record: ToolRecord, step: int) -> dict[str, Any]:
    return {
        "role": "tool",
        "content": record.observation,
        "tool_call_id": as_json(record.call.call_id),
        "name": as_json(record.call.tool_name),
        "status": record.status,
        "duration_s": record.duration_s,
        "step": step,
    }
