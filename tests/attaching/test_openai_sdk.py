"""Attached clients of the openai package: what is seen of their calls, and that nothing else about them changes."""

import asyncio
import functools
import gc
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import openai
import pytest
from aiohttp import web

import rollcast
from attaching.defects import DEFECTS, also
from rollcast import InputError
from rollcast.attaching import openai_calls, openai_sdk
from rollcast.records import StreamEventType
from rollcast.records.openai_responses import pieces_of_event
from rollcast.stream import conversations, inside_chain
from rollcast.testing import OpenAIServer
from rollcast.testing.openai_server import ServedAnswer, ServedCall

ASK = [{"role": "user", "content": "What is 2 + 2?"}]
LOOK = ServedAnswer(
    text="I look.", reasoning="Let me see.", calls=[ServedCall("search", '{"query": "2 + 2"}', id="call_abcdefgh")],
    finish_reason="tool_calls",
)  # fmt: skip


@pytest.fixture
def serve():
    """Starts servers that stop with the test."""
    servers = []

    def start(script="It is 4.", **options):
        servers.append(OpenAIServer(script, **options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def client_of(server, kind=openai.OpenAI, **options):
    return kind(base_url=f"{server.url}/v1", api_key="k", **{"max_retries": 0, **options})


@pytest.fixture
def attach(seen):
    return functools.partial(rollcast.attach, manager=seen.manager_of_it, record=None)


@pytest.fixture
def client(serve, attach):
    """Makes attached clients of a server with this script."""
    with suppress_all() as made:

        def make(script="It is 4.", **options):
            client = client_of(serve(script), **options)
            made.append(client)
            attach(client)
            return client

        yield make


class suppress_all(list):  # noqa: N801  (a context manager)
    """Closes what was put into it."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self:
            client.close()


def chat(client, messages=ASK, **options):
    return client.chat.completions.create(model="scripted", messages=messages, **options)


def generations(seen):
    """Text, reasoning, finish reason and counts of each generation."""
    return [
        tuple(e.data.get(name) for name in ("content", "reasoning", "finish_reason", "completion_tokens"))
        for e in seen.settle().of("llm_generation_end")
    ]


# -- what is seen --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_is_a_chain(client, seen, stream):
    """Text, reasoning, tool calls, their results and the engine's counts are seen, streamed or not, and nothing is glued together."""
    client = client([LOOK, "It is 4."])
    said = {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "call_abcdefgh", "type": "function", "function": {"name": "search", "arguments": '{"query": "2 + 2"}'}}
    ]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "call_abcdefgh", "content": "4"}
    for messages in (ASK, [*ASK, said, result]):
        answer = chat(client, messages, stream=stream)
        if stream:
            list(answer)
    found = generations(seen)
    assert [each[:3] for each in found] == [
        ("I look.", "Let me see.", "tool_call"),
        ("It is 4.", None, "stop"),
    ]
    assert stream or [each[3] for each in found] == [
        9,
        3,
    ]  # the usage of the answers; a stream has none unless it is asked for
    (start,) = seen.starts()
    assert start["messages"] == ASK
    assert [(e.data["arguments"]) for e in seen.of("tool_call_start")] == [{"query": "2 + 2"}]
    assert [(e.data["observation"], e.data["status"]) for e in seen.of("tool_observation")] == [
        ("4", "success")
    ]
    assert [e.data["content"] for e in seen.of("llm_generation_end")] == ["I look.", "It is 4."]
    assert {e.data["model"] for e in seen.of("llm_generation_start")} == {"scripted"}


def test_a_stream_is_seen_while_it_arrives(serve, attach, seen):
    """Each token is an event before the next one is sent."""
    server = serve(ServedAnswer(text=["It", " is"], stall_at=2))
    with client_of(server) as client:
        attach(client)
        stream = chat(client, stream=True)
        next(stream), next(stream)
        assert [e.data["content"] for e in seen.settle().of("llm_generation_chunk")] == ["It"]
        server.resume()
        list(stream)
    assert [e.data["content"] for e in seen.settle().of("llm_generation_chunk")] == ["It", " is"]


