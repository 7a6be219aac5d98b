"""What the console costs, and what it keeps, with many chains and runs."""

import gc
import io
import sys
import time
import weakref

import pytest

from rollcast.terminal import ConsoleStreamObserver
from rollcast.terminal.shown import VisibleChain


class Sink(io.StringIO):
    """Takes everything and keeps nothing."""

    encoding = "utf-8"

    def write(self, text):
        return len(text)


class TerminalSink(Sink):
    """The same as a terminal."""

    def isatty(self):
        return True


def open_at_once(make, runs, chains):
    """The events of so many runs with so many chains each, all of them open at the same time."""
    told = [make(f"run-{i:06d}") for i in range(runs)]
    places = [(events, f"chain_{i}") for events in told for i in range(chains)]
    yield [events.run_start(chains) for events in told]
    for step in (
        lambda events, chain: events.start(chain),
        lambda events, chain: events.generation_start(chain),
        lambda events, chain: events.chunk(chain, "word "),
        lambda events, chain: events.generation_end(chain, "word "),
        lambda events, chain: events.end(chain),
    ):
        yield [step(events, chain) for events, chain in places]
    yield [events.run_end(chains) for events in told]


async def played(make, runs, chains, stream, batch=1):
    """Show all of them, `batch` events at once."""
    observer = ConsoleStreamObserver(file=stream, color=False)
    for i in range(runs):
        await observer.on_run_opened(f"run-{i:06d}")
    for column in open_at_once(make, runs, chains):
        for i in range(0, len(column), batch):
            await observer.on_batch(column[i : i + batch])
    for i in range(runs):
        await observer.on_run_closed(f"run-{i:06d}")
    await observer.aclose()


async def lines_executed(work):
    """How many lines of the terminal's modules run, loops counted each time around."""
    count = 0

    def line(frame, event, argument):
        nonlocal count
        count += event == "line"
        return line

    def call(frame, event, argument):
        return line if "rollcast/terminal" in frame.f_code.co_filename.replace("\\", "/") else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        await work
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", [lambda n: (n, 1), lambda n: (1, n), lambda n: (n, 0)], ids=["runs", "chains", "idle runs"])  # fmt: skip
@pytest.mark.parametrize("sink", [Sink, TerminalSink])
async def test_the_work_grows_with_the_number_of_chains(make_events, sink, shape):
    """Eight times as many open chains or runs are eight times the work, not sixty-four times."""
    few, many = [await lines_executed(played(make_events, *shape(n), sink())) for n in (20, 160)]
    assert many < 8 * 1.2 * few


@pytest.mark.parametrize("shape", [lambda n: (n, 1), lambda n: (1, n)], ids=["runs", "chains"])
@pytest.mark.parametrize("sink", [Sink, TerminalSink])
async def test_the_cost_is_linear(make_events, sink, shape):
    """Processor time for each of 2,000 open chains is about what it is for each of 200."""

    async def seconds(n):
        began = time.thread_time()
        await played(make_events, *shape(n), sink())
        return (time.thread_time() - began) / n

    few = min([await seconds(200) for _ in range(3)])
    many = min([await seconds(2000) for _ in range(2)])
    assert many < 3 * few


async def test_chains_that_ended_are_let_go(make_events):
    """A run of any length costs the memory of its open chains, and the ids of those that ended."""
    events, observer = make_events("run-let-go"), ConsoleStreamObserver(file=TerminalSink(), color=False)
    await observer.on_batch([events.run_start(50)])
    for i in range(50):
        name = f"chain_{i}"
        await observer.on_batch(
            [events.start(name), *events.generation(name, "one", " two"), events.end(name)]
        )
    (run,) = observer.runs.values()
    assert (len(run.chains), len(run.ended)) == (0, 50)
    gc.collect()
    shown = [found for found in gc.get_objects() if type(found) is VisibleChain]
    assert not [chain for chain in shown if chain.run_id == "run-let-go"]
    await observer.aclose()


async def test_text_that_was_shown_is_let_go(make_events):
    """What an open chain said is printed, and not kept beside."""
    events, observer = make_events("run-0001"), ConsoleStreamObserver(file=Sink(), color=False)
    await observer.on_batch(
        [events.run_start(2), events.start("chain_0"), events.generation_start("chain_0")]
    )
    await observer.on_batch([events.chunk("chain_0", f"word {i}\n") for i in range(1000)])
    await observer.on_batch([events.generation_end("chain_0", "x" * 9000), events.call("chain_0")])
    await observer.on_batch([events.observation("chain_0", "y" * 9000, partial=True)])
    view = observer.runs["run-0001"].chains["chain_0"].view
    assert len(str(view.to_dict())) < 3000
    assert view.state == "tool"
    await observer.aclose()


async def test_a_console_that_has_left_keeps_no_chain(make_events):
    """Another console on the output goes on; what the first one showed is gone."""
    sink, events = TerminalSink(), make_events("run-0001")
    first, second = (ConsoleStreamObserver(file=sink, color=False) for _ in range(2))
    for observer in (first, second):
        await observer.on_batch(
            [events.run_start(2), events.start("chain_0"), events.chunk("chain_0", "word")]
        )
    kept = weakref.ref(first)
    await first.aclose()
    del first, observer
    gc.collect()
    assert kept() is None
    await second.aclose()
