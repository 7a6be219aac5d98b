"""The page's modules without a DOM, in Node, on a real server: they know in the end what Python knows."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from nodejs import NODE, needs_node
from rollcast.records.run_view import RunViews
from rollcast.testing import capture_events

FOLLOW = Path(__file__).parent.parent / "page" / "follow.js"
WAIT_S = 30


pytestmark = needs_node


@contextlib.asynccontextmanager
async def following(url, runs=1):
    """A Node process that follows the server as the page does; it is connected when this begins."""
    process = await asyncio.create_subprocess_exec(
        NODE, "--experimental-websocket", "--no-warnings", str(FOLLOW), url, str(runs),
        stdout=asyncio.subprocess.PIPE, limit=1 << 26,
    )  # fmt: skip
    try:
        async with asyncio.timeout(WAIT_S):
            assert await process.stdout.readline() == b"ready\n"
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def told(process):
    """What it knows in the end."""
    async with asyncio.timeout(WAIT_S):
        return json.loads(await process.stdout.readline())


async def play(manager, *, chains=3, turns=3, pause_s=0.0):
    """A run of several chains, each of several turns with a call; returns what Python's views know of it."""
    with capture_events(manager) as capture:
        async with manager.run(chains=chains) as run:
            await asyncio.gather(*(_chain(run, number, turns, pause_s) for number in range(chains)))
    views = RunViews()
    for event in capture.events:
        views.apply(event)
    return {
        f"{run_id} {name}": facts(view.to_dict())
        for run_id, run in views.runs.items()
        for name, view in run.chains.items()
    }


async def _chain(run, number, turns, pause_s):
    group = f"group_{number // 2}"
    with run.chain([{"role": "user", "content": "Überlege 🤔."}], group_id=group) as chain:
        for turn in range(turns):
            with chain.generation() as generation:
                for word in range(20):
                    generation.chunk(
                        f"{number}.{turn}.{word} 🤔 ", token_ids=[word], logprobs=[-0.25 * number]
                    )
                    await asyncio.sleep(pause_s)
            if turn < turns - 1:
                with chain.tool_call("look", {"n": turn}) as call:
                    call.observation("found")
        chain.reward(number / 2)
        chain.end("answered", final_response=f"answer {number}")


def facts(view):
    """Without what a watcher that came late cannot know."""
    names = (
        "group_id",
        "state",
        "reward",
        "finish_reason",
        "final_response",
        "completion_tokens",
        "tool_calls",
        "content",
    )
    messages = [[m["role"], m["content"]] for m in view["messages"]]
    return {name: view[name] for name in names} | {"messages": messages}


def agreed(found):
    """The facts of every chain, as the page knows them."""
    return {name: facts(view) for name, view in found["chains"].items()}


async def test_the_page_knows_in_the_end_what_python_knows(stage):
    """Chains that are watched from their beginning, their rows, the run's row and the tokens' ids."""
    server = await stage.serve()
    async with following(server.url) as process:
        expected = await play(stage.manager, pause_s=0.01)
        found = await told(process)
    assert agreed(found) == expected
    assert {row["chain_id"]: row["reward"] for row in found["rows"]} == {
        "chain_0": 0,
        "chain_1": 0.5,
        "chain_2": 1,
    }
    assert [row["status"] for row in found["runs"]] == ["completed"]
    ids = [view["token_ids"]["3"] for view in found["chains"].values()]
    assert ids == [list(range(20))] * 3
    assert found["reconnections"] == 0


async def test_chains_that_are_over_are_told_by_their_story(stage):
    """A page that comes after the run knows it too."""
    server = await stage.serve()
    expected = await play(stage.manager)
    async with following(server.url, runs=0) as process:
        found = await told(process)
    assert agreed(found) == expected


@pytest.mark.parametrize("cut_after", [3_000, 9_000, 20_000])
async def test_over_a_connection_that_is_cut_nothing_is_missed(stage, proxy, cut_after):
    """The page comes back by itself and knows in the end what it would have known."""
    server = await stage.serve()
    async with proxy(server.port) as between:
        between.cut_after = cut_after
        async with following(between.url) as process:
            expected = await play(stage.manager, turns=4, pause_s=0.01)
            found = await told(process)
    assert agreed(found) == expected
    assert found["reconnections"] == 1
    assert found["state"]["word"] in ("connected", "catching up")


async def test_a_page_with_a_wrong_token_is_told_why(stage):
    """It does not try again, and has the server's sentence."""
    server = await stage.serve(token="right")
    process = await asyncio.create_subprocess_exec(
        NODE, "--experimental-websocket", "--no-warnings", str(FOLLOW), server.url, "1", stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        out, _ = await process.communicate()
    assert process.returncode == 1
    state = json.loads(out)["state"]
    assert state["word"] == "refused"
    assert "token" in state["why"]