WAYS = {
    "create": lambda c: chat(c).choices[0].message.content,
    "stream": lambda c: "".join(x.choices[0].delta.content or "" for x in chat(c, stream=True) if x.choices),
    "parse": lambda c: c.chat.completions.parse(model="scripted", messages=ASK).choices[0].message.content,
    "raw": lambda c: c.chat.completions.with_raw_response.create(model="scripted", messages=ASK).parse().choices[0].message.content,
    "raw stream": lambda c: "".join(
        x.choices[0].delta.content or ""
        for x in c.chat.completions.with_raw_response.create(model="scripted", messages=ASK, stream=True).parse()
        if x.choices
    ),
    "completions": lambda c: c.completions.create(model="scripted", prompt="2 + 2 =").choices[0].text,
    "completions stream": lambda c: "".join(
        x.choices[0].text for x in c.completions.create(model="scripted", prompt="2 + 2 =", stream=True) if x.choices
    ),
    "with_options": lambda c: chat(c.with_options(timeout=30)).choices[0].message.content,
    "copy of a copy": lambda c: chat(c.copy().with_options(timeout=30)).choices[0].message.content,
}  # fmt: skip


def streaming_response(client):
    with client.chat.completions.with_streaming_response.create(model="scripted", messages=ASK) as response:
        return response.parse().choices[0].message.content


def streaming_lines(client):
    with client.chat.completions.with_streaming_response.create(
        model="scripted", messages=ASK, stream=True
    ) as response:
        return "It is 4." if "[DONE]" in "".join(response.iter_lines()) else ""


def stream_helper(client):
    with client.chat.completions.stream(model="scripted", messages=ASK) as stream:
        return stream.get_final_completion().choices[0].message.content


WAYS |= {
    "with_streaming_response": streaming_response,
    "lines": streaming_lines,
    "stream helper": stream_helper,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_is_seen(client, seen, way):
    """However the SDK is asked for text, the answer is one generation."""
    assert WAYS[way](client()) == "It is 4."
    assert [(text, reason) for text, _, reason, _ in generations(seen)] == [("It is 4.", "stop")]


class Plain(openai.AsyncOpenAI):
    """A client whose `request` is a plain function that returns something to await."""

    def request(self, *args, **kwargs):
        return super().request(*args, **kwargs)


async def test_an_async_client_with_plain_methods_is_seen(serve, attach, seen):
    """It is the client that says whether it is async, not how its methods are written."""
    async with client_of(await asyncio.to_thread(serve), Plain) as client:
        attach(client)
        await client.chat.completions.create(model="scripted", messages=ASK)
    assert [each[0] for each in await asyncio.to_thread(generations, seen)] == ["It is 4."]


def test_a_repeat_after_a_failed_request_is_no_child(client, seen):
    """Who asks the same again begins a chain of its own, also if the first request had to be asked twice."""
    client = client([ServedAnswer(status=500), "one", "two"])
    with pytest.raises(openai.InternalServerError):
        chat(client)
    assert [chat(client).choices[0].message.content for _ in range(2)] == ["one", "two"]
    assert [text for text, *_ in generations(seen)] == ["", "one", "two"]
    assert [start.get("parent_chain_id") for start in seen.starts()] == [None, None]


def test_a_stream_that_was_read_already_is_seen(serve, attach, seen):
    """A transport may hand over a stream whose bytes are all there, as those of mocks and caches do."""
    server = serve()

    class Stored(openai.DefaultHttpxClient):
        def send(self, request, **options):
            response = super().send(request, **{**options, "stream": True})
            response.read()
            return response

    with client_of(server, http_client=Stored()) as client:
        attach(client)
        text = "".join(
            each.choices[0].delta.content or "" for each in chat(client, stream=True) if each.choices
        )
    assert text == "It is 4."
    assert [each[:3] for each in generations(seen)] == [("It is 4.", None, "stop")]


async def test_an_async_client_is_seen(attach, seen):
    """All of its ways are; many calls at once are chains apart."""
    async with OpenAIServer("It is 4.") as server, client_of(server, openai.AsyncOpenAI) as client:
        attach(client)
        await asyncio.gather(*(chat(client) for _ in range(20)))
        async for _ in await chat(client, stream=True):
            pass
        async with client.chat.completions.stream(model="scripted", messages=ASK) as stream:
            await stream.get_final_completion()
        async with client.chat.completions.with_streaming_response.create(
            model="scripted", messages=ASK
        ) as response:
            await response.parse()
        await client.chat.completions.with_raw_response.create(model="scripted", messages=ASK)
        await client.completions.create(model="scripted", prompt="2 + 2 =")
        await asyncio.to_thread(seen.settle)
    assert [(text, reason) for text, _, reason, _ in await asyncio.to_thread(generations, seen)] == [
        ("It is 4.", "stop")
    ] * 25
    assert len(seen.starts()) == 25


def test_threads_share_a_client(client, seen):
    """Calls of several threads are chains apart."""
    client = client()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: WAYS["stream"](client), range(40)))
    assert texts == ["It is 4."] * 40
    assert [text for text, *_ in generations(seen)] == texts
    assert len(seen.starts()) == 40


