"""Measures a fleet: a hub, its producers and its viewers, each in a process of its own. One part: `python -m benchmarks fleet.viewers`."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.fleet_hub import TOKEN
from benchmarks.fleet_intake import intake
from benchmarks.helper import Helper
from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.serve_house import Audience
from rollcast.stream import StreamingManager
from rollcast.testing.load import Load, play_load

__all__ = ["EXTRA_PARTS", "PARTS", "run"]

VIEWERS = 50
# Together 5,000 events a second: an eighth of the chains are in a tool call and generate nothing.
USUAL = {"chains": 50, "tokens_per_s": 80.0, "events_per_s": 1500.0, "turns": 3}


def run(quick: bool, only: str | None = None) -> Iterator[Figure]:
    """Measure all but the extra parts, or only one part."""
    for name, part in {**PARTS, **(EXTRA_PARTS if only is not None else {})}.items():
        if only in (None, name):
            yield from part(quick)


# -- the processes -----------------------------------------------------------------------------------------------------


def _hub(**options: Any) -> Helper:
    """A hub with these settings. It sends no pings by default, since viewers that only read do not answer any."""
    return Helper("benchmarks.fleet_hub", **{"heartbeat_s": 3600.0, **options})


def _runner(hub: Helper | None) -> Helper:
    return Helper("benchmarks.fleet_runner", hub=None if hub is None else hub.greeting["url"])


@contextlib.contextmanager
def _audience(hub: Helper, readers: int, **options: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Viewers that have subscribed when the block begins. When the hub has ended, what they saw can be asked for."""
    before = hub.do("stand")["subscriptions"]
    audience = Audience(hub.greeting["port"], readers=readers, token=TOKEN, **options)
    _until(lambda: hub.do("stand")["subscriptions"] == before + readers)
    yield lambda: asyncio.run(audience.left())


def _until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a process of the benchmark did not get where it should within ten minutes")
        time.sleep(0.02)


# -- the load itself ---------------------------------------------------------------------------------------------------


class _Nothing:
    """A manager, and everything that it makes, that does nothing."""

    ended = True

    def chunk(self, text: str, token_ids: list[int], logprobs: list[float]) -> None:
        """Nothing."""

    def _nothing(self, *arguments: Any, **options: Any) -> _Nothing:
        return self

    run = open = close = chain = start = end = generation = tool_call = observation = reward = _nothing

    async def ready(self) -> None:
        """Nothing."""

    async def drain(self) -> None:
        """Nothing."""


def _load(quick: bool) -> Iterator[Figure]:
    """What the synthetic load costs by itself, which is to be subtracted from what is measured with it."""
    seconds, rounds = (0.5, 2) if quick else (20.0, 15)
    tokens = Load(chains=100, tokens_per_s=500, events_per_s=0, seconds=seconds, flat_out=True)
    others = Load(chains=100, tokens_per_s=0, events_per_s=5000, seconds=seconds, flat_out=True)

    def trial(load: Load, manager: Callable[[], Any]) -> Callable[[], float]:
        def played() -> float:
            began = time.process_time()
            report = asyncio.run(play_load(manager(), load, live=False))
            count = report.tokens or sum(report.events.values())
            return (time.process_time() - began) / count * 1e6

        return played

    cost = paired(
        {
            "token": trial(tokens, _Nothing),
            "token, off": trial(tokens, StreamingManager),
            "event": trial(others, _Nothing),
            "event, off": trial(others, StreamingManager),
        },
        rounds,
    )
    for kind, words in {"token": "a token", "event": "any other event"}.items():
        yield figure(f"fleet: the load itself, {words}", cost[kind], "µs")
        share = ratios(cost[kind], cost[f"{kind}, off"])
        yield figure(f"fleet: of what {words} costs with streaming off", share, "×")


# -- chains that nobody watches ----------------------------------------------------------------------------------------


def _unwatched(quick: bool) -> Iterator[Figure]:
    """What open chains that nobody watches take at the hub."""
    chains = 200 if quick else 50_000
    with _hub(history_bytes=1 << 20) as hub, _runner(hub) as one, _runner(hub) as other:
        for runner in (one, other):  # makes what is made only once
            runner.do("play", to="hub", load={"chains": 64, "seconds": 0.5})
        before = hub.memory
        load = {"chains": chains, "tokens_per_s": 1.0, "events_per_s": 0.0, "seconds": 2.0 if quick else 30.0}
        for runner in (one, other):
            runner.begin("play", to="hub", load=load)
        _until(lambda: hub.do("stand")["open_chains"] == 2 * chains)
        taken = hub.memory - before
        played = [one.end(), other.end()]
        _until(lambda: hub.do("stand")["open_runs"] == 0)
        stand = hub.do("settle")
    tokens = sum(each["tokens"] for each in played)
    title = f"fleet: {2 * chains:,} open chains of two runners that nobody watches"
    yield figure(f"{title}: memory of one at the hub", taken / 2 / chains / 1024, "KiB", "<= 2")
    yield figure(f"{title}: tokens that they wrote", tokens, "tokens")
    yield figure(
        f"{title}: token events at the hub", stand["events"].get("llm_generation_chunk", 0), "events", "<= 0"
    )


