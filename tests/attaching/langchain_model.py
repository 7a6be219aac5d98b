"""A chat model for these tests, whose answers a function gives."""

import asyncio
import threading

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult


class Both:
    """Holds each of some calls until all of them are going on, in tasks or in threads."""

    def __init__(self, calls):
        self.calls = calls
        self.barrier = threading.Barrier(calls)
        self.here = 0
        self.all_here = asyncio.Event()

    def wait(self):
        self.barrier.wait(30)

    async def await_(self):
        self.here += 1
        if self.here == self.calls:
            self.all_here.set()
        await self.all_here.wait()
        await asyncio.sleep(0)


class Model(BaseChatModel):
    """Streams the pieces that `say(messages)` returns: text, or chunks; an exception among them is raised.

    It waits for `both` after the first piece.
    """

    say: object
    both: object = None
    streams: bool = True

    @property
    def _llm_type(self):
        return "test"

    @property
    def _identifying_params(self):
        return {"model": "test-1", "temperature": 0.5, "api_key": "sk-secret"}

    def bind_tools(self, tools, **about):
        return self.bind(
            tools=[{"type": "function", "function": {"name": tool.__name__}} for tool in tools], **about
        )

    def pieces(self, messages):
        for piece in self.say(messages):
            if isinstance(piece, BaseException):
                raise piece
            yield (
                piece
                if isinstance(piece, ChatGenerationChunk)
                else ChatGenerationChunk(message=AIMessageChunk(piece) if isinstance(piece, str) else piece)
            )

    def _stream(self, messages, stop=None, run_manager=None, **about):
        for i, piece in enumerate(self.pieces(messages)):
            if run_manager:
                run_manager.on_llm_new_token(piece.text, chunk=piece)
            yield piece
            if i == 0 and self.both is not None:
                self.both.wait()

    async def _astream(self, messages, stop=None, run_manager=None, **about):
        for piece in self.pieces(messages):
            if run_manager:
                await run_manager.on_llm_new_token(piece.text, chunk=piece)
            yield piece
            if self.both is not None:
                await self.both.await_()

    def _generate(self, messages, stop=None, run_manager=None, **about):
        whole = None
        for piece in self._stream(messages, run_manager=run_manager if self.streams else None):
            whole = piece if whole is None else whole + piece
        said = whole.message
        message = AIMessage(
            content=said.content, tool_calls=said.tool_calls, additional_kwargs=said.additional_kwargs,
            usage_metadata=said.usage_metadata, response_metadata=said.response_metadata,
        )  # fmt: skip
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages, stop=None, run_manager=None, **about):
        whole = None
        async for piece in self._astream(messages, run_manager=run_manager if self.streams else None):
            whole = piece if whole is None else whole + piece
        return ChatResult(
            generations=[
                ChatGeneration(
                    message=AIMessage(content=whole.message.content, tool_calls=whole.message.tool_calls)
                )
            ]
        )


def calls(name, arguments, call_id):
    """A chunk that asks for a tool call."""
    return AIMessageChunk("", tool_call_chunks=[{"name": name, "args": arguments, "id": call_id, "index": 0}])


def asks_then_answers(messages):
    """Ask for 12 * 34, then repeat what the tool said."""
    if messages[-1].type == "tool":
        return ["The answer is ", messages[-1].content]
    return ["I will ", "compute it.", calls("multiply", '{"a": 12, "b": 34}', "call_7")]


def repeats(messages):
    """Say the last message three times."""
    return [f"{messages[-1].content} "] * 3