class AzureServer(OpenAIServer):
    """The same server under the paths of Azure."""

    async def _answer(self, request):
        path = request.path_qs.replace("/openai/deployments/scripted", "/v1")
        return await super()._answer(request.clone(rel_url=path))


@pytest.mark.parametrize("kind", [openai.AzureOpenAI, openai.AsyncAzureOpenAI])
async def test_a_client_of_azure_is_seen(attach, seen, kind):
    """Its paths have the deployment in them."""
    async with AzureServer("It is 4.") as server:
        client = kind(azure_endpoint=server.url, api_key="k", api_version="2024-06-01", max_retries=0)
        attach(client)
        if kind is openai.AzureOpenAI:
            await asyncio.to_thread(chat, client)
            client.close()
        else:
            await chat(client)
            await client.close()
    assert [text for text, *_ in await asyncio.to_thread(generations, seen)] == ["It is 4."]


def test_several_answers_are_several_chains(serve, attach, seen):
    """With `n` each choice is a chain of the same group."""
    chunks = [{"choices": [{"index": i, "delta": {"content": t}}]} for i, t in ((0, "4"), (1, "5"), (0, "."))]
    ends = [{"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]} for i in (0, 1)]
    with client_of(serve(ServedAnswer(chunks=[*chunks, *ends]))) as client:
        attach(client)
        list(chat(client, stream=True, n=2))
    assert [text for text, *_ in generations(seen)] == ["5", "4."]
    assert len({event.group_id for event in seen.of("chain_start")}) == 1


# -- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "shown"),
    [
        (ServedAnswer(status=429), openai.RateLimitError, "429"),
        (ServedAnswer(status=500), openai.InternalServerError, "500"),
        (ServedAnswer(error_at=1), openai.APIError, ""),
        (ServedAnswer(cut_at=150), Exception, ""),
    ],
)
def test_a_failure_is_seen_and_goes_on(client, seen, answer, error, shown):
    """The user gets the SDK's exception, and the chain shows what happened."""
    with pytest.raises(error):
        list(chat(client(answer), stream=True))
    (end,) = seen.settle().of("llm_generation_end")
    (said,) = seen.of("error")
    assert (end.data["finish_reason"], said.data["where"]) == ("error", "backend")
    assert shown in said.data["error"]
    assert said.data["error"]


def test_an_engine_that_is_not_there_is_seen(attach, seen):
    """A connection that fails is an error of the chain."""
    with (
        client_of(OpenAIServer().__class__(), max_retries=0)
        if False
        else openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0) as client
    ):
        attach(client)
        with pytest.raises(openai.APIConnectionError):
            chat(client)
    (said,) = seen.settle().of("error")
    assert said.data["error_type"] == "APIConnectionError"


