"""What the contract does not say: how a server is tried, and what becomes of its faults."""

import asyncio
import logging

import pytest
from tokenizers import Tokenizer

from rollcast import BaseAgent
from rollcast.errors import BackendClosedError, BackendError, InputError, PromptTooLongError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.openai import OpenAIBackend
from rollcast.models.tiny.backend import CHECKPOINT, TinyBackend
from rollcast.records.grammar import GrammarChecker
from rollcast.testing import OpenAIServer, ServedAnswer, ServedCall, capture_events
from rollcast.tools import calculator
from rollcast.train.batch import make_batch

QUESTION = [{"role": "user", "content": "What is 12 * 34?"}]
IDS = [[27], [29], [31], [33], [2]]  # the last ends the turn


def answer(**about):
    """Four tokens and the end of the turn."""
    texts = ["3", "5", "7", "9", ""]
    return ServedAnswer(texts, token_ids=IDS, logprobs=[[-0.5]] * 5, **about)


def probed(*answers):
    """The first generation is the probe's."""
    return [ServedAnswer(["a"], token_ids=[[5]], logprobs=[[0.0]]), *answers]


def request(name="one", messages=QUESTION, **sampling):
    return GenerationRequest(name, messages, [], Sampling(**{"max_tokens": 32, "seed": 0, **sampling}))


async def read(backend, *arguments, **sampling):
    return [delta async for delta in backend.generate(request(*arguments, **sampling))]


def ids_of(deltas):
    return [token for delta in deltas for token in delta.token_ids or ()]


WHOLE = [token for each in IDS for token in each]


# -- what a server is found to give ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
async def test_a_server_with_ids_is_token_exact(serve, connect, dialect):
    """Ids and log-probabilities come if the server has them."""
    backend = await connect(await serve(probed(answer()), dialect=dialect))
    assert (backend.token_exact, backend.logprobs, backend.renderer is None) == (True, True, False)
    deltas = await read(backend)
    assert ids_of(deltas) == WHOLE
    assert deltas[-1].finish_reason == "stop"


@pytest.mark.parametrize("dialect", ["text", "hosted"])
async def test_a_server_without_ids_gives_text(serve, connect, dialect):
    """The chat route is used, what the server refuses is left out, and nothing claims to be token-exact."""
    server = await serve("one two", dialect=dialect)
    backend = await connect(server, tokenizer=None)
    assert (backend.token_exact, backend.logprobs, backend.renderer) == (False, False, None)
    for _ in range(2):
        deltas = await read(backend)
        assert "".join(delta.text for delta in deltas) == "one two"
        assert deltas[-1].finish_reason == "stop"
    if dialect == "hosted":
        assert deltas[-1].prompt_tokens is not None
    else:
        assert server.requests[-1].json.get("stream_options") is None
        assert server.requests[-2].state == "answered"


async def test_plain_logprobs_are_left_out_if_they_would_be_wrong(serve, connect, caplog):
    """A server whose log-probabilities ignore top-k gives them only for sampling without it; the rest is said once."""
    raw = ServedAnswer(["a"], token_ids=[[5]], logprobs=[[-0.25]])
    backend = await connect(await serve([raw, answer()]))
    plain = await read(backend)
    with caplog.at_level(logging.WARNING):
        cold = [await read(backend, temperature=0.7) for _ in range(2)]
    assert plain[0].logprobs == [-0.5]
    assert [deltas[0].logprobs for deltas in cold] == [None, None]
    assert sum("processed_logprobs" in record.message for record in caplog.records) == 1


async def test_a_level_that_the_server_lacks_is_refused(serve, connect):
    """`tokens` on a server without ids is one sentence."""
    with pytest.raises(InputError, match="does not take and give token ids"):
        await connect(await serve(dialect="hosted"), level="tokens")


async def test_a_model_that_is_not_served_is_named(serve, connect):
    """The sentence lists what is served; `default` takes the only one."""
    server = await serve(probed(answer()))
    with pytest.raises(InputError, match="does not serve the model 'other'; it serves scripted"):
        await connect(server, "other")
    assert (await connect(server, "default")).model_name == "scripted"


async def test_a_model_that_is_served_but_not_listed_is_asked_for_a_token(serve, connect):
    """`transformers serve` lists what is in its cache, and loads any folder that it is asked for."""
    server = await serve(probed(answer()))
    server.adapters.add("folder")
    backend = await connect(server, "folder")
    assert backend.model_name == "folder"
    assert [r.json["max_tokens"] for r in server.requests if r.path.endswith("chat/completions")] == [1]


async def test_a_model_that_is_not_listed_and_fails_is_not_served(serve, connect):
    """The server's own words are in the sentence."""
    server = await serve(ServedAnswer(status=500, body=b'{"detail": "there is no such folder"}'))
    server.adapters.add("folder")
    with pytest.raises(InputError, match=r"asked for 'folder' it says: .*there is no such folder"):
        await connect(server, "folder")


