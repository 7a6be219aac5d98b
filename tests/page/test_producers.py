"""The page at a hub: who publishes to it, and how long chains last that nobody watches."""

import asyncio
import contextlib
import re
import time

import pytest

from fleet.by_hand import TOKEN, chain, chain_end, end, event, producing, start
from page.browser import audit, needs_chromium, see, until
from page.staged_runs import StagedRuns
from rollcast.fleet.hub import Hub
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.stream import StreamingManager

pytestmark = needs_chromium


class StagedHub(StagedRuns):
    """A hub in a thread of its own, to which producers connect that are written by hand."""

    async def _open(self, token, port, record, parent, settings):
        self.manager = StreamingManager(publish=False)
        tokens = (Token(TOKEN, ("read", "publish")),)
        self.server = WebSocketStreamingServer(
            "127.0.0.1", port, settings=ServerSettings(tokens=tokens, **settings)
        )
        self.goes_on = asyncio.Event()
        self.tasks = []
        self.hub = await Hub(self.server, self.manager).start()

    def close(self):
        self.call(self.hub.aclose())
        super().close()

    @contextlib.contextmanager
    def producer(self, source, *events, **hello):
        """A producer that publishes these events, and is connected until the end of the block."""
        ready, done = asyncio.Event(), asyncio.Event()

        async def live():
            async with producing(self.server.url, source, **hello) as talk:
                await talk.publish(1, *events)
                await talk.acked(len(events))
                ready.set()
                await done.wait()

        self.begin(live())
        self.call(ready.wait())
        yield
        self.loop.call_soon_threadsafe(done.set)
        self.call(self._left(source))

    async def _left(self, source):
        while self.hub.intake.producers.is_connected(source):
            await asyncio.sleep(0.01)


@pytest.fixture
def stage():
    stage = StagedHub()
    yield stage
    stage.close()


def of_run(source, run):
    """Makes the events of a run of this source."""
    return {"run": run, "source": source}


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 360)])
def test_the_runs_of_a_hub_say_who_publishes(stage, tab, theme, width):
    """Who is silent and for how long, whose clock is wrong, what was refused; axe finds nothing."""
    lost, late, over = (of_run(f"gpu-{n}", f"run-{n}") for n in (1, 2, 3))
    with stage.producer("gpu-3", start(**over), end(1, **over)):
        pass
    with stage.producer("gpu-1", start(**lost), chain(1, "chain_0", **lost)):
        pass
    unknown = event("run_start", 7, run="run-9", source="someone-else")
    with stage.producer("gpu-2", start(**late), unknown, time=time.time() + 630):
        page = tab(theme=theme, width=width).open(f"{stage.url}#token={TOKEN}&to=/runs")
        see(page, ".producers summary", "1 silent, 1 connected, 1 ended")
        see(page, ".producers tr", "gpu-1").get_by_text("silent for").wait_for()
        row = page.locator(".producers tr", has_text="gpu-2")
        row.get_by_text(re.compile("1 refused: forged source; clock 10 min .* ahead")).wait_for()
        page.locator(".producers tr", has_text="gpu-3").get_by_text("ended").wait_for()
        audit(page, "producers")
    see(page, ".producers summary", "2 silent, 0 connected, 1 ended")


def test_the_duration_of_a_chain_goes_on_that_nobody_watches(stage, tab):
    """Its row does not change while it writes; the clock does."""
    place = of_run("gpu-1", "run-1")
    with stage.producer("gpu-1", start(**place), chain(1, "chain_0", **place)):
        page = tab().open(f"{stage.url}#token={TOKEN}&to=/run/run-1/chains")
        before = see(page, ".chain-rows .of-duration_s", re.compile(r"\d s$")).inner_text()
        shown = "document.querySelector('.chain-rows .of-duration_s').innerText"
        until(page, f"parseFloat({shown}) >= parseFloat('{before}') + 1")


def test_a_turn_of_which_not_all_tokens_were_seen_says_so(stage, tab):
    """A hub gets only the tokens that somebody wants, and how many there were."""
    place = of_run("gpu-1", "run-1")
    turn = {**place, "chain": "chain_0", "step": 1}
    counts = {"prompt_tokens": 1, "completion_tokens": 3, "ttft_s": 0.0, "duration_s": 1.0}
    events = [
        event("llm_generation_start", 2, prompt_tokens=1, model="m", policy_version=0, sampling={}, **turn),
        event("llm_generation_chunk", 3, content="one", offset=0, token_ids=[7], **turn),
        event("llm_generation_end", 4, content="one two three", finish_reason="stop", **counts, **turn),
    ]
    events += [chain_end(5, "chain_0", **place), end(6, **place)]
    with stage.producer("gpu-1", start(**place), chain(1, "chain_0", **place), *events):
        page = tab().open(f"{stage.url}#token={TOKEN}&to=/run/run-1/chain/chain_0")
        see(page, ".transcript .who", "1 of 3 tokens")
        see(page, ".transcript .tokens", "one two three")


def test_a_server_that_is_no_hub_shows_no_producers(tab):
    """It is not asked for any."""
    stage = StagedRuns()
    try:
        page = tab().open(f"{stage.url}#/runs")
        see(page, ".empty", "There is no run yet")
        assert page.locator(".producers").count() == 0
    finally:
        stage.close()
