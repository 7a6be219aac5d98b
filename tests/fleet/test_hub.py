"""A hub on a real port, with producers written by hand and ordinary viewers."""

import asyncio
import contextlib

import msgspec
import pytest

from fleet.by_hand import (
    TOKEN,
    chain,
    chain_end,
    end,
    event,
    is_kind,
    producing,
    start,
    talking,
)
from rollcast.archive import Archive, ArchiveObserver
from rollcast.fleet.hub import PORTION, Hub
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.serve.protocol import Hello, Publish
from rollcast.stream import StreamingManager


def server(**settings):
    """A server that takes producers with the token."""
    tokens = (Token(TOKEN, ("read", "control", "publish")), Token("reader", ("read",)))
    return WebSocketStreamingServer(
        "127.0.0.1",
        0,
        settings=ServerSettings(**{"tokens": tokens, "close_s": 0.5, "hello_s": 60.0} | settings),
    )


def kinds_in(path):
    """The types of the events in a record."""
    return [each.event_type for each in Archive.open(path).events()]


@contextlib.asynccontextmanager
async def serving(*observers, **settings):
    """A hub with a manager that has these observers."""
    manager = StreamingManager(publish=False)
    for observer in observers:
        manager.add_observer(observer)
    async with Hub(server(**settings), manager) as hub:
        yield hub
    await manager.aclose()


@pytest.fixture
async def hub():
    async with serving() as hub:
        yield hub


class Silent:
    """A producer's connection to which nothing is said."""

    def send(self, frame):
        """Nothing is sent."""

    def close(self, code, message):
        """Nothing is closed."""


RUN = [start(0), chain(1, "chain_0"), chain_end(2, "chain_0"), end(3)]


async def test_a_viewer_sees_what_a_producer_publishes(hub):
    """In order, and the producer is told that the hub has it."""
    async with talking(hub.server.url) as viewer, producing(hub.server.url) as producer:
        await viewer.say("subscribe", id="s")
        await viewer.hear("subscribed")
        assert producer.welcome["acked"] == 0
        assert "hub" in producer.welcome["features"]
        await producer.publish(1, *RUN)
        seen = await viewer.events(is_kind("run_end"))
        assert seen == RUN
        assert (await producer.acked(4))["seq"] == 4


async def test_a_producer_that_is_replaced_while_its_events_are_taken(monkeypatch):
    """The rest of the frame is left to the newer connection, and the older one ends without a failure."""
    manager = StreamingManager(publish=False)
    hub = Hub(server(), manager, viewers=False)
    hello = Hello(role="producer", source="w", epoch="e1", host="there")
    older, newer, ready = Silent(), Silent(), manager.ready

    async def replaced_meanwhile():
        hub.connect(hello, newer)
        await ready()

    hub.connect(hello, older)
    monkeypatch.setattr(manager, "ready", replaced_meanwhile)
    many = [start(0), *(chain(n, f"chain_{n}") for n in range(1, PORTION + 10))]
    await hub.take(older, Publish(1, [msgspec.Raw(msgspec.json.encode(each)) for each in many]))
    assert hub.rows()[0]["events"] == PORTION
    await manager.aclose()


async def test_what_is_sent_again_is_seen_once(hub):
    """Events under numbers that the hub has are dropped, also by a new connection of the same process."""
    async with talking(hub.server.url) as viewer:
        await viewer.say("subscribe", id="s")
        await viewer.hear("subscribed")
        async with producing(hub.server.url) as producer:
            await producer.publish(1, *RUN[:2])
            await producer.acked(2)
        async with producing(hub.server.url) as producer:
            assert producer.welcome["acked"] == 2
            await producer.publish(1, *RUN)
            assert await viewer.events(is_kind("run_end")) == RUN
            await producer.acked(4)
            (row,) = await viewer.rows("sources")
    assert (row["events"], row["duplicates"]) == (4, 2)


async def test_a_viewer_that_comes_late_is_shown_what_is_open(hub):
    """The chains of producers are open runs of the hub."""
    async with producing(hub.server.url) as producer:
        await producer.publish(1, *RUN[:2])
        await producer.acked(2)
        async with talking(hub.server.url) as viewer:
            (run,) = viewer.welcome["runs"]
            assert run == {"run_id": "r", "parent_run_id": None, "status": "running", "chains": 1}
            await viewer.say("subscribe", id="s")
            (snapshot,) = await viewer.events(is_kind("chain_snapshot"))
            assert (snapshot["chain_id"], snapshot["source"]) == ("chain_0", "w")


async def test_interest_is_what_viewers_watch(hub):
    """Nobody, then one chain, then nobody: the version tells that it changed."""
    async with producing(hub.server.url) as producer:
        first = await producer.hear("interest")
        assert first["filters"] == []
        async with talking(hub.server.url) as viewer:
            await viewer.say("subscribe", id="s", filter={"chains": ["chain_7"], "runs": ["r"]})
            wanted = await producer.hear("interest")
            assert wanted["filters"] == [{"chains": ["chain_7"], "runs": ["r"]}]
            assert wanted["version"] == first["version"] + 1
            await viewer.say("subscribe", id="t", filter={"types": ["reward"]})
            await viewer.hear("subscribed", where=lambda frame: frame["id"] == "t")
        assert (await producer.hear("interest"))["filters"] == []


async def test_interest_is_renewed():
    """At every heartbeat, and it lasts for three."""
    async with serving(heartbeat_s=0.05) as hub, producing(hub.server.url) as producer:
        first, again = await producer.hear("interest"), await producer.hear("interest")
        assert first == again
        assert first["expires_s"] == pytest.approx(0.15)


