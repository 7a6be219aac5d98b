"""Producers that break every rule: what each gets is refused or bounded, and named; nobody else notices.

`Honest` asserts the last part when its block ends; `acked` and `has` raise if what they wait for does not come.
"""

import asyncio
import json
import random
import socket
import time
from contextlib import asynccontextmanager, suppress

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from fleet.by_hand import (
    GENERATION,
    TOKEN,
    Talk,
    chain,
    chain_end,
    chunk,
    end,
    event,
    is_kind,
    producing,
    start,
    talking,
)
from rollcast.archive import Archive, ArchiveObserver
from rollcast.fleet.hub import Hub
from rollcast.records import check_events
from rollcast.serve import ServerSettings, Token, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.serve.settings import Limits
from rollcast.stream import StreamingManager

RUN = [start(0), chain(1, "chain_0"), chain_end(2, "chain_0"), end(3)]


def server(**settings):
    tokens = (Token(TOKEN, ("read", "control", "publish")), Token("reader", ("read",)))
    return WebSocketStreamingServer(
        "127.0.0.1",
        0,
        settings=ServerSettings(**{"tokens": tokens, "close_s": 0.5, "hello_s": 60.0} | settings),
    )


@asynccontextmanager
async def serving(*observers, **settings):
    """A hub with a manager that has these observers."""
    manager = StreamingManager(publish=False)
    for observer in observers:
        manager.add_observer(observer)
    async with Hub(server(**settings), manager) as hub:
        yield hub
    await manager.aclose()


@pytest.fixture
async def hub(tmp_path):
    async with serving(ArchiveObserver(tmp_path / "record")) as hub:
        yield hub


class Honest:
    """A producer and a viewer that do nothing wrong, beside one that does; the viewer checks the grammar."""

    def __init__(self, hub):
        self.hub = hub
        self.seen = []
        self.client = WebSocketStreamingClient(hub.server.url, token=TOKEN, since="start")

    async def __aenter__(self):
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, kind, *_):
        if kind is None:
            await self.still_served()
        await self.client.aclose()
        await self._watching

    async def _watch(self):
        async for seen in self.client:
            self.seen.append(seen)

    async def still_served(self):
        """A run of the honest producer gets to the viewer, whole."""
        run = [e | {"source": "honest", "run_id": "fine"} for e in RUN]
        async with producing(self.hub.server.url, "honest") as producer:
            await producer.publish(1, *run)
            await producer.acked(4)
        async with asyncio.timeout(60):
            while not any(e.run_id == "fine" and e.event_type == "run_end" for e in self.seen):
                assert not self._watching.done(), self._watching.exception()
                await asyncio.sleep(0.005)
        assert [e.to_dict() for e in self.seen if e.run_id == "fine"] == run

    async def has(self, kind, **where):
        """Wait until the viewer has had such an event."""
        async with asyncio.timeout(60):
            while not any(
                e.event_type == kind and all(getattr(e, k) == v for k, v in where.items()) for e in self.seen
            ):
                assert not self._watching.done(), self._watching.exception()
                await asyncio.sleep(0.005)


async def row_of(hub, source):
    async with talking(hub.server.url) as viewer:
        return next(row for row in await viewer.rows("sources") if row["source"] == source)


async def closed_with(talk):
    """The code of the close."""
    async with asyncio.timeout(60):
        with suppress(ConnectionClosed):
            while True:
                await talk.socket.recv()
    return talk.socket.close_code


# -- who may not publish ---------------------------------------------------------------------------------------------------


async def test_a_wrong_token(hub):
    """It is refused for good, and the token is not repeated."""
    async with Honest(hub), producing(hub.server.url, token="wr0ng-t0ken") as producer:
        assert producer.welcome["code"] == 4500
        assert "wr0ng" not in producer.welcome["message"]
        assert await closed_with(producer) == 4500


@pytest.mark.parametrize("version", [0, 2, 99])
async def test_a_version_that_the_hub_does_not_speak(hub, version):
    """It is refused for good, and both versions are named."""
    async with Honest(hub), producing(hub.server.url, version=version) as producer:
        assert producer.welcome["code"] == 4510
        assert str(version) in producer.welcome["message"]


