"""Producers of Rollcast and a real hub."""

import asyncio
import contextlib

import pytest

from fleet.by_hand import TOKEN
from ports import kept_port
from rollcast.fleet.hub import Hub
from rollcast.records import StreamEventType
from rollcast.serve import ServerSettings, Token, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.serve import producer as producer_module
from rollcast.serve.hub_observer import HubStreamObserver
from rollcast.serve.protocol import CloseCode
from rollcast.stream import StreamingManager

T = StreamEventType
MESSAGES = [{"role": "user", "content": "Hello."}]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Producers come back soon, and wait for little at their end."""
    monkeypatch.setattr("rollcast.serve.hub_link.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("rollcast.serve.hub_link.LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(producer_module, "DRAIN_S", 0.5)


@pytest.fixture
def port():
    """Of a hub that goes and comes back."""
    with kept_port() as port:
        yield port


@contextlib.asynccontextmanager
async def hub_at(port=0):
    tokens = (Token(TOKEN, ("read", "control", "publish")),)
    manager = StreamingManager(publish=False)
    server = WebSocketStreamingServer(
        "127.0.0.1", port, settings=ServerSettings(tokens=tokens, hello_s=60.0, close_s=0.5, heartbeat_s=5.0)
    )
    async with Hub(server, manager) as hub:
        yield hub
    await manager.aclose()


@pytest.fixture
async def publishing(tmp_path):
    """Makes a manager that publishes; all are ended after the test."""
    made = []

    def make(url, **settings):
        manager = StreamingManager(drain_timeout=60.0)
        observer = HubStreamObserver(
            url, **{"token": TOKEN, "source": "s", "directory": tmp_path / "spool"} | settings
        )
        manager.add_observer(observer)
        made.append((manager, observer))
        return manager

    yield make
    for manager, observer in made:
        await manager.aclose()
        await asyncio.to_thread(observer.producer.finish)


async def wants(manager, run, chain_id):
    """Wait until tokens of the chain are wanted."""
    async with asyncio.timeout(60):
        while not manager.wants(T.LLM_GENERATION_CHUNK, chain_id, None, run.run_id):
            await asyncio.sleep(0.01)


async def until_end(client):
    events = []
    async with asyncio.timeout(60):
        async for event in client:
            events.append(event)
            if event.event_type is T.RUN_END:
                break
    return events


async def test_a_viewer_watches_a_process_through_a_hub(publishing):
    """Every token of a chain that is watched comes, in order, and the viewer's own check finds nothing wrong."""
    async with hub_at() as hub:
        manager = publishing(hub.server.url)
        async with WebSocketStreamingClient(hub.server.url, token=TOKEN) as client:
            seen = asyncio.create_task(until_end(client))
            async with manager.run() as run:
                await wants(manager, run, "chain_0")
                with run.chain(MESSAGES) as chain, chain.generation() as generation:
                    for i in range(500):
                        generation.chunk(f"{i} ")
            events = await seen
    text = "".join(e.data["content"] for e in events if e.event_type is T.LLM_GENERATION_CHUNK)
    assert text == "".join(f"{i} " for i in range(500))
    assert {e.source for e in events} == {"s"}
    assert not [e for e in events if e.event_type is T.GAP]


async def test_a_second_manager_of_a_process_publishes_the_tokens_that_are_wanted(publishing):
    """A manager that is made while somebody watches begins with what is wanted."""
    async with hub_at() as hub:
        first = publishing(hub.server.url)
        async with WebSocketStreamingClient(hub.server.url, token=TOKEN) as client:
            seen = asyncio.create_task(until_end(client))
            async with first.run() as run:
                await wants(first, run, "chain_0")
            second = publishing(hub.server.url)
            await seen
            assert second.wants(T.LLM_GENERATION_CHUNK, "chain_0", None, "r")


