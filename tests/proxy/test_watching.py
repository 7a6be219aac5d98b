"""Who is watched gets what the engine would have given."""

import asyncio
import json
import logging

import pytest

from raw_engine import answer, call
from rollcast import EventFilter, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.proxy import passing
from rollcast.proxy.rewriting import EngineTraits
from rollcast.serve import ServerSettings
from rollcast.testing import OpenAIServer
from rollcast.testing.observers import EventCapture
from rollcast.testing.openai_server import ServedAnswer, ServedCall

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def chat(server, **fields):
    return {"model": server.model, "messages": QUESTION, **fields}


def completion(server, **fields):
    return {"model": server.model, "prompt": [1, 2, 3], **fields}


ANSWERS = {
    "text": ServedAnswer('Four, äöü 🦊 \x00 " \\ done.'),
    "empty": ServedAnswer([""], token_ids=[[7]], logprobs=[[-0.5]]),
    "reasoning": ServedAnswer("Four.", reasoning="Two and two."),
    "calls": ServedAnswer("", calls=[ServedCall("add", '{"a": 2, "b": "ü\\n"}', "call_abcdefgh")], finish_reason="tool_calls"),
    "call without index": ServedAnswer("So:", calls=[ServedCall("add", "{}", "call_abcdefgh", None)], finish_reason="tool_calls"),
    "length": ServedAnswer("Four and", finish_reason="length"),
    "several a chunk": ServedAnswer(["Fo", "ur."], token_ids=[[1, 2], [3]], logprobs=[[-0.25, -1e-7], [-9999.0]]),
    "abort": ServedAnswer("Fo", finish_reason="abort"),
    "version": ServedAnswer("Four.", weight_version=12),
    "split": ServedAnswer("Fünf 🦊.", split=1),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "text", "hosted"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_the_caller_gets_the_same_bytes(stage, name, dialect):
    """Status, headers and body are those of the engine, for calls that stream and calls that do not, and whatever they ask for."""
    async with OpenAIServer(ANSWERS[name], dialect=dialect) as server:
        with_logprobs = name != "reasoning"  # the server has none for it
        proxy = await stage.watch(server.url, traits=EngineTraits(logprobs=with_logprobs))
        for fields in ({}, {"stream": True}, {}, {"logprobs": True, "top_logprobs": 0}, {"return_token_ids": True}, {"max_tokens": 64, "stream": True}, {}):  # fmt: skip
            for make, path in ((chat, "/v1/chat/completions"), (completion, "/v1/completions")):
                if (path == "/v1/completions" and dialect == "text") or (
                    "logprobs" in fields and not with_logprobs
                ):
                    continue
                if (
                    make is chat and name == "empty"
                ):  # the server writes null for an empty text, as vLLM does not
                    continue
                asked = (
                    make(server, **fields)
                    if make is chat or "top_logprobs" not in fields
                    else make(server, logprobs=0)
                )
                assert await stage.post(proxy.url, asked, path) == await stage.post(server.url, asked, path)
        assert stage.watching.counts.faults == 0
        assert stage.watching.counts.turned > 0 or name == "empty"
        await stage.end()


async def test_tokens_are_seen_while_the_caller_waits(stage, until):
    """A call that does not stream is shown token by token, with ids and log-probabilities, before its answer is whole."""
    async with OpenAIServer(
        [ServedAnswer("Four."), ServedAnswer("The answer is four.", stall_at=3)]
    ) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        waiting = asyncio.create_task(stage.post(proxy.url, chat(server)))
        await until(lambda: len(stage.events.of("llm_generation_chunk")) >= 3)
        assert not waiting.done()
        server.resume()
        status, _, body = await waiting
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "The answer is four.")
        chunks = await stage.seen("llm_generation_chunk")
        assert "".join(chunk.data["content"] for chunk in chunks[1:]) == "The answer is four."
        assert all(len(chunk.data["token_ids"]) == len(chunk.data["logprobs"]) == 1 for chunk in chunks[1:])
        await stage.end()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"echo": True},
        {"prompt_logprobs": 0},
        {"best_of": 2},
        {"use_beam_search": True},
        {"max_tokens": 0},
    ],
)
async def test_what_streams_lack_goes_untouched(stage, fields):
    """A call that asks for what a stream does not have reaches the engine as it was written."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        for _ in range(2):
            asked = json.dumps(completion(server, **fields), indent=1).encode()
            await stage.post(proxy.url, asked, "/v1/completions", Content_Type="application/json")
            assert server.generations[-1].body == asked
        assert stage.watching.counts.turned == 0


async def test_tools_are_parsed_by_the_same_code(stage):
    """A chat call with tools that does not stream goes untouched, unless it is asked for: engines parse the calls of streams otherwise."""
    async with OpenAIServer(ANSWERS["calls"]) as server:
        proxy = await stage.watch(server.url)
        for _ in range(2):
            await stage.post(proxy.url, chat(server, tools=TOOLS))
        assert stage.watching.counts.turned == 0
        assert [event.data["tool_name"] for event in await stage.seen("tool_call_start")] == ["add", "add"]
        await stage.end()


async def test_tools_may_be_streamed(stage):
    """With `tools`, they are made streams too."""
    async with OpenAIServer(ANSWERS["calls"]) as server:
        proxy = await stage.watch(server.url, traits=EngineTraits(tools=True))
        for _ in range(2):
            asked = chat(server, tools=TOOLS)
            assert await stage.post(proxy.url, asked) == await stage.post(server.url, asked)
        assert stage.watching.counts.turned == 1


async def test_nobody_watches(stage):
    """Without an observer no body is opened, and the engine gets the caller's bytes."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        stage.manager.remove_observer(stage.events)
        for _ in range(2):
            asked = json.dumps(chat(server), indent=1).encode()
            await stage.post(proxy.url, asked, Content_Type="application/json")
            assert server.generations[-1].body == asked
        assert stage.watching.counts.watched == 0


