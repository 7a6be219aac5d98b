"""Clients of one encoding share the bytes of a message, compressed or not."""

import asyncio
import contextlib
import json

import pytest
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame

WORDS = ["Four", " is", " it."]
V1 = {"proxy": None, "subprotocols": ["rollcast.v1"]}
SMALL = {"compression": None, "extensions": [ClientPerMessageDeflateFactory(server_max_window_bits=9)]}


@pytest.fixture
def made(monkeypatch):
    """The texts of the batches for which a frame was made."""
    texts, serialize = [], Frame.serialize

    def spy(self, *, mask, extensions=None):
        if bytes(self.data[:15]) == b'{"type":"batch"':
            texts.append(bytes(self.data))
        return serialize(self, mask=mask, extensions=extensions)

    monkeypatch.setattr(Frame, "serialize", spy)
    return texts


async def watching(url, **options):
    """A connection that has subscribed, and has its snapshots."""
    socket = await connect(url, **V1, **options)
    await socket.send('{"type":"hello"}')
    await socket.send('{"type":"subscribe","id":"1"}')
    while json.loads(await socket.recv())["type"] != "batch":
        pass
    return socket


async def batches(socket, until="run_end"):
    """The texts that come, up to that with the end of the run."""
    texts = []
    async with asyncio.timeout(60):
        while not texts or f'"{until}"' not in texts[-1]:
            texts.append(await socket.recv())
    return texts


@pytest.mark.parametrize("compression", [True, False])
async def test_a_batch_is_framed_once_for_all_its_clients(stage, say, made, compression):
    """However many share it, it is made into a frame, and compressed, once."""
    server = await stage.serve(compression=compression)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(await watching(server.url)) for _ in range(5)]
        made.clear()
        with stage.manager.run() as run:
            say(run, WORDS)
        read = [await batches(socket) for socket in sockets]
    assert [text.encode() for text in read[0]] == made
    assert all(texts == read[0] for texts in read)


async def test_clients_of_different_encodings_read_the_same(stage, say, made):
    """A small window, a large one, or none: a frame each, with one text."""
    server = await stage.serve(compression=True)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(await watching(server.url, **options))
            for options in ({}, {}, SMALL, {"compression": None})
        ]
        made.clear()
        with stage.manager.run() as run:
            say(run, WORDS)
        read = [await batches(socket) for socket in sockets]
    assert all(texts == read[0] for texts in read)
    assert len(made) == 3 * len(read[0])


async def test_a_compressed_message_needs_none_before_it(stage):
    """The server agrees to contexts of one message only, whatever the client offers: nothing is held between them."""
    server = await stage.serve(compression=True)
    async with connect(server.url, **V1) as socket:
        agreed = socket.response.headers["Sec-WebSocket-Extensions"]
    assert "server_no_context_takeover" in agreed
    assert "client_no_context_takeover" in agreed


async def test_events_of_a_plain_client_that_go_together_are_messages_of_their_own(stage, say):
    """Written at once, read one by one."""
    server = await stage.serve(batch_s=60)
    async with connect(server.url, proxy=None) as socket:
        with stage.manager.run() as run:
            say(run, WORDS)
        await stage.manager.drain()
        server._broadcaster.flush()
        read = await batches(socket)
    assert [json.loads(text)["event_type"] for text in read].count("llm_generation_chunk") == len(WORDS)
    assert json.loads(read[-1])["event_type"] == "run_end"
