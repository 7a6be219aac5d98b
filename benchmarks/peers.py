"""Measures the cost of an event that reaches its reader, here and in other agent libraries, with fake models and no network.

Every system runs the same chains at once, each with one generation of the same text in the same tokens, and gives its reader
one event per token. The cost is everything: the system's own loop, its fake model and the delivery. The cost of the same run
without streaming is beside it. Systems that are not installed are left out.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import Any

from benchmarks.lean import VOCABULARY
from benchmarks.measure import Figure, figure, paired, ratios
from rollcast.rollout import BaseAgent
from rollcast.testing import ScriptedBackend

__all__ = ["run"]

CHAINS = 8  # at once
RATIO = 20  # the least that another system's event should cost, in our events

Trial = Callable[[], Awaitable[int]]  # runs the chains; returns how many token events came


def run(quick: bool) -> list[Figure]:
    """Measure CPU per token that is delivered, and per token without events."""
    length, rounds = (8, 1) if quick else (128, 15)
    words = [VOCABULARY[i % 500] for i in range(length)]
    trials: dict[str, Trial] = _rollcast(words)
    others: dict[str, str] = {}  # streaming trials of other systems, and what to compare them with
    for package, make in {"langgraph": _langgraph, "pydantic-ai-slim": _pydantic_ai}.items():
        try:
            found = make(words)
        except ImportError as error:
            print(f"{package} is not installed ({error}); its figures are left out", file=sys.stderr)
            continue
        trials |= found
        others |= {name: "Rollcast, generator" for name in found if "without" not in name}
    results = paired({name: lambda t=trial: asyncio.run(_timed(t)) for name, trial in trials.items()}, rounds)
    cost: dict[str, list[float]] = {}
    for name, values in results.items():
        tokens = CHAINS * length
        assert all(events == (0 if "without" in name else tokens) for _, events in values), name
        cost[name] = [seconds / tokens * 1e6 for seconds, _ in values]
    lines = [figure(f"peers: {name}, a token", values, "µs") for name, values in cost.items()]
    for name, ours in others.items():
        target = f">= {RATIO}"
        lines.append(figure(f"peers: {name} / {ours}", ratios(cost[name], cost[ours]), "×", target))
    return lines


async def _timed(trial: Trial) -> tuple[float, int]:
    began = time.process_time()
    events = await trial()
    return time.process_time() - began, events


async def _all(chain: Callable[[], Awaitable[int]]) -> int:
    """Run `CHAINS` chains at once; return the sum of their results."""
    return sum(await asyncio.gather(*[chain() for _ in range(CHAINS)]))


# -- Rollcast ----------------------------------------------------------------------------------------------------------


def _rollcast(words: list[str]) -> dict[str, Trial]:
    text = "".join(words)
    agent = BaseAgent(backend=ScriptedBackend(text, token_exact=False))  # the others' tokens have no ids
    run: dict[str, Any] = {
        "max_steps": 1,
        "start_messages": [{"role": "user", "content": "Say it."}],
        "num_chains": CHAINS,
        "sampling": {"max_tokens": len(words)},
    }

    async def generator() -> int:
        texts: dict[str, list[str]] = defaultdict(list)
        async with agent.run_async_streaming(**run) as stream:
            async for event in stream:
                if event.event_type == "llm_generation_chunk":
                    texts[event.chain_id].append(event.data["content"])
        return _checked(list(texts.values()), text)

    async def callback() -> int:
        said: list[str] = []
        await agent.run_async(**run, enable_streaming=True, streaming_callback=said.append)
        assert sorted(said) == sorted(words * CHAINS)
        return len(said)

    async def without() -> int:
        result = await agent.run_async(**run)
        assert all(t.final_response == text for t in result)
        return 0

    return {
        "Rollcast, generator": generator,
        "Rollcast, callback": callback,
        "Rollcast, without streaming": without,
    }


def _checked(texts: list[list[str]], expected: str) -> int:
    """How many events had text; it checks that together they have all of it."""
    assert ["".join(pieces) for pieces in texts] == [expected] * len(texts)
    return sum(len([piece for piece in pieces if piece]) for pieces in texts)


# -- LangGraph ---------------------------------------------------------------------------------------------------------


def _langgraph(words: list[str]) -> dict[str, Trial]:
    """A graph of one node that calls a chat model: the smallest graph that streams messages."""
    from langgraph.graph import END, START, MessagesState, StateGraph

    model, text = _chat_model(words), "".join(words)

    async def node(state: Any) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    plan = StateGraph(MessagesState)
    plan.add_node("model", node)
    plan.add_edge(START, "model")
    plan.add_edge("model", END)
    graph = plan.compile()
    question: Any = {"messages": [("user", "Say it.")]}

    async def messages() -> int:
        pieces = [chunk.content async for chunk, _ in graph.astream(question, stream_mode="messages")]
        return _checked([pieces], text)

    async def events() -> int:
        pieces = [
            event["data"]["chunk"].content
            async for event in graph.astream_events(question, version="v2")
            if event["event"] == "on_chat_model_stream"
        ]
        return _checked([pieces], text)

    async def without() -> int:
        state = await graph.ainvoke(question)
        assert state["messages"][-1].content == text
        return 0

    title = f"LangGraph {metadata.version('langgraph')}"
    return {
        f"{title}, stream_mode='messages'": lambda: _all(messages),
        f"{title}, astream_events v2": lambda: _all(events),
        f"{title}, without streaming": lambda: _all(without),
    }


def _chat_model(words: list[str]) -> Any:
    """A fake chat model of langchain-core that streams one chunk per word."""
    os.environ["LANGSMITH_TRACING"] = (
        "false"  # nothing leaves this machine, and nothing is traced at our expense
    )
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

    class Fake(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "fake"

        def _generate(self, *_: Any, **__: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(words)))])

        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            return self._generate()

        async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
            for word in words:
                await asyncio.sleep(0)
                yield ChatGenerationChunk(message=AIMessageChunk(content=word))

    return Fake()


# -- Pydantic AI -------------------------------------------------------------------------------------------------------


def _pydantic_ai(words: list[str]) -> dict[str, Trial]:
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse, PartDeltaEvent, PartStartEvent, TextPart
    from pydantic_ai.models.function import FunctionModel

    text = "".join(words)

    async def stream(*_: Any) -> AsyncIterator[str]:
        for word in words:
            await asyncio.sleep(0)
            yield word

    async def whole(*_: Any) -> ModelResponse:
        return ModelResponse(parts=[TextPart(text)])

    agent = Agent(FunctionModel(whole, stream_function=stream))

    async def events() -> int:
        pieces = []
        async with agent.run_stream_events("Say it.") as stream:
            async for event in stream:
                if isinstance(event, PartStartEvent):
                    pieces.append(event.part.content)
                elif isinstance(event, PartDeltaEvent):
                    pieces.append(event.delta.content_delta)
        return _checked([pieces], text)

    async def without() -> int:
        result = await agent.run("Say it.")
        assert result.output == text
        return 0

    title = f"Pydantic AI {metadata.version('pydantic-ai-slim')}"
    return {
        f"{title}, run_stream_events": lambda: _all(events),
        f"{title}, without streaming": lambda: _all(without),
    }
