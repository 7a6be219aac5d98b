"""Checks of messages and agents: text from outside stays text, turns are appended, and a whole agent runs."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import msgspec

from rollcast.records import Message, StreamEventType
from rollcast.rollout import BaseAgent
from rollcast.testing.conformance.bench import Bench
from rollcast.testing.conformance.check import Check, check
from rollcast.testing.conformance.subject import NotApplicable
from rollcast.testing.observers import EventCapture, capture_events
from rollcast.tools import calculator

__all__ = ["CHAT_CHECKS"]


def _conversation(outside: str) -> tuple[list[Message], list[dict[str, Any]]]:
    """A conversation and tools with this text in every place for text from outside."""
    function = {"name": "calculator", "arguments": {"expression": outside}}
    messages: list[Message] = [
        {"role": "system", "content": f"Be brief. {outside} Answer."},
        {"role": "user", "content": outside},
        {"role": "assistant", "content": f"Well. {outside}"},
        {"role": "user", "content": f"{outside}{outside}"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": f"a\n{outside}\nb", "tool_call_id": "call_1", "name": "calculator"},
    ]
    parameters = {"type": "object", "properties": {"expression": {"type": "string", "description": outside}}}
    described = {"name": "calculator", "description": f"It {outside}", "parameters": parameters}
    return messages, [{"type": "function", "function": described}]


@check("renderer", "special_tokens")
async def outside_text_stays_text(bench: Bench) -> None:
    """Text from outside that spells a special token, in any message or tool, never becomes that token."""
    renderer, special = bench.backend.renderer, bench.subject.special_tokens
    assert renderer is not None
    ids = set(special.values())
    neutral = Counter(token for token in renderer.render(*_conversation("word")) if token in ids)
    for text in (*special, "".join(special), " ".join(special)):
        found = Counter(token for token in renderer.render(*_conversation(text)) if token in ids)
        assert found == neutral, _forged(text, neutral, found, special, "render")
        messages, tools = _conversation(text)
        first = renderer.render(messages[:4], tools)
        plain, plain_tools = _conversation("word")
        # None: this template begins afresh here, and `render` is what counts.
        extended = Counter(t for t in renderer.extend(first, messages, 1, tools) or () if t in ids)
        usual = Counter(t for t in renderer.extend(first, plain, 1, plain_tools) or () if t in ids)
        assert extended == usual, _forged(text, usual, extended, special, "extend")


def _forged(text: str, usual: Counter[int], found: Counter[int], special: Any, where: str) -> str:
    names = {index: name for name, index in special.items()}
    more = {names[index]: count for index, count in (found - usual).items()}
    less = {names[index]: count for index, count in (usual - found).items()}
    return (
        f"{where} of a conversation with {text!r:.80} in its texts has special tokens of its own: {more} more and {less} "
        "less than with a plain word; expected the same ones: encode text from outside without special tokens"
    )


@check("renderer", "ids", "stop_ids")
async def extending_is_rendering(bench: Bench) -> None:
    """The ids so far and `extend` are the ids of the whole conversation, also after a turn that was cut."""
    renderer, stops = bench.backend.renderer, bench.subject.stop_ids
    assert renderer is not None
    tools = list(bench.subject.tools)
    first: list[Message] = list(bench.subject.messages)
    answer: Message = {"role": "assistant", "content": "4 and 5"}
    follow: list[Message] = [{"role": "user", "content": "And 2 + 2?"}]
    prompt, whole = renderer.render(first, tools), renderer.render([*first, answer, *follow], tools)
    if whole[: len(prompt)] != prompt:
        raise NotApplicable("the chat template writes an earlier prompt differently later")
    end = next((i for i in range(len(prompt), len(whole)) if whole[i] in stops), None)
    assert end is not None, "the rendered conversation has no stop token after the assistant's turn"
    for name, sampled in (("a whole turn", whole[: end + 1]), ("a turn that was cut", whole[:end])):
        new = renderer.extend(list(sampled), [*first, answer, *follow], len(follow), tools)
        assert new is not None, (
            f"extend after {name} gives None; expected {whole[len(sampled) :]}, since the prompt goes on from there"
        )
        assert [*sampled, *new] == whole, (
            f"extend after {name} gives {new}; expected {whole[len(sampled) :]}, as render does for the conversation"
        )


@check("renderer", "ids", "messages")
async def a_rendered_prompt_is_the_same(bench: Bench) -> None:
    """Messages without `prompt_ids` give what their rendered ids give, and the prompt's length."""
    given = bench.request(temperature=0.0)
    asked = msgspec.structs.replace(given, request_id=f"{given.request_id}/messages", prompt_ids=None)
    (ours,), (theirs,) = await bench.together([given]), await bench.together([asked])
    assert ours.text == theirs.text, (
        f"{theirs} gave {theirs.text!r}; expected {ours.text!r}, which the rendered ids give"
    )
    told = [delta.prompt_tokens for delta in theirs.deltas if delta.prompt_tokens is not None]
    expected = len(given.prompt_ids or ())
    assert told in ([expected], [expected] * len(theirs.deltas)), (
        f"{theirs} says prompt_tokens {told}; expected {expected} once, since the backend rendered the prompt"
    )


@check()
async def an_agent_runs_on_it(bench: Bench) -> None:
    """An agent's events match its trajectories: the same ids, log-probabilities and text, in the grammar's order."""
    plain, _ = await _run(bench, streaming=False)
    streamed, capture = await _run(bench, streaming=True)
    capture.check()
    for trajectory in streamed:
        chunks = capture.of(StreamEventType.LLM_GENERATION_CHUNK, trajectory.chain_id)
        assert trajectory.finish_reason != "error", f"the agent's chain failed: {trajectory.error}"
        for step, turn in enumerate(trajectory.turns, 1):
            mine = [event.data for event in chunks if event.step == step]
            for field, told in (("token_ids", turn.token_ids), ("logprobs", turn.logprobs)):
                seen = [value for data in mine for value in data.get(field) or ()]
                assert seen == list(told), (
                    f"the events of {trajectory.chain_id}, step {step}, have the {field} {seen}; expected the "
                    f"trajectory's, {list(told)}"
                )
            text = "".join(data["content"] for data in mine)
            assert text == turn.text, (
                f"the events' text is {text!r}; expected the trajectory's, {turn.text!r}"
            )
    if bench.has("seed", "deterministic"):
        for one, other in zip(plain, streamed, strict=True):
            assert [(t.text, t.token_ids, t.logprobs) for t in one.turns] == [
                (t.text, t.token_ids, t.logprobs) for t in other.turns
            ], f"the same seed gave {one.chain_id} another trajectory with streaming; expected the same"


async def _run(bench: Bench, *, streaming: bool) -> tuple[Any, EventCapture]:
    agent = BaseAgent(backend=bench.backend, tools=[calculator])
    with capture_events(agent.streaming_manager) if streaming else nullcontext(EventCapture()) as capture:
        result = await agent.run_async(
            2, list(bench.subject.messages), 4, streaming, sampling={"max_tokens": 48}, seed=3
        )
    await agent.aclose()
    return result, capture


CHAT_CHECKS: tuple[Check, ...] = (
    outside_text_stays_text,
    extending_is_rendering,
    a_rendered_prompt_is_the_same,
    an_agent_runs_on_it,
)