@pytest.mark.parametrize("hello", [{"source": ""}, {"epoch": ""}, {"source": "a\nb"}, {"source": "x" * 1000}])
async def test_a_name_that_is_none(hub, hello):
    """It is refused, and the field is named."""
    async with Honest(hub), producing(hub.server.url, **hello) as producer:
        assert 4500 <= producer.welcome["code"] <= 4999
        assert next(iter(hello)) in producer.welcome["message"]


# -- what a producer says of time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamp",
    [-1e18, 0, time.time() + 365 * 86400, 1e15, 1.7e308],
    ids=["-1e18", "0", "next year", "1e15", "1.7e308"],
)
async def test_events_of_any_time(hub, tmp_path, timestamp):
    """Times are for information: they are taken, in order, and recorded."""
    run = [e | {"timestamp": timestamp} for e in RUN]
    async with Honest(hub) as honest, producing(hub.server.url, time=timestamp) as producer:
        await producer.publish(1, *run)
        await producer.acked(4)
        await honest.has("run_end", run_id="r")
        assert [e.timestamp for e in honest.seen if e.run_id == "r"] == [timestamp] * 4
        (row,) = [row for row in hub.rows() if row["source"] == "w"]
        assert row["clock_s"] == pytest.approx(timestamp - time.time(), rel=0.01, abs=60)
        json.dumps(hub.rows())


# -- what a producer says of merged tokens -----------------------------------------------------------------------------------

LISTS = {"token_ids": [1, 2], "logprobs": [-1.0, -2.0], "dt_ms": [5.0], "lengths": [1, 1], "from_seq": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"from_seq": 0},
        {"from_seq": -7},
        {"from_seq": 1 << 60},
        {"dt_ms": []},
        {"dt_ms": [1e308, -1e308, 7]},
        {"dt_ms": [-1.7e308]},
        {"lengths": [-1, 3]},
        {"lengths": [1 << 70, 1]},
        {"lengths": []},
        {"token_ids": [-1, 1 << 90]},
        {"timestamp": 1.7e308},
        {"timestamp": -1.7e308},
        {"timestamp": 1.7e308, "merged": False},
    ],
    ids=repr,
)
@pytest.mark.parametrize("compact", [True, False], ids=["read quickly", "read event by event"])
async def test_tokens_that_are_merged_wrongly(hub, tmp_path, wrong, compact):
    """Whatever is said of them, their text comes, once, also to who comes in the middle; what is recorded can be read."""
    about = {key: value for key, value in wrong.items() if key in LISTS}
    at = {"timestamp": wrong["timestamp"]} if "timestamp" in wrong else {}
    lists = LISTS | about if wrong.get("merged", True) else {"token_ids": [1]}
    begun = [start(0), chain(1, "c"), event("llm_generation_start", 2, "c", step=1, **GENERATION)]
    tokens = [chunk(4 + n, "c", "ab", 2 * n, step=1, **lists) | (at if n % 2 else {}) for n in range(20)]
    text = "ab" * 20
    said = {"content": text, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 40}
    ended = event("llm_generation_end", 30, "c", step=1, **said, ttft_s=0.1, duration_s=1.0)
    async with Honest(hub) as honest, producing(hub.server.url) as producer:
        producer.compact = compact
        await producer.publish(1, *begun, *tokens[:10])
        await producer.acked(13)
        async with Honest(hub) as late:
            async with talking(hub.server.url) as viewer:
                await viewer.say("subscribe", id="s", filter={}, since="live")
                (snapshot,) = await viewer.events(is_kind("chain_snapshot"))
                assert snapshot["data"]["content"] == text[:20]
                await producer.publish(14, *tokens[10:], ended)
                rest = await viewer.events(is_kind("llm_generation_end"))
            await producer.publish(25, chain_end(31, "c"), end(32))
            await late.has("run_end", run_id="r")
        await honest.has("run_end", run_id="r")
        for seen in (honest.seen, late.seen):
            assert text_of(seen) == text
        assert "".join(e["data"]["content"] for e in rest[:-1]) == text[20:]
    await hub.manager.drain()
    await hub.manager.aclose()
    await asyncio.to_thread(has_all, tmp_path / "record", text)


