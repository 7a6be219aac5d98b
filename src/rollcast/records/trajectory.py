"""The open trajectory: the single source of a chain's state.

While the chain runs it grows by one token at a time; snapshots for late observers, events and training batches are
views of it. Only the rollout writes it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from rollcast.errors import InputError
from rollcast.records.event import (
    ChainFinishReason,
    GenerationFinishReason,
    OpenToolCall,
    ToolStatus,
)
from rollcast.records.jsonable import as_json
from rollcast.records.message import Message, ToolCall

__all__ = ["OutsideMessage", "Segment", "StepReward", "ToolRecord", "Trajectory", "Turn"]


class ToolRecord(msgspec.Struct):
    """One tool call and its result. `status` is None while the tool runs; `duration_s` is in seconds."""

    call: ToolCall
    observation: str = ""
    status: ToolStatus | None = None
    duration_s: float | None = None


class StepReward(msgspec.Struct, frozen=True):
    """A reward that a tool, or the chain's own code, gave between turns.

    Attributes:
        step: the turn after which it was given; 0 before the first.
        reward: the number.
        metrics: numbers beside it.
    """

    step: int
    reward: float
    metrics: dict[str, Any] = {}


class OutsideMessage(msgspec.Struct, frozen=True):
    """Where a message from outside stands: after which turn (0: before the first), and at which place among the messages."""

    step: int
    index: int


class Turn(msgspec.Struct):
    """One generation and the tool calls that it asked for.

    Attributes:
        step: the turn's number, from 1.
        prompt_ids: ids of what was new in this turn's prompt (mask 0), or of the whole prompt if `fresh`; empty if the
            backend has no ids.
        token_ids: sampled ids, shape (T,), with the stop token; empty if the backend has no ids.
        logprobs: log-probabilities in the distribution that was sampled from, shape (T,) or empty.
        policy_versions: versions of the weights that sampled each token, shape (T,) or empty.
        prompt_tokens: length of the whole prompt in tokens, with earlier turns; None if unknown.
        completion_tokens: how many tokens were sampled: what the engine counted, or the ids, or if there are none, how many deltas
            had text.
        finish_reason: None while the generation is open.
        ttft_s, duration_s: seconds from the request to the first token and to the end.
        tools: the calls of this turn, in the order in which the model wrote them.
        reasoning_pieces: the reasoning that the server sent apart from the text, in pieces; `reasoning` joins them.
        fresh: the prompt does not go on from the ids of the turns before: it was rendered afresh, since the chat template
            now shows part of them differently. A new segment begins. False in the first turn.
    """

    step: int
    prompt_ids: list[int] = []
    token_ids: list[int] = []
    logprobs: list[float] = []
    policy_versions: list[int] = []
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    finish_reason: GenerationFinishReason | None = None
    ttft_s: float | None = None
    duration_s: float | None = None
    tools: list[ToolRecord] = []
    chars: int = 0
    pieces: list[str] = []
    fresh: bool = False
    reasoning_pieces: list[str] = []

    @property
    def reasoning(self) -> str:
        """The reasoning that the server sent apart, so far."""
        if len(self.reasoning_pieces) > 1:
            self.reasoning_pieces = ["".join(self.reasoning_pieces)]
        return self.reasoning_pieces[0] if self.reasoning_pieces else ""

    @property
    def text(self) -> str:
        """The text so far."""
        if self.finish_reason is None:  # it may grow at this moment, in another thread
            return "".join(self.pieces)
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    def append_reasoning(self, reasoning: str) -> None:
        """Add reasoning text that the server sent apart."""
        self.reasoning_pieces.append(reasoning)

    def append(
        self, text: str, token_ids: list[int] | None, logprobs: list[float] | None, policy_version: int | None
    ) -> None:
        """Add what was just sampled."""
        if text:
            self.pieces.append(text)
            self.chars += len(text)
        elif not isinstance(text, str):
            raise InputError(
                f"a chunk's text is {text!r}; leave out chunks that have neither text nor token ids"
            )
        if token_ids and len(token_ids) == 1:  # the usual case, without lists in between
            self.token_ids.append(token_ids[0])
            self.completion_tokens += 1
            if logprobs:
                self.logprobs.append(logprobs[0])
            if policy_version is not None:
                self.policy_versions.append(policy_version)
        elif token_ids:
            self.token_ids.extend(token_ids)
            self.completion_tokens += len(token_ids)
            if logprobs:
                self.logprobs.extend(logprobs)
            if policy_version is not None:
                self.policy_versions.extend([policy_version] * len(token_ids))
        elif text:
            self.completion_tokens += 1


class Segment(msgspec.Struct, frozen=True):
    """Turns whose prompts are each the exact ids of those before, and new ids: one sequence to train on.

    Attributes:
        turns: its turns, in order.
    """

    turns: list[Turn]

    @property
    def token_ids(self) -> list[int]:
        """Prompts and samples in order, shape (T,); empty if the backend has no ids."""
        return [i for turn in self.turns for part in (turn.prompt_ids, turn.token_ids) for i in part]

    @property
    def loss_mask(self) -> list[int]:
        """1 where the model sampled the token in this segment, else 0; shape (T,).

        Turns of earlier segments that are in this one's prompt were rendered again, and have 0: over all segments, each
        sampled token has a 1 exactly once.
        """
        return [m for turn in self.turns for m in [0] * len(turn.prompt_ids) + [1] * len(turn.token_ids)]

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities aligned with `token_ids`, 0.0 where the mask is 0; shape (T,)."""
        return self._aligned("logprobs", 0.0)

    @property
    def policy_versions(self) -> list[int]:
        """Policy versions aligned with `token_ids`, -1 where the mask is 0; shape (T,)."""
        return self._aligned("policy_versions", -1)

    def _aligned(self, name: str, fill: Any) -> list[Any]:
        aligned: list[Any] = []
        for turn in self.turns:
            values = getattr(turn, name)
            aligned += [fill] * len(turn.prompt_ids)
            aligned += values or [fill] * len(turn.token_ids)
        return aligned