async def test_only_an_opened_chain_is_made_a_stream(stage):
    """If a watcher wants the tokens of one chain, the calls of the others go through as they are."""
    events = EventCapture()
    events.filter = EventFilter(chains="mine") | EventFilter(types="chain_end")
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, events)
        for name in ("other", "mine", "other", "mine", "other"):
            await stage.post(proxy.url, chat(server), f"/chains/{name}/v1/chat/completions")
        assert [bool(request.json.get("stream")) for request in server.generations] == [
            False,
            True,
            False,
            True,
            False,
        ]
        assert {request.path for request in server.generations} == {"/v1/chat/completions"}


async def test_what_the_engine_does_not_give_is_said_once(stage, caplog):
    """An engine without ids and log-probabilities is named in one line each."""
    async with OpenAIServer("Four.", dialect="hosted") as server:
        proxy = await stage.watch(server.url)
        for _ in range(4):
            await stage.post(proxy.url, chat(server))
    said = [record.message for record in caplog.records if record.name == "rollcast.proxy"]
    assert len([line for line in said if "no token ids" in line]) == 1
    assert len([line for line in said if "no log-probabilities" in line]) == 1


async def test_an_engine_that_refuses_a_field_is_asked_again(stage, caplog):
    """If the engine refuses what was added, it gets the caller's own request, and the next ones ask for less."""
    async with OpenAIServer("Four.", dialect="text") as server:
        proxy = await stage.watch(server.url)
        for _ in range(6):
            assert await stage.post(proxy.url, chat(server)) == await stage.post(server.url, chat(server))
        assert "refuses what the proxy adds" in caplog.text
        assert "no token ids and no log-probabilities" in caplog.text
        assert (
            "no streams" in caplog.text
        )  # it takes no stream_options, and an answer without its usage is not the same
        assert stage.watching.counts.turned == 2
        await stage.end()


