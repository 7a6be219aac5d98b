"""What a watcher says or does wrong is its own affair: it changes, slows and ends nothing."""

import asyncio
import dataclasses
import logging
import threading

import pytest

from rollcast.errors import InputError
from rollcast.records import EventFilter
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.stream.observer import EncodingObserver
from rollcast.testing import EventCapture


async def one_run(manager):
    async with manager.run(chains=1) as run:
        with run.chain([{"role": "user", "content": "Hi"}]) as chain, chain.generation() as generation:
            generation.chunk("Hello")
            generation.chunk(" there")


class Watcher(StreamObserver):
    def __init__(self):
        self.got = []

    async def on_event(self, event):
        self.got.append(event.event_type.value)


def watcher(**attributes):
    return type("Odd", (Watcher,), attributes)()


def raising(error):
    def read(self):
        raise error

    return property(read)


# -- what it says about itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"filter": 5}, "filter of Odd is .*; expected an EventFilter"),
        ({"filter": "chain_0"}, "filter of Odd is .*; expected an EventFilter"),
        ({"mode": "fast"}, "mode of Odd is 'fast'; expected one of coalesce, lossless"),
        ({"mode": ["lossless"]}, "mode of Odd"),
        ({"threaded": "yes"}, "Odd.threaded is 'yes'; expected True or False"),
        ({"loop": "main"}, "Odd.loop is str; expected an event loop, or None"),
        ({"leaves": lambda self: [self]}, r"Odd.leaves\(\) gave list"),
        ({"leaves": lambda self: {"me": EventFilter()}}, "gave str as a leaf"),
        ({"leaves": lambda self: 1 / 0}, r"leaves\(\) of Odd raised ZeroDivisionError"),
        ({"filter": raising(OSError("x"))}, r"leaves\(\) of Odd raised OSError"),
        ({"mode": raising(SystemExit(3))}, "mode of Odd raised SystemExit"),
        ({"threaded": raising(asyncio.CancelledError())}, "threaded of Odd raised CancelledError"),
        (
            {"loop": raising(RuntimeError("x")), "name": raising(ValueError("y"))},
            "loop of Odd raised RuntimeError",
        ),
        ({"__eq__": lambda self, other: True, "__hash__": None}, r"make it @dataclass\(eq=False\)"),
    ],
)
async def test_what_is_wrong_is_refused_and_nobody_else_notices(attributes, said):
    """One sentence; it is not added, and others can be."""
    manager = StreamingManager()
    before, after = EventCapture(), EventCapture()
    manager.add_observer(before)
    odd = watcher(**attributes)
    with pytest.raises(InputError, match=said):
        manager.add_observer(odd)
    assert manager.observers == [before]
    manager.add_observer(after)
    await one_run(manager)
    before.check()
    assert before.events == after.events
    assert len(before.events) == 8
    await manager.aclose()


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen(StreamObserver):
    async def on_event(self, event):
        pass


@pytest.mark.parametrize("as_leaf", [False, True])
async def test_one_that_cannot_be_told_its_manager_is_refused(as_leaf):
    """By itself, or as what another one stands for: it is not added, and others can be."""
    manager, frozen, capture = StreamingManager(), Frozen(), EventCapture()
    odd = watcher(leaves=lambda self: {frozen: EventFilter()}) if as_leaf else frozen
    with pytest.raises(InputError, match=r"the manager of Frozen cannot be set.*FrozenInstanceError"):
        manager.add_observer(odd)
    assert (manager.observers, odd.manager) == ([], None)
    manager.add_observer(capture)
    await one_run(manager)
    capture.check()
    await manager.aclose()


async def test_a_leaf_that_comes_later_and_cannot_be_told_its_manager_works_without(caplog):
    """A warning says so."""
    manager, leaves = StreamingManager(), {}
    odd = watcher(leaves=lambda self: leaves)
    manager.add_observer(odd)
    leaves[Frozen()] = EventFilter()
    manager.refresh()
    await one_run(manager)
    assert [(each.name, each.delivered) for each in manager.statistics()] == [("Frozen", 8)]
    assert "cannot be set: setting `manager` raised" in caplog.text
    await manager.aclose()
    assert manager.observers == []


class Unshown:
    def __repr__(self):
        raise GeneratorExit

    __eq__ = __repr__
    __hash__ = None


class OwnFilter(EventFilter):
    """A filter that raises whenever it is asked anything."""

    def wants(self, *arguments):
        raise GeneratorExit

    wants_snapshot = wants_gap = matches_chain = wants
    alternatives = raising(KeyboardInterrupt())


