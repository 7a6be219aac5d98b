"""`/metrics` and `/healthz`: how often they are answered, and what that costs."""

import asyncio
import sys
import threading

import aiohttp
import pytest

from rollcast.cli.serving import watching
from rollcast.observers import PrometheusStreamObserver
from rollcast.records import StreamEvent
from rollcast.serve import answers
from rollcast.serve.answers import BURST, MetricsPage, Turns, asker_at


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Connection:
    """Answers as the server's connection does."""

    def respond(self, status, text):
        from websockets.datastructures import Headers
        from websockets.http11 import Response

        return Response(status.value, status.phrase, Headers({"Content-Type": "text/plain"}), text.encode())


def http(server):
    return server.url.replace("ws:", "http:")


async def got(session, url):
    async with session.get(url) as response:
        return response.status, dict(response.headers), await response.text()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def renders(monkeypatch):
    """The threads on which the page was rendered."""
    threads = []

    def scrape():
        threads.append(threading.current_thread())
        return f"page {len(threads)}\n", "text/plain"

    monkeypatch.setattr(answers, "scrape", scrape)
    return threads


def test_after_a_burst_there_are_ten_turns_a_second(clock):
    """For all who ask, together; the wait grows with those who wait."""
    turns = Turns(clock)
    assert [turns.wait_s("/metrics") for _ in range(BURST)] == [0.0] * BURST
    assert [round(turns.wait_s("/metrics"), 6) for _ in range(3)] == [0.1, 0.2, 0.3]
    clock.now += 0.3
    assert round(turns.wait_s("/metrics"), 6) == 0.1
    clock.now += 3600
    assert [turns.wait_s("/metrics") for _ in range(BURST)] == [0.0] * BURST
    assert turns.wait_s("/metrics") > 0


def test_each_page_has_its_own_turns(clock):
    """Who hammers one does not keep a health check waiting."""
    turns = Turns(clock)
    for _ in range(100):
        turns.wait_s("/metrics")
    assert turns.wait_s("/healthz") == 0


def test_each_address_has_its_own_turns(clock):
    """Who hammers a page keeps no health check of another machine waiting; a /64 is one machine."""
    turns = Turns(clock)
    for i in range(100):
        turns.wait_s("/healthz", asker_at(f"2001:db8::{i:x}"))
    assert turns.wait_s("/healthz", asker_at("2001:db8::ffff")) > 1
    for other in ("2001:db8:0:1::1", "192.0.2.1", "fe80::1%eth0"):
        assert turns.wait_s("/healthz", asker_at(other)) == 0
    assert asker_at("::ffff:192.0.2.1") == asker_at("192.0.2.1")


def test_the_turns_of_a_million_addresses_are_bounded(clock):
    """Newcomers share theirs; those who have not asked for a while are forgotten."""
    turns = Turns(clock)
    for i in range(5000):
        turns.wait_s("/healthz", f"host {i}")
    assert len(turns._free_at) <= answers.MOST_ASKERS + 1
    assert turns.wait_s("/healthz", "host 1") == 0
    assert turns.wait_s("/healthz", "host 5001") > 1
    clock.now += 10
    assert turns.wait_s("/healthz", "host 5002") == 0
    assert len(turns._free_at) < 10


def test_who_came_too_late_took_no_turn(clock):
    """However many were turned away, a second later there is a turn again."""
    turns = Turns(clock)
    for _ in range(1000):
        turns.wait_s("/metrics")
    clock.now += 1
    assert turns.wait_s("/metrics") <= 0.1


async def test_who_may_not_ask_takes_no_turn_of_those_who_may(stage, clock, renders):
    """Without the token nobody keeps the one who has it from the figures."""
    server = await stage.serve(token="secret")
    server._handshake.turns = turns = Turns(clock)
    for _ in range(BURST):
        turns.wait_s("", "127.0.0.1")
    async with aiohttp.ClientSession() as session:
        status, _, _ = await got(session, http(server) + "/metrics")
        assert status == 401
        bearer = {"Authorization": "Bearer secret"}
        async with session.get(http(server) + "/metrics", headers=bearer) as response:
            assert response.status == 200
    assert turns.wait_s("/metrics", "127.0.0.1") == 0