def test_each_attempt_is_a_generation(client, seen):
    """If the SDK tries again, the chain shows the attempt that failed, and then the answer."""
    client = client([ServedAnswer(status=500, headers={"Retry-After-Ms": "1"}), "It is 4."], max_retries=1)
    assert chat(client).choices[0].message.content == "It is 4."
    assert [(text, reason) for text, _, reason, _ in generations(seen)] == [
        ("", "error"),
        ("It is 4.", "stop"),
    ]
    assert len(seen.starts()) == 1


@pytest.mark.parametrize("how", ["closed", "left", "block"])
def test_a_stream_that_is_left_half_read_is_cancelled(client, seen, how):
    """Whether it is closed or forgotten, the generation ends as `cancelled`."""
    stream = chat(client("one two three four"), stream=True)
    next(stream), next(stream)
    if how == "closed":
        stream.close()
    elif how == "left":
        del stream
        gc.collect()
    else:
        with stream:
            pass
    (generation,) = generations(seen)
    assert generation[2] == "cancelled"


async def test_a_cancelled_task_cancels_its_generation(attach, seen):
    """A call that streams is cancelled with its task, and the cancellation goes on."""
    stalls = ServedAnswer(text=["a", "b"], stall_at=1)
    async with OpenAIServer(stalls) as server, client_of(server, openai.AsyncOpenAI) as client:
        attach(client)
        reached = asyncio.Event()

        async def read():
            async for _ in await chat(client, stream=True):
                reached.set()

        task = asyncio.create_task(read())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [g[2] for g in await asyncio.to_thread(generations, seen)] == ["cancelled"]


def test_a_timeout_is_seen(client, seen):
    """A stream that stalls ends with the SDK's timeout, in the chain too."""
    client = client(ServedAnswer(text=["a", "b"], stall_at=1), timeout=0.5)
    with pytest.raises(Exception, match=r"(?i)timed? ?out"):
        list(chat(client, stream=True))
    assert [g[2] for g in generations(seen)] == ["error"]


def test_other_calls_are_left_alone(client, seen):
    """Models and embeddings are no chains."""
    client = client()
    assert client.models.list().data[0].id == "scripted"
    with pytest.raises(openai.APIStatusError):
        client.embeddings.create(model="scripted", input="x")
    assert not seen.settle().events


@pytest.mark.parametrize("goes_on", ["reward", "tool", "generation", "ends"])
def test_a_stream_that_is_left_does_not_hinder_the_chain(client, seen, goes_on):
    """After half an answer the loop does what it would do without the attachment, at once."""
    client = client("one two three four")
    with seen.manager_of_it.run() as run, run.chain(ASK) as chain:
        for _ in chat(client, stream=True):
            break
        if goes_on == "reward":
            chain.reward(1.0)
        elif goes_on == "tool":
            with chain.tool_call("search", {}) as call:
                call.observation("4")
        elif goes_on == "generation":
            chat(client)
    assert chain.trajectory.turns[0].finish_reason == "cancelled"
    seen.settle().check()


# -- inside a chain of the user's ----------------------------------------------------------------------------------------


def loop(client, run, *, reports=True, stream=False):
    """An agent's loop, which reports its tool calls or leaves them to the attachment."""
    messages = list(ASK)
    with run.chain(messages) as chain:
        while True:
            answer = chat(client, messages, stream=stream)
            if stream:
                list(answer)
                said = LOOK if len(messages) == 1 else "done"
                calls = said.calls if isinstance(said, ServedAnswer) else ()
                calls = [(call.id, call.name, call.arguments) for call in calls]
            else:
                calls = [
                    (c.id, c.function.name, c.function.arguments)
                    for c in answer.choices[0].message.tool_calls or ()
                ]
            messages.append({"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls
            ]})  # fmt: skip
            if not calls:
                break
            for call_id, name, arguments in calls:
                if reports:
                    with chain.tool_call(name, arguments, call_id) as call:
                        call.observation("4")
                messages.append({"role": "tool", "tool_call_id": call_id, "content": "4"})
        chain.reward(1.0)
    return chain.trajectory


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reports", [False, True])
def test_calls_inside_a_chain_are_that_chain_s(client, seen, reports, stream):
    """The generations are the chain's own, in order, and each tool call is there once, whoever reports it."""
    client = client([LOOK, "It is 4."])
    with seen.manager_of_it.run() as run:
        t = loop(client, run, reports=reports, stream=stream)
    assert [(turn.text, turn.reasoning) for turn in t.turns] == [("I look.", "Let me see."), ("It is 4.", "")]
    assert [(r.call.tool_name, r.observation) for r in t.tool_calls] == [("search", "4")]
    assert (t.reward, t.final_response) == (1.0, "It is 4.")
    seen.settle().check()
    assert len(seen.starts()) == 1