async def test_a_server_that_is_not_there_is_said(connect):
    """No traceback of a library: where, why, and what to do."""
    server = OpenAIServer()
    server.reserve()
    try:
        with pytest.raises(
            BackendError, match=r"no server can be reached at .*; start it, or check base_url"
        ):
            await connect(server)
    finally:
        await server.stop()


async def test_a_server_that_comes_later_is_waited_for(connect):
    """`wait_s` lets it start after the backend."""
    server = OpenAIServer(probed(answer()))
    server.reserve()
    connecting = asyncio.create_task(connect(server, wait_s=60))
    await asyncio.sleep(0)
    await server.start()
    try:
        assert (await connecting).token_exact
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": None}, "needs the server's address"),
        ({"base_url": "ftp://x"}, "expected an address such as"),
        ({"base_url": "http://user:pw@x"}, "holds a name or a password"),
        ({"level": "ids"}, "expected tokens, text or None"),
        ({"retries": -1}, "expected a whole number"),
        ({"stall_s": 0}, "expected seconds above 0"),
        ({"context": 1.5}, "expected a whole number of tokens"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(monkeypatch, options, said):
    """What was found, and what was expected."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match=said):
        OpenAIBackend("m", **{"base_url": "http://127.0.0.1:1", **options})


async def test_a_tokenizer_that_is_not_here_is_asked_for(serve, connect, tmp_path):
    """A server that takes ids needs one; the sentence says which option gives it."""
    with pytest.raises(InputError, match="give tokenizer, a folder or a name on the hub, or level='text'"):
        await connect(await serve(probed(answer())), tokenizer=tmp_path / "nothing")


# -- faults ------------------------------------------------------------------------------------------------------------


FAULTS = {
    "429": ServedAnswer(status=429, headers={"Retry-After": "0"}),
    "500": ServedAnswer(status=500),
    "503 with a date": ServedAnswer(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "cut in the head": answer(cut_at=20),
    "cut after a token": answer(cut_at=500),
    "cut in the third": answer(cut_at=1100),
    "an error inside": answer(error_at=2),
    "bad JSON": ServedAnswer(chunks=[b'{"choices": [']),
    "nothing": ServedAnswer(chunks=[]),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_tried_again_and_shown(serve, connect, fault):
    """The chain gets every token once, goes on from the ids that came, and has an `error` event."""

    def script(received):
        generations = len(server.generations)
        if generations == 1:
            return probed()[0]
        if generations == 2:
            return FAULTS[fault]
        had = len(received.json["prompt"]) - prompt
        rest = IDS[had:]
        return ServedAnswer([""] * len(rest), token_ids=rest, logprobs=[[-0.5]] * len(rest))

    server = await serve(script)
    backend = await connect(server)
    prompt = len(backend.renderer.render(QUESTION, []))
    agent = BaseAgent("m", backend=backend)
    with capture_events(agent.streaming_manager) as capture:
        (chain,) = await agent.run_async(1, QUESTION, sampling={"seed": 0}, enable_streaming=True)
    assert chain.error is None
    assert [token for turn in chain.turns for token in turn.token_ids] == WHOLE
    assert [event.data["where"] for event in capture.events if event.event_type == "error"] == ["backend"]
    checker = GrammarChecker()
    for event in capture.events:
        checker.feed(event)
    seeds = [got.json["seed"] for got in server.generations[1:]]
    assert len(set(seeds)) == 2


async def test_an_abort_is_continued_silently(serve, connect):
    """A weight update ends generations with `abort`: they go on from the prompt and the ids so far, and nothing failed."""
    first = ServedAnswer(["3", "5"], token_ids=IDS[:2], logprobs=[[-0.5]] * 2, finish_reason="abort")
    rest = ServedAnswer(["7", "9", ""], token_ids=IDS[2:], logprobs=[[-0.25]] * 3)
    server = await serve(probed(first, rest))
    backend = await connect(server)
    agent = BaseAgent("m", backend=backend)
    with capture_events(agent.streaming_manager) as capture:
        (chain,) = await agent.run_async(1, QUESTION, enable_streaming=True)
    assert [token for turn in chain.turns for token in turn.token_ids] == WHOLE
    assert not [event for event in capture.events if event.event_type == "error"]
    before, after = (got.json for got in server.generations[1:])
    assert after["prompt"] == before["prompt"] + [27, 29]
    assert after["max_tokens"] == before["max_tokens"] - 2


async def test_it_gives_up_after_so_many_failures(serve, connect):
    """`retries` attempts in a row are repeated; then the generation fails, and says how often it was tried."""
    server = await serve(probed(ServedAnswer(status=500, headers={"Retry-After": "0"})))
    backend = await connect(server, retries=2)
    with pytest.raises(BackendError, match=r"500 .*\(3 attempts failed\)"):
        await read(backend)
    assert len(server.generations) == 1 + 3


async def test_text_that_was_cut_cannot_be_continued(serve, connect):
    """Without ids nothing can go on in the middle: the generation fails, and no text is given twice."""
    server = await serve(ServedAnswer("one two three", cut_at=500), dialect="hosted")
    backend = await connect(server)
    with pytest.raises(BackendError, match="cannot be continued, since the server gives no token ids"):
        await read(backend)
    assert len([each for each in server.generations if "chat" in each.path]) == 1


async def test_a_missing_logprob_is_refused(serve, connect):
    """-9999 stands for a missing one, and no trajectory gets it."""
    wrong = ServedAnswer(["3", "5"], token_ids=IDS[:2], logprobs=[[-0.5], [-9999.0]])
    backend = await connect(await serve(probed(wrong)))
    with pytest.raises(BackendError, match="expected one for each token: -9999"):
        await read(backend)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "This model's maximum context length is 8 tokens", PromptTooLongError),
        (400, "temperature must be smaller", InputError),
        (401, "wrong key", BackendError),
        (404, "no such model", BackendError),
    ],
)
async def test_a_refusal_is_not_repeated(serve, connect, status, message, kind):
    """What will not change is an error at once, with the server's own words."""
    body = f'{{"error": {{"message": "{message}"}}}}'.encode()
    server = await serve(probed(ServedAnswer(status=status, body=body)))
    backend = await connect(server)
    with pytest.raises(kind, match=message):
        await read(backend)
    assert len(server.generations) == 2


async def test_a_cancelled_generation_closes_its_connection(serve, connect):
    """The server sees the caller leave, so that the engine can stop sampling."""
    server = await serve(probed(answer(stall_at=2)))
    backend = await connect(server)
    deltas = backend.generate(request())
    await anext(deltas)
    await deltas.aclose()
    while server.generations[-1].state == "running":
        await asyncio.sleep(0.001)
    assert server.generations[-1].state == "disconnected"


async def test_a_stalled_server_is_left(serve, connect):
    """After `stall_s` without a byte the answer is continued in another attempt."""
    server = await serve(probed(answer(stall_at=2), ServedAnswer([""], token_ids=[[2]], logprobs=[[-0.5]])))
    backend = await connect(server, stall_s=1.0)
    assert ids_of(await read(backend)) == [27, 29, 2]


# -- other facts -------------------------------------------------------------------------------------------------------


async def test_characters_that_are_split_come_whole(serve, connect):
    """Whether over tokens or over writes, the text is that of the ids."""
    text = "12 € 🙂"
    ids = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    ids.append(2)  # the end of the turn, which has no text
    said = ServedAnswer(
        [""] * len(ids), token_ids=[[each] for each in ids], logprobs=[[-1.0]] * len(ids), split=3
    )
    openai = await connect(await serve(probed(said)))
    deltas = await read(openai)
    assert "".join(delta.text for delta in deltas) == text


async def test_the_key_is_sent_and_shown_nowhere(serve, connect, monkeypatch):
    """It comes from OPENAI_API_KEY, and a server that repeats it in an error does not get it into ours."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567")
    echo = ServedAnswer(status=401, body=b'{"error": {"message": "wrong key sk-1234567"}}')
    server = await serve(probed(echo), api_key="sk-1234567")
    backend = await connect(server)
    with pytest.raises(BackendError) as caught:
        await read(backend)
    assert server.requests[-1].headers["Authorization"] == "Bearer sk-1234567"
    assert "sk-1234567" not in str(caught.value)
    assert "sk-1234567" not in repr(backend)


async def test_the_environments_proxy_is_not_used(serve, connect, monkeypatch):
    """HTTP_PROXY would catch loopback too."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    backend = await connect(await serve(probed(answer())))
    assert ids_of(await read(backend)) == WHOLE


async def test_each_request_has_a_seed_of_its_own(serve, connect):
    """A server's default seed is the same for all, and would give a group the same samples."""
    server = await serve(probed(answer()))
    backend = await connect(server)
    for _ in range(2):
        await read(backend, seed=None)
    seeds = [got.json["seed"] for got in server.generations]
    assert len(set(seeds)) == len(seeds)


async def test_tools_and_reasoning_of_a_chat(serve, connect):
    """Calls that the server parsed are called, their arguments go back as text, and its reasoning is reasoning."""
    call = ServedAnswer(
        "", reasoning="I compute", calls=[ServedCall("calculator", '{"expression": "12 * 34"}', index=None)],
        finish_reason="tool_calls",
    )  # fmt: skip
    server = await serve(
        lambda got: call if len(got.json["messages"]) == 1 else "It is 408.", dialect="hosted"
    )
    backend = await connect(server)
    agent = BaseAgent("m", backend=backend, tools=[calculator])
    (chain,) = await agent.run_async(3, QUESTION)
    assert chain.error is None
    assert chain.final_response == "It is 408."
    assert [record.observation for record in chain.tool_calls] == ["408"]
    assert chain.messages[1]["reasoning_content"] == "I compute"
    sent = server.generations[-1].json["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"expression":"12 * 34"}'
    assert "reasoning_content" not in sent[1]
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]


async def test_trajectories_without_ids_are_no_batch(serve, connect):
    """Text that a server gave must not look as if it could be trained on."""
    backend = await connect(await serve("one two", dialect="hosted"))
    agent = BaseAgent("m", backend=backend, reward=lambda trajectory: 1.0)
    chains = await agent.run_async(1, QUESTION, num_chains=2)
    with pytest.raises(InputError, match="has no token ids, only text"):
        make_batch(chains)


async def test_tokens_carry_the_servers_version(serve, connect):
    """If somebody else changes the weights, /weight_info and the answers tell the version."""
    server = await serve(probed(answer(weight_version=8)))
    server.weight_version = "7"
    backend = await connect(server)
    assert backend.policy_version == 7
    deltas = await read(backend)
    assert [delta.policy_version for delta in deltas] == [7, 7, 7, 7, 8]


async def test_closing_leaves_no_thread_and_later_requests_fail(serve, connect):
    """`close` ends the client's thread."""
    backend = await connect(await serve(probed(answer())))
    thread = backend._engine._thread
    assert thread.is_alive()
    await backend.close()
    with pytest.raises(BackendClosedError):
        await read(backend)
    assert not thread.is_alive()


async def test_many_chains_run_at_once(serve, connect):
    """No limit of the client's holds back a chain: all have asked before the first is answered."""
    count = 200
    together = asyncio.Event()

    async def gate(received, index):
        if index == 0 and len(server.generations) == count + 1:
            together.set()
        if len(server.generations) > 1:
            await together.wait()

    server = await serve(probed(answer()), before_chunk=gate)
    backend = await connect(server)
    everything = await asyncio.gather(*(read(backend, f"r{index}") for index in range(count)))
    assert all(ids_of(deltas) == WHOLE for deltas in everything)


CONTROLS = {
    "vllm": [
        "GET /is_paused", "POST /pause?mode=keep&clear_cache=true", "POST /collective_rpc", "POST /update_weight_version",
        "POST /resume",
    ],
    "sglang": [
        "GET /is_paused", "GET /get_model_info", "POST /pause_generation", "POST /update_weights_from_disk",
        "POST /continue_generation",
    ],
}  # fmt: skip


@pytest.mark.parametrize("dialect", CONTROLS)
async def test_new_weights_are_loaded_while_the_engine_is_paused(serve, connect, dialect):
    """The engine's own paths are called in order, and later tokens carry the new version."""
    server = await serve(probed(answer()), dialect=dialect)
    backend = await connect(server, verify_weights=False)
    before = len(server.requests)
    await backend.update_weights("/somewhere", 3)
    asked = [f"{got.method} {got.path}" for got in server.requests[before:]]
    assert asked == CONTROLS[dialect]
    assert (server.reloads, server.weight_version, backend.policy_version) == (1, "3", 3)
    assert {delta.policy_version for delta in await read(backend)} == {3}


async def test_every_engine_behind_a_router_gets_the_weights(serve, connect):
    """`control_url` may be a list."""
    router, *engines = [await serve(probed(answer())) for _ in range(3)]
    backend = await connect(
        router, verify_weights=False, control_url=[f"{engine.url}/v1" for engine in engines]
    )
    await backend.update_weights("/somewhere", 1)
    assert [server.reloads for server in (router, *engines)] == [0, 1, 1]


async def test_a_server_without_a_path_for_weights_says_what_to_do(serve, connect):
    """Nothing is paused, and generations go on."""
    backend = await connect(await serve("one", dialect="hosted"), verify_weights=False)
    with pytest.raises(InputError, match="VLLM_SERVER_DEV_MODE=1"):
        await backend.update_weights("/somewhere", 1)
    assert await read(backend)


async def test_weights_that_were_not_loaded_stop_everything(serve, connect):
    """An engine that may have parts of both is not sampled from, until it has whole weights."""
    tiny = TinyBackend()
    server = await serve(tiny, model="tiny", context=1024)
    backend = await connect(server, "tiny", verify_weights=False)
    with pytest.raises(BackendError, match="could not load the weights of version 1"):
        await backend.update_weights("/nowhere", 1)
    with pytest.raises(BackendError, match="could not load the weights of version 1"):
        await read(backend)
    await backend.update_weights(CHECKPOINT, 2)
    assert {delta.policy_version for delta in await read(backend, max_tokens=4)} == {2}
    await tiny.close()