async def test_who_leaves_gives_the_turn_back(clock):
    """Those who are gone keep nobody waiting."""
    turns = Turns(clock)
    for _ in range(BURST):
        turns.wait_s("/metrics")
    response = Connection().respond(answers.HTTPStatus.OK, "")
    waiting = [asyncio.create_task(turns.paced(Connection(), "/metrics", response)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert round(turns.wait_s("/metrics"), 6) == 0.1


async def test_the_page_is_rendered_once_a_second_on_another_thread(clock, renders):
    """However many ask, and at once."""
    page = MetricsPage(clock)
    bodies = [r.body for r in await asyncio.gather(*[page.answer(Connection()) for _ in range(50)])]
    assert set(bodies) == {b"page 1\n"}
    clock.now += 0.999
    assert (await page.answer(Connection())).body == b"page 1\n"
    clock.now += 0.001
    assert (await page.answer(Connection())).body == b"page 2\n"
    assert len(renders) == 2
    assert threading.current_thread() not in renders


async def test_one_who_leaves_takes_nobodys_page_with_him(clock, renders):
    """The page is made for those who stay."""
    page = MetricsPage(clock)
    leaving, staying = (asyncio.create_task(page.answer(Connection())) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).body == b"page 1\n"
    assert len(renders) == 1


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
async def test_beyond_a_seconds_wait_it_is_429(stage, clock, renders, path):
    """With the time to come back after; the others have their answers, and watchers come in meanwhile."""
    server = await stage.serve()
    server._handshake.turns = Turns(clock)  # whose time stands still: nobody's turn comes nearer
    server._handshake.metrics = MetricsPage(clock)
    async with aiohttp.ClientSession() as session:
        asked = [asyncio.create_task(got(session, http(server) + path)) for _ in range(BURST + 13)]
        async with session.ws_connect(server.url):
            assert server.statistics().connections == 1
        found = await asyncio.gather(*asked)
    statuses = [status for status, _, _ in found]
    assert statuses.count(200) == BURST + 10
    assert statuses.count(429) == 3
    for status, headers, text in found:
        if status == 429:
            assert headers["Retry-After"] == "1"
            assert "ask less often" in text
    assert len(renders) <= 1


async def test_refusals_have_turns_too_but_stay_what_they_are(stage, clock):
    """Asking for what is not there costs a run no more."""
    server = await stage.serve()
    server._handshake.turns = turns = Turns(clock)
    for _ in range(BURST + 11):
        turns.wait_s("", "127.0.0.1")
    async with aiohttp.ClientSession() as session:
        status, _, _ = await got(session, http(server) + "/nothing")
    assert status == 404


async def test_without_the_package_a_comment_says_which_extra_to_install(stage, monkeypatch):
    """A page without metrics, in the format of metrics."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    server = await stage.serve()
    with watching_again(server, stage):
        async with aiohttp.ClientSession() as session:
            status, headers, text = await got(session, http(server) + "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert text == "# Metrics need packages that are not installed: pip install 'rollcast[metrics]'.\n"


async def test_without_an_observer_a_comment_says_what_to_add(stage):
    """The program's own metrics are there."""
    server = await stage.serve()
    async with aiohttp.ClientSession() as session:
        _, _, text = await got(session, http(server) + "/metrics")
    assert "python_info" in text
    assert text.endswith("add a PrometheusStreamObserver to the agent's streaming_manager.\n")


def watching_again(server, stage):
    stage.manager.remove_observer(server.get_observer())
    return watching(server, stage.manager)


async def test_who_serves_is_measured(stage):
    """`--serve` adds the observer: the run's figures are there, and the training's."""
    server = await stage.serve()
    with watching_again(server, stage):
        async with stage.manager.run() as run:
            with run.chain() as chain, chain.generation() as generation:
                generation.chunk("a", [1])
            stage.manager.emit(
                StreamEvent.now("train_step", train_step=3, policy_version=3, metrics={"loss": 0.5})
            )
        async with aiohttp.ClientSession() as session:
            _, _, text = await got(session, http(server) + "/metrics")
    lines = text.splitlines()
    assert "rollcast_generated_tokens_total 1.0" in lines
    assert "rollcast_train_loss 0.5" in lines
    assert "rollcast_policy_version 3.0" in lines


async def test_an_agent_with_an_observer_of_its_own_keeps_it(stage):
    """The registry has these metrics once; a second `--serve` in one program finds it free again."""
    server = await stage.serve()
    own = PrometheusStreamObserver()
    try:
        with watching_again(server, stage):
            assert [type(o) for o in stage.manager.observers] == [type(server.get_observer())]
    finally:
        own.unregister()
    for _ in range(2):
        with watching_again(server, stage):
            (metrics,) = (o for o in stage.manager.observers if isinstance(o, PrometheusStreamObserver))
        stage.manager.remove_observer(metrics)