def _watched(quick: bool) -> Iterator[Figure]:
    """Open chains of two runners, of which one chain is watched: what a token of the others costs."""
    chains, tokens, rounds = (20, 2, 1) if quick else (50_000, 4, 9)
    with _hub() as hub, _runner(hub) as one, _runner(hub) as other:
        runners = (one, other)
        for runner in runners:
            runner.begin("hold", chains=chains, off_first=runner is one)
        run_id, _ = (runner.end()["run"] for runner in runners)
        chain = {"runs": [run_id], "chains": ["chain_0"]}
        with _audience(hub, 1, filters=[chain], audited=1) as seen:
            one.do("wanted")

            def trial(side: str) -> Callable[[], list[float]]:
                def spoken() -> list[float]:
                    for runner in runners:
                        runner.begin("speak", side=side, tokens=tokens)
                    return [
                        said["cpu"] / said["tokens"] * 1e6 for said in (runner.end() for runner in runners)
                    ]

                return spoken

            cost = paired({"off": trial("off"), "hub": trial("hub")}, rounds)
            for runner in runners:
                runner.begin("release")
            for runner in runners:
                runner.end()
            stand = hub.do("settle")
    (audit,) = seen()["audits"]
    flat = {side: [value for values in results for value in values] for side, results in cost.items()}
    title = f"fleet: {2 * chains:,} open chains of two runners, one of them watched"
    yield figure(f"{title}: a token with streaming off", flat["off"], "µs")
    yield figure(f"{title}: a token", flat["hub"], "µs")
    yield figure(f"{title}: a token / streaming off", ratios(flat["hub"], flat["off"]), "×", "<= 1.05")
    expected = (rounds + 1) * tokens + 1
    yield figure(f"{title}: tokens of it that its viewer lacks", expected - audit["tokens"], "tokens", "<= 0")
    others = stand["events"].get("llm_generation_chunk", 0) - audit["events"].get("llm_generation_chunk", 0)
    yield figure(f"{title}: token events of others at the hub", others, "events", "<= 0")


# -- viewers -----------------------------------------------------------------------------------------------------------


def _viewers(quick: bool) -> Iterator[Figure]:
    """One producer at 5,000 events a second, and viewers that read everything: what is lost, how late it is, and what it costs the hub."""
    seconds, rounds, many = (0.5, 1, 3) if quick else (4.0, 7, VIEWERS)

    def trial(viewers: int, *, recorded: bool) -> Callable[[], dict[str, Any]]:
        def watched() -> dict[str, Any]:
            with tempfile.TemporaryDirectory(prefix="rollcast-hub-") as folder:
                return _one_producer(_hub(record=folder if recorded else None), viewers, seconds)

        return watched

    trials = {
        "one": trial(1, recorded=False),
        "many": trial(many, recorded=False),
        "recorded": trial(many, recorded=True),
        "bare": lambda: _one_producer(Helper("benchmarks.fleet_bare"), many, seconds),
    }
    results = paired(trials, rounds)
    title = f"fleet: one producer, 5,000 events/s to {many} viewers"
    every = [result for several in results.values() for result in several]
    yield figure(f"{title}: rate reached", [r["rate"] for r in results["many"]], "events/s", ">= 4900")
    yield figure(f"{title}: events and tokens lost", sum(r["lost"] for r in every), "", "<= 0")
    for percent in (50, 95, 99):
        delays = [result[f"p{percent}"] for result in results["recorded"]]
        target = "<= 150" if percent == 95 else None
        yield figure(f"{title}, recorded: delay, p{percent}", delays, "ms", target)
    for name, words in {"many": "", "recorded": ", recorded"}.items():
        cost = [result["cpu"] / result["events"] / many * 1e6 for result in results[name]]
        yield figure(f"{title}{words}: the hub, an event and viewer", cost, "µs", "<= 0.25")
    alone = [result["cpu"] / result["events"] * 1e6 for result in results["one"]]
    yield figure("fleet: one producer, 5,000 events/s to one viewer: the hub, an event", alone, "µs")
    bare = [result["cpu"] / result["events"] / many * 1e6 for result in results["bare"]]
    yield figure(f"{title}: reference: the same messages passed on, none looked at", bare, "µs")
    whole = [result["cpu"] / result["events"] / many * 1e6 for result in results["many"]]
    yield figure(f"{title}: the hub / the reference", ratios(whole, bare), "×")
    pairs = zip(results["many"], results["one"], strict=True)
    more = [(a["cpu"] / a["events"] - b["cpu"] / b["events"]) / (many - 1) * 1e6 for a, b in pairs]
    yield figure(f"{title}: what each further viewer adds, an event", more, "µs")


