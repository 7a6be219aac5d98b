"""A network that delays, trickles, cuts, truncates and doubles; clients that do not read, and some that are half dead."""

import asyncio
import contextlib
import logging
import random

import pytest

from rollcast import BaseAgent
from rollcast.errors import DecodeError, GrammarError, RefusedError
from rollcast.records import check_events
from rollcast.testing import ScriptedBackend, capture_events

CHUNK = "llm_generation_chunk"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Coming back takes no time here."""
    monkeypatch.setattr("rollcast.serve.client.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("rollcast.serve.client.LONGEST_PAUSE_S", 0.01)


class HostileProxy:
    """A TCP proxy that does to each direction of each connection what a seed says. It never reorders.

    Args:
        port: of the server.
        seed: what happens follows from it and from the pieces in which bytes come.
        doubles: whether bytes may come twice, which no TCP connection does, but broken middle boxes do.

    Attributes:
        peaceful: everything passes.
        deaf: everything is swallowed, and nothing is closed.
        connections, happened: how many there were, and what was done to them.
    """

    def __init__(self, port, seed, *, doubles=False):
        self.target = port
        self.rng = random.Random(seed)
        self.kinds = ["pass", "pass", "delay", "trickle", "hold", "cut", "truncate"] + ["double"] * doubles
        self.peaceful = self.deaf = False
        self.connections = 0
        self.happened = dict.fromkeys(self.kinds, 0)
        self.transports = set()
        self.tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.deaf = False
        self.peaceful = True
        self.cut()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def cut(self):
        for transport in list(self.transports):
            transport.abort()

    async def _serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        self.transports.add(writer.transport)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self.transports.add(up_writer.transport)
            pipes = [
                asyncio.create_task(self._pipe(*ends)) for ends in ((reader, up_writer), (up_reader, writer))
            ]
            self.tasks.update(pipes)
            await asyncio.wait(pipes)
            up_writer.transport.abort()
        except OSError:
            pass  # the server is not there
        finally:
            writer.transport.abort()

    async def _pipe(self, reader, writer):
        """One direction, until it ends or is cut."""
        with contextlib.suppress(OSError):
            while data := await reader.read(self.rng.choice([64, 1024, 16384])):
                if self.deaf:
                    continue
                if not await self._pass(data, writer):
                    return
            while self.deaf:
                await asyncio.sleep(0.001)
            writer.write_eof()

    async def _pass(self, data, writer):
        """Give these bytes on, one way or another; False where that was the end."""
        rng, kind = self.rng, "pass"
        if not self.peaceful and rng.random() < 0.5:
            kind = rng.choice(self.kinds)
        self.happened[kind] += 1
        if kind in ("delay", "hold"):
            for _ in range(rng.randrange(1, 30)):
                await asyncio.sleep(0)
            if kind == "delay" and rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.005)
        at = rng.randrange(len(data) + 1)
        if kind == "trickle":
            for byte in data[:300]:
                if writer.transport.is_closing():
                    return False
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            data = data[300:]
        elif kind == "double":
            data = data[:at] + data[rng.randrange(at + 1) : at] + data[at:]
        elif kind in ("cut", "truncate"):
            writer.write(data[:at])
            if kind == "truncate":
                await writer.drain()
                writer.write_eof()
            self.cut() if rng.random() < 0.2 else writer.transport.close()
            return False
        if writer.transport.is_closing():
            return False
        writer.write(data)
        await writer.drain()
        return True


class Watcher:
    """Whoever watches through a proxy: a client, and after it gave up another one from its cursor."""

    def __init__(self, stage, url, since="start"):
        self.stage, self.url, self.since = stage, url, since
        self.events = []
        self.clients = []
        self.task = asyncio.create_task(self.watch())

    async def watch(self):
        while True:
            client = self.stage.client(self.url, since=self.since)
            self.clients.append(client)
            try:
                async for event in client:
                    self.events.append(event)
                    if event.data.get("parent_run_id") == "the end":
                        return
            except (RefusedError, DecodeError, GrammarError):  # bytes that came twice can say anything
                self.since = client.cursor or self.since
            finally:
                await client.aclose()


def unaccounted(emitted, got):
    """The seqs that neither came, alone or merged, nor have a gap in their place; what comes twice is an error."""
    seen, told = set(), set()
    for event in got:
        if event.event_type == "gap":
            told.update(range(event.data["from_seq"], event.data["to_seq"] + 1))
            if "not known" in event.data["reason"]:
                told.update(range(event.data["from_seq"], 1 << 16))
        elif event.event_type == "chain_snapshot":
            assert event.seq not in seen
        else:
            covered = range(event.data.get("from_seq", event.seq), event.seq + 1)
            assert seen.isdisjoint(covered), f"{event} came twice"
            seen.update(covered)
    return {event.seq for event in emitted} - seen - told


async def through(stage, proxy_options, seed, history):
    """A run that is watched through a hostile proxy; what was emitted, what came, and the run's result."""
    server = await stage.serve(
        batch_s=0, close_s=0.2, history_bytes=history, behind_bytes=history, heartbeat_s=600, hello_s=600
    )
    turns = random.Random(seed)

    async def others(request, token):
        for _ in range(turns.randrange(12)):
            await asyncio.sleep(0)

    agent = an_agent(stage.manager, others)
    async with HostileProxy(server.port, seed, **proxy_options) as proxy:
        watcher = Watcher(stage, proxy.url)
        with capture_events(stage.manager) as capture:
            result = await agent.run_async(1, MESSAGES, num_chains=4, enable_streaming=True, seed=seed)
        await stage.until(lambda: proxy.connections >= 2, timeout=60)
        proxy.peaceful = True
        proxy.cut()
        async with asyncio.timeout(60):
            while (
                not watcher.task.done()
            ):  # the history is short: somebody may have to begin with what comes now
                async with stage.manager.run(parent_run_id="the end"):
                    pass
                await asyncio.sleep(0.01)
        await watcher.task
        happened = proxy.happened
    got = [e for e in watcher.events if e.run_id == result.run_id]
    return result, capture.events, got, watcher, happened