def test_a_loop_that_opens_its_own_generation_keeps_it(client, seen):
    """If the user's code reports the generation, the attachment does not."""
    client = client()
    with seen.manager_of_it.run() as run, run.chain(ASK) as chain, chain.generation() as generation:
        generation.chunk(chat(client).choices[0].message.content)
    assert [turn.text for turn in chain.trajectory.turns] == ["It is 4."]


def test_a_chain_without_a_prompt_shows_that_of_its_first_call(client, seen):
    """What is asked later is shown as well, unless the loop has said it."""
    client = client()
    with seen.manager_of_it.run() as run, run.chain() as chain:
        chat(client)
        more = {"role": "user", "content": "And 3 + 3?"}
        chat(client, [*ASK, {"role": "assistant", "content": "It is 4."}, more])
        last = {"role": "user", "content": "And 4 + 4?"}
        chain.message(last, from_outside=True)
        chat(client, [*ASK, {"role": "assistant", "content": "It is 4."}, more, last])
    assert [e.data["content"] for e in seen.settle().of("message")] == [
        ASK[0]["content"],
        "And 3 + 3?",
        "And 4 + 4?",
    ]


async def test_calls_that_overlap_inside_a_chain_are_its_children(attach, seen, until):
    """A chain that asks twice at once, or from within a tool, has chains beside it."""
    script = [ServedAnswer("It is 4.", stall_at=0), "It is 4.", "It is 4."]
    async with OpenAIServer(script) as server, client_of(server, openai.AsyncOpenAI) as client:
        attach(client)
        async with seen.manager_of_it.run() as run:
            with run.chain(ASK) as chain:
                first = asyncio.create_task(chat(client))
                await until(lambda: server.generations)
                await chat(client, [{"role": "user", "content": "Summarise."}])
                server.resume()
                await first
                with chain.tool_call("ask", {}) as call:
                    call.observation((await chat(client)).choices[0].message.content)
    starts = seen.of("chain_start")
    assert [start.data.get("parent_chain_id") for start in starts] == [None, "chain_0", "chain_0"]
    assert {end[0] for end in seen.ends()} == {"answered"}


def test_a_call_after_the_reward_is_only_not_shown(client, seen):
    """It goes on unwatched, and the chain stays as it is."""
    client = client()
    with seen.manager_of_it.run() as run, run.chain(ASK) as chain:
        chain.reward(1.0)
        assert chat(client).choices[0].message.content == "It is 4."
    assert chain.trajectory.turns == []
    assert chat(client).choices[0].message.content == "It is 4."
    assert len(generations(seen)) == 1


def test_calls_inside_an_attached_function_are_its_chain_s(client, attach, seen):
    """A function that is attached too has the calls that it makes."""
    client = client()

    @attach
    def answer(question):
        return chat(client, [{"role": "user", "content": question}]).choices[0].message.content

    assert answer("2 + 2?") == "It is 4."
    seen.settle()
    assert len(seen.starts()) == 1
    assert seen.ends() == [("answered", "It is 4.")]
    assert len(seen.of("llm_generation_end")) == 1


# -- the client stays as it was ------------------------------------------------------------------------------------------