def _one_producer(started: Helper, viewers: int, seconds: float) -> dict[str, Any]:
    """One producer plays the usual load to a hub with viewers, one in ten of which is audited."""
    with (
        started as hub,
        _runner(hub) as runner,
        _audience(hub, viewers, filters=None, audited=10) as seen,
    ):
        before = hub.do("stand")["cpu"]
        played = runner.do("play", to="hub", load={**USUAL, "seconds": seconds}, watched=True)
        after = hub.do("settle")
    came = seen()
    lost = after["closed_slow"] + played["dropped"]
    for audit in came["audits"]:
        lost += abs(played["tokens"] - audit["tokens"])
        lost += sum(abs(count - audit["events"].get(kind, 0)) for kind, count in played["by_type"].items())
    return {
        "cpu": after["cpu"] - before,
        "events": played["events"],
        "rate": played["events"] / played["seconds"],
        "lost": lost,
        **{name: came[name] for name in ("p50", "p95", "p99")},
    }


def _intake(quick: bool) -> Iterator[Figure]:
    """What the hub does with an event, stage by stage."""
    yield from intake(USUAL, quick=quick)


# -- the producer ------------------------------------------------------------------------------------------------------


def _producer(quick: bool) -> Iterator[Figure]:
    """What an event costs the process that publishes it, beside a line of JSON in a file."""
    seconds, rounds = (0.5, 1) if quick else (4.0, 11)
    load = {**USUAL, "seconds": seconds}
    with _hub() as hub, _runner(hub) as runner:

        def trial(to: str, *, watched: bool = False) -> Callable[[], float]:
            def played() -> float:
                if not watched:
                    return _cost_of(runner.do("play", to=to, load=load))
                return _cost_of(runner.do("play", to=to, load=load, watched=True))

            return played

        with _audience(hub, 1, filters=None) as seen:
            trials = {"nobody": trial("nobody"), "file": trial("file"), "hub": trial("hub", watched=True)}
            cost = paired(trials, rounds)
    seen()
    more = {
        name: [a - b for a, b in zip(cost[name], cost["nobody"], strict=True)] for name in ("file", "hub")
    }
    title = "fleet: 5,000 events/s, all watched at the hub"
    yield figure(f"{title}: reference: the load, an event", cost["nobody"], "µs")
    yield figure(f"{title}: reference: a line of JSON in a file, an event more", more["file"], "µs")
    yield figure(f"{title}: published, an event more", more["hub"], "µs")
    yield figure(f"{title}: published / a line of JSON", ratios(more["hub"], more["file"]), "×", "<= 2")


def _cost_of(played: dict[str, Any]) -> float:
    """CPU of the process, in µs an event."""
    return float(played["cpu"] / played["events"] * 1e6)


# -- events that nobody watches ----------------------------------------------------------------------------------------


def _lifecycle(quick: bool) -> Iterator[Figure]:
    """Events of chains that nobody watches, which travel and are recorded all the same: what one costs, and how large it is."""
    seconds, rounds = (0.5, 1) if quick else (4.0, 9)
    load = {"chains": 400, "tokens_per_s": 10.0, "events_per_s": 4000.0, "seconds": seconds, "turns": 5}
    at_hub: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rollcast-hub-") as folder:
        with _hub(record=folder) as hub, _runner(hub) as runner:

            def published() -> float:
                before = hub.do("stand")["cpu"]
                played = runner.do("play", to="hub", load=load)
                at_hub.append((hub.do("settle")["cpu"] - before) / _others(played) * 1e6)
                return float(played["cpu"] / _others(played) * 1e6)

            def unwatched() -> float:
                played = runner.do("play", to="nobody", load=load)
                return float(played["cpu"] / _others(played) * 1e6)

            cost = paired({"nobody": unwatched, "hub": published}, rounds)
            events = sum(hub.do("stand")["events"].values())
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    title = "fleet: 4,000 events/s other than tokens, which nobody watches, an event"
    yield figure(f"{title}: the hub, with its record", at_hub[1:], "µs")
    more = [a - b for a, b in zip(cost["hub"], cost["nobody"], strict=True)]
    yield figure(f"{title}: the producer, more than without a hub", more, "µs")
    yield figure(f"{title}: the record at the hub", size / events, "B")


def _others(played: dict[str, Any]) -> int:
    """How many events were played that are not tokens."""
    return int(played["events"] - played["tokens"])


# -- many producers ----------------------------------------------------------------------------------------------------