def has_all(record, text):
    """The record can be read from its first event to its last one, and has the text."""
    archive = Archive.open(record)
    reader = archive.events()
    assert text_of(reader) == text
    assert reader.damage == []
    assert archive.chain("c", "r")["state"] == "ended"


def text_of(events):
    """The text of the run's tokens; nothing else stands for any of them."""
    mine = [e for e in events if e.run_id == "r"]
    assert not [e for e in mine if e.event_type == "gap"]
    return "".join(e.data["content"] for e in mine if e.event_type == "llm_generation_chunk")


# -- frames and events that are wrong --------------------------------------------------------------------------------------


WRONG_EVENTS = {
    "no object": 7,
    "empty": {},
    "an unknown field's type": RUN[0] | {"seq": "one"},
    "a payload without its fields": RUN[0] | {"data": {}},
    "a negative seq": RUN[1] | {"seq": -5},
    "a huge seq": RUN[1] | {"seq": 1 << 70},
    "a chain without a name": RUN[1] | {"chain_id": ""},
    "no run": RUN[1] | {"run_id": ""},
    "deep": RUN[1] | {"data": RUN[1]["data"] | {"row": json.loads("[" * 400 + "]" * 400)}},
    "a run's name without an end": RUN[0] | {"run_id": "r" * 100_000},
    "a chain's name without an end": RUN[1] | {"chain_id": "c" * 100_000},
}


@pytest.mark.parametrize("wrong", WRONG_EVENTS.values(), ids=WRONG_EVENTS.keys())
async def test_an_event_that_is_wrong(hub, wrong):
    """It alone is left out, or carried if it does no harm; what came with it is taken."""
    async with Honest(hub) as honest, producing(hub.server.url) as producer:
        await producer.publish(1, RUN[0], wrong, chain(2, "chain_0"), chain_end(3, "chain_0"), end(4))
        await producer.acked(5)
        await honest.has("chain_end", run_id="r", chain_id="chain_0")
        await honest.has("run_end", run_id="r")
        row = await row_of(hub, "w")
        assert row["connected"]
        carried, refused = row["events"] - 4, sum(row["refused"].values())
        assert (carried, refused) in {(1, 0), (0, 1), (1, 1)}  # the last: a `gap` stands for it


BROKEN_GRAMMAR = {
    "a chain that ends twice": [*RUN[:3], chain_end(3, "chain_0"), end(4)],
    "a chain that begins twice": [*RUN[:2], chain(2, "chain_0"), chain_end(3, "chain_0"), end(4)],
    "an end without a beginning": [RUN[0], chain_end(1, "chain_7"), end(2)],
    "a run that begins twice": [RUN[0], start(1), end(2)],
    "a run that ends twice": [*RUN, end(4)],
    "events after the end": [*RUN, chain(4, "chain_1")],
    "a seq that falls": [RUN[0], chain(9, "chain_0"), chain_end(3, "chain_0"), end(10)],
    "a seq that comes twice": [RUN[0], RUN[0] | {"event_type": "error", "data": {"error": "e", "error_type": "", "where": "agent"}}, end(2)],
    "a token of no generation": [*RUN[:2], chunk(2, "chain_0", "x", 0, step=1), chain_end(3, "chain_0"), end(4)],
    "a run that ends with open chains": [*RUN[:2], end(2)],
    "a tool that ends without a beginning": [
        *RUN[:2],
        event("tool_call_end", 2, "chain_0", call_id="c", tool_name="t", status="success", duration_s=0.0),
        chain_end(3, "chain_0"),
        end(4),
    ],
    "a snapshot of a chain that is not there": [
        RUN[0],
        event("chain_snapshot", 0, "chain_3", messages=[], content="x", tool_calls=[], as_of=0),
        end(1),
    ],
    "a gap that ends before it begins": [RUN[0], event("gap", 9, from_seq=9, to_seq=1, dropped={}, reason="?"), end(10)],
}  # fmt: skip