def used(client):
    """What a program sees of a client: values, types and exceptions, to the byte."""
    results = [way(client) for way in WAYS.values()]
    answer = chat(client)
    results += [type(answer), answer.to_json(), type(chat(client, stream=True)).__mro__]
    results += [[chunk.to_json() for chunk in chat(client, stream=True)]]
    with client.chat.completions.with_streaming_response.create(
        model="scripted", messages=ASK, stream=True
    ) as response:
        results += [type(response), response.status_code, b"".join(response.iter_bytes())]
    raw = client.chat.completions.with_raw_response.create(model="scripted", messages=ASK)
    results += [type(raw), raw.http_response.content, pickle.loads(pickle.dumps(raw.http_response)).content]
    stream = chat(client, stream=True)
    for _ in stream:
        break
    stream.close()
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="nobody", messages=ASK)
    results += [str(refused.value), refused.value.body, type(client)]
    return results


async def used_async(client):
    results = [
        (await chat(client)).to_json(),
        [chunk.to_json() async for chunk in await chat(client, stream=True)],
    ]
    results += await asyncio.gather(
        *(client.completions.create(model="scripted", prompt="x") for _ in range(3))
    )
    async with client.chat.completions.stream(model="scripted", messages=ASK) as stream:
        results.append((await stream.get_final_completion()).to_json())
    return results


def inside(client, manager):
    """The same inside a chain of the user's own."""
    with manager.run() as run, run.chain(ASK):
        return used(client)


def test_results_are_equal_to_the_byte(serve, attach, seen):
    """Values, types, bodies and exceptions are those of a client that is not attached."""
    server = serve()
    with client_of(server) as client:
        expected = used(client)
        handle = attach(client)
        assert used(client) == expected
        assert inside(client, seen.manager_of_it) == expected
        handle.detach()
        assert used(client) == expected
        assert not set(vars(client)) & set(openai_sdk._HOOKED)


OURS = [
    *DEFECTS,
    *also(openai_calls, "request_of", "pieces_of", "whole_answer_pieces", "Conversations"),
    *also(openai_calls.SdkCalls, "call", "begin", ways=("raises", "returns a wrong type")),
    *also(openai_calls.SdkCall, "sent", "got", ways=("raises",)),
    *also(conversations.Conversations, "begin", "ended"),
    *also(openai_sdk, "kind_of", ways=("raises",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    """What a client that is not attached gives."""
    with OpenAIServer([LOOK, "It is 4."]) as server, client_of(server) as client:
        return [chat(client).to_json(), *used(client)]


@pytest.mark.parametrize("defect", OURS, ids=str)
def test_a_fault_of_ours_changes_no_result(defect, serve, attach, expected):
    """Whatever of ours raises, hangs or returns something wrong, the client gives what it gives."""
    with client_of(serve([LOOK, "It is 4."])) as watched, defect.injected():
        handle = attach(watched)
        assert [chat(watched).to_json(), *used(watched)] == expected
        handle.detach(0.2)


INSIDE = also(
    inside_chain.InsideChain, "begin", "ended", "_hear", ways=("raises", "returns a wrong type")
) + also(
    openai_calls, "pieces_of", "whole_answer_pieces", "InsideChain", ways=("raises", "returns a wrong type")
)


@pytest.mark.parametrize("defect", INSIDE, ids=str)
def test_a_fault_of_ours_inside_a_chain_changes_no_result(defect, serve, attach, seen, expected):
    """Where the host's own thread writes, a fault switches the attachment off, and the call goes on."""
    with client_of(serve()) as client, defect.injected():
        handle = attach(client)
        assert inside(client, seen.manager_of_it) == expected[1:]
        handle.detach(0.2)


async def test_a_fault_of_ours_changes_no_async_result(attach):
    """An async client gives what it gives."""
    async with OpenAIServer("It is 4.") as server, client_of(server, openai.AsyncOpenAI) as client:
        expected = await used_async(client)
        for defect in also(openai_calls, "request_of", "pieces_of", ways=("raises", "hangs")):
            with defect.injected():
                handle = attach(client)
                assert await used_async(client) == expected
                await asyncio.to_thread(handle.detach, 0.2)


def test_detaching_in_the_middle_closes_what_is_open(client, attach, seen):
    """The stream goes on, and the chain ends with `unknown`, or `cancelled` if it was generating."""
    client = client("one two three")
    handle = rollcast.attach(client, manager=seen.manager_of_it)
    stream = chat(client, stream=True)
    next(stream)
    copy = client.copy()
    handle.detach()
    assert len(list(stream)) > 2
    seen.manager_of_it.drain_sync(30)
    assert [end[0] for end in seen.ends()] == ["cancelled"]
    assert not set(vars(copy)) & set(openai_sdk._HOOKED)
    seen.check()


def test_an_unwatched_client_makes_no_events_of_tokens(serve, attach):
    """Nobody watches: the turns are kept, and no chunk becomes an event."""
    with client_of(serve()) as client:
        handle = rollcast.attach(client, record=None)
        list(chat(client, stream=True))
        assert handle.watch.flush(30)
        assert not handle.streaming_manager.totals().emitted.get(StreamEventType.LLM_GENERATION_CHUNK, 0)


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (openai.OpenAI, {}, "attach.openai got the class OpenAI; expected a client"),
        (object(), {}, "attach.openai got object; expected a client"),
        (None, {"speed": 1}, "attach.openai got the option 'speed'"),
        (None, {"idle_s": 0}, "attach.openai got idle_s=0; expected seconds, or None"),
    ],
)
def test_what_cannot_be_attached_is_refused(x, options, sentence):
    """In one sentence, before anything is hooked."""
    with openai.OpenAI(base_url="http://127.0.0.1:9", api_key="k") as client, suppress(AttributeError):
        with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
            rollcast.attach.openai(client if x is None else x, **options)
        assert "request" not in vars(client)


# -- the responses route -------------------------------------------------------------------------------------------------


def text_item(text):
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
        {"type": "output_text", "text": text, "annotations": []}
    ]}  # fmt: skip