async def test_a_wrong_request_is_the_callers_own(stage, caplog):
    """A request that the engine refuses anyway is answered by the engine, and nothing is learnt from it."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        wrong = chat(server) | {"model": "another"}
        assert await stage.post(proxy.url, wrong) == await stage.post(server.url, wrong)
        assert "refuses" not in caplog.text
        (error,) = await stage.seen("error")
        assert "does not exist" in error.data["error"]
        await stage.end()


@pytest.mark.parametrize("status", [401, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_the_engine(stage, status, stream):
    """An engine's error goes through as it is, with its headers."""
    fails = ServedAnswer(
        status=status, headers={"Retry-After": "7"}, body=b'{"error": {"message": "no", "code": 1}}'
    )
    async with OpenAIServer([ServedAnswer("Four."), fails]) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        for _ in range(2):
            asked = chat(server, stream=stream)
            got = await stage.post(proxy.url, asked)
            assert got == await stage.post(server.url, asked)
            assert "Retry-After" in got[1]
        assert f"the engine answered {status}: no" in (await stage.seen("error"))[0].data["error"]
        await stage.end()


async def test_an_error_inside_a_stream(stage):
    """A call that did not stream gets such an error with its status, as the engine would have answered."""
    async with OpenAIServer([ServedAnswer("Four."), ServedAnswer("Four and more.", error_at=2)]) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        status, _, body = await stage.post(proxy.url, chat(server))
        assert (status, json.loads(body)) == (500, {"error": {"message": "the engine died", "code": 500}})
        streamed = chat(server, stream=True)
        assert await stage.post(proxy.url, streamed) == await stage.post(server.url, streamed)
        await stage.end()


async def test_a_cut_anywhere(stage):
    """If the engine breaks off, a caller that streams gets what came and no end, one that does not gets 502; both are seen as errors."""
    whole = ServedAnswer("Four ä.")
    async with OpenAIServer(whole) as server:
        _, _, body = await stage.post(server.url, chat(server, stream=True))
    cuts = [*range(1, len(body), 37), len(body) - 1]
    script = [whole, *(ServedAnswer("Four ä.", cut_at=cut) for cut in cuts for _ in range(2))]
    async with OpenAIServer(script) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        for cut in cuts:
            status, _, got = await stage.post(proxy.url, chat(server, stream=True))
            assert (status, got) == (200, None), cut
            status, _, got = await stage.post(proxy.url, chat(server))
            assert status in (200, 502), cut
            if status == 200:  # the cut was after the end of the choice
                assert json.loads(got)["choices"][0]["message"]["content"] == "Four ä."
        assert stage.watching.counts.faults == 0
        await stage.end()


async def test_nonsense_in_a_stream_is_asked_again(stage):
    """If a stream that the proxy asked for cannot be read, the engine is asked with the caller's own request."""
    script = [ServedAnswer("Four."), ServedAnswer(chunks=[b"{nonsense"]), ServedAnswer("Five.")]
    async with OpenAIServer(script) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        _, _, body = await stage.post(proxy.url, chat(server))
        assert json.loads(body)["choices"][0]["message"]["content"] == "Five."
        assert server.generations[-1].json == chat(server)
        await stage.end()


async def test_a_stream_that_is_too_long_to_be_kept_is_asked_again(stage, monkeypatch):
    """What is put together is bounded: beyond that, the engine is asked with the caller's own request."""
    monkeypatch.setattr(passing, "MOST_KEPT", 1000)
    async with OpenAIServer(["Four.", "A long answer. " * 20, "Five."]) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        _, _, body = await stage.post(proxy.url, chat(server))
        assert json.loads(body)["choices"][0]["message"]["content"] == "Five."
        assert server.generations[-1].json == chat(server)
        await stage.end()


async def test_a_caller_that_leaves_cancels(stage, until):
    """Whoever leaves before the answer is whole ends the engine's work, and is seen as cancelled."""
    async with OpenAIServer([ServedAnswer("Four."), ServedAnswer("Four and more.", stall_at=2)]) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        for stream in (False, True):
            call = asyncio.create_task(stage.post(proxy.url, chat(server, stream=stream)))
            asked = len(server.generations)
            await until(lambda asked=asked: len(server.generations) > asked)
            await until(lambda: stage.events.of("llm_generation_chunk"))
            call.cancel()
            await until(lambda: server.generations[-1].state == "disconnected")
        await until(lambda: stage.watching.counts.left == 2)
        ends = await stage.seen("llm_generation_end")
        assert [end.data["finish_reason"] for end in ends[1:]] == ["cancelled", "cancelled"]
        await stage.end()