async def test_a_cancel_reaches_the_producer(hub):
    """And its answer the viewer."""
    async with producing(hub.server.url) as producer, talking(hub.server.url) as viewer:
        await producer.publish(1, *RUN[:2])
        await producer.acked(2)
        await viewer.say("cancel", id="c", run_id="r")
        asked = await producer.hear("cancel")
        assert asked["run_id"] == "r"
        await producer.say("done", id=asked["id"], run_id="r", chains=["chain_0"], ending=1)
        answer = await viewer.hear("done")
        assert (answer["id"], answer["chains"], answer["ending"]) == ("c", ["chain_0"], 1)


async def test_what_a_producer_cannot_cancel_is_an_error(hub):
    """The producer's sentence is the viewer's; and one whose producer is away is told so."""
    async with talking(hub.server.url) as viewer:
        async with producing(hub.server.url) as producer:
            await producer.publish(1, *RUN[:2])
            await producer.acked(2)
            await viewer.say("cancel", id="c", run_id="r", chain_id="chain_9")
            asked = await producer.hear("cancel")
            await producer.say("error", id=asked["id"], code=404, message="no such chain")
            answer = await viewer.hear("error")
            assert (answer["id"], answer["code"], answer["message"]) == ("c", 404, "no such chain")
        while hub.intake.producers.links:
            await asyncio.sleep(0.01)
        await viewer.say("cancel", id="d", run_id="r")
        answer = await viewer.hear("error")
        assert answer["code"] == 503
        assert "is not connected" in answer["message"]


async def test_a_token_that_may_not_publish(hub):
    """The connection is closed for good, and the sentence says what is missing."""
    async with producing(hub.server.url, token="reader") as producer:
        told = producer.welcome
    assert told["code"] == 4503
    assert told["message"] == "publish needs a token with the publish scope; this one may only read"


async def test_a_forged_source_is_refused(hub, caplog):
    """One event is left out and named; the others of the message are taken."""
    async with talking(hub.server.url) as viewer, producing(hub.server.url) as producer:
        await viewer.say("subscribe", id="s")
        await viewer.hear("subscribed")
        await producer.publish(
            1, RUN[0], event("error", 1, source="x", error="e", error_type="", where="w"), *RUN[1:]
        )
        assert await viewer.events(is_kind("run_end")) == RUN
        told = await producer.hear("error")
        assert told["message"] == "event 2 was not taken: its source is 'x', and the producer's 'w'"
        (row,) = await viewer.rows("sources")
    assert row["refused"] == {"forged source": 1}
    assert "event 2 was not taken" in caplog.text


async def test_a_second_process_of_one_source_is_refused(hub):
    """As long as the first is not silent; it may come back later."""
    async with producing(hub.server.url), producing(hub.server.url, epoch="e2") as second:
        assert second.welcome["code"] == 4009
        assert "ROLLCAST_SOURCE" in second.welcome["message"]


async def test_a_clock_that_is_far_off_is_named(hub, caplog):
    """A year ahead: it is taken, warned of and told in the row."""
    async with producing(hub.server.url, time=4e9) as producer, talking(hub.server.url) as viewer:
        await producer.publish(1, *RUN)
        await producer.acked(4)
        (row,) = await viewer.rows("sources")
    assert row["clock_s"] > 1e6
    assert "ahead of the hub's" in caplog.text


async def test_a_server_that_is_no_hub_has_no_sources():
    """The query is an error in a sentence."""
    async with server() as plain, talking(plain.url) as viewer:
        await viewer.say("query", id="q", what="sources")
        told = await viewer.hear("error")
    assert told["code"] == 400
    assert "rollcast hub" in told["message"]


async def test_what_is_acknowledged_is_on_the_disk(tmp_path):
    """Whoever reads the record then finds it."""
    record = ArchiveObserver(tmp_path / "record")
    async with serving(record) as hub, producing(hub.server.url) as producer:
        await producer.publish(1, *RUN)
        await producer.acked(4)
        kinds = await asyncio.to_thread(kinds_in, tmp_path / "record")
        assert kinds == ["run_start", "chain_start", "chain_end", "run_end"]


async def test_a_thousand_runs_are_open_at_once(hub):
    """Each of three producers has many, and none is taken for over."""
    async with (
        producing(hub.server.url, "a") as a,
        producing(hub.server.url, "b") as b,
        producing(hub.server.url, "c") as c,
    ):
        for producer, source in ((a, "a"), (b, "b"), (c, "c")):
            await producer.publish(1, *[start(0, run=f"{source}{n}", source=source) for n in range(400)])
            await producer.acked(400)
        assert hub.manager.totals().open_runs == 1200


async def test_a_run_whose_end_was_lost_does_not_run(hub):
    """Without a record too: its row says that its status is not known, and its chain is lost."""
    async with producing(hub.server.url) as producer, talking(hub.server.url) as viewer:
        await producer.publish(1, *RUN[:2])
        await producer.acked(2)
        assert [row["status"] for row in await viewer.rows("runs")] == ["running"]
        assert [row["state"] for row in await viewer.rows("chains")] == ["running"]
        hub.lost("w")
        assert [row["status"] for row in await viewer.rows("runs")] == ["unknown"]
        assert [row["state"] for row in await viewer.rows("chains")] == ["lost"]
        async with talking(hub.server.url) as later:
            assert later.welcome["runs"] == []
