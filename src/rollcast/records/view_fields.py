"""The fields of a chain's view, and their JSON form, which is read back whatever it contains."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any, Self, get_args

import msgspec

from rollcast.records.bounded import Tail, clean, number, tail_of, whole, word
from rollcast.records.view_parts import (
    MAX_CALLS,
    MAX_OUTPUT,
    MAX_REWARDS,
    MAX_TEXT,
    MAX_TOOLS,
    ChainState,
    Conversation,
    OpenCall,
    StateClock,
    StateTime,
    ToolUse,
    count_of,
    moment,
    seconds_of,
    seed_of,
    seq_of,
    small,
    text_of,
    total_of,
    total_seconds_of,
    words,
)

__all__ = ["STATES", "ChainFields", "calls_of", "error_of", "object_of", "reward_of"]

STATES: tuple[str, ...] = get_args(ChainState)

MAX_ERROR = 2_048  # characters


class ChainFields(StateClock, msgspec.Struct, eq=False):
    """The fields of `ChainView`, and how they are written and read.

    Attributes:
        run_id, chain_id, group_id, source: the chain that this is a view of, from the first event.
        state: `waiting` (nothing is open), `generating`, `tool`, `scoring` (the last generation called no tool, so the reward and
            the end are next), `ended`, `lost` (its run ended without the chain's end being seen), or `unknown` (nothing was seen
            yet, or nothing since events were lost).
        since: the timestamp at which the state began, or was first seen.
        times: by state, how long the chain was in it; the current stay is added when it is over.
        started_at, last_event_at, ended_at: timestamps, None if not seen.
        joined_late: whether the chain's start was not seen, so that totals count from where the view joined.
        gaps: how often events were lost since then, so that totals may be too low.
        as_of: the latest `seq` that the view has seen, -1 if events have none.
        step, depth: those of the latest event.
        conversation: the messages as far as events show them. An assistant's `content` is everything that it wrote, with its
            calls. Messages that the view made have a `step`, an assistant's also its `finish_reason`, a tool's its `status` and
            `duration_s`. A shortened message has `omitted`: how many characters came before its content, or -1 if other parts
            were left out.
        generation: the text of the open generation, None if none is open; `reasoning`: the text that the server sends apart.
        generation_step: the step of the open or the latest generation.
        generation_tokens: how many token ids of the open generation were seen; 0 if its chunks have none.
        prompt_tokens, model, policy_version: as in the latest generation, or in `chain_start`.
        generations, truncated: how many generations ended, and how many of those with `length`.
        completion_tokens: the tokens of ended generations; those of the whole chain once it has ended.
        first_token_s: seconds to the first token, summed over all generations.
        tool_calls: open calls by id.
        tool_use: totals of ended calls by tool.
        calls_omitted: how many calls began while 128 were open, and are not kept.
        rewards: the latest 256 `reward` events: `reward`, `final`, `step`.
        reward: the chain's reward: that in `chain_end`, before that the final one, or else the latest. None if there is none.
        metrics: the metrics with the reward.
        train_step, advantage, staleness: those of the trainer's step that learned from the chain.
        errors, error: how many errors there were, and the latest: `error`, `error_type`, `where`.
        finish_reason, final_response, steps, duration_s: as in `chain_end`; None before that. `final_response_omitted`: how many
            characters came before what is kept.
        index, tools, reference, prompt_hash, seed, attempt, parent_chain_id: as in `chain_start`, None if they are not there.
    """

    run_id: str = ""
    chain_id: str = ""
    group_id: str | None = None
    source: str = ""
    started_at: float | None = None
    last_event_at: float | None = None
    ended_at: float | None = None
    joined_late: bool = True
    gaps: int = 0
    as_of: int = -1
    step: int | None = None
    depth: int | None = None
    conversation: Conversation = msgspec.field(default_factory=Conversation)
    generation: Tail | None = None
    reasoning: Tail | None = None
    generation_step: int | None = None
    generation_tokens: int = 0
    prompt_tokens: int | None = None
    model: str | None = None
    policy_version: int | None = None
    generations: int = 0
    truncated: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    tool_calls: dict[str, OpenCall] = {}
    tool_use: dict[str, ToolUse] = {}
    calls_omitted: int = 0
    rewards: list[dict[str, Any]] = []
    reward: float | None = None
    metrics: dict[str, Any] = {}
    train_step: int | None = None
    advantage: float | None = None
    staleness: int | None = None
    errors: int = 0
    error: dict[str, Any] | None = None
    finish_reason: str | None = None
    final_response: str | None = None
    final_response_omitted: int = 0
    steps: int | None = None
    duration_s: float | None = None
    index: int | None = None
    tools: list[str] | None = None
    reference: Any = None
    prompt_hash: str | None = None
    seed: int | None = None
    attempt: int | None = None
    parent_chain_id: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation. Do not change it."""
        return self.conversation.messages

    @property
    def content(self) -> str | None:
        """The text of the open generation, from its character `content_omitted` on; None if none is open."""
        return None if self.generation is None else self.generation.text

    @property
    def content_omitted(self) -> int:
        """How many characters of the open generation come before `content`, since they were not seen or were dropped."""
        return 0 if self.generation is None else self.generation.omitted

    @property
    def complete(self) -> bool:
        """Whether every event since the chain's start was seen, so that its totals are right."""
        return not self.joined_late and not self.gaps

    @property
    def tokens(self) -> int:
        """How many tokens were sampled as far as is known, with those of the open generation."""
        return self.completion_tokens + self.generation_tokens

    def to_dict(self) -> dict[str, Any]:
        """A copy of the view as plain JSON."""
        return {**self.told(), "messages": msgspec.to_builtins(self.messages)}

    def told(self) -> dict[str, Any]:
        """The same as `to_dict`, but with the view's own messages, which the view replaces and never changes."""
        known: dict[str, Any] = {
            "run_id": clean(self.run_id),
            "chain_id": clean(self.chain_id),
            "group_id": self.group_id,
            "source": clean(self.source),
            "messages": list(self.messages),
            "content": self.content,
            "tool_calls": [call.to_dict() for call in self.tool_calls.values()],
            "as_of": self.as_of,
            "prompt_length": self.conversation.prompt_length,
            "messages_omitted": self.conversation.omitted,
            "content_omitted": self.content_omitted,
            "reasoning": None if self.reasoning is None else self.reasoning.text,
            "reasoning_omitted": 0 if self.reasoning is None else self.reasoning.omitted,
        }
        return known | {name: msgspec.to_builtins(getattr(self, name)) for name in _READERS}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The view that `to_dict` described. Fields that are missing or have another shape are as in an empty view."""
        view = cls()
        value = object_of(value)
        view.run_id, view.chain_id = text_of(value.get("run_id")), text_of(value.get("chain_id"))
        view.group_id, view.source = word(value.get("group_id")), text_of(value.get("source"))
        view.restore(value)
        return view

    def restore(self, value: dict[str, Any]) -> None:
        """Read everything except the run, chain, group and source from the form of `to_dict`."""
        for name, read in _READERS.items():
            setattr(self, name, read(value.get(name)))
        self.as_of = seq_of(value.get("as_of"))
        omitted = total_of(value.get("messages_omitted"))
        messages = _all_messages(value)
        if not omitted and not self.conversation.omitted:
            messages = _in_full(messages, self.messages)
        self.conversation = self.conversation.anew(messages, count_of(value.get("prompt_length")), omitted)
        content, reasoning = value.get("content"), value.get("reasoning")
        self.generation = self.reasoning = None
        if isinstance(content, str):
            self.generation = Tail.of(content, MAX_TEXT, total_of(value.get("content_omitted")))
        if isinstance(reasoning, str):
            self.reasoning = Tail.of(reasoning, MAX_OUTPUT, total_of(value.get("reasoning_omitted")))
        self.tool_calls = calls_of(value.get("tool_calls"))
        started = object_of(value.get("calls_started_at"))
        for call in self.tool_calls.values():
            if call.started_at is None and call.call_id in started:
                call.started_at, call.step = moment(started[call.call_id]), self.step


def _all_messages(value: dict[str, Any]) -> Any:
    """The `messages` of a snapshot, with those from `unlisted_messages` put between them."""
    listed, unlisted = value.get("messages"), value.get("unlisted_messages")
    if not isinstance(listed, list | tuple) or not isinstance(unlisted, list | tuple) or not unlisted:
        return listed
    messages: list[Any] = []
    taken = 0
    for found in map(object_of, unlisted):
        before = count_of(found.get("at")) or 0
        messages += listed[taken:before]
        taken = max(taken, min(before, len(listed)))
        messages.append(found.get("message"))
    return [*messages, *listed[taken:]]


def _in_full(told: Any, known: list[dict[str, Any]]) -> Any:
    """The messages of a snapshot, in which those that a view knows from their events stay, as far as both tell of the same ones.

    A chain's own snapshot has of a turn only what the parser left; the events have its whole text, and how long its calls took.
    """
    if not known or not isinstance(told, list | tuple):
        return told
    messages = [*told]
    answers: dict[str | None, dict[str, Any]] = {}
    for i, (said, seen) in enumerate(zip(map(object_of, told), known, strict=False)):
        if word(said.get("role")) != word(seen.get("role")) or _have_other_calls(said, seen):
            break
        found = seen
        if seen.get("role") != "tool":
            answers = {}
        else:  # a chain has answers in the order of its calls, and a view in that of their ends
            answers = answers or _answers(known[i:])
            found = answers.get(word(said.get("tool_call_id")), {})
        ended = word(found.get("finish_reason")) is not None or word(found.get("status")) is not None
        if ended and "step" not in said:
            messages[i] = found
    return messages


def _answers(messages: list[dict[str, Any]]) -> dict[str | None, dict[str, Any]]:
    """The tools' messages at the beginning, by the id of their call."""
    first = takewhile(lambda message: message.get("role") == "tool", messages)
    return {word(message.get("tool_call_id")): message for message in first}


