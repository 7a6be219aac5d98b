"""The relay that fault schedules put between a hub and its producers: what it does to bytes, and what it never does."""

import asyncio
import hashlib
import random
from contextlib import asynccontextmanager, suppress

import pytest

from fleet_faults.relay import WINDOW, Relay, Weather


class Server:
    """Keeps what each connection sent, and sends it back if it echoes."""

    def __init__(self, echo=True):
        self.echo = echo
        self.came = []
        self.ends = []

    async def serve(self, reader, writer):
        mine = bytearray()
        self.came.append(mine)
        try:
            while data := await reader.read(1 << 16):
                mine += data
                if self.echo:
                    writer.write(data)
                    await writer.drain()
            self.ends.append("closed")
        except ConnectionResetError:
            self.ends.append("reset")
        finally:
            writer.transport.abort()


@asynccontextmanager
async def relayed(server=None, seed=0):
    server = server or Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        async with Relay("127.0.0.1", listening.sockets[0].getsockname()[1], seed) as relay:
            yield relay, server
    finally:
        listening.close()


@asynccontextmanager
async def connected(relay):
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def is_over(reader):
    """Whether the connection ends: by a reset, or after it by the end of the stream."""
    with suppress(ConnectionError):
        return await reader.read(1) == b""
    return True


@pytest.mark.parametrize("weather", [Weather(), Weather(0.01), Weather(0.001, 0.2, 0.01)])
async def test_what_is_sent_arrives_unchanged_and_in_order(weather):
    """Delay and loss change when it arrives, and nothing else."""
    sent = random.Random(1).randbytes(500_000)
    async with relayed() as (relay, _), connected(relay) as (reader, writer):
        relay.weather = weather
        writer.write(sent)
        assert hashlib.md5(await reader.readexactly(len(sent))).digest() == hashlib.md5(sent).digest()
        assert relay.passed == 2 * len(sent)


async def test_delay_is_that_of_each_way():
    """An echo takes two of them."""
    async with relayed() as (relay, _), connected(relay) as (reader, writer):
        relay.weather = Weather(delay_s=0.05)
        began = asyncio.get_running_loop().time()
        writer.write(b"x")
        await reader.readexactly(1)
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_what_follows_a_lost_segment_waits_for_it():
    """If every segment gets lost once, nothing comes before it was sent again."""
    async with relayed() as (relay, _), connected(relay) as (reader, writer):
        relay.weather = Weather(loss=1.0, resend_s=0.05)
        began = asyncio.get_running_loop().time()
        writer.write(b"x" * 3000)
        await reader.readexactly(3000)
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_a_cut_ends_both_sides_and_refuses_until_it_is_mended(until):
    """Connections are reset; after `mend` new ones work."""
    async with relayed() as (relay, server), connected(relay) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        relay.cut()
        assert await is_over(reader)
        await until(lambda: server.ends)
        async with connected(relay) as (again, _):
            assert await is_over(again)
        relay.mend()
        async with connected(relay) as (again, writer):
            writer.write(b"y")
            assert await again.readexactly(1) == b"y"


async def test_it_cuts_at_the_very_byte(until):
    """The server has so many bytes and not one more."""
    async with relayed(Server(echo=False)) as (relay, server), connected(relay) as (_, writer):
        relay.cut_after(1234)
        writer.write(b"x" * 5000)
        await until(lambda: server.ends)
        assert len(server.came[0]) <= 1234
        assert relay.passed == 1234


async def test_what_stalls_comes_later():
    """Nothing is lost, and nobody notices but by the time."""
    async with relayed() as (relay, server), connected(relay) as (reader, writer):
        relay.stall()
        writer.write(b"x" * 10)
        await asyncio.sleep(0.02)
        assert not server.came or not server.came[0]
        relay.mend()
        assert await reader.readexactly(10) == b"x" * 10


async def test_what_vanished_is_closed_for_nobody():
    """Not even if the client closes; a new connection works."""
    async with relayed() as (relay, server), connected(relay) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        relay.vanish()
        writer.write(b"y")
        writer.close()
        async with connected(relay) as (again, other):
            other.write(b"z")
            assert await again.readexactly(1) == b"z"
        assert server.came[0] == b"x"
        assert "closed" not in server.ends[:-1]
        assert relay.open >= 1


async def test_a_server_that_does_not_read_makes_the_sender_wait():
    """What is on its way is bounded."""

    class Deaf(Server):
        async def serve(self, reader, writer):
            await released.wait()
            writer.transport.abort()

    released = asyncio.Event()
    async with relayed(Deaf()) as (relay, _), connected(relay) as (_, writer):
        sent = 0
        while sent < 1000 * WINDOW:
            writer.write(b"x" * WINDOW)
            sent += WINDOW
            try:
                async with asyncio.timeout(0.2):
                    await writer.drain()
            except TimeoutError:
                break
        assert sent < 1000 * WINDOW
        released.set()


async def test_a_server_that_is_not_there_ends_the_connection():
    """As a port without a listener does."""
    async with Relay("127.0.0.1", 9) as relay, connected(relay) as (reader, _):
        assert await is_over(reader)
