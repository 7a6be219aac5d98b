"""Attach Rollcast to a LangGraph agent: each of the graph's events tells a chain what happens, in one line."""

import asyncio

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from rollcast import ConsoleStreamObserver, StreamingManager


async def watch(chain, events):
    """Attach it. These lines fit every graph that calls one model at a time."""
    async for event in events:
        match event["event"], event["data"]:
            case "on_chat_model_start", _:
                chain.generation().start()
            case "on_chat_model_stream", {"chunk": chunk} if chunk.text:
                chain.generation_open.chunk(chunk.text)
            case "on_chat_model_end", {"output": message}:
                chain.generation_open.end("tool_call" if message.tool_calls else "stop")
            case "on_tool_start", {"input": arguments}:
                chain.tool_call(event["name"], arguments, event["run_id"]).start()
            case "on_tool_end", {"output": message}:
                chain.tools_open[event["run_id"]].observation(message.text).end()
            case "on_tool_error", {"error": error}:
                chain.tools_open[event["run_id"]].observation(f"error: {error}", "error").end()


class FakeModel(GenericFakeChatModel):
    """Stands for a chat model: it calls the tool, and then repeats the tool's result."""

    def _stream(self, messages, stop=None, run_manager=None, **about):
        call = {"name": "multiply", "args": '{"a": 12, "b": 34}', "id": "call_0", "index": 0}
        pieces = [AIMessageChunk("I will "), AIMessageChunk("compute it.", tool_call_chunks=[call])]
        if messages[-1].type == "tool":
            pieces = [AIMessageChunk("The answer is "), AIMessageChunk(messages[-1].content)]
        yield from (ChatGenerationChunk(message=piece) for piece in pieces)


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


async def main():
    model = FakeModel(messages=iter(()))
    graph = StateGraph(MessagesState).add_node("tools", ToolNode([multiply])).add_edge("tools", "model")
    graph.add_node("model", lambda state: {"messages": model.invoke(state["messages"])})
    agent = graph.add_edge(START, "model").add_conditional_edges("model", tools_condition).compile()
    manager, question = StreamingManager(), [{"role": "user", "content": "What is 12 * 34?"}]
    manager.add_observer(ConsoleStreamObserver(show_timestamps=False))
    async with manager.run(agent="langgraph") as run:
        with run.chain(question) as chain:
            await watch(chain, agent.astream_events({"messages": question}, version="v2"))


asyncio.run(main())
