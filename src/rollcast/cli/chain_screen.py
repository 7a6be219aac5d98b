"""One recorded chain as rows: its question, what it said and did, its reward, its end."""

from __future__ import annotations

import math
from typing import Any

from rollcast.archive.story import Sampled, Story
from rollcast.cli.wording import counted, duration_text, number_text, one_line_of
from rollcast.records import StreamEvent, StreamEventType
from rollcast.terminal.event_rows import EventRows
from rollcast.terminal.layout import Row

__all__ = ["chain_rows"]

_LINES = 12  # of one text
_LINE_CHARS = 600
_MESSAGES = 40  # of a conversation; from the middle they are left out
_TOKENS = 96  # of one generation


def chain_rows(story: Story, rows: EventRows, *, tokens: bool) -> list[Row]:
    """What happened in the chain.

    Args:
        story: of the chain.
        rows: how texts from outside become safe rows.
        tokens: whether to list the sampled tokens.
    """
    view = story.view
    found: list[Row] = [_who(story, rows), _outcome(story, rows), *_how(story, rows)]
    if view.reference is not None:
        found.append([("reference  ", "dim"), *rows.line(one_line_of(view.reference), _LINE_CHARS, "bold")])
    if story.fields:
        found.append([("row  ", "dim"), *rows.line(one_line_of(story.fields), _LINE_CHARS)])
    found.append([])
    messages = [(message, False) for message in view.messages]
    if view.content is not None:
        messages.append(({"role": "assistant", "content": view.content, "step": view.generation_step}, True))
    spoken = [m for m, _ in messages[view.conversation.prompt_length or 0 :] if m.get("role") == "assistant"]
    if view.steps and not spoken and not view.conversation.omitted and not story.lacks_end:
        text = f"the turns of this chain are not in the record (level {story.level})"
        found.append(rows.line(text, 200, "gap"))
    if view.conversation.omitted:
        found.append(
            [(f"{rows.glyphs.more} {view.conversation.omitted:,} messages are too old or too large", "gap")]
        )
    rewards = [reward for reward in view.rewards if reward["final"] is False]
    for i, (message, is_open) in enumerate(messages):
        if len(messages) > _MESSAGES and i == _MESSAGES // 2:
            found.append([(f"{rows.glyphs.more} {len(messages) - _MESSAGES:,} messages not shown", "gap")])
        if i < _MESSAGES // 2 or i >= len(messages) - _MESSAGES // 2:
            found += _message(message, rows, is_open=is_open and not story.lacks_end)
            if tokens and message.get("role") == "assistant":
                found += _token_rows(story.sampled.get(message.get("step", -1)), rows)
        step, after = message.get("step"), messages[i + 1][0].get("step") if i + 1 < len(messages) else None
        if isinstance(step, int) and step != after:
            given, rewards = _until(step, rewards)
            found += _reward_rows(given, rows)
    found += _reward_rows(rewards, rows)
    for call in () if story.lacks_end else view.tool_calls.values():
        found.append(
            [(f"{rows.glyphs.result} ", "result"), *rows.line(call.tool_name, 80), (" has not ended", "gap")]
        )
    return found + _end(story, rows)


def _who(story: Story, rows: EventRows) -> Row:
    row, view = story.row, story.view
    facts: Row = [*rows.line(view.chain_id or str(row["chain_id"]), 80, "bold")]
    dot = (f" {rows.glyphs.dot} ", "dim")
    if row.get("group_id") is not None:
        facts += [(" of ", "dim"), *rows.line(str(row["group_id"]), 80)]
    facts += [dot, ("run ", "dim"), *rows.line(str(row["run_id"])[-4:], 40, "dim")]
    if row.get("split") == "eval":
        facts += [dot, ("evaluation", "dim")]
    for name, label in (("train_step", "training step"), ("policy_first", "policy")):
        if row.get(name) is not None:
            facts += [dot, (f"{label} {row[name]}", "dim")]
    return facts


def _outcome(story: Story, rows: EventRows) -> Row:
    view, row = story.view, story.row
    dot = (f" {rows.glyphs.dot} ", "dim")
    facts: Row = [("reward ", "reward"), (number_text(view.reward), "reward")]
    for name, value in list(view.metrics.items())[:4]:
        facts += [dot, *rows.line(f"{name} {one_line_of(value)}", 60)]
    if row.get("advantage") is not None:
        facts += [dot, (f"advantage {row['advantage']:+.3g}", "")]
    state = row.get("state")
    how = view.finish_reason if state == "ended" else state
    facts += [dot, *rows.line(str(how), 40, "fail" if how in ("error", "lost") else "done")]
    steps = view.steps if view.steps is not None else view.generations
    facts += [dot, (counted(steps, "step"), ""), dot, (counted(view.tokens, "token"), "")]
    if view.duration_s is not None:
        facts += [dot, (duration_text(view.duration_s), "")]
    return facts


def _how(story: Story, rows: EventRows) -> list[Row]:
    """What the chain was asked and how it was sampled, so that it can be found or played again."""
    view = story.view
    facts = [f"prompt {hash_}" for hash_ in (story.row.get("prompt_hash"),) if hash_]
    facts += [f"seed {view.seed}"] if view.seed is not None else []
    facts += [f"attempt {view.attempt}"] if view.attempt is not None else []
    facts += [f"begun by {view.parent_chain_id}"] if view.parent_chain_id is not None else []
    facts += [
        f"{name} {one_line_of(value)}" for name, value in story.sampling.items() if value not in ([], None)
    ]
    if not facts:
        return []
    return [rows.line(f" {rows.glyphs.dot} ".join(facts), _LINE_CHARS, "dim")]