async def test_a_filter_of_ones_own_that_raises_is_its_own_failure():
    """It gets nothing; the others are told once, and have everything."""
    manager, capture = StreamingManager(), EventCapture()
    async with manager.run(chains=1) as run:
        with run.chain([{"role": "user", "content": "Hi"}]) as chain:
            odd = watcher(filter=OwnFilter())
            manager.add_observer(odd)
            manager.add_observer(capture)
            with chain.generation() as generation:
                generation.chunk("Hello")
    assert odd.got == []
    assert len(capture.of("run_end")) == 1
    assert [e.data["error_type"] for e in capture.of("error")] == ["GeneratorExit"]
    await manager.aclose()


@pytest.mark.parametrize("attribute", ["filter", "mode", "threaded", "loop"])
async def test_what_cannot_even_be_shown_is_refused(attribute):
    """Its own `__repr__` and `__eq__` raise."""
    manager = StreamingManager()
    with pytest.raises(InputError, match=r"Odd.* is <?Unshown>?; expected"):
        manager.add_observer(watcher(**{attribute: Unshown()}))
    assert manager.observers == []


@pytest.mark.parametrize("name", ["", 7, None, raising(ValueError("no name"))])
async def test_a_name_that_cannot_be_read_is_that_of_the_class(name):
    """Warnings and statistics need one."""
    manager = StreamingManager()
    odd = watcher(name=name)
    manager.add_observer(odd)
    await one_run(manager)
    assert [s.name for s in manager.statistics()] == ["Odd"]
    assert "run_end" in odd.got
    await manager.aclose()


async def test_what_goes_wrong_later_leaves_it_as_it_was(caplog):
    """Its filter raises when it is read again: it keeps the old one, the others are told, and nobody is refused."""
    manager = StreamingManager()
    capture, odd = EventCapture(), watcher()
    manager.add_observer(capture)
    manager.add_observer(odd)
    type(odd).filter = raising(RuntimeError("gone"))
    manager.refresh()
    manager.refresh(odd)
    manager.add_observer(EventCapture())
    await one_run(manager)
    assert "run_end" in odd.got
    (error, _) = capture.of("error")
    assert error.data["where"] == "observer:Odd"
    assert "stays as it was" in caplog.text
    manager.remove_observer(odd)
    await manager.aclose()


async def test_a_filter_is_not_read_on_the_path_of_an_event():
    """Runs and chains begin and end without a look at it."""
    reads = []

    class Counting(Watcher):
        @property
        def filter(self):
            reads.append(threading.current_thread())
            return EventFilter()

    manager = StreamingManager()
    counting = Counting()
    manager.add_observer(counting)
    seen = len(reads)
    await one_run(manager)
    await one_run(manager)
    assert len(reads) == seen
    await manager.aclose()


# -- what it does --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_slow_close_is_called_once(threaded, until):
    """Chains and runs that open and end meanwhile do not call it again."""
    calls, running, most = [], [], []
    gate = threading.Event()

    class Slow(Watcher):
        async def aclose(self):
            calls.append(1)
            running.append(1)
            most.append(len(running))
            while not gate.is_set():
                await asyncio.sleep(0.001)
            running.pop()

    Slow.threaded = threaded
    manager = StreamingManager()
    slow = Slow()
    manager.add_observer(slow)
    await one_run(manager)
    manager.remove_observer(slow)
    await until(lambda: calls)
    for _ in range(5):
        await one_run(manager)
    manager.add_observer(EventCapture())
    gate.set()
    await manager.aclose()
    assert (len(calls), max(most)) == (1, 1)


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("error", [GeneratorExit(), SystemExit(2), asyncio.CancelledError(), MemoryError()])
async def test_whatever_it_raises_is_its_own_failure(error, threaded, until):
    """It is counted and reported, five of them detach it, and the run and the others have everything."""
    manager = StreamingManager()
    capture = EventCapture()

    async def on_event(self, event):
        raise error

    odd = watcher(on_event=on_event, threaded=threaded)
    manager.add_observer(odd)
    manager.add_observer(capture)
    await one_run(manager)
    await one_run(manager)
    await until(lambda: len(manager.statistics()) == 1)
    reported = [e.data for e in capture.of("error")]
    assert [(e["where"], e["error_type"]) for e in reported] == [("observer:Odd", type(error).__name__)]
    assert len(capture.of("run_end")) == 2
    await manager.aclose()


