"""Whatever a backend, a tool, a reward or an agent's own parser gives or raises: it is that chain's failure."""

import asyncio

import pytest

from rollcast import BaseAgent, Sampling, tool
from rollcast.errors import InputError, MessagesError, ToolDefinitionError
from rollcast.models import BaseBackend, Delta
from rollcast.records import ToolCall, decode, encode
from rollcast.testing import EventCapture, ScriptedBackend

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "work", "arguments": {}}</tool_call>'


class Panic(BaseException):
    """As Rust's panics reach Python."""


class Giving(BaseBackend):
    """Gives these deltas to its first request, then raises; sane ones to the others."""

    def __init__(self, deltas, error=None, **flags):
        self.deltas, self.error = deltas, error
        self.asked = False
        for name, value in flags.items():
            setattr(self, name, value)

    async def generate(self, request):
        first, self.asked = not self.asked, True
        await asyncio.sleep(0)
        for delta in self.deltas if first else [Delta("sane", [1], [-0.5], 0)]:
            yield delta
        if first and self.error is not None:
            raise self.error


async def run(agent, chains=2, **options):
    """The result and what an observer saw, whose grammar holds."""
    capture = EventCapture()
    agent.streaming_manager.add_observer(capture)
    result = await agent.run_async(3, HELLO, chains, True, **options)
    capture.check()
    await agent.aclose()
    return result, capture


@pytest.mark.parametrize(
    ("deltas", "says"),
    [
        ([Delta("a"), Delta(None)], "text is NoneType"),
        ([Delta("a"), Delta(5)], "text is int"),
        ([Delta("a"), Delta(b"b")], "text is bytes"),
        ([Delta("a", [1, 2], [-0.5])], "2 token ids and 1 logprobs"),
        ([Delta("a", None, [-0.5])], "0 token ids and 1 logprobs"),
        ([Delta("a", [1], [-0.5]), Delta("b", [2])], "2 token ids and 1 logprobs"),
        ([Delta("a", [1], None, 0), Delta("b", [2])], "policy_version"),
        ([Delta("a", [1], [float("nan")])], "not a finite number"),
        ([Delta("a", [1.0])], "not int and float"),
        (["a"], "no attribute 'text'"),
        ([Delta("a", tool_calls=["work"])], "not a tool call: 'work'"),
        ([Delta("a", tool_calls=[ToolCall("", "work", None)])], "not a tool call"),
        ([Delta("a", tool_calls=[ToolCall("", None, {})])], "not a tool call"),
    ],
)
async def test_garbage_from_a_backend_ends_its_chain(deltas, says):
    """It never gets into a trajectory that is trained on, and the sibling finishes."""
    result, capture = await run(BaseAgent("x", backend=Giving(deltas)))
    failed, sane = result
    assert (failed.finish_reason, sane.finish_reason) == ("error", "answered")
    assert says in failed.error
    assert [e.data["where"] for e in capture.of("error")] == ["backend"]


async def test_a_backend_that_claims_exact_tokens_has_to_give_them():
    """Without ids the next prompt would lack what was said."""
    exact = ScriptedBackend().renderer
    result, _ = await run(BaseAgent("x", backend=Giving([Delta("a")], token_exact=True, renderer=exact)))
    assert "token-exact" in result["chain_0"].error


async def test_half_a_surrogate_pair_is_replaced():
    """A server that splits an emoji's JSON escape gives one; no encoding takes it."""
    result, capture = await run(BaseAgent("x", backend=Giving([Delta("a\ud83d")])))
    assert result["chain_0"].final_response == "a\ufffd"
    assert [decode(encode(e)) for e in capture.events] == capture.events
    assert result["chain_0"].digest()


@pytest.mark.parametrize("error", [Panic("lost"), SystemExit(3), ValueError("wrong")], ids=repr)
async def test_what_a_backend_raises_ends_its_chain(error):
    """Not only an Exception."""
    result, _ = await run(BaseAgent("x", backend=Giving([Delta("a")], error)))
    assert [t.finish_reason for t in result] == ["error", "answered"]