async def test_whose_chain_it_is(stage):
    """The path names a chain, a header a session, and otherwise the conversation tells which chain goes on."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server), "/chains/mine/v1/chat/completions")
        for session in ("a", "b", "a"):
            await stage.post(proxy.url, chat(server), X_Session_ID=session)
        more = [
            *QUESTION,
            {"role": "assistant", "content": "Four."},
            {"role": "user", "content": "And 3 + 3?"},
        ]
        await stage.post(proxy.url, chat(server) | {"messages": [{"role": "user", "content": "Hello"}]})
        await stage.post(
            proxy.url, chat(server) | {"messages": [{"role": "user", "content": "Hello"}, *more[1:]]}
        )
        starts = await stage.seen("chain_start")
        assert len(starts) == 4
        assert starts[0].chain_id == "mine"
        generations = [event.chain_id for event in await stage.seen("llm_generation_start")]
        assert [generations.count(start.chain_id) for start in starts] == [1, 2, 1, 2]
        await stage.end()


async def test_an_api_key_may_be_a_session(stage):
    """With `Authorization` as the session's header every key is one, and no event has the key."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, session_header="Authorization")
        for key in ("secret-one", "secret-two", "secret-one"):
            await stage.post(proxy.url, chat(server), Authorization=f"Bearer {key}")
        assert len(await stage.seen("chain_start")) == 2
        assert "secret" not in json.dumps([event.to_dict() for event in stage.events.events])
        await stage.end()


@pytest.mark.parametrize("header", ["Authorization", "api-key"])
async def test_callers_with_keys_of_their_own_are_kept_apart(stage, header):
    """Rollouts with the same prompt and the same first answer, a key each, go on as two chains; no event has a key."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        told = [{"role": "assistant", "content": "Four."}, {"role": "user", "content": "Sure?"}]
        first = chat(server)
        second = first | {"messages": [*first["messages"], *told]}
        for body in (first, second):
            for key in ("secret-one", "secret-two"):
                value = f"Bearer {key}" if header == "Authorization" else key
                await stage.post(proxy.url, body, **{header.replace("-", "_"): value})
        starts = [event.chain_id for event in await stage.seen("chain_start")]
        generations = [event.chain_id for event in await stage.seen("llm_generation_start")]
        assert len(starts) == 2
        assert generations == starts * 2
        assert "secret" not in json.dumps([event.to_dict() for event in stage.events.events])
        await stage.end()


async def test_an_idle_chain_is_closed(stage, until):
    """A chain of which nothing is heard ends, and nobody knows how."""
    async with OpenAIServer("Four.") as server:
        stage.manager.add_observer(stage.events)
        from rollcast.proxy.counts import Counts
        from rollcast.proxy.watching import Watching

        stage.watching = Watching(stage.manager, Counts(), idle_s=0.05)
        stage.proxy = await stage._proxies(server.url, stage.watching, idle_s=0.05)
        await stage.post(stage.proxy.url, chat(server))
        await until(lambda: stage.events.of("chain_end"))
        assert stage.events.of("chain_end")[0].data["finish_reason"] == "unknown"
        await stage.end()


async def test_two_callers_share_a_session(stage, until):
    """Their first calls overlap, so each has a chain of its own, and keeps it: nothing of one is in the other's."""
    both = asyncio.Event()

    async def echo(request):
        said = [message["content"] for message in request.json["messages"] if message["role"] == "user"]
        await both.wait()
        return ServedAnswer(f"{said[0]}, {len(said)}.")

    async def talks(server, name):
        messages = []
        for turn in range(1, 5):
            messages.append({"role": "user", "content": name})
            body = chat(server) | {"messages": messages}
            _, _, answer = await stage.post(stage.proxy.url, body, X_Session_ID="shared")
            messages.append(json.loads(answer)["choices"][0]["message"])
            assert messages[-1]["content"] == f"{name}, {turn}."

    async with OpenAIServer(echo) as server:
        await stage.watch(server.url)
        talking = asyncio.gather(talks(server, "left"), talks(server, "right"))
        await until(lambda: len(server.generations) == 2)
        both.set()
        await talking
        await stage.end()
    names = {event.chain_id: event.data["messages"][0]["content"] for event in stage.events.of("chain_start")}
    assert sorted(names.values()) == ["left", "right"]
    for event in stage.events.of("message"):
        assert event.data["content"].startswith(names[event.chain_id])
    assert [event.data["steps"] for event in stage.events.of("chain_end")] == [4, 4]