async def test_ctrl_c_in_a_thread_of_its_own_is_a_failure():
    """A real one arrives in the main thread alone."""
    manager = StreamingManager()

    async def on_event(self, event):
        raise KeyboardInterrupt

    odd = watcher(on_event=on_event, threaded=True)
    manager.add_observer(odd)
    await one_run(manager)
    await one_run(manager)
    await manager.aclose()
    assert odd.manager is None


@pytest.mark.parametrize("hook", ["on_event", "on_batch", "on_run_opened", "on_chain_closed", "aclose"])
async def test_a_hook_that_cannot_even_be_read_is_a_failure(hook):
    """The others have everything, and the run ends."""
    manager = StreamingManager()
    capture = EventCapture()
    odd = watcher(**{hook: raising(ZeroDivisionError("x"))})
    manager.add_observer(odd)
    manager.add_observer(capture)
    await one_run(manager)
    await one_run(manager)
    capture.check()
    assert len(capture.of("run_end")) == 2
    await manager.aclose()
    assert manager.observers == []


async def test_an_error_without_a_text_is_reported(caplog):
    """Its `__str__` raises."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no")

    manager = StreamingManager()
    capture = EventCapture()

    async def on_event(self, event):
        raise Mute

    manager.add_observer(watcher(on_event=on_event))
    manager.add_observer(capture)
    await one_run(manager)
    (error,) = capture.of("error")
    assert (error.data["error_type"], error.data["where"]) == ("Mute", "observer:Odd")
    await manager.aclose()


def lying_error(attribute):
    """An exception of which not even this attribute can be read."""
    return type("Lying", (Exception,), {attribute: raising(OSError("no"))})


class _Nameless(type):
    @property
    def __name__(cls):
        raise OSError("no")


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        *map(lying_error, ("__class__", "__traceback__", "__cause__", "__context__", "args")),
        _Nameless("Lying", (Exception,), {}),
        type("Lying", (SyntaxError,), {"filename": raising(OSError("no"))}),
        type("Lying", (ExceptionGroup,), {"exceptions": raising(OSError("no"))}),
    ],
    ids=["class", "traceback", "cause", "context", "args", "name", "filename", "exceptions"],
)
async def test_an_error_that_cannot_be_looked_at_is_a_failure_like_any_other(error, threaded, until):
    """It is reported, five of them detach the observer, and nobody waits for what it did not take."""
    manager = StreamingManager(drain_timeout=60)
    capture = EventCapture()
    several = issubclass(error, BaseExceptionGroup)

    async def on_event(self, event):
        raise error("several", [ValueError()]) if several else error()

    odd = watcher(on_event=on_event, threaded=threaded)
    manager.add_observer(odd)
    manager.add_observer(capture)
    await one_run(manager)
    await until(lambda: len(manager.statistics()) == 1)
    await manager.aclose()
    assert [e.data["error_type"] for e in capture.of("error")] == ["Lying"]
    assert len(capture.of("run_end")) == 1


async def test_a_log_handler_that_raises_is_nobody_elses_failure(until):
    """The failure that it should tell is counted and reported as ever."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise OSError("no room for a log")

    handler, log = Broken(), logging.getLogger("rollcast.stream")
    manager = StreamingManager(drain_timeout=60)
    capture = EventCapture()

    async def on_event(self, event):
        raise ValueError("x")

    manager.add_observer(watcher(on_event=on_event))
    manager.add_observer(capture)
    log.addHandler(handler)
    try:
        await one_run(manager)
        await until(lambda: len(manager.statistics()) == 1)
        await manager.aclose()
    finally:
        log.removeHandler(handler)
    assert [e.data["error_type"] for e in capture.of("error")] == ["ValueError"]
    assert len(capture.of("run_end")) == 1


class Encoding(EncodingObserver):
    """One whose answer to `takes_encodable` raises after so many times."""

    def __init__(self, times):
        self.times = times

    def takes_encodable(self):
        self.times -= 1
        if self.times < 0:
            raise OSError("no")
        return True

    async def on_encodable(self, events):
        pass


async def test_one_that_cannot_say_how_it_takes_events_is_refused():
    """One sentence, and the others can be added."""
    manager = StreamingManager()
    with pytest.raises(InputError, match=r"takes_encodable\(\) of Encoding raised OSError"):
        manager.add_observer(Encoding(0))
    assert manager.observers == []
    capture = EventCapture()
    manager.add_observer(capture)
    await one_run(manager)
    capture.check()
    await manager.aclose()