@pytest.mark.parametrize("events", BROKEN_GRAMMAR.values(), ids=BROKEN_GRAMMAR.keys())
async def test_events_that_break_the_grammar(hub, tmp_path, events):
    """Viewers, who check it, do not notice; nor does who reads the record."""
    async with Honest(hub) as honest, producing(hub.server.url) as producer:
        await producer.publish(1, *events)
        await producer.acked(len(events))
        await honest.has("run_end", run_id="r")
    await hub.aclose()
    await hub.manager.aclose()
    recorded = await asyncio.to_thread(lambda: list(Archive.open(tmp_path / "record").events()))
    check_events(recorded, late=True)


GARBAGE = ["", "{", "null", "[]", "7", '{"type": 3}', '{"type": "publish"}', '{"type": "publish", "seq": 0, "events": []}',
           '{"type": "publish", "seq": 1, "events": 5}', '{"type": "publish", "seq": 1e30, "events": []}', "\x00", b"\xff\xfe",
           b"{}", '{"type": "ack", "seq": 9}', "[" * 5000, '{"type":"hello","role":"producer"}', '{"type":"done","id":"9"}',
           '{"type": "publish", "seq": 1, "events": [{}], "source": "x"}', '{"type":"subscribe","id":"s"}']  # fmt: skip


@pytest.mark.parametrize("message", GARBAGE)
async def test_garbage(hub, message):
    """It is answered by an error or a close, and everybody else goes on."""
    async with Honest(hub), producing(hub.server.url) as producer:
        try:
            await producer.socket.send(message)
            await producer.publish(1, *RUN)
            await producer.acked(4)
        except ConnectionClosed:
            assert 1000 <= producer.socket.close_code <= 4999


async def test_frames_that_are_mutated(hub):
    """Any byte of a real frame may be any other."""
    rng = random.Random(5)
    good = json.dumps({"type": "publish", "seq": 1, "events": RUN})
    async with Honest(hub):
        for number in range(60):
            async with producing(hub.server.url, f"m{number}") as producer:
                text = list(good.replace('"w"', f'"m{number}"').replace('"r"', f'"r{number}"'))
                for _ in range(rng.randint(1, 8)):
                    text[rng.randrange(len(text))] = chr(rng.randrange(32, 127))
                await producer.socket.send("".join(text))
                with suppress(ConnectionClosed):
                    await producer.hear("ack", "error")
        async with producing(hub.server.url) as producer:  # the hub takes what is right as before
            await producer.publish(1, *RUN)
            await producer.acked(len(RUN))
            assert (await row_of(hub, "w"))["events"] == len(RUN)


# -- too much --------------------------------------------------------------------------------------------------------------


async def test_a_message_that_is_too_large(hub):
    """The connection is closed, and a smaller one is taken afterwards."""
    async with Honest(hub):
        async with producing(hub.server.url) as producer:
            huge = event("error", 1, "", error="x" * (2 << 20), error_type="", where="agent")
            await producer.publish(1, RUN[0], huge)
            assert await closed_with(producer) in (1009, 4504)
        async with producing(hub.server.url) as producer:
            await producer.publish(1, *RUN)
            await producer.acked(4)


async def test_an_event_that_is_large(hub):
    """It fits in a message, so it is taken; viewers with room get it whole."""
    async with Honest(hub) as honest, producing(hub.server.url) as producer:
        large = event("error", 1, "", error="x" * 900_000, error_type="", where="agent")
        await producer.publish(1, RUN[0], large, end(2))
        await producer.acked(3)
        await honest.has("run_end", run_id="r")
        assert max(len(e.data.get("error", "")) for e in honest.seen) == 900_000


async def flood(producer):
    for number in range(10_000):
        await producer.publish(number + 1, event("error", number, error="e", error_type="", where="w"))
        await asyncio.sleep(0)


async def test_a_flood_of_messages():
    """Who sends more messages than its limit is disconnected, and the limit is named."""
    limits = Limits(message_bytes=1 << 20, messages_per_s=20)
    async with serving(producer_limits=limits) as hub, Honest(hub), producing(hub.server.url) as producer:
        with suppress(ConnectionClosed):
            await flood(producer)
        assert producer.socket.close_code == 4504


async def test_a_flood_of_events(hub):
    """It is read no faster than it can be passed on; what a hundred thousand events leave in memory is bounded."""
    async with Honest(hub) as honest, producing(hub.server.url) as producer:
        await producer.publish(1, start(0))
        for first in range(1, 100_001, 1000):
            more = [
                event("error", n, error="e", error_type="", where="agent") for n in range(first, first + 1000)
            ]
            await producer.publish(first + 1, *more)
        await producer.publish(100_002, end(100_001))
        await producer.acked(100_002)
        await honest.has("run_end", run_id="r")
        assert (await row_of(hub, "w"))["events"] == 100_002


