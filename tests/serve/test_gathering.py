"""When a server sends what came."""

import asyncio

import pytest

from rollcast.fleet.hub import Hub
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.serve.gathering import MANY, Gathering, Timer
from rollcast.stream import StreamingManager

SETTINGS = ServerSettings(batch_s=0.5, batch_events=10, batch_bytes=1000)


class Stage:
    """What a server, or a hub, does with events; the clock stands until it is set."""

    def __init__(self, of_hub=True, viewers=MANY):
        self.now = 0.0
        self.viewers = viewers
        self.gathering = Gathering(SETTINGS, lambda: self.now)
        self.gathering.of_hub = of_hub

    def wait_s(self, events, size=0, first_chunk=False):
        return self.gathering.wait_s(events, size, self.viewers, first_chunk=first_chunk)


@pytest.mark.parametrize(("of_hub", "viewers"), [(False, 1), (False, 5 * MANY), (True, 1), (True, MANY - 1)])
def test_a_server_and_a_hub_of_few_viewers_send_each_batch(of_hub, viewers):
    """Also the first chunk of a generation, whatever was sent a moment ago."""
    stage = Stage(of_hub, viewers)
    assert stage.wait_s(9, 999) == 0.5
    assert stage.wait_s(10) is None
    assert stage.wait_s(1, 1000) is None
    stage.gathering.flushed(10, 1000)
    assert stage.wait_s(19, 1999) == 0.5
    assert stage.wait_s(20, 1999) is None
    assert stage.wait_s(11, 1001, first_chunk=True) is None


def test_a_hub_of_many_viewers_sends_two_batches_together():
    """It waits three times as long for them."""
    stage = Stage()
    stage.gathering.flushed(10, 1000)
    assert stage.wait_s(29, 2999) == 1.5
    assert stage.wait_s(30, 2000) is None
    assert stage.wait_s(11, 3000) is None


def test_a_first_chunk_hurries_a_hub_that_has_been_quiet():
    """Otherwise it waits like any other event: a large fleet begins a generation every moment."""
    stage = Stage()
    assert stage.wait_s(1, first_chunk=True) is None
    stage.gathering.flushed(1, 0)
    stage.now = 1.4
    assert stage.wait_s(2, first_chunk=True) == 1.5
    stage.now = 1.5
    assert stage.wait_s(2, first_chunk=True) is None
    assert stage.wait_s(2) == 1.5


async def test_only_a_hub_gathers():
    """A server becomes one by taking producers."""
    server = WebSocketStreamingServer("127.0.0.1", 0)
    assert not server._broadcaster.gathering.of_hub
    Hub(server, StreamingManager(publish=False))
    assert server._broadcaster.gathering.of_hub


async def test_the_timer_keeps_the_earlier_of_two_times():
    """What is due now does not wait for what was set before."""
    called = []
    timer = Timer(lambda: called.append(True))
    timer.set(None)  # nothing is served yet
    timer.loop = asyncio.get_running_loop()
    timer.set(3600.0)
    timer.set(None)
    timer.set(3600.0)
    await asyncio.sleep(0)
    assert called == [True]
    timer.cancel()
    timer.set(3600.0)
    timer.cancel()
