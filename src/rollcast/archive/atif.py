"""A recorded chain in the Agent Trajectory Interchange Format, version 1.7: one JSON object a chain. Pure."""

from __future__ import annotations

import json
import math
from typing import Any

from rollcast.archive.format import RunFile
from rollcast.archive.story import Sampled, Story

__all__ = ["ATIF_VERSION", "atif_of"]

ATIF_VERSION = "ATIF-v1.7"


def atif_of(story: Story, facts: RunFile, record: str) -> dict[str, Any] | None:
    """The chain as ATIF has it; None if nothing was said in it, which the format cannot tell.

    Args:
        story: of the chain.
        facts: of its record.
        record: the name of the record's folder.
    """
    steps = _steps(story)
    if not steps:
        return None
    view, row = story.view, story.row
    agent = {"name": facts.name or "rollcast", "version": facts.versions.get("rollcast", "unknown")}
    extra: dict[str, Any] = {"record": record, "run_id": row["run_id"], "state": row.get("state")}
    for name in ("group_id", "index", "train_step", "advantage", "finish_reason", "reference", "error"):
        if row.get(name) is not None:
            extra[name] = row[name]
    outcome = {"reward": view.reward, "metrics": view.metrics}
    return {
        "schema_version": ATIF_VERSION,
        "session_id": row["run_id"],
        "trajectory_id": f"{row['run_id']}/{row['chain_id']}",
        "agent": agent | ({"model_name": view.model} if view.model else {}),
        "steps": steps,
        "final_metrics": {
            "total_completion_tokens": view.tokens,
            "total_steps": len(steps),
            "extra": {"chain_id": row["chain_id"], **outcome},
        },
        "extra": extra,
    }


def _steps(story: Story) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    messages = list(story.view.messages)
    if story.view.content is not None:  # the generation that is open
        messages.append(
            {"role": "assistant", "content": story.view.content, "step": story.view.generation_step}
        )
    for message in messages:
        role = message.get("role")
        if role == "tool" and steps and steps[-1]["source"] == "agent":
            results = steps[-1].setdefault("observation", {"results": []})["results"]
            results.append(_result(message, steps[-1]))
            continue
        source = "agent" if role == "assistant" else "user" if role == "user" else "system"
        step: dict[str, Any] = {
            "step_id": len(steps) + 1,
            "source": source,
            "message": _text(message.get("content")),
        }
        if source == "agent":
            _complete(step, message, story)
        steps.append(step)
    return steps


def _complete(step: dict[str, Any], message: dict[str, Any], story: Story) -> None:
    """What an agent's step has beside its text."""
    if story.view.model and isinstance(message.get("step"), int):
        step["model_name"] = story.view.model
    reasoning = message.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        step["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        step["tool_calls"] = [_call(call if isinstance(call, dict) else {}) for call in calls]
    metrics = _metrics(story.sampled.get(message.get("step", -1)))
    if metrics:
        step["metrics"] = metrics


def _call(call: dict[str, Any]) -> dict[str, Any]:
    given = call.get("function")
    function = given if isinstance(given, dict) else {}
    arguments = function.get("arguments")
    found = {
        "tool_call_id": str(call.get("id") or ""),
        "function_name": str(function.get("name") or ""),
        "arguments": arguments if isinstance(arguments, dict) else {},
    }
    if not isinstance(arguments, dict) and arguments is not None:  # what the model wrote is no object
        found["extra"] = {"raw_arguments": _text(arguments)}
    return found


def _result(message: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    known = {call["tool_call_id"] for call in step.get("tool_calls", ())}
    result: dict[str, Any] = {"content": _text(message.get("content"))}
    if message.get("tool_call_id") in known:
        result["source_call_id"] = message["tool_call_id"]
    about = {
        name: message[name] for name in ("name", "status", "duration_s") if message.get(name) is not None
    }
    return result | ({"extra": about} if about else {})


def _metrics(sampled: Sampled | None) -> dict[str, Any]:
    if sampled is None:
        return {}
    ids, logprobs = sampled.token_ids, sampled.logprobs
    found: dict[str, Any] = {"completion_tokens": len(ids)}
    if all(type(token) is int and token >= 0 for token in ids):
        found["completion_token_ids"] = ids
    if len(logprobs) == len(ids) and all(math.isfinite(p) for p in logprobs):
        found["logprobs"] = [float(p) for p in logprobs]
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