def _have_other_calls(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both messages list calls, and not the same ones."""
    ours, theirs = _call_ids(one), _call_ids(other)
    return bool(ours and theirs) and ours != theirs


def _call_ids(message: dict[str, Any]) -> list[str | None]:
    calls = message.get("tool_calls")
    return [word(object_of(call).get("id")) for call in calls] if isinstance(calls, list) else []


def object_of(value: Any) -> dict[str, Any]:
    """The value if it is an object, otherwise an empty object."""
    return value if isinstance(value, dict) else {}


def calls_of(value: Any) -> dict[str, OpenCall]:
    """The open calls of a snapshot or a view, at most 128."""
    found = (
        [OpenCall.restored(call) for call in value if isinstance(call, dict)]
        if isinstance(value, list)
        else []
    )
    return {call.call_id: call for call in found[:MAX_CALLS]}


def error_of(value: Any) -> dict[str, Any] | None:
    """The fields of an `error` event, with its text cut at 2,048 characters; None if it is not an object."""
    if not isinstance(value, dict):
        return None
    text = text_of(value.get("error"))
    return {
        "error": clean(text[:MAX_ERROR]),
        "error_type": word(value.get("error_type")),
        "where": word(value.get("where")),
    }


def reward_of(value: dict[str, Any]) -> dict[str, Any]:
    """One of `rewards`. `final` is None if the event does not say."""
    final = value.get("final")
    return {
        "reward": number(value.get("reward")),
        "final": final if isinstance(final, bool) else None,
        "step": whole(value.get("step")),
    }


def _rewards(value: Any) -> list[dict[str, Any]]:
    given = value[-MAX_REWARDS:] if isinstance(value, list) else []
    return [reward_of(reward) for reward in given if isinstance(reward, dict)]


def _limited(value: Any) -> str | None:
    return tail_of(value, MAX_TEXT)[0] if isinstance(value, str) else None


_READERS: dict[str, Callable[[Any], Any]] = {
    "state": lambda value: value if value in STATES else "unknown",
    "since": moment,
    "times": lambda value: {n: StateTime.restored(t) for n, t in object_of(value).items() if n in STATES},
    "started_at": moment,
    "last_event_at": moment,
    "ended_at": moment,
    "joined_late": lambda value: value is not False,
    "gaps": total_of,
    "step": whole,
    "depth": whole,
    "generation_step": whole,
    "generation_tokens": total_of,
    "prompt_tokens": count_of,
    "model": word,
    "policy_version": whole,
    "generations": total_of,
    "truncated": total_of,
    "completion_tokens": total_of,
    "first_token_s": total_seconds_of,
    "tool_use": lambda value: {
        clean(text_of(n)): ToolUse.restored(u) for n, u in list(object_of(value).items())[: MAX_TOOLS + 1]
    },
    "calls_omitted": total_of,
    "rewards": _rewards,
    "reward": number,
    "metrics": lambda value: object_of(small(value)),
    "train_step": whole,
    "advantage": number,
    "staleness": whole,
    "errors": total_of,
    "error": error_of,
    "finish_reason": word,
    "final_response": _limited,
    "final_response_omitted": total_of,
    "steps": count_of,
    "duration_s": seconds_of,
    "index": count_of,
    "tools": words,
    "reference": small,
    "prompt_hash": word,
    "seed": seed_of,
    "attempt": count_of,
    "parent_chain_id": word,
}
