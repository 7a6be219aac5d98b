"""Attach Rollcast to a LangGraph program, in one line: two agents, which a graph runs in parallel, are watched apart."""

import asyncio

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

import rollcast

manager = rollcast.StreamingManager()
manager.add_observer(rollcast.ConsoleStreamObserver(show_timestamps=False))
handle = rollcast.attach.langchain(manager=manager)  # or just: rollcast.attach.langchain(show=8)


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


def agent(name):
    """A ReAct agent."""
    model = FakeModel(messages=iter(()))
    graph = StateGraph(MessagesState).add_node("tools", ToolNode([multiply])).add_edge("tools", "model")
    graph.add_node("model", lambda state: {"messages": model.invoke(state["messages"])})
    return graph.add_edge(START, "model").add_conditional_edges("model", tools_condition).compile(name=name)


async def main():
    both = StateGraph(MessagesState).add_node("first", agent("first")).add_node("second", agent("second"))
    graph = both.add_edge(START, "first").add_edge(START, "second").compile(name="both")
    question = {"messages": [{"role": "user", "content": "What is 12 * 34?"}]}
    async for _token, _about in graph.astream(question, stream_mode="messages"):
        pass


asyncio.run(main())
handle.detach()