CALL_ITEM = {
    "type": "function_call", "id": "fc_1", "call_id": "call_abcdefgh", "name": "search", "arguments": '{"query": "2 + 2"}',
    "status": "completed",
}  # fmt: skip
THOUGHT_ITEM = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "Let me see."}],
}


class ResponsesServer(OpenAIServer):
    """Answers the responses route, in the shapes of `openai.types.responses`: first with a tool call, then with text."""

    def response(self, **fields):
        number = len(self.requests)
        known = {"id": f"resp_{number}", "object": "response", "created_at": 0, "model": "scripted", "status": "completed",
                 "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
        usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12,
                 "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 2}}  # fmt: skip
        return known | {"usage": usage, **fields}

    async def _routed(self, request, received):
        output = (
            [THOUGHT_ITEM, text_item("I look."), CALL_ITEM]
            if len(self.requests) % 2
            else [text_item("It is 4.")]
        )
        response = self.response(output=output)
        if not received.json.get("stream"):
            return web.json_response(response)
        events = [
            {"type": "response.created", "response": response | {"output": [], "status": "in_progress"}}
        ]
        for at, item in enumerate(output):
            events.append(
                {"type": "response.output_item.added", "output_index": at, "item": item | {"arguments": ""}}
            )
            if item["type"] == "reasoning":
                events += [
                    {
                        "type": "response.reasoning_summary_text.delta",
                        "output_index": at,
                        "delta": "Let me see.",
                    }
                ]
            elif item["type"] == "message":
                words = item["content"][0]["text"].split(" ")
                texts = [words[0], *(f" {word}" for word in words[1:])]
                events += [
                    {"type": "response.output_text.delta", "output_index": at, "delta": text}
                    for text in texts
                ]
            else:
                halves = (item["arguments"][:6], item["arguments"][6:])
                events += [
                    {"type": "response.function_call_arguments.delta", "output_index": at, "delta": h}
                    for h in halves
                ]
        events.append({"type": "response.completed", "response": response})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number, event in enumerate(events):
            data = json.dumps({"sequence_number": number} | event)
            await answer.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
        await answer.write_eof()
        return answer


def respond(client, stream, **options):
    """One response, streamed or not; its id."""
    answer = client.responses.create(model="scripted", stream=stream, **options)
    if not stream:
        return answer.id
    return [event for event in answer if event.type == "response.completed"][-1].response.id


@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_seen(attach, seen, stream, by_id):
    """Text, reasoning, calls and counts; the conversation goes on by the items of all turns, or by the id of the last response."""
    result = {"type": "function_call_output", "call_id": "call_abcdefgh", "output": "4"}
    ask = {"role": "user", "content": [{"type": "input_text", "text": "What is 2 + 2?"}]}
    with ResponsesServer() as server, client_of(server) as client:
        attach(client)
        first = respond(client, stream, input=[ask], instructions="Be short.")
        if by_id:
            respond(client, stream, input=[result], previous_response_id=first, instructions="Be short.")
        else:
            items = [ask, THOUGHT_ITEM, text_item("I look."), CALL_ITEM, result]
            respond(client, stream, input=items, instructions="Be short.")
    assert generations(seen) == [("I look.", "Let me see.", "tool_call", 5), ("It is 4.", None, "stop", 5)]
    (start,) = seen.starts()
    assert [message["role"] for message in start["messages"]] == ["system", "user"]
    assert [e.data["arguments"] for e in seen.of("tool_call_start")] == [{"query": "2 + 2"}]
    assert [e.data["observation"] for e in seen.of("tool_observation")] == ["4"]
    if stream:
        assert [e.data["content"] for e in seen.of("llm_generation_chunk")] == [
            "",
            "I",
            " look.",
            "It",
            " is",
            " 4.",
        ]


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        ({"type": "response.failed", "response": {"status": "failed", "error": {"message": "out of memory"}}}, ("error", None)),
        ({"type": "error", "message": "out of memory"}, ("error", None)),
        (
            {"type": "response.incomplete", "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}},
            (None, "length"),
        ),
        ({"type": "response.refusal.delta", "delta": "No."}, (None, None)),
        ({"type": "response.web_search_call.completed"}, None),
    ],
)  # fmt: skip
def test_events_of_responses_are_read(event, shown):
    """A failure is an error, a limit is `length`, and what says nothing is left out."""
    pieces = pieces_of_event(event)
    if shown is None:
        assert pieces == []
    else:
        assert (pieces[0].error and "error", None if shown[0] else pieces[0].finish_reason) == shown


