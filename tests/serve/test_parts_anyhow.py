"""Snapshots in parts to clients that stall, leave, change their minds and come back, over servers that restart."""

import asyncio

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rollcast.records import EventFilter
from rollcast.serve import broadcast, joins, opening
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import Subscribed, Welcome, decode_server_frame
from rollcast.serve.settings import Limits, ServerSettings
from rollcast.serve.worker import Worker
from rollcast.stream import StreamingManager
from rollcast.testing import EventCapture

WIDE = EventFilter()
EVEN = EventFilter(chains=[f"c{i}" for i in range(0, 100, 2)])
NO_TOKENS = EventFilter(types=["chain_start", "chain_end", "reward", "run_start", "run_end"])
FILTERS = [WIDE, EVEN, NO_TOKENS]
STEPS = st.lists(
    st.sampled_from(
        ["chain"] * 4
        + ["talk"] * 4
        + ["turn"] * 3
        + ["work"] * 3
        + ["stall", "take", "update"] * 2
        + ["run", "end", "close", "cut", "away", "back", "restart", "watcher", "watcher_leaves"]
    ),
    min_size=10,
    max_size=60,
)


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    """A few kilobytes are many parts here, some of which the thread makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "PART_BYTES", 2000)
        patch.setattr(opening, "SMALL_BYTES", 1000)
        patch.setattr(joins, "LOW_WATER", 1000)
        patch.setattr(broadcast, "Worker", WorkerInSteps)
        yield


class WorkerInSteps(Worker):
    """One whose thread gets no turn unless it is given one."""

    def __init__(self):
        super().__init__()
        self._tasks = []

    def do(self, work, then, failed):
        self._tasks.append((work, then))

    def detach(self):
        self._tasks.clear()

    def work(self):
        """Do one task, and give its result."""
        if self._tasks:
            work, then = self._tasks.pop(0)
            then(work())


class Client:
    """A session, and a network that holds what it does not take.

    Attributes:
        takes: whether it reads.
        wanted: its filter now.
        as_of: of each run, when it began to watch live.
    """

    plain = False

    def __init__(self, wanted, since, parts=True):
        self.session = ClientSession(wanted, since)
        self.filters = [wanted]
        self.parts, self.since = parts, since
        self.got, self.waiting, self.here, self.takes = [], [], False, True
        self.as_of = {}

    @property
    def wanted(self):
        return self.filters[-1]

    def unsent(self):
        return sum(map(len, self.waiting))

    def close(self, code, message):
        self.here, self.waiting = False, []

    def come(self, broadcaster, runs):
        self.here = True
        (ask,), _ = self.session.receive(
            Welcome(1, broadcaster.upstream.known_runs(), 20.0, Limits(), ["read"])
        )
        if ask.since == "live":
            self.as_of = {run.run_id: run.seq for run in runs}
        recovered, cursor = broadcaster.subscribe(
            self, "1", self.wanted, ask.since, max_message=16 << 10, parts=self.parts
        )
        self.hear(Subscribed("1", recovered, cursor, *(broadcaster.losses(self, "1") or ())))

    def update(self, broadcaster, wanted, runs):
        if self.session.cursor is None and self.since == "live":  # it has had nothing yet
            self.as_of = {run.run_id: run.seq for run in runs}
        self.filters.append(wanted)
        # As a client does it that changes its filter: our own one has no way to say it.
        self.session._continuity._filter = wanted
        self.session._checker = None
        broadcaster.update(self, "1", wanted)

    def leave(self, broadcaster):
        self.here, self.waiting = False, []
        broadcaster.unsubscribe(self)

    def take(self, message):
        if self.here:
            self.waiting.append(message)
            self.read()

    def read(self):
        while self.takes and self.waiting:
            self.hear(decode_server_frame(self.waiting.pop(0)))

    def hear(self, frame):
        self.got += self.session.receive(frame)[1]


def transmit(outlets, *messages):
    for outlet in outlets:
        for message in messages:
            outlet.take(message)


class World:
    """One manager, one broadcaster, one client that is looked at, and another that comes and goes."""

    def __init__(self, client, keeps=True):
        self.client = client
        self.other = Client(client.wanted, "live")
        self.manager, self.capture = StreamingManager(), EventCapture()
        self.manager.add_observer(self.capture)
        size = {
            "history_bytes": 8000 if keeps else 0,
            "behind_bytes": 8000,
            "batch_s": 0,
            "client_buffer": 3000,
        }
        self.broadcaster = Broadcaster(ServerSettings(**size))
        self.broadcaster.attach(asyncio.get_running_loop(), transmit)
        self.manager.add_observer(self.broadcaster.observer)
        self.runs, self.every, self.generations, self.chains = [], [], [], 0
        self.changed = [{}]  # of each filter of the client: how far the runs were

    async def step(self, step):
        client, broadcaster = self.client, self.broadcaster
        if step == "run":
            self.every.append(self.manager.run().open())
            self.runs.append(self.every[-1])
        elif step == "end" and self.runs:
            run = self.runs.pop(0)
            for generation in [g for g in self.generations if g.run is run]:
                self.end(generation)
            run.close()
        elif step == "chain" and self.runs:
            self.chains += 1
            chain = self.runs[-1].chain([{"role": "user", "content": "x" * 1500}], chain_id=f"c{self.chains}")
            self.generations.append(Open(self.runs[-1], chain.start(), chain.generation().start()))
        elif step == "talk":
            for open_ in self.generations:
                open_.generation.chunk("word " * 20)
        elif step == "close" and self.generations:
            self.end(self.generations[0])
        elif step == "turn":
            await self.turn()
        elif step == "work":
            broadcaster._worker.work()
        elif step == "stall":
            client.takes = False
        elif step == "take":
            client.takes = True
            client.read()
        elif step == "update" and client.here:
            wanted = FILTERS[(FILTERS.index(client.wanted) + 1) % 2]
            client.update(broadcaster, wanted, self.every)
            self.changed.append({run.run_id: run.seq for run in self.every})
        elif step in ("cut", "away") and client.here:
            client.leave(broadcaster)
            if step == "cut":
                client.come(broadcaster, self.every)
        elif step == "back" and not client.here:
            client.come(broadcaster, self.every)
        elif step == "restart":
            broadcaster.detach()
            for each in (client, self.other):
                each.close(0, "")
            broadcaster.attach(asyncio.get_running_loop(), transmit)
        elif step == "watcher" and not self.other.here:
            self.other = Client(client.wanted, "live")
            self.other.takes = False
            self.other.come(broadcaster, self.every)
        elif step == "watcher_leaves" and self.other.here:
            self.other.leave(broadcaster)

    def end(self, open_):
        self.generations.remove(open_)
        open_.generation.end()
        open_.chain.end("answered")

    async def turn(self):
        await self.manager.drain()
        for _ in range(5):
            await asyncio.sleep(0)

    async def finish(self):
        client, broadcaster = self.client, self.broadcaster
        client.takes = True
        client.read()
        for i in range(4):
            for _ in range(200):
                if not client.here:
                    client.come(broadcaster, self.every)
                await self.manager.drain()
                broadcaster._worker.work()
                await asyncio.sleep(0.0005)
                subscription = broadcaster.subscriptions.get((client, "1"))
                if (
                    subscription is not None
                    and subscription.join is None
                    and subscription.position == broadcaster.history.head
                ):
                    break
            else:
                raise AssertionError("the client never catches up")
            if i == 0:
                async with self.manager.run(run_id="last") as run:
                    self.every.append(run)
            elif i == 1:
                for open_ in list(self.generations):
                    self.end(open_)
            elif i == 2:
                for run in self.runs:
                    run.close()
        broadcaster.detach()
        await self.manager.aclose()

    def owed(self, event):
        """Whether every filter that the client had since the event was emitted wants it."""
        first = sum(event.seq > at.get(event.run_id, -1) for at in self.changed) - 1
        filters = self.client.filters[max(first, 0) :]
        return event.seq > self.client.as_of.get(event.run_id, -1) and all(f.matches(event) for f in filters)


class Open:
    def __init__(self, run, chain, generation):
        self.run, self.chain, self.generation = run, chain, generation


def missing(world):
    """What the client was owed, did not get, and was not told of, with the gaps of its run; what it got came once."""
    untold = []
    # One without a history cannot say what else passed, once it has told of something.
    anything = not world.broadcaster.keeps and any(
        "does not say" in e.data.get("reason", "") for e in world.client.got
    )
    seen, spans, texts = set(), {}, {}
    for event in world.client.got:
        if event.event_type == "gap":
            data = event.data
            last = 1 << 30 if "not known" in data["reason"] else data["to_seq"]
            spans.setdefault(event.run_id, []).append((data["from_seq"], last))
            anything = anything or not event.run_id
            texts.clear()
        elif event.event_type == "chain_snapshot":
            texts[event.chain_id] = len(event.data["content"])
        else:
            first = event.data.get("from_seq", event.seq)
            covered = {(event.run_id, event.chain_id, seq) for seq in range(first, event.seq + 1)}
            assert not covered & seen, event
            seen |= covered
        if event.event_type == "llm_generation_chunk":
            assert event.data["offset"] == texts.get(event.chain_id, event.data["offset"]), event
            texts[event.chain_id] = event.data["offset"] + len(event.data["content"])
    for event in world.capture.events:
        if (event.run_id, event.chain_id, event.seq) in seen or anything or not world.owed(event):
            continue
        gaps = spans.get(event.run_id, ())
        if not any(first <= event.seq <= last for first, last in gaps):
            untold.append((event, gaps))
    return untold


async def play(steps, wanted, since, parts, keeps):
    world = World(Client(wanted, since, parts), keeps)
    world.client.come(world.broadcaster, [])
    await world.step("run")
    for step in steps:
        if step == "update" and (wanted is NO_TOKENS or not parts):
            continue  # one that does not know parts has half of what it is given anew, if it is cut then
        await world.step(step)
    await world.finish()
    return world


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.sampled_from(FILTERS), st.sampled_from(["live", "start"]), st.booleans(), st.booleans())
@example(
    ["chain", "talk", "cut", "watcher", "chain", "chain", "turn", "work", "end", "cut"],
    NO_TOKENS,
    "live",
    False,
    True,
)
@example(
    ["chain", "chain", "chain", "talk", "turn", "chain", "watcher", "chain", "turn", "cut"],
    NO_TOKENS,
    "live",
    False,
    False,
)
def test_whatever_happens_to_parts_nothing_is_missing_without_a_gap(steps, wanted, since, parts, keeps):
    """Every event that the filter wants comes once, or lies in a gap of its run; and texts go on where they were."""
    world = asyncio.run(asyncio.wait_for(play(steps, wanted, since, parts, keeps), 60))
    assert missing(world) == []


def test_what_passes_between_the_answer_and_the_first_part_is_told():
    """The answer says what is missing before the snapshots; these are made anew before the client gets any of them."""
    steps = [
        "chain",
        "update",
        "chain",
        "chain",
        "turn",
        "chain",
        "watcher",
        "chain",
        "turn",
        "chain",
        "away",
    ]
    steps += ["chain"] * 9 + ["talk", "talk", "end"]
    world = asyncio.run(play(steps, EVEN, "start", True, True))
    assert missing(world) == []