def _many(quick: bool) -> Iterator[Figure]:
    """A thousand producers that are connected at once, as tasks of two processes."""
    producers, idle_s = (20, 0.5) if quick else (1000, 30.0)
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(_hub(heartbeat_s=20.0))
        flocks = [
            stack.enter_context(Helper("benchmarks.fleet_flock", hub=hub.greeting["url"])) for _ in range(2)
        ]
        before = hub.memory
        each = producers // 2
        for number, flock in enumerate(flocks):
            flock.begin("connect", count=each, first=number * each)
        connected = [flock.end() for flock in flocks]
        standing = hub.do("stand")
        memory = hub.memory - before
        began, cpu = time.monotonic(), hub.cpu_s
        time.sleep(idle_s)
        idle = (hub.cpu_s - cpu) / (time.monotonic() - began)
        for flock in flocks:
            flock.begin("publish", half=True)
        took = max(flock.end()["seconds"] for flock in flocks)
        open_runs = hub.do("settle")["open_runs"]
        for flock in flocks:
            flock.begin("publish", half=False)
        for flock in flocks:
            flock.end()
        ended = hub.do("settle")
        for flock in flocks:
            flock.do("leave")
    title = f"fleet: {producers:,} producers"
    yield figure(f"{title}: connected at once", standing["connections"], "producers", f">= {producers}")
    yield figure(f"{title}: until all were connected", max(each["seconds"] for each in connected), "s")
    yield figure(f"{title}: memory of one at the hub", memory / producers / 1024, "KiB")
    yield figure(f"{title}: idle, CPU of the hub, of a core", idle, "×")
    yield figure(f"{title}: half of their events at once, until all are acknowledged", took, "s")
    begun = producers * connected[0]["begun"]
    yield figure(f"{title}: runs open at the hub then, of {begun:,}", open_runs, "runs", f">= {begun}")
    expected = producers * connected[0]["events"]
    yield figure(
        f"{title}: events that the hub lacks", expected - sum(ended["events"].values()), "events", "<= 0"
    )


# -- memory ------------------------------------------------------------------------------------------------------------


def _memory(quick: bool) -> Iterator[Figure]:
    """A tenth of the events of `soak`."""
    return _flat(20_000 if quick else 1_000_000)


def _soak(quick: bool) -> Iterator[Figure]:
    """Ten million events."""
    return _flat(20_000 if quick else 10_000_000)


def _flat(events: int) -> Iterator[Figure]:
    """Whether the memory of a hub with a record, a viewer of everything, and of its producer stays flat."""
    rate = 5_000
    load = {"chains": 200, "tokens_per_s": 20.0, "events_per_s": 1500.0, "seconds": events / rate, "turns": 3}
    samples: list[tuple[float, int, int]] = []
    with (
        tempfile.TemporaryDirectory(prefix="rollcast-hub-") as folder,
        _hub(record=folder) as hub,
        _runner(hub) as runner,
        _audience(hub, 1, filters=None, audited=1) as seen,
    ):
        runner.begin("play", to="hub", load=load, watched=True)
        while not runner.has_ended(min(load["seconds"] / 200, 5.0)):
            taken = sum(hub.do("stand")["events"].values())
            samples.append((taken, hub.memory, runner.memory))
        played = runner.end()
        hub.do("settle")
    (audit,) = seen()["audits"]
    title = f"fleet: {played['events']:,} events at {rate:,}/s, recorded and watched"
    for place, name in ((1, "hub"), (2, "producer")):
        half = samples[len(samples) // 2 :]
        start = [sample[place] for sample in samples[len(samples) // 4 : len(samples) // 2]]
        gained = max(sample[place] for sample in half) - max(start)
        yield figure(f"{title}: memory of the {name} at most", max(s[place] for s in samples) / 2**20, "MiB")
        yield figure(f"{title}: what the {name} gained in the second half", gained / 2**20, "MiB", "<= 8")
        yield figure(
            f"{title}: slope of the {name} there", _slope([(s[0], s[place]) for s in half]), "B an event"
        )
    yield figure(f"{title}: how late the load was at the end", played["behind"], "s")
    # While a hub does not keep up, its producer holds tokens back: the ends of their turns tell them.
    missed = played["tokens"] - audit["tokens"]
    yield figure(f"{title}: tokens that the viewer got only with the ends of turns", missed, "tokens")


def _slope(points: list[tuple[float, int]]) -> float:
    """Of the line that fits the points best."""
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


PARTS: dict[str, Callable[[bool], Iterator[Figure]]] = {
    "load": _load,
    "unwatched": _unwatched,
    "watched": _watched,
    "viewers": _viewers,
    "intake": _intake,
    "producer": _producer,
    "lifecycle": _lifecycle,
    "many": _many,
    "memory": _memory,
}
EXTRA_PARTS: dict[str, Callable[[bool], Iterator[Figure]]] = {"soak": _soak}
