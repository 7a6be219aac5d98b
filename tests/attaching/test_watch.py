"""The thread on which our own code runs."""

import asyncio
import gc
import logging
import os
import signal
import threading
import weakref

import pytest

from rollcast.attaching.watch import Watch


@pytest.fixture
def watch():
    watch = Watch("a host")
    yield watch
    watch.close(timeout=60)


def test_acts_are_called_in_order_on_one_other_thread(watch):
    """What is told from one thread is done in that order, on a thread that is not the host's."""
    done = []
    for number in range(1000):
        watch.tell(lambda n: done.append((n, threading.current_thread())), number)
    assert watch.flush(60)
    assert [number for number, _ in done] == list(range(1000))
    assert {thread for _, thread in done} - {threading.current_thread()}
    assert len({t for _, t in done}) == 1


def test_telling_is_safe_from_many_threads(watch):
    """Nothing is lost that many threads tell at once, and each one's order is kept."""
    done = []
    threads = [
        threading.Thread(
            target=lambda who: [watch.tell(done.append, (who, n)) for n in range(2000)], args=(who,)
        )
        for who in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.flush(30)
    for who in range(8):
        assert [n for name, n in done if name == who] == list(range(2000))


def test_a_watch_that_nothing_is_told_has_no_thread():
    """The thread is started when there is something to do."""
    before = set(threading.enumerate())
    watch = Watch("a host")
    assert set(threading.enumerate()) <= before
    assert watch.flush(0)
    assert watch.close()


def test_an_exception_is_logged_once_and_what_is_open_is_closed(watch, caplog):
    """After the first failure no more acts are taken."""
    closed, after = [], []
    watch.on_aside = lambda: closed.append(True)
    watch.tell(lambda: 1 / 0)
    watch.tell(lambda: 1 / 0)
    watch.flush(60)
    watch.tell(after.append, 1)
    assert watch.flush(60)
    assert closed == [True]
    assert after == []
    assert not watch.on
    (record,) = caplog.records
    assert "Rollcast steps aside from a host" in record.message
    assert "ZeroDivisionError" in record.message
    assert record.exc_info[0] is ZeroDivisionError


def test_a_failure_while_the_watch_closes_is_logged_too(watch, caplog):
    """A short program learns of it as well."""
    begun, go_on = threading.Event(), threading.Event()
    watch.tell(lambda: (begun.set(), go_on.wait()))
    begun.wait()
    watch.tell(lambda: 1 / 0)
    closing = threading.Thread(target=watch.close, kwargs={"timeout": 60})
    closing.start()
    while watch.on:
        os.sched_yield()
    go_on.set()
    closing.join()
    assert "ZeroDivisionError" in caplog.text


def test_even_system_exit_ends_only_the_watching(watch, caplog):
    """What is not an `Exception` stays on the thread as well."""
    watch.tell(lambda: exec("raise SystemExit(3)"))
    watch.flush(60)
    assert "SystemExit" in caplog.text
    assert not watch.on


def test_a_handler_of_the_host_that_raises_reaches_nobody(watch):
    """Logging our own failure may fail, too."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("this handler is broken")

    handler = Broken()
    logging.getLogger("rollcast.attach").addHandler(handler)
    try:
        watch.tell(lambda: 1 / 0)
        assert watch.flush(60)
    finally:
        logging.getLogger("rollcast.attach").removeHandler(handler)


def test_a_hang_fills_the_queue_and_is_said_once(caplog, until):
    """The host never waits for it."""
    watch, go_on, begun = Watch("a host", limit=10), threading.Event(), threading.Event()
    watch.tell(lambda: (begun.set(), go_on.wait()))
    begun.wait()
    for _ in range(50):
        watch.tell(lambda: None)
    assert not watch.on
    assert not watch.flush(0.01), "a flush does not wait for longer than it may"
    asyncio.run(until(lambda: "our own code hangs" in caplog.text))
    assert caplog.text.count("steps aside") == 1
    go_on.set()
    watch.close(timeout=60)


def test_the_guard_keeps_our_exceptions_and_no_others(watch, caplog):
    """An `Exception` ends the block; Ctrl-C, cancellation and exits go on."""
    with watch.guarded():
        raise ValueError("ours")
    for theirs in (KeyboardInterrupt, asyncio.CancelledError, SystemExit, GeneratorExit):
        with pytest.raises(theirs), watch.guarded():
            raise theirs
    watch.flush(60)
    assert not watch.on
    assert caplog.text.count("steps aside") == 1


def test_a_host_that_has_no_stack_left_stays_watched(watch, caplog):
    """A `RecursionError` in a hook ends only that hook: it is said once, and what is told later is done."""
    done = []

    def deep():
        return deep()

    for _ in range(2):
        with watch.guarded():
            deep()
    watch.tell(done.append, 1)
    assert watch.flush(60)
    assert watch.on
    assert done == [1]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "so deep in a recursion" in record.getMessage()


def test_what_a_signal_handler_of_the_host_raises_goes_on(watch):
    """A time-out by an alarm may strike while our own code runs, and is not our fault."""

    def strike(number, frame):
        raise TimeoutError("the host's own")

    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(TimeoutError, match="the host's own"), watch.guarded():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert watch.on


def test_arguments_are_never_compared_or_shown(watch):
    """Objects of the host may do anything in these."""

    class Hostile:
        def __bool__(self):
            raise AssertionError("was asked for its truth")

        __eq__ = __hash__ = __repr__ = __len__ = __bool__

    took = []
    watch.tell(lambda it: took.append(id(it)), Hostile())
    assert watch.flush(60)
    assert len(took) == 1


def test_what_was_told_is_let_go_of(watch):
    """The thread keeps nothing of the host's alive."""

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    watch.tell(lambda it: None, thing)
    watch.flush(60)
    del thing
    watch.flush(60)
    gc.collect()
    assert gone() is None


def test_closing_does_what_was_told_and_then_the_last(watch):
    """Then the thread ends."""
    done = []
    watch.tell(done.append, 1)
    assert watch.close(lambda: done.append(2), timeout=60)
    watch.tell(done.append, 3)
    assert done == [1, 2]


def test_a_flush_after_the_end_does_not_wait():
    """Whether the thread is still on its way out or not."""
    for _ in range(200):
        watch = Watch("a host")
        watch.tell(lambda: None)
        watch.close(timeout=60)
        assert watch.flush(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_not_watched_and_says_so():
    """The child has neither the thread nor what waits for it."""
    watch, done = Watch("a host"), []
    watch.tell(done.append, "parent")
    watch.flush(60)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = logging.getLogger("rollcast.attach")
            log.addHandler(logging.StreamHandler(os.fdopen(writes, "w")))
            watch.tell(done.append, "child")
            watch.tell(done.append, "child")
            status = 0 if done == ["parent"] and not watch.on and not watch.flush(0) else 2
            log.handlers[-1].flush()
        finally:
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads) as said:
        text = said.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert text.count("is not watched in this process") == 1
    assert watch.close(lambda: done.append("last"), timeout=60)
    assert done == ["parent", "last"]