@pytest.mark.parametrize("ends", ["before", "after"])
async def test_a_connection_that_breaks_in_a_generation(publishing, ends):
    """The generation goes on meanwhile: the viewer gets its rest as a snapshot, or its whole text at its end, and nothing is wrong."""
    async with hub_at() as hub:
        manager = publishing(hub.server.url)
        async with WebSocketStreamingClient(hub.server.url, token=TOKEN) as client:
            seen = asyncio.create_task(until_end(client))
            async with manager.run() as run:
                await wants(manager, run, "chain_0")
                with run.chain(MESSAGES) as chain:
                    generation = chain.generation().start()
                    for i in range(100):
                        generation.chunk(f"{i} ")
                    await manager.drain()
                    link = next(iter(hub.intake.producers.links))
                    link.close(CloseCode.SHUTTING_DOWN, "come back")
                    while manager.wants(T.LLM_GENERATION_CHUNK, "chain_0", None, run.run_id):
                        await asyncio.sleep(0.001)
                    for i in range(100, 200):
                        generation.chunk(f"{i} ")
                    if ends == "before":
                        generation.end()
                    await wants(manager, run, "chain_0")
                    if ends == "after":
                        for i in range(200, 300):
                            generation.chunk(f"{i} ")
                        generation.end()
            events = await seen
    assert not [e for e in events if e.event_type is T.GAP]
    (end,) = (e for e in events if e.event_type is T.LLM_GENERATION_END)
    assert end.data["content"].startswith("0 1 2 ")
    seqs = [e.seq for e in events if e.event_type is not T.CHAIN_SNAPSHOT]
    assert seqs == sorted(set(seqs))


async def test_a_viewer_cancels_through_a_hub(publishing):
    """A viewer's cancel reaches the process that runs the chain."""
    async with hub_at() as hub:
        manager = publishing(hub.server.url)
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with manager.run() as run:
            run.on_cancel = lambda chain_id: loop.call_soon_threadsafe(asked.set)
            with run.chain(MESSAGES):
                async with asyncio.timeout(60):
                    while not hub.intake.runs.is_open(run.run_id):
                        await asyncio.sleep(0.01)
                    client = WebSocketStreamingClient(hub.server.url, token=TOKEN)
                    assert await client.cancel(run.run_id) == ["chain_0"]
                    await asked.wait()


async def test_a_hub_that_begins_anew_without_a_record(publishing, port):
    """It has forgotten everything: the producer shows it the chains that are open, and goes on."""
    async with hub_at(port) as hub:
        manager = publishing(hub.server.url)
        run = manager.run().open()
        chain = run.chain(MESSAGES).start()
        async with asyncio.timeout(60):
            while not (
                hub.intake.producers.totals()["events"]
                and next(iter(manager.observers)).producer.is_up_to_date
            ):
                await asyncio.sleep(0.01)
    async with hub_at(port) as hub, WebSocketStreamingClient(hub.server.url, token=TOKEN) as client:
        seen = asyncio.create_task(until_end(client))
        async with asyncio.timeout(60):
            while not hub.intake.producers.totals()["connected"]:
                await asyncio.sleep(0.01)
        await wants(manager, run, "chain_0")
        chain.end("answered")
        run.close("completed")
        events = await seen
    assert [e.event_type.value for e in events][-2:] == ["chain_end", "run_end"]
    assert "chain_snapshot" in {e.event_type.value for e in events}


async def test_a_token_without_the_scope_is_refused(publishing, caplog):
    """The run goes on, and one sentence says why nothing is published."""
    async with hub_at() as hub:
        manager = publishing(hub.server.url, token="wrong")
        async with manager.run() as run:
            with run.chain(MESSAGES):
                pass
        (observer,) = manager.observers
        async with asyncio.timeout(60):
            while not (observer.producer.refused and caplog.records):
                await asyncio.sleep(0.01)
    (record,) = [r for r in caplog.records if r.name == "rollcast.serve" and r.levelname == "WARNING"]
    assert "token is missing or wrong" in record.getMessage()


async def test_a_server_that_is_no_hub_is_told_of(publishing, caplog):
    """An ordinary server takes nothing from producers, and one sentence says what does."""
    async with WebSocketStreamingServer("127.0.0.1", 0) as server:
        manager = publishing(server.url)
        async with manager.run():
            pass
        (observer,) = manager.observers
        async with asyncio.timeout(60):
            while not (observer.producer.refused and caplog.records):
                await asyncio.sleep(0.01)
    assert "rollcast hub" in caplog.text
