"""A producer and a stand-in for its hub."""

import asyncio
import logging
import os
import socket
import time
from random import Random
from types import SimpleNamespace

import msgspec
import pytest

from hub_standin import Hub
from rollcast.archive import Archive, list_records
from rollcast.records import StreamEventType
from rollcast.serve import producer as producer_module
from rollcast.serve.hub_observer import HubStreamObserver
from rollcast.serve.protocol import Cancel, Done, ErrorFrame
from rollcast.stream import StreamingManager, StreamObserver

T = StreamEventType
MESSAGES = [{"role": "user", "content": "Hello."}]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Producers come back soon, and wait for little at their end."""
    monkeypatch.setattr("rollcast.serve.hub_link.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("rollcast.serve.hub_link.LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(producer_module, "DRAIN_S", 0.3)


@pytest.fixture
async def publishing(tmp_path):
    """Makes a manager that publishes to a hub; all are ended after the test."""
    made = []

    def make(hub, **settings):
        manager = StreamingManager(
            drain_timeout=60.0
        )  # its observer takes everything, on a slow machine as well
        observer = HubStreamObserver(
            hub.url, **{"token": "t", "source": "s", "directory": tmp_path} | settings
        )
        manager.add_observer(observer)
        made.append((manager, observer))
        return manager

    yield make
    for manager, observer in made:
        await manager.aclose()
        await asyncio.to_thread(observer.producer.finish)


def producer_of(manager):
    (observer,) = manager.observers
    return observer.producer


def failures(manager):
    """How many of its connections in a row failed; its thread may not have begun yet."""
    link = producer_of(manager).link
    return 0 if link is None else link.failures


async def settled(manager):
    """Wait until the hub has everything."""
    await manager.drain()
    async with asyncio.timeout(60):
        while not producer_of(manager).is_up_to_date:
            await asyncio.sleep(0.005)


async def records(directory):
    return await asyncio.to_thread(list_records, directory)


def events_in(path):
    return [*Archive.open(path).events()]


class Relaying(StreamObserver):
    """Passes everything on to another manager."""

    def __init__(self, to):
        self.to = to

    async def on_event(self, event):
        self.to.relay(event)


def say(chain, *texts):
    with chain.generation() as generation:
        for text in texts:
            generation.chunk(text)


async def test_everything_but_tokens_travels(publishing):
    """Nobody watches: the hub gets what happens, numbered from 1, under the name of the process, and no token."""
    async with Hub() as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            with run.chain(MESSAGES) as chain:
                say(chain, "a", "b")
        await settled(manager)
        assert hub.types() == [
            "run_start", "chain_start", "llm_generation_start", "llm_generation_end", "chain_end", "run_end"
        ]  # fmt: skip
        assert [*hub.numbers().values()] == [[1, 2, 3, 4, 5, 6]]
        assert {event.source for event in hub.of()} == {"s"}
        (hello,) = hub.hellos
        assert (hello.role, hello.source, hello.token) == ("producer", "s", "t")
        assert hello.host
        assert hello.epoch
        assert manager.totals().emitted.get("llm_generation_chunk") is None


async def test_tokens_of_a_watched_chain_travel_after_a_snapshot(publishing):
    """A chain that comes into view is published with a snapshot, and then its tokens; those of others are not even made."""
    async with Hub() as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            with (
                run.chain(MESSAGES) as one,
                run.chain(MESSAGES) as two,
                one.generation() as first,
                two.generation() as second,
            ):
                first.chunk("a")
                await hub.until(lambda: hub.types().count("llm_generation_start") == 2)
                await hub.want({"chains": ["chain_0"]})
                await hub.until(lambda: "chain_snapshot" in hub.types())
                first.chunk("b")
                second.chunk("c")
                await hub.until(lambda: "llm_generation_chunk" in hub.types())
        await settled(manager)
        (snapshot,) = (e for e in hub.of() if e.event_type is T.CHAIN_SNAPSHOT)
        assert snapshot.data["content"] == "a"
        chunks = [e for e in hub.of() if e.event_type is T.LLM_GENERATION_CHUNK]
        assert [(e.chain_id, e.data["content"], e.data["offset"]) for e in chunks] == [("chain_0", "b", 1)]


async def test_an_interest_expires(publishing):
    """A hub that does not renew its interest has nobody who watches; how long it lasts is what the hub said last."""
    async with Hub() as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            with run.chain(MESSAGES) as chain, chain.generation() as generation:
                await hub.until(lambda: "llm_generation_start" in hub.types())
                await hub.want({}, expires_s=600.0)
                await hub.until(lambda: "chain_snapshot" in hub.types())
                assert manager.wants(T.LLM_GENERATION_CHUNK, "chain_0", None, run.run_id)
                await hub.want({}, expires_s=0.1)
                async with asyncio.timeout(60):
                    while manager.wants(T.LLM_GENERATION_CHUNK, "chain_0", None, run.run_id):
                        await asyncio.sleep(0.01)
                generation.chunk("a")
        await settled(manager)
        assert "llm_generation_chunk" not in hub.types()


async def rollout(manager, chains=12):
    async with manager.run() as run:
        for _ in range(chains):
            with run.chain(MESSAGES) as chain:
                say(chain, "a")
            await asyncio.sleep(0.01)
    return run.run_id


def assert_whole(hub, chains):
    """The hub has every event once, in order."""
    types = hub.types()
    assert types[0] == "run_start"
    assert types[-1] == "run_end"
    assert [types.count(name) for name in ("chain_start", "chain_end", "llm_generation_end")] == [chains] * 3
    seqs = [event.seq for event in hub.of()]
    assert seqs == sorted(set(seqs))
    assert "gap" not in types


@pytest.mark.parametrize("after", [1, 2, 3, 5])
async def test_a_connection_that_is_cut_loses_and_doubles_nothing(publishing, after):
    """What was not acknowledged is sent again, under its numbers."""
    async with Hub(cut_after=after) as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            for _ in range(12):
                with run.chain(MESSAGES) as chain:
                    say(chain, "a")
                await settled(manager)
        await settled(manager)
        assert_whole(hub, 12)
        assert len(hub.hellos) == 2
        assert len({hello.epoch for hello in hub.hellos}) == 1


async def test_lost_acknowledgements_double_nothing(publishing):
    """What the hub has and the producer does not know of is sent again, and dropped."""
    async with Hub(acks=False) as hub:
        manager = publishing(hub)
        await rollout(manager)
        await hub.until(lambda: "run_end" in hub.types())
        hub.acks = True
        hub.cut()
        await settled(manager)
        assert_whole(hub, 12)


async def test_a_hub_that_is_away_for_a_while(publishing):
    """What happens meanwhile waits in memory."""
    async with Hub() as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            with run.chain(MESSAGES) as chain:
                say(chain, "a")
            await settled(manager)
            await hub.stop()
            for _ in range(20):
                with run.chain(MESSAGES) as chain:
                    say(chain, "a")
            await manager.drain()
            await hub.start()
        await settled(manager)
        assert_whole(hub, 21)


@pytest.mark.parametrize("features", [["hub", "record"], ["hub"]])
async def test_what_does_not_fit_in_memory_is_recorded_and_handed_over(
    publishing, monkeypatch, tmp_path, features
):
    """A hub is away for longer: the rest is in a local record, which is read back in order, and removed once the hub has it.

    It is kept if the hub has no record, and is then a record like any other.
    """
    monkeypatch.setattr(producer_module, "MEMORY_BYTES", 8 << 10)
    async with Hub(features=features) as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            with run.chain(MESSAGES) as chain:
                say(chain, "a")
            await settled(manager)
            await hub.stop()
            for _ in range(100):
                with run.chain(MESSAGES) as chain:
                    say(chain, "a")
                await manager.drain()
            (record,) = await records(tmp_path)
            assert record.state == "running"
            await hub.start()
            for _ in range(20):
                with run.chain(MESSAGES) as chain:
                    say(chain, "a")
                await manager.drain()  # so that it never has more than fits in memory
        await settled(manager)
        assert_whole(hub, 121)
        async with asyncio.timeout(60):
            while (record.path / "handover.json").exists():
                await asyncio.sleep(0.01)
        assert len(await records(tmp_path)) == (0 if "record" in features else 1)


async def test_a_hub_that_does_not_read_holds_up_nobody(publishing, monkeypatch, tmp_path):
    """A hub takes nothing for a while: the run goes on, memory is bounded, and nothing is lost."""
    monkeypatch.setattr(producer_module, "MEMORY_BYTES", 64 << 10)
    async with Hub() as hub:
        manager = publishing(hub)
        hub.reading.clear()
        async with manager.run() as run:
            for _ in range(300):
                with run.chain([{"role": "user", "content": "x" * 1000}]) as chain:
                    say(chain, "a")
            await manager.drain()
            async with asyncio.timeout(60):
                while not await records(tmp_path) or producer_of(manager)._outbox.waiting_bytes:
                    await asyncio.sleep(0.01)  # what came at once is on its way to the record
            hub.reading.set()
        await settled(manager)
        assert_whole(hub, 300)


@pytest.mark.parametrize("mended", [False, True])
async def test_a_disk_that_takes_nothing(publishing, monkeypatch, tmp_path, mended):
    """What fits neither in memory nor on the disk is lost, and a `gap` says so when the hub is back."""
    monkeypatch.setattr(producer_module, "MEMORY_BYTES", 8 << 10)
    directory = tmp_path / "records"
    directory.write_text("a file where the folder should be")
    async with Hub() as hub:
        manager = publishing(hub, directory=directory)
        async with manager.run() as run:
            with run.chain(MESSAGES) as chain:
                say(chain, "a")
            await settled(manager)
            await hub.stop()
            async with asyncio.timeout(
                60
            ):  # what is on its way when a hub goes is counted as lost, though it may come
                while producer_of(manager).connected:
                    await asyncio.sleep(0.005)
            for number in range(100):
                if mended and number == 80:
                    directory.unlink()
                with run.chain(MESSAGES) as chain:
                    say(chain, "a")
                await manager.drain()
            await hub.start()
            with run.chain(MESSAGES) as chain:
                say(chain, "a")
        await settled(manager)
    events = hub.of()
    (gap,) = (e for e in events if e.event_type is T.GAP)
    assert gap.source == "s"
    assert gap.run_id == run.run_id
    lost = sum(gap.data["dropped"].values())
    assert lost > 0
    seqs = [e.seq for e in events if e.event_type is not T.GAP]
    assert seqs == sorted(set(seqs))
    assert len(seqs) + lost == 2 + 4 * 102
    between = {*range(gap.data["from_seq"], gap.data["to_seq"] + 1)}
    assert {*range(seqs[0], seqs[-1] + 1)} - {*seqs} <= between
    ((numbers),) = hub.numbers().values()
    assert numbers == [*range(1, len(numbers) + 1)]


async def test_a_process_that_ends_leaves_its_record_to_the_next(publishing, monkeypatch, tmp_path):
    """The hub is away at the end: the record says for whom it is, and the next producer hands it over and says that it is all."""
    hub = Hub()
    async with hub:
        pass
    first = publishing(hub, source="first")
    await rollout(first, chains=5)
    await first.aclose()
    ended = next(iter(producer_module._producers.values()))
    await asyncio.to_thread(ended.finish)
    (record,) = await records(tmp_path)
    assert (record.path / "handover.json").exists()
    assert len(await asyncio.to_thread(events_in, record.path)) == 2 + 4 * 5
    monkeypatch.setattr("rollcast.serve.handover.is_alive", lambda writer: False)
    async with hub:
        second = publishing(hub, source="second")
        await rollout(second, chains=1)
        await hub.until(lambda: hub.ended)
        await settled(second)
        assert [source for source, _ in hub.ended] == ["first"]
        types = hub.types("first")
        assert types.count("chain_end") == 5
        assert hub.types("second").count("chain_end") == 1
        async with asyncio.timeout(60):
            while await records(tmp_path):
                await asyncio.sleep(0.01)


async def test_those_who_wait_one_after_the_other_wait_no_longer_together(publishing, monkeypatch, caplog):
    """A hub that never answers: the last line and the end of the process share one `drain_timeout`, and say once that they wait."""
    monkeypatch.setattr(producer_module, "SAY_S", 0.01)
    with socket.create_server(("localhost", 0)) as silent:
        manager = publishing(SimpleNamespace(url=f"ws://localhost:{silent.getsockname()[1]}"))
        producer = producer_of(manager)
        await rollout(manager, chains=1)
        await manager.drain()
        passed = producer.drain_timeout + 1
        while passed > producer.drain_timeout:  # then they do not wait one after the other: again
            await asyncio.to_thread(producer.settle)
            assert not producer.is_up_to_date
            assert not producer.away
            before = producer._waited_until
            with producer.waiting() as give_up:
                now = time.monotonic()
            passed = now - before
        assert give_up <= now
        await manager.aclose()
        await asyncio.to_thread(producer.finish)
    waits, rest = (record.getMessage() for record in caplog.records)
    assert waits == f"the hub {producer.url} does not have everything yet, and is given 0.3 s"
    assert "the rest is recorded in" in rest


async def test_a_wait_that_was_not_in_vain_does_not_count(publishing):
    """Whoever waits after the hub had everything has the whole time."""
    async with Hub() as hub:
        manager = publishing(hub)
        await rollout(manager, chains=1)
        await settled(manager)
        producer = producer_of(manager)
        for _ in range(3):
            before = time.monotonic()
            with producer.waiting() as give_up:
                assert give_up >= before + producer.drain_timeout


async def leave_record(publishing, hub, source, chains=3):
    """Have a producer end while the hub is away."""
    manager = publishing(hub, source=source)
    producer = producer_of(manager)
    await rollout(manager, chains=chains)
    await manager.aclose()
    await asyncio.to_thread(producer.finish)


async def test_a_record_that_the_hub_does_not_take_holds_up_no_other(publishing, monkeypatch, tmp_path):
    """It stays for later, and the others are handed over."""
    hub = Hub(refuses={"first"})
    async with hub:
        pass
    await leave_record(publishing, hub, "first")
    await leave_record(publishing, hub, "other")
    monkeypatch.setattr("rollcast.serve.handover.is_alive", lambda writer: False)
    async with hub:
        manager = publishing(hub, source="second")
        await rollout(manager, chains=1)
        await hub.until(lambda: hub.ended)
        assert [source for source, _ in hub.ended] == ["other"]
        await settled(manager)
        async with asyncio.timeout(60):
            while len(left := await records(tmp_path)) != 1:
                await asyncio.sleep(0.01)
        assert "-first-" in left[0].name


async def test_a_hand_over_goes_on_where_the_last_producer_was(publishing, monkeypatch, tmp_path):
    """A process that ends meanwhile leaves word of what the hub has."""
    hub = Hub(takes_of_records=7)
    async with hub:
        pass
    await leave_record(publishing, hub, "first")
    monkeypatch.setattr("rollcast.serve.handover.is_alive", lambda writer: False)
    async with hub:
        manager = publishing(hub, source="second")
        producer = producer_of(manager)
        await rollout(manager, chains=1)
        await hub.until(lambda: hub.types("first"))
        await settled(manager)
        await manager.aclose()
        await asyncio.to_thread(producer.finish)
        (path,) = tmp_path.glob("*/handover.json")
        assert msgspec.json.decode(path.read_bytes())["acked"] == 7
        hub.takes_of_records = 1 << 30
        hub.frames.clear()
        third = publishing(hub, source="third")
        await rollout(third, chains=1)
        await hub.until(lambda: hub.ended)
        assert min(f.seq for f in hub.frames if getattr(f, "source", "") == "first") == 8
        assert hub.types("first").count("chain_end") == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"close_with": (4500, "the token is missing or wrong")}, "the token is missing or wrong"),
        ({"close_with": (4510, "hello asks for version 1; this server speaks 0")}, "this server speaks 0"),
        ({"features": []}, "takes nothing from producers"),
        ({"scopes": ["read"]}, "the scope `publish`"),
    ],
)
async def test_a_hub_that_refuses_is_told_of_once(publishing, caplog, settings, said):
    """The run goes on, and one sentence says why nothing is published."""
    async with Hub(**settings) as hub:
        manager = publishing(hub)
        with caplog.at_level(logging.WARNING, "rollcast.serve"):
            await rollout(manager, chains=3)
            async with asyncio.timeout(60):
                while producer_of(manager).refused is None:
                    await asyncio.sleep(0.01)
            await rollout(manager, chains=3)
        assert said in caplog.text
        assert len(caplog.records) == 1
        assert len(hub.hellos) == 1


async def test_a_hub_that_is_not_there_is_told_of_once(publishing, caplog):
    """The run goes on, and one sentence says that the hub cannot be reached."""
    hub = Hub()
    async with hub:
        pass
    manager = publishing(hub)
    with caplog.at_level(logging.WARNING, "rollcast.serve"):
        await rollout(manager, chains=3)
        async with asyncio.timeout(60):
            while failures(manager) < 4:
                await asyncio.sleep(0.01)
    (record,) = caplog.records
    assert "cannot be reached" in record.getMessage()


async def test_a_hub_that_sends_a_producer_away_for_now_is_quoted_once(publishing, caplog):
    """Its own sentence, and not what the connection makes of it: the hub was reached, and is tried again."""
    async with Hub(close_with=(4009, "another process is connected as source 'twin'")) as hub:
        manager = publishing(hub)
        with caplog.at_level(logging.WARNING, "rollcast.serve"):
            await rollout(manager, chains=3)
            async with asyncio.timeout(60):
                while failures(manager) < 3:
                    await asyncio.sleep(0.01)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the hub {hub.url} does not take this process now (another process is connected as source 'twin' (4009)); "
        "the run goes on, and the hub is tried again"
    )


async def test_a_hub_cancels(publishing):
    """A `cancel` of the hub reaches the run, and is answered."""
    async with Hub() as hub:
        manager = publishing(hub)
        asked = []
        async with manager.run() as run:
            run.on_cancel = asked.append
            with run.chain(MESSAGES):
                await hub.until(lambda: "chain_start" in hub.types())
                await hub.send(Cancel(run.run_id, id="1"))
                await hub.send(Cancel(run.run_id, chain_id="chain_7", id="2"))
                await hub.send(Cancel("another", id="3"))
                await hub.until(lambda: len(hub.answers) == 3)
        done, no_chain, no_run = hub.answers
        assert done == Done("1", run.run_id, chains=["chain_0"], ending=1)
        assert asked == [None]
        assert isinstance(no_chain, ErrorFrame)
        assert isinstance(no_run, ErrorFrame)
        assert [no_chain.id, no_run.id] == ["2", "3"]


async def test_managers_share_a_connection(publishing):
    """Two managers of a process are one source with one numbering."""
    async with Hub() as hub:
        one, two = publishing(hub), publishing(hub)
        await asyncio.gather(rollout(one, 3), rollout(two, 3))
        await settled(one)
        await settled(two)
        assert len(hub.hellos) == 1
        assert hub.types().count("run_end") == 2
        ((numbers),) = hub.numbers().values()
        assert numbers == [*range(1, len(numbers) + 1)]


async def test_a_manager_that_publishes_twice_to_one_hub(publishing, monkeypatch):
    """The environment and the code ask for the same: every event comes once."""
    async with Hub() as hub:
        manager = publishing(hub)
        manager.add_observer(HubStreamObserver(hub.url.removeprefix("ws://"), source="s"))
        await rollout(manager, 3)
        await manager.drain()
        await hub.until(lambda: "run_end" in hub.types())
        assert_whole(hub, 3)


async def test_a_manager_with_a_name_of_its_own(tmp_path):
    """It is published under that name."""
    async with Hub() as hub:
        manager = StreamingManager(source="mine")
        observer = HubStreamObserver(hub.url, token="t", directory=tmp_path)
        manager.add_observer(observer)
        await rollout(manager, 1)
        await hub.until(lambda: "run_end" in hub.types())
        assert [hello.source for hello in hub.hellos] == ["mine"]
        assert {event.source for event in hub.of()} == {"mine"}
        await manager.aclose()
        await asyncio.to_thread(observer.producer.finish)


async def test_events_of_other_processes_are_not_published(publishing, caplog):
    """A manager that relays them says so once; their own processes publish them."""
    async with Hub() as hub:
        manager = publishing(hub)
        other = StreamingManager(source="other")
        other.add_observer(Relaying(manager))
        await rollout(other, 2)
        await rollout(manager, 1)
        await settled(manager)
        assert {event.source for event in hub.of()} == {"s"}
        await other.aclose()
    assert caplog.text.count("are not published from here") == 1


async def test_secrets_are_masked(publishing):
    """What came from outside leaves the process without its secrets."""
    key = "sk-" + "a1B2" * 8
    async with Hub() as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            with run.chain([{"role": "user", "content": f"my key is {key}"}]) as chain:
                say(chain, "ok")
        await settled(manager)
        (start,) = (e for e in hub.of() if e.event_type is T.CHAIN_START)
        assert start.data["messages"][0]["content"] == "my key is [masked:openai-key]"


async def test_an_event_that_is_too_large_is_shortened(publishing):
    """An event larger than the hub takes in a message arrives shortened, and the others whole."""
    async with Hub() as hub:
        hub.limits = type(hub.limits)(message_bytes=32 << 10)
        manager = publishing(hub)
        async with manager.run() as run:
            with run.chain([{"role": "user", "content": "x" * 200_000}]) as chain:
                say(chain, "a")
        await settled(manager)
        (start,) = (e for e in hub.of() if e.event_type is T.CHAIN_START)
        assert "truncated" in start.data
        assert_whole(hub, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_is_another_source(publishing):
    """A forked child publishes under a name and an epoch of its own, and what waited in its parent is its parent's."""
    async with Hub() as hub:
        manager = publishing(hub, source=None)
        await rollout(manager, 1)
        await settled(manager)
        child = os.fork()
        if child == 0:
            try:
                with manager.run() as run, run.chain(MESSAGES):
                    pass
                producer_of(manager).finish()
            finally:
                os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        await hub.until(
            lambda: sum(t == "run_end" for s in {h.source for h in hub.hellos} for t in hub.types(s)) == 2
        )
        own, others = hub.hellos
        assert own.source != others.source
        assert own.epoch != others.epoch
        assert {event.source for event in hub.of(others.source)} == {others.source}