MESSAGES = [{"role": "user", "content": "Go on."}]


def an_agent(manager=None, before_token=None):
    return BaseAgent(
        backend=ScriptedBackend("one two three four five " * 10, before_token=before_token),
        streaming_manager=manager,
    )


@pytest.fixture
def stage(stage, until):
    stage.until = until
    return stage


@pytest.mark.parametrize("seed", range(12))
async def test_over_a_hostile_network_every_event_comes_once(stage, seed, caplog):
    """Delays, trickles, cuts and truncations in both directions, from one client that never gives up."""
    result, emitted, got, watcher, happened = await through(stage, {}, seed, 64 << 20)
    assert unaccounted(emitted, got) == set()
    assert [e for e in got if e.event_type != CHUNK] == [e for e in emitted if e.event_type != CHUNK]
    check_events(got)
    assert len(watcher.clients) == 1
    assert sum(happened.values()) > 10
    await the_run_did_not_notice(result, seed, caplog)


@pytest.mark.parametrize("seed", range(12))
async def test_over_a_hostile_network_what_a_short_history_lost_has_a_gap(stage, seed, caplog):
    """The server forgets faster than the client comes back."""
    result, emitted, got, watcher, _ = await through(stage, {}, seed, 6000)
    if got:
        late = got[0].event_type == "chain_snapshot"  # which tells what was before, as its first snapshots do
        missing = unaccounted(emitted, got)
        assert {seq for seq in missing if not late or seq > got[0].seq} == set()
    else:
        assert not watcher.clients[-1].recovered
    await the_run_did_not_notice(result, seed, caplog)


@pytest.mark.parametrize("seed", range(12))
async def test_where_bytes_come_twice_a_client_may_give_up_and_its_cursor_serves_another(stage, seed, caplog):
    """Still every event once."""
    result, emitted, got, _, _ = await through(stage, {"doubles": True}, seed, 64 << 20)
    assert unaccounted(emitted, got) == set()
    assert [e for e in got if e.event_type != CHUNK] == [e for e in emitted if e.event_type != CHUNK]
    await the_run_did_not_notice(result, seed, caplog)


async def the_run_did_not_notice(result, seed, caplog):
    alone = await an_agent().run_async(1, MESSAGES, num_chains=4, seed=seed)
    assert [t.digest() for t in result] == [t.digest() for t in alone]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_network_that_swallows_everything_is_noticed_at_both_ends(stage, until, monkeypatch):
    """No FIN and no reset: the server lets the client go, and the client comes back by itself and misses nothing."""
    server = await stage.serve(batch_s=0, close_s=0.2, heartbeat_s=0.2)
    async with HostileProxy(server.port, 0) as proxy:
        proxy.peaceful = True
        watcher = Watcher(stage, proxy.url)
        with capture_events(stage.manager) as capture:
            async with stage.manager.run() as run:
                with run.chain() as chain, chain.generation() as generation:
                    generation.chunk("heard ")
                    await until(lambda: any(e.event_type == CHUNK for e in watcher.events))
                    proxy.deaf = True
                    generation.chunk("swallowed ")
                    await until(lambda: server.statistics().connections == 0, timeout=60)
                    generation.chunk("not sent ")
                    await until(lambda: proxy.connections > 1, timeout=60)
                    proxy.deaf = False
                    proxy.cut()
            async with stage.manager.run(parent_run_id="the end"):
                pass
            await asyncio.wait_for(watcher.task, 60)
            assert [e for e in watcher.events if e.run_id == run.run_id] == [
                e for e in capture.events if e.run_id == run.run_id
            ]
        assert len(watcher.clients) == 1