async def test_more_sessions_than_are_kept(stage, monkeypatch):
    """Of very many sessions that wait, the one that has waited longest is closed; its next request begins another chain."""
    monkeypatch.setattr("rollcast.stream.conversations.MAX_IDLE", 16)
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        for _ in range(2):
            for number in range(40):
                status, _, _ = await stage.post(proxy.url, chat(server), X_Session_ID=f"s{number}")
                assert status == 200
        starts = [event.data["row"]["session"] for event in await stage.seen("chain_start")]
        assert starts == [f"s{number}" for number in range(40)] * 2
        assert len(await stage.seen("chain_end")) == 80 - 17
        assert stage.watching.counts.faults == 0
        await stage.end()


class Stuck(EventCapture):
    """An observer that never comes back."""

    async def on_event(self, event):
        await asyncio.Event().wait()


async def test_a_watcher_that_hangs_slows_nobody(stage):
    """Callers get their answers while an observer takes nothing."""
    stuck = Stuck()
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, stuck)
        stage.manager.drain_timeout = 0.05
        for _ in range(20):
            assert (await stage.post(proxy.url, chat(server)))[0] == 200
        stage.manager.remove_observer(stuck)
        await proxy.stop()


async def test_more_than_is_read_is_copied(stage, monkeypatch):
    """A request that is too large to be kept goes through unwatched."""
    monkeypatch.setattr("rollcast.proxy.server.MOST_READ", 1000)
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        asked = chat(server) | {"messages": [{"role": "user", "content": "x" * 200_000}]}
        assert await stage.post(proxy.url, asked) == await stage.post(server.url, asked)
        assert stage.watching.counts.watched == 0


async def test_many_watched_calls_at_once(stage, caplog):
    """256 watched calls at once are each whole and the caller's own."""
    caplog.set_level(logging.ERROR)

    def answer(request):
        return ServedAnswer(f"You said {request.json['messages'][0]['content']}.")

    async with OpenAIServer(answer) as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))

        async def one(i):
            asked = chat(server) | {"messages": [{"role": "user", "content": f"number {i}"}]}
            _, _, body = await stage.post(proxy.url, asked)
            return json.loads(body)["choices"][0]["message"]["content"] == f"You said number {i}."

        assert all(await asyncio.gather(*(one(i) for i in range(256))))
        assert stage.watching.counts.turned == 256
        await stage.end()


async def test_no_request_turns_watching_off(stage, caplog):
    """Ids that fit nowhere, in a request or an answer, are the caller's or the engine's fault: the others are still watched."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        for prompt in ([10**30], [1 << 63, 1], [-1], [[[1]]]):
            await stage.post(proxy.url, completion(server, prompt=prompt), "/v1/completions")
        await stage.post(proxy.url, chat(server))
        assert not stage.watching.off
        assert "steps aside" not in caplog.text
        await stage.end()


@pytest.mark.parametrize(
    "more", [{"stream": 1}, {"stream": "true"}, {"stream_options": {"include_usage": True}}]
)
async def test_what_engines_read_in_their_own_way_goes_untouched(stage, more):
    """The engine decides what such a request means, and the caller gets that."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        for fields in ({}, more, more):
            assert await stage.post(proxy.url, chat(server, **fields)) == await stage.post(
                server.url, chat(server, **fields)
            )
            assert server.generations[-2].json == server.generations[-1].json
        assert stage.watching.counts.turned == 0


