"""Fault schedules of a fleet: real processes, seeds that draw the same again, and a judge that finds what is broken."""

import sys

import msgspec
import pytest

from fleet_faults.invariants import Emitted, Seen, Truth, broken_promises
from fleet_faults.nursery import Nursery
from fleet_faults.plan import FaultKind, draw
from fleet_faults.play import play
from rollcast.records import EventFilter, StreamEventType
from rollcast.stream import StreamingManager
from rollcast.testing import EventCapture

T = StreamEventType


@pytest.fixture(scope="module", name="nursery")
def _nursery():
    with Nursery() as nursery:
        yield nursery


@pytest.mark.skipif(sys.platform != "linux", reason="left processes and their memory are looked up in /proc")
@pytest.mark.parametrize("seed", [*range(15), 228])  # 228 freezes a worker before it has begun
def test_whatever_goes_wrong_nothing_is_lost_in_silence(seed, tmp_path, nursery):
    """`make fleet-faults SEEDS=7` plays one again; what breaks here tells its story."""
    outcome = play(seed, tmp_path, nursery)
    assert not outcome.broken, outcome.told()


@pytest.fixture(name="told")
async def _told():
    """A run as a producer told it, and as somebody saw it."""
    manager = StreamingManager()
    capture = EventCapture()
    manager.add_observer(capture)
    async with manager.run(chains=2) as run:
        for _ in range(2):
            with run.chain([{"role": "user", "content": "x"}]) as chain:
                with chain.generation() as generation:
                    generation.chunk("one ")
                    generation.chunk("two ")
                chain.reward(1.0)
    await manager.aclose()
    events = [msgspec.structs.replace(e, source="w0") for e in capture.events]
    truth = Truth()
    for e in events:
        if e.event_type is not T.LLM_GENERATION_CHUNK:
            said = Emitted(e.run_id, "w0", e.seq, e.event_type.value, e.chain_id)
            truth.events[e.run_id, "w0"].append(said)
    return truth, Seen("somebody", events)


def broken(told):
    return "\n".join(broken_promises(*told))


def gap(event, first, last, **more):
    data = {"from_seq": first, "to_seq": last, "dropped": {}} | more
    return msgspec.structs.replace(event, event_type=T.GAP, chain_id="", data=data, seq=last)


def test_what_was_told_and_seen_alike_breaks_nothing(told):
    """Chunks are not asked for."""
    assert not broken(told)
    told[1].events = [e for e in told[1].events if e.event_type is not T.LLM_GENERATION_CHUNK]
    told[1].filter = EventFilter(types=set(T) - {T.LLM_GENERATION_CHUNK})
    assert not broken(told)


def test_a_missing_event_is_found(told):
    """In the middle and at the end."""
    at = next(i for i, e in enumerate(told[1].events) if e.event_type is T.REWARD)
    del told[1].events[at]
    assert "1 events are missing in silence" in broken(told)


def test_a_missing_end_is_found(told):
    """Unless its producer was killed."""
    told[1].events.pop()
    assert "missing in silence" in broken(told)
    told[0].cut_off.add(next(iter(told[0].events)))
    assert not broken(told)


def test_what_is_missing_in_the_middle_is_found_even_if_its_producer_was_killed(told):
    """Only what came last may be missing then."""
    told[0].cut_off.add(next(iter(told[0].events)))
    at = next(i for i, e in enumerate(told[1].events) if e.event_type is T.REWARD)
    del told[1].events[at]
    assert "missing in silence" in broken(told)


def test_a_gap_stands_for_what_had_to_be_lost_and_for_nothing_else(told):
    """The producer's disk was full, or else it is a fault."""
    truth, seen = told
    at = next(i for i, e in enumerate(seen.events) if e.event_type is T.REWARD)
    seen.events[at] = gap(seen.events[at], seen.events[at].seq, seen.events[at].seq)
    assert "though nothing had to be lost" in broken(told)
    truth.lossy |= set(truth.events)
    assert not broken(told)


def test_what_comes_twice_is_found(told):
    """A chunk, too."""
    for kind in (T.REWARD, T.LLM_GENERATION_CHUNK):
        truth, seen = told
        at = next(i for i, e in enumerate(seen.events) if e.event_type is kind)
        events = [*seen.events[: at + 1], seen.events[at], *seen.events[at + 1 :]]
        assert "came twice or out of order" in broken((truth, Seen("somebody", events)))


def test_what_nobody_emitted_is_found(told):
    """An event of a run that is not there, and one of a kind that its producer did not emit there."""
    truth, seen = told
    other = Seen("somebody", [*seen.events, msgspec.structs.replace(seen.events[0], run_id="another")])
    assert "which nobody emitted" in broken((truth, other))
    at = next(i for i, e in enumerate(seen.events) if e.event_type is T.REWARD)
    seen.events[at] = msgspec.structs.replace(seen.events[at], event_type=T.ERROR)
    assert "was emitted as" in broken(told)


def test_who_comes_late_is_owed_what_comes_from_then_on(told):
    """Not what came before, and all that came after."""
    truth, seen = told
    late = Seen("somebody", seen.events[5:], from_the_start=False)
    assert not broken((truth, late))
    at = next(i for i, e in enumerate(late.events) if e.event_type is T.REWARD)
    del late.events[at]
    assert "missing in silence" in broken((truth, late))


def test_a_seed_draws_the_same_again():
    """And another seed something else."""
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_every_kind_of_fault_is_drawn():
    """Within three hundred seeds, with full disks, wrong clocks, shared runs and slow networks."""
    plans = [draw(seed) for seed in range(300)]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(FaultKind.__args__)
    workers = [worker for plan in plans for worker in plan.workers]
    assert {worker.file_limit for worker in workers} == {None, 0, 3000}
    assert {worker.clock_s for worker in workers} == {0, 600, -600}
    assert {len(plan.workers) for plan in plans} == {1, 2, 3, 4}
    assert any(worker.shares_run for worker in workers)
    assert any(worker.slow for worker in workers)