async def test_a_producer_that_never_reads_its_acks():
    """What waits for it is bounded: it is disconnected, or sends no more; others go on."""
    async with serving(heartbeat_s=0.3) as hub, Honest(hub):
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", hub.server.port))
            async with connect(hub.server.url, subprotocols=["rollcast.v1"], sock=raw, max_queue=1) as deaf:
                talk = Talk(deaf)
                await talk.say("hello", token=TOKEN, role="producer", source="w", epoch="e1", host="there")
                await talk.hear("welcome")
                await talk.publish(1, *RUN)
                deaf.transport.pause_reading()
                async with asyncio.timeout(60):
                    while hub.intake.producers.rows()[0]["connected"]:
                        await asyncio.sleep(0.01)
                assert not hub.intake.producers.rows()[0]["connected"]
                deaf.transport.abort()


async def test_ten_thousand_chains_that_never_end(hub):
    """They are counted in its row; when another process takes its place, they are over, and so is their run."""
    async with Honest(hub) as honest:
        async with producing(hub.server.url) as producer:
            await producer.publish(1, start(0))
            for first in range(1, 10_001, 500):
                more = [chain(n, f"chain_{n}") for n in range(first, first + 500)]
                await producer.publish(first + 1, *more)
            await producer.acked(10_001)
            assert (await row_of(hub, "w"))["open_chains"] == 10_000
        async with producing(hub.server.url, epoch="e2") as successor:
            await successor.publish(10_002, source="w", epoch="e1", last=True)
            await successor.hear("ack", where=lambda frame: frame.get("epoch") == "e1")
            await honest.has("gap", run_id="r")
        assert (await row_of(hub, "w"))["open_chains"] == 0


async def test_ten_thousand_runs_that_never_end(hub):
    """One too many is refused, and named."""
    async with Honest(hub), producing(hub.server.url) as producer:
        for first in range(1, 10_001, 500):
            more = [start(0, run=f"r{n}") for n in range(first, first + 500)]
            await producer.publish(first, *more)
        await producer.acked(10_000)
        row = await row_of(hub, "w")
        assert row["refused"]["too many"] == 10_000 - row["open_runs"]
        assert row["open_runs"] <= 512


# -- what belongs to others ------------------------------------------------------------------------------------------------


async def test_a_record_of_one_who_is_connected(hub):
    """Nobody hands over what its own producer still says."""
    async with Honest(hub) as honest, producing(hub.server.url) as victim:
        await victim.publish(1, *RUN[:2])
        await victim.acked(2)
        async with producing(hub.server.url, "thief", host="there") as thief:
            await thief.publish(3, end(2), source="w", epoch="e1", last=True)
            told = await thief.hear("error")
            assert "'w'" in told["message"]
        await victim.publish(3, *RUN[2:])
        await victim.acked(4)
        await honest.has("run_end", run_id="r")
        assert not [e for e in honest.seen if e.event_type == "gap"]


async def test_a_record_of_another_host(hub):
    """Records are handed over where they are."""
    async with Honest(hub):
        async with producing(hub.server.url, host="there") as victim:
            await victim.publish(1, *RUN[:2])
            await victim.acked(2)
        async with producing(hub.server.url, "thief", host="elsewhere") as thief:
            await thief.publish(3, end(2), source="w", epoch="e1", last=True)
            told = await thief.hear("error")
            assert "elsewhere" in told["message"]


async def test_numbers_that_leap(hub):
    """What is left out is a gap, and not silence."""
    async with Honest(hub) as honest, producing(hub.server.url) as producer:
        await producer.publish(1, *RUN[:2])
        await producer.publish(1000, chain_end(998, "chain_0"), end(999))
        await producer.acked(1001)
        await honest.has("run_end", run_id="r")
        assert [e for e in honest.seen if e.event_type == "gap" and e.run_id == "r"]
        assert (await row_of(hub, "w"))["missing"] == 997