def _until(step: int, rewards: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rewards that were given up to the end of this step, and the later ones."""
    known = [(reward["step"] or 0) <= step for reward in rewards]
    count = known.index(False) if False in known else len(known)
    return rewards[:count], rewards[count:]


def _reward_rows(rewards: list[dict[str, Any]], rows: EventRows) -> list[Row]:
    return [
        [(f"{rows.glyphs.reward} step reward {number_text(reward['reward'])}", "reward")]
        for reward in rewards
    ]


def _message(message: dict[str, Any], rows: EventRows, *, is_open: bool) -> list[Row]:
    role, content = message.get("role"), message.get("content")
    text = content if isinstance(content, str) else "" if content is None else one_line_of(content)
    if role == "tool":
        status = message.get("status") or "success"
        name = str(message.get("name") or "a call")
        return rows.tool_result(name, text, status, message.get("duration_s"), named=True)
    found: list[Row] = []
    if role != "assistant":
        found += _text(f"{rows.glyphs.start} ", text, rows, "question")
        return found
    reasoning = message.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        found += _text("  ", reasoning, rows, "think")
    if text:
        found += _text("  ", text, rows, "")
    for call in message.get("tool_calls") or []:
        found.append(_call(call, rows))
    if is_open:
        found.append([(f"{rows.glyphs.more} this generation is open", "gap")])
    elif message.get("finish_reason") == "length":
        found.append([(f"{rows.glyphs.more} cut off: it ran out of tokens", "gap")])
    return found


def _text(head: str, text: str, rows: EventRows, style: str) -> list[Row]:
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    kept = lines if len(lines) <= _LINES else [*lines[: _LINES // 2], "", *lines[-_LINES // 2 :]]
    found: list[Row] = []
    for i, line in enumerate(kept):
        if len(lines) > _LINES and i == _LINES // 2:
            found.append([(f"  {rows.glyphs.more} {len(lines) - _LINES:,} lines not shown", "gap")])
            continue
        found.append([(head if i == 0 else "  ", style), *rows.line(line, _LINE_CHARS, style)])
    return found


def _call(call: Any, rows: EventRows) -> Row:
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else {}
    arguments = one_line_of(function.get("arguments"))
    head = [(f"{rows.glyphs.call} ", "call"), *rows.line(str(function.get("name") or "a call"), 80, "call")]
    return [*head, ("(", "dim"), *rows.line(arguments, _LINE_CHARS), (")", "dim")]


def _token_rows(sampled: Sampled | None, rows: EventRows) -> list[Row]:
    if sampled is None:
        return [[("  no token ids were recorded of this generation", "gap")]]
    ids, logprobs = sampled.token_ids, sampled.logprobs
    facts = (
        f"  {len(ids):,} of {len(ids) + sampled.missing:,} tokens"
        if sampled.missing
        else f"  {len(ids):,} tokens"
    )
    known = [p for p in logprobs if math.isfinite(p)]
    if known:
        facts += f"; log-probability {sum(known) / len(known):.3f} on average, {min(known):.3f} at the lowest"
    pairs = [
        f"{token}({number_text(logprobs[i])})" if i < len(logprobs) else str(token)
        for i, token in enumerate(ids[:_TOKENS])
    ]
    found: list[Row] = [[(facts, "dim")]]
    if sampled.dt_ms and len(sampled.dt_ms) == len(ids) - 1 and not sampled.missing:
        longest = max(range(len(sampled.dt_ms)), key=sampled.dt_ms.__getitem__)
        took, pause = duration_text(sum(sampled.dt_ms) / 1000), duration_text(sampled.dt_ms[longest] / 1000)
        times = (
            f"  {took} from the first to the last; the longest pause was {pause}, before token {longest + 2}"
        )
        found.append([(times, "dim")])
    found.append(rows.line("  " + " ".join(pairs), 40 * _TOKENS, "raw"))
    if len(ids) > _TOKENS:
        found.append([(f"  {rows.glyphs.more} {len(ids) - _TOKENS:,} tokens not shown", "gap")])
    return found


def _end(story: Story, rows: EventRows) -> list[Row]:
    view = story.view
    found: list[Row] = []
    if view.error is not None:
        event = StreamEvent(StreamEventType.ERROR, view.chain_id, 0.0, view.error)
        found += rows.of(event)
    if view.errors > 1:
        found.append([(f"{view.errors:,} errors in all; this is the last", "dim")])
    last: dict[str, Any] = next((m for m in reversed(view.messages) if m.get("role") == "assistant"), {})
    if view.final_response and view.final_response != last.get("content"):
        found += _text(f"{rows.glyphs.end} ", view.final_response, rows, "done")
    if view.gaps or story.lacks_end:
        found.append([(f"{rows.glyphs.gap} events of this chain are missing", "gap")])
    if story.row.get("state") == "lost":
        found.append(
            [(f"{rows.glyphs.gap} this chain never ended: its run ended first, or its process died", "gap")]
        )
    return found
