"""The proxy's own paths: rewards, ends, health and metrics."""

import json

import pytest

from rollcast.testing import OpenAIServer


def chat(server, **fields):
    return {"model": server.model, "messages": [{"role": "user", "content": "What is 2 + 2?"}], **fields}


async def tell(stage, path, body, token="pay"):
    status, _, answer = await stage.post(
        stage.proxy.url, body, f"/rollcast/{path}", Authorization=f"Bearer {token}"
    )
    return status, json.loads(answer)


async def test_a_reward_ends_its_chain(stage):
    """A session's reward and metrics are its chain's, which then ends."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, reward_token="pay")
        await stage.post(proxy.url, chat(server), X_Session_ID="a")
        assert await tell(stage, "reward", {"session": "a", "reward": 0.5, "metrics": {"right": 1}}) == (
            200,
            {"seen": True},
        )
        (reward,) = await stage.seen("reward")
        assert (reward.data["reward"], reward.data["metrics"]) == (0.5, {"right": 1})
        (end,) = await stage.seen("chain_end")
        assert (end.chain_id, end.data["reward"]) == (reward.chain_id, 0.5)
        await stage.end()


async def test_an_end_is_told(stage):
    """A chain that its path named ends when it is told to."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, reward_token="pay")
        await stage.post(proxy.url, chat(server), "/chains/mine/v1/chat/completions")
        assert await tell(stage, "end", {"chain": "mine"}) == (200, {"seen": True})
        assert [event.chain_id for event in await stage.seen("chain_end")] == ["mine"]
        await stage.end()


async def test_a_name_may_be_used_again(stage):
    """After its reward, a chain that the path names has ended: the next request begins another one, which answers to that name."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, reward_token="pay")
        for reward in (0.0, 1.0):
            await stage.post(proxy.url, chat(server), "/chains/mine/v1/chat/completions")
            assert await tell(stage, "reward", {"chain": "mine", "reward": reward}) == (200, {"seen": True})
        starts = await stage.seen("chain_start")
        assert [start.data["row"] for start in starts] == [{"session": "mine"}] * 2
        assert starts[0].chain_id == "mine"
        ends = {event.chain_id: event.data["reward"] for event in await stage.seen("chain_end")}
        assert ends == {"mine": 0.0, starts[1].chain_id: 1.0}
        assert stage.watching.counts.faults == 0
        await stage.end()


async def test_a_key_as_session_is_rewarded_by_its_key(stage):
    """If API keys are sessions, the key names the one that is rewarded."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, reward_token="pay", session_header="Authorization")
        await stage.post(proxy.url, chat(server), Authorization="Bearer secret")
        assert await tell(stage, "reward", {"session": "secret", "reward": 1}) == (200, {"seen": True})
        await stage.end()


async def test_what_nobody_sees_is_no_failure(stage):
    """A trainer whose session nobody watches gets 200, and why it is not seen."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, reward_token="pay")
        assert await tell(stage, "end", {"session": "a"}) == (200, {"seen": False, "why": "nobody watches"})
        await stage.post(proxy.url, chat(server), X_Session_ID="a")
        status, answer = await tell(stage, "reward", {"session": "b", "reward": 1})
        assert (status, answer["seen"]) == (200, False)
        assert "'b'" in answer["why"]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("reward", {"session": "a"}, 400, 'needs "reward"'),
        ("reward", {"reward": 1}, 400, 'needs "session" or "chain"'),
        ("end", {"session": "a", "chain": "b"}, 400, "not both"),
        ("reward", {"session": "a", "reward": "much"}, 400, "is wrong"),
        ("reward", b"{", 400, "is wrong"),
        ("reward", [1], 400, "is wrong"),
        ("pay", {}, 404, "POST /rollcast/reward"),
    ],
)
async def test_wrong_words(stage, path, body, status, sentence):
    """What is wrong is said in a sentence."""
    await stage.watch("http://localhost:1", reward_token="pay")
    got, answer = await tell(stage, path, body)
    assert (got, sentence in answer["error"]["message"]) == (status, True)


async def test_a_reward_needs_its_token(stage):
    """A wrong token gets 401, and without a token of the proxy's no reward is taken."""
    await stage.watch("http://localhost:1", reward_token="pay")
    assert (await tell(stage, "reward", {"session": "a", "reward": 1}, "wrong"))[0] == 401


async def test_without_a_token_there_are_no_rewards(stage):
    """Otherwise the agent that is trained could reward itself."""
    await stage.watch("http://localhost:1")
    status, answer = await tell(stage, "reward", {"session": "a", "reward": 1})
    assert (status, "--reward-token" in answer["error"]["message"]) == (403, True)


async def test_metrics(stage):
    """What was counted can be scraped; with a listen token only by who has it."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url, listen_token="let-me-in")
        await stage.post(proxy.url, chat(server), Authorization="Bearer let-me-in")
        async with stage.session.get(proxy.url + "/rollcast/metrics") as answer:
            assert answer.status == 401
        async with stage.session.get(
            proxy.url + "/rollcast/metrics", headers={"X-Rollcast-Token": "let-me-in"}
        ) as answer:
            text = await answer.text()
        assert 'rollcast_proxy_requests_total{kind="generation"} 1.0' in text
        assert "rollcast_proxy_watched_total 1.0" in text
        async with stage.session.get(proxy.url + "/rollcast/health") as answer:
            assert await answer.json() == {"status": "ok"}