async def test_a_type_with_a_charset(stage, engine):
    """An answer that is put together has the content type of the engine's whole answers."""
    whole = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    }
    body = json.dumps(whole, separators=(",", ":")).encode()
    sse = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
    json_type, sse_type = "Content-Type: application/json; charset=utf-8", "Content-Type: text/event-stream"
    engine.plays = lambda asked: [
        answer(sse, "200 OK", sse_type)
        if json.loads(asked.body).get("stream")
        else answer(body, "200 OK", json_type)
    ]
    proxy = await stage.watch(engine.url)
    question = json.dumps({"model": "m", "messages": QUESTION}).encode()
    first, second = [await call(proxy.url, question) for _ in range(2)]
    assert stage.watching.counts.turned == 1
    assert second.header("Content-Type") == first.header("Content-Type")
    assert json.loads(second.body) == whole


async def test_a_field_that_streams_lack_is_asked_for_again(stage, engine):
    """If whole answers have a field that their streams do not have, the caller gets it, and no more such calls are made streams."""
    whole = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "metadata": {"weight_version": "3"},
    }
    sse = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
    engine.plays = lambda asked: [
        answer(sse, "200 OK", "Content-Type: text/event-stream")
        if json.loads(asked.body).get("stream")
        else answer(json.dumps(whole).encode(), "200 OK", "Content-Type: application/json")
    ]
    proxy = await stage.watch(engine.url)
    question = json.dumps({"model": "m", "messages": QUESTION}).encode()
    for _ in range(4):
        assert json.loads((await call(proxy.url, question)).body) == whole
    assert stage.watching.counts.turned == 1
    assert "its stream has no metadata" in (await stage.seen("error"))[0].data["error"]
    await stage.end()


@pytest.mark.parametrize("status", ["401 Unauthorized", "200 OK"])
async def test_a_key_that_the_engine_repeats_is_not_shown(stage, engine, status):
    """An engine may repeat the caller's key in an error; the caller gets it, and no watcher."""
    error = b'{"error": {"message": "Incorrect API key: secret-of-mine-1"}}'
    body, kind = (
        (error, "application/json") if "401" in status else (b"data: %b\n\n" % error, "text/event-stream")
    )
    engine.plays = lambda _: [answer(body, status, f"Content-Type: {kind}")]
    proxy = await stage.watch(engine.url)
    question = json.dumps({"model": "m", "messages": QUESTION, "stream": True}).encode()
    got = await call(proxy.url, question, headers=["Authorization: Bearer secret-of-mine-1"])
    assert got.body == body
    await stage.seen("error")
    assert "secret-of-mine-1" not in str(stage.events.events)
    assert "[API key]" in str(stage.events.events)


async def test_a_viewer_who_opens_a_chain_makes_it_a_stream(stage, until):
    """While nobody looks at the server, calls go through as they are; once a client subscribes to a chain's tokens, its calls are streams."""
    pages = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings(history_bytes=0))
    async with pages, OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, pages.get_observer())
        for _ in range(3):
            await stage.post(proxy.url, chat(server), "/chains/mine/v1/chat/completions")
        assert stage.watching.counts.turned == 0
        assert stage.watching.counts.watched == 3
        got = []

        async def look():
            async with WebSocketStreamingClient(pages.url, filter=EventFilter(chains="mine")) as client:
                async for event in client:
                    got.append(event)

        looking = asyncio.create_task(look())
        await until(lambda: stage.manager.wants("llm_generation_chunk", "mine"))
        for name in ("mine", "other"):
            await stage.post(proxy.url, chat(server), f"/chains/{name}/v1/chat/completions")
        assert stage.watching.counts.turned == 1
        await until(lambda: any(event.event_type == "llm_generation_chunk" for event in got))
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await proxy.stop()
        stage.manager.remove_observer(pages.get_observer())