class Trajectory(msgspec.Struct):
    """Everything that one chain sampled, called and observed.

    Attributes:
        run_id, chain_id, group_id: where it belongs; `index` is the repeat within the group, from 0.
        row: its row's fields, without the messages.
        messages: the conversation so far, prompt first.
        prompt_length: how many of the messages were given.
        turns: one per generation.
        finish_reason: None while the chain runs.
        final_response: the text of the last generation, if that did not call a tool.
        reward: the chain's own; None if there is none or it failed.
        metrics: numbers beside the reward.
        step_rewards: those that were given between turns, in order. They are not added to `reward`.
        from_outside: which messages came from outside after the start, such as a user's next turn, in order.
        error: what ended the chain with `error`, or left it without a reward, in a sentence.
        duration_s: how long the chain ran, in seconds.
    """

    run_id: str
    chain_id: str
    group_id: str | None
    index: int = 0
    row: dict[str, Any] = {}
    messages: list[Message] = []
    prompt_length: int = 0
    turns: list[Turn] = []
    finish_reason: ChainFinishReason | None = None
    final_response: str = ""
    reward: float | None = None
    metrics: dict[str, Any] = {}
    error: str | None = None
    duration_s: float | None = None
    step_rewards: list[StepReward] = []
    from_outside: list[OutsideMessage] = []

    @property
    def completion_tokens(self) -> int:
        """Sampled tokens of all turns."""
        return sum(turn.completion_tokens for turn in self.turns)

    @property
    def segments(self) -> list[Segment]:
        """The sequences to train on: one, unless the chain forked; empty before the first turn."""
        parts: list[list[Turn]] = []
        for turn in self.turns:
            if turn.fresh or not parts:
                parts.append([])
            parts[-1].append(turn)
        return [Segment(turns) for turns in parts]

    @property
    def forked(self) -> bool:
        """Whether there is more than one segment, since a turn's prompt was rendered afresh."""
        return any(turn.fresh for turn in self.turns[1:])

    @property
    def token_ids(self) -> list[int]:
        """The whole sequence, prompts and samples in order, shape (T,); empty if the backend has no ids.

        Raises:
            InputError: the chain forked, so there is more than one sequence. The next three properties raise it too.
        """
        return self._sequence.token_ids

    @property
    def loss_mask(self) -> list[int]:
        """1 where the model sampled the token, 0 where a prompt, a template or a tool wrote it; shape (T,)."""
        return self._sequence.loss_mask

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities aligned with `token_ids`, 0.0 where the mask is 0; shape (T,)."""
        return self._sequence.logprobs

    @property
    def policy_versions(self) -> list[int]:
        """Policy versions aligned with `token_ids`, -1 where the mask is 0; shape (T,)."""
        return self._sequence.policy_versions

    @property
    def _sequence(self) -> Segment:
        if self.forked:
            steps = ", ".join(str(turn.step) for turn in self.turns[1:] if turn.fresh)
            raise InputError(
                f"{self.chain_id} is not a single sequence: its prompt was rendered afresh at step {steps}, where the chat "
                "template shows earlier turns differently; train on each of trajectory.segments, which have the same lists"
            )
        return Segment(self.turns)

    @property
    def tool_calls(self) -> list[ToolRecord]:
        """The tool calls of all turns."""
        return [record for turn in self.turns for record in turn.tools]

    @property
    def open_turn(self) -> Turn | None:
        """The turn whose generation has begun and not ended."""
        turn = self.turns[-1] if self.turns else None
        return turn if turn is not None and turn.finish_reason is None else None

    @property
    def open_tool_calls(self) -> list[OpenToolCall]:
        """The tool calls that have not ended."""
        open_calls = []
        for record in self.turns[-1].tools if self.turns else ():
            if record.duration_s is not None:
                continue
            call = OpenToolCall(
                call_id=record.call.call_id,
                tool_name=record.call.tool_name,
                arguments=record.call.arguments,
                observation=record.observation,
            )
            if record.status is not None:
                call["status"] = record.status
            open_calls.append(call)
        return open_calls

    def digest(self) -> str:
        """SHA-256 (hex) over everything that the seed determines, so without times and the run's id.

        Two runs with the same seed on one machine have equal digests, streaming on or off.
        """
        sampled = [
            (
                (
                    t.prompt_ids,
                    t.token_ids,
                    t.logprobs,
                    t.text,
                    t.finish_reason,
                    t.fresh,
                    *([t.reasoning] if t.reasoning_pieces else []),
                ),
                [(r.call, r.observation, r.status) for r in t.tools],
            )
            for t in self.turns
        ]
        whole = (
            self.chain_id,
            self.group_id,
            self.messages,
            sampled,
            self.finish_reason,
            self.final_response,
        )
        rewards = (self.reward, self.metrics, *([self.step_rewards] if self.step_rewards else []))
        encoded = msgspec.json.encode((whole, *rewards), enc_hook=as_json)
        return hashlib.sha256(encoded).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready builtins; what JSON cannot hold is described by type and size."""
        for turn in self.turns:
            _ = turn.text, turn.reasoning  # joins the pieces
        return msgspec.to_builtins(as_json(self))  # type: ignore[no-any-return]  # a copy, which may be changed

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Trajectory:
        """Make a trajectory from what `to_dict` returned."""
        trajectory = msgspec.convert(value, cls)
        # A message's further fields, such as its reasoning, are kept too.
        trajectory.messages = [dict(message) for message in value.get("messages", ())]  # type: ignore[misc]
        return trajectory
