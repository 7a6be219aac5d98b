"""Exports trajectories in the formats of others: TRL's rollouts, verl's agent loops, ATIF documents.

It is pure, and none of the three has to be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from rollcast.errors import InputError
from rollcast.records import Message, Trajectory
from rollcast.records.jsonable import as_json
from rollcast.records.trajectory import Segment, ToolRecord, Turn
from rollcast.version import __version__

__all__ = ["ATIF_VERSION", "Forked", "sequence_of", "to_atif", "to_trl", "to_verl"]

ATIF_VERSION = "ATIF-v1.7"

Forked = Literal["error", "last"]


def sequence_of(trajectory: Trajectory, forked: Forked = "error") -> Segment:
    """Return the one sequence of a chain, for trainers that take one per rollout, after checking its ids and log-probabilities.

    Args:
        trajectory: a trajectory with token ids and log-probabilities.
        forked: what happens to a chain with several segments: an error, or the last segment is taken, with which the chain
            ended. Tokens that were sampled in earlier segments are in its prompt and are not trained on.

    Raises:
        InputError: the chain forked and `forked` is `error`; nothing was sampled; ids, log-probabilities or the prompt's ids
            are missing.
    """
    if forked not in ("error", "last"):
        raise InputError(f"forked is {forked!r}; expected 'error' or 'last'")
    segments, name = trajectory.segments, trajectory.chain_id
    if not segments:
        raise InputError(
            f"{name} has sampled nothing ({trajectory.error or 'it has no turns'}); leave it out"
        )
    if len(segments) > 1 and forked == "error":
        step = segments[1].turns[0].step
        raise InputError(
            f"{name} is not a single sequence: its prompt was rendered afresh at step {step}, where the chat template shows "
            "earlier turns differently, and this takes one sequence per chain; give the backend a chat template that keeps what "
            "it has shown, or take only the last with forked='last'"
        )
    segment = segments[-1]
    for turn in segment.turns:
        ids = len(turn.token_ids)
        if turn.completion_tokens != ids or len(turn.logprobs) != ids:
            raise InputError(
                f"turn {turn.step} of {name} has {turn.completion_tokens} tokens, {ids} token ids and {len(turn.logprobs)} "
                "log-probabilities; expected one of each: use a backend that is token_exact and yields logprobs"
            )
    if not segment.turns[0].prompt_ids:
        raise InputError(f"{name} has no prompt ids; give them with chain.generation(prompt_ids=…)")
    return segment


def _response(segment: Segment) -> tuple[list[int], list[int], list[int], list[float]]:
    """Prompt ids, then response ids, mask and log-probabilities, which have the same length."""
    first = segment.turns[0]
    cut = len(first.prompt_ids)
    return list(first.prompt_ids), segment.token_ids[cut:], segment.loss_mask[cut:], segment.logprobs[cut:]


def to_trl(trajectories: Iterable[Trajectory], *, forked: Forked = "error") -> dict[str, list[Any]]:
    """Return what TRL's `rollout_func` returns: `prompt_ids`, `completion_ids`, `logprobs`, `env_mask`, with a list per chain.

    A completion is everything after the first prompt. `env_mask` is 1 where the model sampled the token, and 0 where a tool or
    the template wrote it; `logprobs` are 0.0 there. The format is that of `GRPOTrainer._generate` in TRL 1.16.0
    (https://huggingface.co/docs/trl/grpo_trainer); TRL reads the mask if the trainer has no `tools` of its own.

    Args:
        trajectories: the trajectories, in the order of the prompts.
        forked: as in `sequence_of`.

    Raises:
        InputError: see `sequence_of`.
    """
    names = ("prompt_ids", "completion_ids", "env_mask", "logprobs")
    rollout: dict[str, list[Any]] = {name: [] for name in names}
    for trajectory in trajectories:
        for name, values in zip(names, _response(sequence_of(trajectory, forked)), strict=True):
            rollout[name].append(values)
    return rollout


def to_verl(trajectory: Trajectory, *, forked: Forked = "error") -> dict[str, Any]:
    """Return the fields of verl's `AgentLoopOutput`: `AgentLoopOutput(**to_verl(trajectory))` in an `AgentLoopBase.run`.

    They are those of verl 0.9.1, in its `verl/experimental/agent_loop/agent_loop.py`. Its fields for images
    and videos, such as `mm_processor_output`, are left at verl's defaults.
    `num_turns` counts the messages of user, assistant and tool, as verl's loops do. `metrics` are seconds; `num_preempted` is
    left at verl's default. `extra_fields` has the chain's id and, if the backend tells them, the `policy_versions` of the
    response's tokens.

    Args:
        trajectory: the chain's trajectory.
        forked: as in `sequence_of`.

    Raises:
        InputError: see `sequence_of`.
    """
    segment = sequence_of(trajectory, forked)
    prompt_ids, response_ids, response_mask, response_logprobs = _response(segment)
    extra: dict[str, Any] = {"chain_id": trajectory.chain_id}
    if any(turn.policy_versions for turn in segment.turns):
        extra["policy_versions"] = segment.policy_versions[len(prompt_ids) :]
    return {
        "prompt_ids": prompt_ids,
        "response_ids": response_ids,
        "response_mask": response_mask,
        "response_logprobs": response_logprobs,
        "reward_score": trajectory.reward,
        "num_turns": sum(message["role"] not in ("system", "developer") for message in trajectory.messages),
        "metrics": {
            "generate_sequences": sum(turn.duration_s or 0.0 for turn in trajectory.turns),
            "tool_calls": sum(record.duration_s or 0.0 for record in trajectory.tool_calls),
        },
        "extra_fields": extra,
    }


def to_atif(
    trajectory: Trajectory,
    *,
    agent_name: str = "rollcast",
    agent_version: str = __version__,
    model_name: str | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    token_ids: bool = True,
) -> dict[str, Any]:
    """Return the chain as an ATIF document (Agent Trajectory Interchange Format of the Harbor framework, v1.7), JSON-ready.

    The format is https://github.com/harbor-framework/harbor/blob/main/rfcs/0001-trajectory-format.md (v1.7, April 2026). A
    system or user message is a step; so is a turn, with its calls and observations. Messages from outside stand after the turn that
    they followed. A turn's metrics hold `prompt_token_ids`
    (its whole prompt), `completion_token_ids` and `logprobs`, so that it can be trained on without encoding anything again.
    This works for forked chains too: each turn has the prompt that it was sampled from; `extra.fresh` marks where one began
    anew.

    What ATIF has no field for is in `extra`: for the document the group, reward, metrics and how the chain ended; for a turn
    its policy versions, times, finish reason and rewards of steps; for a call its status, and the raw text of malformed arguments. Messages
    from the assistant or a tool that are not part of a turn, such as demonstrations in the prompt, become steps without
    metrics.

    Args:
        trajectory: the chain's trajectory; ids and log-probabilities are exported if it has them.
        agent_name: the agent that ran it.
        agent_version: the agent's version.
        model_name: the model that sampled.
        tools: the tools' JSON-schema descriptions, `agent.tool_schemas`.
        token_ids: False leaves out ids and log-probabilities, which are most of the document.
    """
    agent: dict[str, Any] = {"name": agent_name, "version": agent_version}
    if model_name is not None:
        agent["model_name"] = model_name
    if tools:
        agent["tool_definitions"] = list(tools)
    steps = [_message_step(message) for message in _prompt(trajectory)]
    steps += _turn_steps(trajectory, token_ids)
    numbered = [{"step_id": i, **step} for i, step in enumerate(steps, 1)]
    prompt_tokens = [turn.prompt_tokens for turn in trajectory.turns]
    final: dict[str, Any] = {
        "total_completion_tokens": trajectory.completion_tokens,
        "total_steps": len(numbered),
    }
    if prompt_tokens and None not in prompt_tokens:
        final["total_prompt_tokens"] = sum(n for n in prompt_tokens if n is not None)
    if trajectory.reward is not None:
        final["extra"] = {"reward": trajectory.reward, **trajectory.metrics}
    about = {
        "group_id": trajectory.group_id,
        "index": trajectory.index,
        "finish_reason": trajectory.finish_reason,
        "error": trajectory.error,
        "duration_s": trajectory.duration_s,
        "row": trajectory.row or None,
    }
    document = {
        "schema_version": ATIF_VERSION,
        "session_id": trajectory.run_id,
        "trajectory_id": f"{trajectory.run_id}/{trajectory.chain_id}",
        "agent": agent,
        "steps": numbered,
        "final_metrics": final,
        "extra": {name: value for name, value in about.items() if value is not None},
    }
    built: dict[str, Any] = msgspec.to_builtins(as_json(document))
    return built


def _prompt(trajectory: Trajectory) -> list[Message]:
    return trajectory.messages[: trajectory.prompt_length]


def _message_step(message: Message) -> dict[str, Any]:
    """The step for a message that is not from a turn of this chain."""
    role = message["role"]
    content = _content(message.get("content"))
    if role == "tool":  # in a demonstration: the feedback does not belong to a call of this chain
        return {"source": "agent", "message": "", "observation": {"results": [{"content": content}]}}
    return {"source": "agent" if role == "assistant" else role, "message": content}


def _content(content: Any) -> str:
    """The text of a content; ATIF has other kinds of parts than the chat APIs, so what is not text is written as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = [part.get("text") if part.get("type") == "text" else None for part in content]
    return "".join(
        msgspec.json.encode(p).decode() if t is None else t for p, t in zip(content, texts, strict=True)
    )


def _turn_steps(trajectory: Trajectory, with_ids: bool) -> Iterable[dict[str, Any]]:
    ids: list[int] = []
    yield from _said_after(0, trajectory)
    for turn in trajectory.turns:
        ids = [*([] if turn.fresh else ids), *turn.prompt_ids]
        step = _turn_step(turn, ids if with_ids else [], with_ids)
        rewards = [each.reward for each in trajectory.step_rewards if each.step == turn.step]
        if rewards:
            step.setdefault("extra", {})["step_rewards"] = rewards
        yield step
        yield from _said_after(turn.step, trajectory)
        ids += turn.token_ids


def _said_after(step: int, trajectory: Trajectory) -> Iterable[dict[str, Any]]:
    """The steps for the messages from outside that came after this turn."""
    messages = trajectory.messages
    for place in trajectory.from_outside:
        if place.step == step and place.index < len(messages):
            yield _message_step(messages[place.index])


def _turn_step(turn: Turn, prompt_ids: list[int], with_ids: bool) -> dict[str, Any]:
    metrics: dict[str, Any] = {"completion_tokens": turn.completion_tokens}
    if turn.prompt_tokens is not None:
        metrics["prompt_tokens"] = turn.prompt_tokens
    if prompt_ids:
        metrics |= {"prompt_tokens": len(prompt_ids), "prompt_token_ids": list(prompt_ids)}
    if with_ids and turn.token_ids:
        metrics["completion_token_ids"] = turn.token_ids
        if turn.logprobs:
            metrics["logprobs"] = turn.logprobs
        if turn.policy_versions:
            metrics["extra"] = {"policy_versions": turn.policy_versions}
    about = {
        "finish_reason": turn.finish_reason,
        "ttft_s": turn.ttft_s,
        "duration_s": turn.duration_s,
        "fresh": turn.fresh or None,
    }
    step: dict[str, Any] = {"source": "agent", "message": turn.text, "metrics": metrics, "llm_call_count": 1}
    extra = {name: value for name, value in about.items() if value is not None}
    if extra:
        step["extra"] = extra
    if turn.tools:
        step["tool_calls"] = [_call(record) for record in turn.tools]
        results = [
            {"source_call_id": record.call.call_id, "content": record.observation}
            for record in turn.tools
            if record.status is not None
        ]
        if results:
            step["observation"] = {"results": results}
    return step


def _call(record: ToolRecord) -> dict[str, Any]:
    call = record.call
    about: dict[str, Any] = {
        "status": record.status,
        "duration_s": record.duration_s,
        "error": call.error,
        "raw_arguments": call.arguments if isinstance(call.arguments, str) else None,
    }
    extra = {name: value for name, value in about.items() if value is not None}
    shown = {
        "tool_call_id": call.call_id,
        "function_name": call.tool_name,
        "arguments": call.arguments if isinstance(call.arguments, dict) else {},
    }
    return {**shown, "extra": extra} if extra else shown