@pytest.mark.parametrize("seed", range(8))
async def test_any_faults_lose_and_double_nothing(publishing, monkeypatch, seed):
    """Cuts, restarts, lost acknowledgements, a hub that does not read, tokens that are wanted and are not: in any order, from a seed."""
    monkeypatch.setattr(producer_module, "MEMORY_BYTES", 12 << 10)
    random = Random(seed)
    away = False
    async with Hub() as hub:
        manager = publishing(hub)
        async with manager.run() as run:
            for _ in range(60):
                for _ in range(random.randrange(6)):
                    with run.chain(MESSAGES) as chain:
                        say(chain, *"abc")
                match random.randrange(8):
                    case 0:
                        hub.cut()
                    case 1 if not away:
                        await hub.stop()
                        away = True
                    case 2 | 3 if away:
                        await hub.start()
                        away = False
                    case 4:
                        hub.acks = not hub.acks
                    case 5:
                        hub.reading.clear()
                    case 6:
                        hub.reading.set()
                    case 7:
                        await hub.want(*random.choice([[], [{}]]))
                await asyncio.sleep(random.choice([0, 0.001, 0.02]))
            if away:
                await hub.start()
            hub.acks = True
            hub.reading.set()
            hub.cut()
        await settled(manager)
    types = hub.types()
    chains = types.count("chain_start")
    assert types.count("chain_end") == types.count("llm_generation_end") == chains
    assert (types[0], types[-1]) == ("run_start", "run_end")
    (end,) = (e for e in hub.of() if e.event_type is T.RUN_END)
    assert end.data["chains"] == chains
    assert "gap" not in types
    seqs = [e.seq for e in hub.of() if e.event_type is not T.CHAIN_SNAPSHOT]
    assert seqs == sorted(set(seqs))
    ((numbers),) = hub.numbers().values()
    assert numbers == [*range(1, len(numbers) + 1)]
