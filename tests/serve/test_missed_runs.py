"""Runs that pass while a client is away: whatever the server no longer has is told by a gap."""

import asyncio
import contextlib
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from rollcast.records import EventFilter, StreamEvent, check_events
from rollcast.records.lanes import Lane
from rollcast.records.run_view import RunViews
from rollcast.serve import ServerSettings
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import Subscribed, Welcome, decode_server_frame
from rollcast.serve.settings import Limits
from rollcast.stream import StreamingManager
from rollcast.terminal import ConsoleStreamObserver
from rollcast.testing import EventCapture

SHORT = {"history_bytes": 6000, "behind_bytes": 6000, "batch_s": 0.001}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Coming back takes no time here."""
    monkeypatch.setattr("rollcast.serve.client.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("rollcast.serve.client.LONGEST_PAUSE_S", 0.01)


class Audience:
    """A client behind a proxy that lets it in or keeps it out."""

    def __init__(self, stage, between, until, **options):
        self.stage, self.between, self.until = stage, between, until
        self.client = stage.client(between.url, **options)
        self.got = []
        self.task = asyncio.create_task(self.watch())

    async def watch(self):
        async for event in self.client:
            self.got.append(event)

    def gaps(self):
        return [e for e in self.got if e.event_type == "gap"]

    async def leave(self):
        """Until the server has noticed that it is gone."""
        self.port, self.between.target = self.between.target, 1
        self.between.cut()
        await self.until(lambda: self.stage.server.statistics().connections == 0)

    async def come_back(self, port=None):
        self.between.target = port or self.port
        await self.until(lambda: self.stage.server.statistics().subscriptions == 1)

    async def caught_up(self):
        """Until an event that is emitted now has come."""
        async with self.stage.manager.run() as run:
            pass
        await self.until(lambda: any(e.run_id == run.run_id and e.event_type == "run_end" for e in self.got))
        self.got = [e for e in self.got if e.run_id != run.run_id]


@contextlib.asynccontextmanager
async def audience(stage, proxy, until, options=SHORT, **client):
    server = await stage.serve(**options)
    async with proxy(server.port) as between:
        one = Audience(stage, between, until, **client)
        # It knows its place: otherwise it would begin anew when it comes back, and would have missed nothing.
        await until(lambda: server.statistics().subscriptions == 1 and one.client.cursor is not None)
        try:
            yield one
        finally:
            await one.client.aclose()
            await asyncio.wait([one.task])
    one.task.result()


async def pass_by(stage, say, runs=1, words=60):
    """Whole runs; their ids and the seqs of their ends."""
    ends = []
    for _ in range(runs):
        async with stage.manager.run() as run:
            say(run, ["word "] * words)
        ends.append((run.run_id, run.seq))
    return ends


def told(gaps):
    return [(g.run_id, g.data["from_seq"], g.data["to_seq"], g.data.get("run_status")) for g in gaps]


async def test_a_run_that_ended_while_the_client_was_away_is_closed_by_a_gap(stage, say, proxy, until):
    """From the event after the last that came to the end of the run, with how it ended."""
    async with audience(stage, proxy, until) as one:
        async with stage.manager.run() as run:
            say(run, "abc")
            await until(lambda: one.got and one.got[-1].event_type == "chain_end")
            await one.leave()
            say(run, ["word "] * 60)
        await pass_by(stage, say)
        await one.come_back()
        await one.caught_up()
    last = [e for e in one.got if e.run_id == run.run_id and e.event_type != "gap"][-1]
    assert not one.client.recovered
    assert (run.run_id, last.seq + 1, run.seq, "completed") in told(one.gaps())
    check_events(one.got, late=True)


async def test_a_run_that_the_client_never_heard_of_has_a_gap(stage, say, proxy, until):
    """It opened and ended in between: its id, all of its events, and how it ended."""
    async with audience(stage, proxy, until) as one:
        await one.caught_up()
        await one.leave()
        passed = await pass_by(stage, say, runs=3)
        await one.come_back()
        await one.caught_up()
    assert told(one.gaps()) == [(run_id, 0, seq, "completed") for run_id, seq in passed]
    assert all(g.run_id in g.data["reason"] for g in one.gaps())


async def test_a_chain_that_ended_while_the_client_was_away_has_a_gap_before_the_snapshots(
    stage, say, proxy, until
):
    """The run goes on: the gap reaches to the moment of the snapshot of the chain that is open."""
    async with audience(stage, proxy, until) as one, stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("so ")
            await until(lambda: one.got and one.got[-1].event_type == "llm_generation_chunk")
            seen = one.got[-1].seq
            await one.leave()
            say(run, ["word "] * 60)
            generation.chunk("far")
            await stage.manager.drain()
            away = run.seq
            await one.come_back()
            await until(lambda: one.got[-1].event_type == "chain_snapshot")
            assert told(one.gaps()) == [(run.run_id, seen + 1, away, None)]
            assert one.got[-2].event_type == "gap"
            assert one.got[-1].data["content"] == "so far"
        await one.caught_up()
        check_events(one.got, late=True)


@pytest.mark.parametrize(
    "wanted",
    [EventFilter(types=["train_step", "reward"]), EventFilter(chains="b"), EventFilter(runs="other")],
)
async def test_what_the_filter_leaves_out_is_no_gap(stage, say, proxy, until, wanted):
    """The cursor is gone, and with it nothing that the client wants: it goes on as if nothing had happened."""
    async with audience(stage, proxy, until, filter=wanted) as one:
        async with stage.manager.run(run_id="other") as other:
            with other.chain(chain_id="b") as chain:
                chain.reward(1.0)
            await until(lambda: one.got)
            seen = len(one.got)
            await one.leave()
            await pass_by(stage, say, runs=3)
            await one.come_back()
            with other.chain(chain_id="b2") as chain:
                chain.reward(2.0)
            with other.chain(chain_id="c") as chain:
                pass
        await until(
            lambda: len(one.got) > seen or (wanted.chains is not None and one.client.reconnections >= 1)
        )
        assert one.client.recovered
        assert one.gaps() == []


async def test_what_the_filter_wants_is_a_gap_though_little_of_it_is_lost(stage, say, proxy, until):
    """One reward among many tokens."""
    async with audience(stage, proxy, until, filter=EventFilter(types=["reward"])) as one:
        await one.leave()
        async with stage.manager.run() as run:
            with run.chain() as chain:
                chain.reward(1.0)
            say(run, ["word "] * 100)
        await pass_by(stage, say)
        await one.come_back()
        async with stage.manager.run() as later:
            with later.chain() as chain:
                chain.reward(2.0)
        await until(lambda: one.got and one.got[-1].event_type == "reward")
    assert told(one.gaps()) == [(run.run_id, 0, run.seq, "completed")]


async def test_the_start_that_is_gone_is_told_by_a_gap_for_each_run(stage, say, until):
    """`since="start"`: the runs that the server has no longer, in their order."""
    await stage.serve(**SHORT)
    passed = await pass_by(stage, say, runs=5)
    await stage.manager.drain()
    got = []
    async with asyncio.timeout(60), stage.client(since="start") as client:
        async for event in client:
            got.append(event)
            if len(got) == 5:
                break
    assert not client.recovered
    assert told(got) == [(run_id, 0, seq, "completed") for run_id, seq in passed]


async def test_the_start_of_a_run_that_is_held_whole_is_played_though_older_runs_are_gone(stage, say, read):
    """The filter names it, so nothing that is wanted is missing."""
    await stage.serve(**SHORT)
    await pass_by(stage, say, runs=5)
    capture = EventCapture(EventFilter(runs="new"))
    stage.manager.add_observer(capture)
    async with stage.manager.run(run_id="new") as run:
        say(run, "abc")
    client = stage.client(since="start", filter=EventFilter(runs="new"))
    assert await read(client) == capture.events
    assert client.recovered
    await client.aclose()


async def test_more_runs_than_are_listed_are_counted(stage, say, proxy, until):
    """The latest 64 have a gap each; one gap of no run says how many more there were."""
    async with audience(stage, proxy, until) as one:
        await one.caught_up()  # it has a cursor
        await one.leave()
        passed = await pass_by(stage, say, runs=70, words=3)
        await one.come_back()
        await one.caught_up()
    listed, more = one.gaps()[:-1], one.gaps()[-1]
    assert [g.run_id for g in listed] == [run_id for run_id, _ in passed[-64:]]
    assert more.run_id == ""
    assert "events of 6 further runs" in more.data["reason"]


async def take_away(stage):
    """Stop the server; nobody watches the manager then."""
    stage.manager.remove_observer(stage.server.get_observer())
    await stage.server.stop()


async def test_another_server_in_the_same_place_does_not_know_what_was_before(stage, say, proxy, until):
    """A gap of no run says so, though the client knew of no open run."""
    async with audience(stage, proxy, until) as one:
        await one.caught_up()
        await one.leave()
        await take_away(stage)
        await pass_by(stage, say)
        new = await stage.serve()
        await one.come_back(new.port)
        await until(one.gaps)
        await one.caught_up()
    assert told(one.gaps()) == [("", 0, 0, None)]
    assert "the server is another one than before" in one.gaps()[0].data["reason"]


async def test_another_server_tells_what_it_has_lost_itself(stage, say, proxy, until):
    """Runs that passed since it began, and before the client came to it."""
    async with audience(stage, proxy, until) as one:
        await one.caught_up()
        await one.leave()
        await take_away(stage)
        new = await stage.serve()
        passed = await pass_by(stage, say, runs=2)
        await stage.manager.drain()
        await one.come_back(new.port)
        await one.caught_up()
    assert told(one.gaps()) == [(run_id, 0, seq, "completed") for run_id, seq in passed]


async def test_a_server_without_a_history_leaves_a_gap_for_what_passed(stage, say, proxy, until):
    """It keeps nothing, and was asked for nothing while nobody watched."""
    options = {"history_bytes": 0, "batch_s": 0.001}
    async with audience(stage, proxy, until, options) as one:
        await one.caught_up()
        await one.leave()
        await pass_by(stage, say)
        await one.come_back()
        await until(one.gaps)
        await one.caught_up()
    assert told(one.gaps()) == [("", 0, 0, None)]


async def test_each_subscription_is_told_what_it_lost_itself(stage, say):
    """Two on one connection, with different filters, from the same cursor."""
    server = await stage.serve(**SHORT)
    async with connect(server.url, subprotocols=["rollcast.v1"], proxy=None) as socket:

        async def ask(**frame):
            await socket.send(json.dumps(frame))

        async def answer(kind, id=None):
            async with asyncio.timeout(60):
                while True:
                    frame = json.loads(await socket.recv())
                    if frame["type"] == kind and frame.get("id") == id:
                        return frame

        await ask(type="hello")
        await answer("welcome")
        await ask(type="subscribe", id="first")
        cursor = (await answer("batch", "first"))["cursor"]
        await ask(type="unsubscribe", id="first")
        await answer("done", "first")
        (run_id, seq), *_ = await pass_by(stage, say, runs=3)
        await stage.manager.drain()
        await ask(type="subscribe", id="a", since=cursor, filter={"runs": [run_id]})
        await ask(type="subscribe", id="b", since=cursor, filter={"types": ["reward"]})
        a, b = await answer("subscribed", "a"), await answer("subscribed", "b")
    assert not a["recovered"]
    assert a["lost"] == [
        {"run_id": run_id, "source": "", "from_seq": 0, "to_seq": seq, "status": "completed"}
    ]
    assert b["recovered"]
    assert "lost" not in b


async def test_a_manager_that_relays_closes_what_was_lost(stage, say, proxy, until):
    """Its observers see both runs closed, the one that they knew and the one that passed; so do views of them."""
    relaying, capture, views = StreamingManager(), EventCapture(), RunViews()
    relaying.add_observer(capture)
    async with audience(stage, proxy, until) as one:
        async with stage.manager.run() as known:
            with known.chain(chain_id="lost"):
                await until(lambda: one.got and one.got[-1].event_type == "chain_start")
                await one.leave()
            say(known, ["word "] * 60)
        ((passed, _),) = await pass_by(stage, say)
        await pass_by(stage, say)
        await one.come_back()
        await one.caught_up()
    for event in one.got:
        relaying.relay(event)
        views.apply(event)
    await relaying.drain()
    assert {known.run_id, passed} <= set(capture.closed_runs)
    assert (known.run_id, "lost") in [(known.run_id, chain) for chain in capture.closed_chains]
    assert not relaying.fanout.runs
    await relaying.aclose()
    assert views.runs[known.run_id].status == views.runs[passed].status == "completed"
    assert views.runs[known.run_id].chains["lost"].state == "lost"


async def test_a_server_of_what_is_relayed_knows_that_a_run_with_such_a_gap_is_over(stage, say, proxy, until):
    """Its own clients are not told that the run goes on, when they come or when they come back."""
    relaying = StreamingManager()
    async with audience(stage, proxy, until) as one:
        async with stage.manager.run() as known:
            with known.chain():
                await until(lambda: one.got and one.got[-1].event_type == "chain_start")
                await one.leave()
            say(known, ["word "] * 60)
        await pass_by(stage, say)
        await one.come_back()
        await one.caught_up()
    broadcaster = serve(relaying)
    for event in one.got:
        relaying.relay(event)
    await relaying.drain()
    assert not [run for run in broadcaster.upstream.known_runs() if run.status == "running"]
    assert broadcaster.ledger.run(Lane(known.run_id, "")).status == "completed"
    broadcaster.detach()
    await relaying.aclose()


async def test_a_console_says_in_a_line_what_was_missed(stage, say, proxy, until):
    """As `rollcast watch` prints it: how many events at most, of which run, and how that ended."""
    text = io.StringIO()
    relaying = StreamingManager()
    relaying.add_observer(ConsoleStreamObserver(show_timestamps=False, file=text, width=500))
    async with audience(stage, proxy, until) as one:
        await one.caught_up()
        await one.leave()
        ((passed, seq),) = await pass_by(stage, say, words=200)
        await one.come_back()
        await one.caught_up()
    for event in one.gaps():
        relaying.relay(event)
    await relaying.aclose()
    assert f"up to {seq + 1} events not shown: the server no longer had" in text.getvalue()
    assert f"run {passed} has ended (completed)" in text.getvalue()


# -- without a socket ---------------------------------------------------------------------------------------------------

FILTERS = [EventFilter(), EventFilter(chains=["c0"]), EventFilter(types=["chain_start", "run_end"])]
STEPS = st.lists(
    st.sampled_from(["chunks"] * 3 + ["chain", "run", "end", "turn", "cut", "away", "back", "replaced"]),
    min_size=10,
    max_size=60,
)


class Client:
    """A session and what it was given, in memory."""

    def __init__(self, wanted, since):
        self.plain, self.closed = False, False
        self.session = ClientSession(wanted, since)
        self.wanted, self.got, self.here = wanted, [], False
        self.as_of = {}  # of each run, when it began to watch live

    def unsent(self):
        return 0

    def close(self, code, message):
        self.here = False

    def come(self, broadcaster, runs=()):
        self.here = True
        if self.session.cursor is None and self.session._since == "live":
            self.as_of = {run.run_id: run.seq for run in runs}
        (ask,), _ = self.session.receive(
            Welcome(1, broadcaster.upstream.known_runs(), 20.0, Limits(), ["read"])
        )
        recovered, cursor = broadcaster.subscribe(self, "1", self.wanted, ask.since)
        answer = Subscribed("1", recovered, cursor, *(broadcaster.losses(self, "1") or ()))
        self.got += self.session.receive(answer)[1]

    def leave(self, broadcaster):
        self.here = False
        broadcaster.unsubscribe(self)

    def take(self, message):
        if self.here:
            self.got += self.session.receive(decode_server_frame(message))[1]


def transmit(outlets, *messages):
    for outlet in outlets:
        for message in messages:
            outlet.take(message)


def serve(manager):
    broadcaster = Broadcaster(ServerSettings(history_bytes=5000, behind_bytes=5000, batch_s=0))
    broadcaster.attach(asyncio.get_running_loop(), transmit)
    manager.add_observer(broadcaster.observer)
    return broadcaster


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from(FILTERS), st.sampled_from(["live", "start"]))
def test_whatever_happens_nothing_is_missing_without_a_gap(steps, wanted, since):
    """Every event that the filter wants came once, or lies in a gap of its run; a gap of no run stands for the unknown."""
    client, emitted = asyncio.run(asyncio.wait_for(play(steps, wanted, since), 60))
    assert missing(client, emitted) == []


async def all_given(broadcaster):
    """Wait until each client that is there has been given everything, snapshots that a thread encodes among it."""
    while any(
        each.join is not None or each.position < broadcaster.history.head
        for each in broadcaster.subscriptions.values()
    ):
        await asyncio.sleep(0.001)


async def play(steps, wanted, since):
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    broadcaster, client = serve(manager), Client(wanted, since)
    client.come(broadcaster)
    runs, every, n = [], [], 0
    for step in steps:
        if step == "run":
            every.append(manager.run().open())
            runs.append(every[-1])
        elif step == "end" and runs:
            runs.pop(0).close()
        elif step in ("chain", "chunks") and runs:
            n += 1
            with runs[-1].chain(
                chain_id=f"c{n % 3}.{n}" if n % 3 else "c0" + "." * (n // 3 > 0) * n
            ) as chain:
                if step == "chunks":
                    with chain.generation() as generation:
                        for _ in range(20):
                            generation.chunk("word ")
        elif step == "turn":
            await manager.drain()
            for _ in range(5):
                await asyncio.sleep(0)
        elif step in ("cut", "away") and client.here:
            client.leave(broadcaster)
            if step == "cut":
                client.come(broadcaster, every)
        elif step == "back" and not client.here:
            client.come(broadcaster, every)
        elif step == "replaced" and client.here:
            client.leave(broadcaster)
            manager.remove_observer(broadcaster.observer)
            await manager.drain()
            broadcaster.detach()
            broadcaster = serve(manager)
    for _ in range(3):  # it comes back however often it is sent away
        if not client.here:
            client.come(broadcaster, every)
        async with manager.run(run_id=f"last{_}") as run:
            every.append(run)
        await manager.drain()
        await all_given(broadcaster)
    for run in runs:
        run.close()
    await manager.drain()
    await all_given(broadcaster)
    broadcaster.detach()
    await manager.aclose()
    return client, capture.events


def missing(client, emitted):
    """What the client was owed, did not get, and was not told of; what it got came once."""
    untold = []
    seen, spans, anything = set(), {}, False
    for event in client.got:
        if event.event_type == "gap":
            data = event.data
            last = 1 << 30 if "not known" in data["reason"] else data["to_seq"]
            spans.setdefault(event.run_id, []).append((data["from_seq"], last))
            anything = anything or not event.run_id or "another one than before" in data["reason"]
        elif event.event_type != "chain_snapshot":
            covered = {
                (event.run_id, seq) for seq in range(event.data.get("from_seq", event.seq), event.seq + 1)
            }
            assert not covered & seen
            seen |= covered
    for event in emitted:
        place = (event.run_id, event.seq)
        owed = event.seq > client.as_of.get(event.run_id, -1) and client.wanted.matches(event)
        if place in seen or anything or not owed:
            continue
        if not any(first <= event.seq <= last for first, last in spans.get(event.run_id, ())):
            untold.append(event)
    assert all(isinstance(event, StreamEvent) for event in client.got)
    return untold