def parts_of_a_client():
    client = openai.OpenAI(api_key="none")
    chat = openai.AsyncOpenAI(api_key="none").chat
    create = client.chat.completions.create
    return {
        "method": create,
        "async method": chat.completions.create,
        "with arguments": functools.partial(create, model="m"),
        "raw": client.chat.completions.with_raw_response.create,
        "of the client": client.copy,
        "resource": client.responses,
        "resources": chat,
    }


@pytest.mark.parametrize("name", parts_of_a_client())
def test_a_part_of_a_client_is_refused(name):
    """One sentence says to attach the whole; of a method also how to watch it alone."""
    with pytest.raises(
        InputError,
        match=r"a part of a client of the openai package: attach the whole, with rollcast\.attach\.openai",
    ) as raised:
        rollcast.attach(parts_of_a_client()[name])
    assert ("rollcast.attach.function" in str(raised.value)) is not name.startswith("resource")


def test_a_function_of_ones_own_around_a_method_is_a_function(seen):
    """Its author may have said with `functools.wraps` what it is like."""
    create = openai.OpenAI(api_key="none").chat.completions.create

    @functools.wraps(create)
    def mine(**fields):
        return fields

    assert rollcast.attach(mine, manager=seen.manager_of_it)(model="m") == {"model": "m"}


def test_a_method_may_be_watched_alone(seen):
    """The named form means what it says."""
    copy = openai.OpenAI(api_key="none").copy
    assert rollcast.attach.function(copy, manager=seen.manager_of_it)(timeout=3.0).timeout == 3.0