async def test_one_that_cannot_say_later_how_it_takes_events_fails():
    """Nobody waits for it."""
    manager = StreamingManager(drain_timeout=60)
    capture = EventCapture()
    manager.add_observer(Encoding(1))
    manager.add_observer(capture)
    await one_run(manager)
    assert [(each.queued, each.failed > 0) for each in manager.statistics()] == [(0, True), (0, False)]
    await manager.aclose()
    assert [e.data["error_type"] for e in capture.of("error")] == ["OSError"]
    assert len(capture.of("run_end")) == 1


class _Hiding(type(StreamObserver)):
    def __getattribute__(cls, name):
        if name == "on_batch":
            raise OSError("no")
        return super().__getattribute__(name)


@pytest.mark.parametrize("kind", ["class", "metaclass"])
async def test_one_whose_class_cannot_be_asked_for_is_told_apart_without(kind):
    """It gets its events, and observers that come after it are added."""
    manager = StreamingManager()
    capture = EventCapture()
    unreadable = watcher(__class__=raising(OSError("no")))
    odd = unreadable if kind == "class" else _Hiding("Odd", (Watcher,), {})()
    manager.add_observer(odd)
    manager.add_observer(capture)
    await one_run(manager)
    manager.refresh()
    manager.remove_observer(odd)
    await manager.aclose()
    assert "run_end" in odd.got
    capture.check()


async def test_one_that_fails_while_it_leaves_is_not_detached_when_it_was_added_again(until):
    """The fifth failure in a row is its `aclose`, and by then it is somebody's observer again."""
    closing = asyncio.Event()

    class Failing(Watcher):
        broken = True

        async def on_event(self, event):
            self.got.append(event.event_type.value)
            if len(self.got) > 6:
                self.fail()

        async def on_chain_closed(self, run_id, chain_id):
            self.fail()

        async def on_run_closed(self, run_id):
            self.fail()

        def fail(self):
            if self.broken:
                raise ValueError("no")

        async def aclose(self):
            closing.set()
            if self.broken:
                self.broken = False
                self.got.clear()
                raise OSError("no")

    manager = StreamingManager()
    odd = Failing()
    manager.add_observer(odd)
    await one_run(manager)
    assert len(odd.got) == 8
    manager.remove_observer(odd)
    manager.add_observer(odd)
    await closing.wait()
    await one_run(manager)
    assert manager.observers == [odd]
    assert len(odd.got) == 8
    await manager.aclose()


async def test_a_pump_begins_while_the_one_before_is_in_its_last_step_elsewhere():
    """Both have the context variables of whoever added the observer, and neither waits for the other."""
    manager = StreamingManager()
    odd = Watcher()
    manager.add_observer(odd)
    inside, leave = threading.Event(), threading.Event()

    def last_step():
        inside.set()
        leave.wait()

    context = manager._roster._leaves[odd]._context
    thread = threading.Thread(target=context.run, args=(last_step,))
    thread.start()
    await asyncio.to_thread(inside.wait)
    await one_run(manager)
    leave.set()
    await asyncio.to_thread(thread.join)
    assert len(odd.got) == 8
    await manager.aclose()


# -- who is who ----------------------------------------------------------------------------------------------------------


async def test_observers_that_are_equal_are_two():
    """Each is added, gets everything, and can be removed."""
    same = {"__eq__": lambda self, other: True, "__hash__": lambda self: 1}
    manager = StreamingManager()
    one, other = watcher(**same), watcher(**same)
    manager.add_observer(one)
    manager.add_observer(other)
    assert len(manager.statistics()) == 2
    manager.remove_observer(one)
    assert other.manager is manager
    assert one.manager is None
    await one_run(manager)
    await manager.aclose()
    assert len(other.got) == 8
    assert one.got == []


@pytest.mark.parametrize("method", ["__hash__", "__eq__"])
async def test_one_whose_hash_or_equality_raises_later_can_be_removed(method):
    """And its manager closed; nobody else notices."""
    said = []

    def raises(self, *other):
        if said:
            raise OSError("no")
        return 1

    manager, capture = StreamingManager(), EventCapture()
    odd, gone = (watcher(**{"__hash__": lambda self: 1, method: raises}) for _ in range(2))
    for each in (gone, odd, capture):
        manager.add_observer(each)
    said.append(True)
    await one_run(manager)
    manager.remove_observer(gone)
    await one_run(manager)
    await manager.aclose()
    assert (len(gone.got), len(odd.got), len(capture.events)) == (8, 16, 16)
    assert manager.observers == []