@pytest.mark.parametrize("kind", ["sync", "async", "generator"])
async def test_what_a_tool_raises_is_an_observation(kind):
    """Not only an Exception."""

    def sync() -> str:
        raise Panic("lost")

    async def coroutine() -> str:
        raise Panic("lost")

    async def generator():
        yield "some"
        raise Panic("lost")

    function = {"sync": sync, "async": coroutine, "generator": generator}[kind]
    backend = ScriptedBackend([CALL, "done"])
    result, _ = await run(BaseAgent("x", backend=backend, tools=[tool(function, name="work")]))
    for t in result:
        assert t.finish_reason == "answered"
        assert t.tool_calls[0].observation.startswith("error: Panic: lost")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_a_reward_raises_leaves_the_chain_without_one(asynchronous):
    """Not only an Exception."""

    def sync(final_response):
        raise Panic("lost")

    async def coroutine(final_response):
        raise Panic("lost")

    result, capture = await run(
        BaseAgent("x", backend=ScriptedBackend(), reward=coroutine if asynchronous else sync)
    )
    assert [(t.finish_reason, t.reward) for t in result] == [("answered", None)] * 2
    assert {e.data["where"] for e in capture.of("error")} == {"reward"}


@pytest.mark.parametrize("calls", [None, ["work"], 5])
async def test_garbage_from_an_agents_parser_ends_its_chain(calls):
    """And says that it was the parser."""

    class Own(BaseAgent):
        def parse(self, text):
            return calls

    def work() -> str:
        """Work."""
        return "worked"

    result, capture = await run(Own("x", backend=ScriptedBackend(), tools=[work]))
    assert [t.finish_reason for t in result] == ["error"] * 2
    assert {e.data["where"] for e in capture.of("error")} == {"parser"}


@pytest.mark.parametrize(
    "extra",
    [{"content": "\ud800"}, {"content": "x", "image": object()}, {"content": "x", "more": {(1, 2): 3}}],
)
async def test_messages_that_no_event_can_carry_are_refused(extra):
    """At the call, before a chain starts."""
    with pytest.raises(MessagesError, match=r"start_messages\[0\] cannot be written as JSON"):
        await BaseAgent("x", backend=ScriptedBackend()).run_async(1, [{"role": "user", **extra}])


@pytest.mark.parametrize(
    "wrong",
    [{"stop": "\n"}, {"stop": ("",)}, {"temperature": "hot"}, {"max_tokens": 2.5}, {"top_k": "a"}],
)
def test_wrong_sampling_is_refused_where_it_is_made(wrong):
    """Not in the middle of a run."""
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize("tools", [None, "calculator", [None]])
def test_tools_that_are_none_are_refused(tools):
    """In a sentence."""
    with pytest.raises(ToolDefinitionError, match=r"tools=|not a function"):
        BaseAgent("x", backend=ScriptedBackend(), tools=tools)


@pytest.mark.parametrize("settings", [{"timeout": "5"}, {"max_output": 1.5}, {"name": 5}])
def test_tool_settings_of_a_wrong_type_are_refused(settings):
    """In a sentence."""

    def work() -> str:
        """Work."""
        return "worked"

    with pytest.raises(ToolDefinitionError, match=next(iter(settings))):
        tool(work, **settings)


async def test_a_request_stays_as_it_was_made():
    """A backend, or a test, may keep it while the conversation goes on."""

    def work() -> str:
        """Work."""
        return "worked"

    backend = ScriptedBackend([CALL, "done"])
    await run(BaseAgent("x", backend=backend, tools=[work]), chains=1)
    first, second = backend.requests
    assert first.messages == HELLO
    assert len(second.messages) == 3
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert len(second.prompt_ids) > len(first.prompt_ids)
