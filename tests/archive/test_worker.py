"""The thread that writes a record, where there is none."""

import threading

import pytest

from rollcast.archive.worker import Worker
from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.stream.waiting import chunk_of_line


class Recorder:
    """Notes what is asked of it, and in which thread."""

    def __init__(self):
        self.calls, self.threads = [], set()

    def _note(self, what):
        self.calls.append(what)
        self.threads.add(threading.get_ident())

    def open(self):
        self._note("open")

    def record(self, events, trajectories, lost):
        self._note(len(events))

    def beat(self):
        self._note("beat")

    def finish(self):
        self._note("finish")


@pytest.fixture
def no_threads(monkeypatch):
    """No thread can be started."""

    def start(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)


def events(count):
    return [StreamEvent.now(StreamEventType.REWARD, "chain_0", reward=1.0) for _ in range(count)]


def test_what_cannot_have_a_thread_at_exit_is_written_in_the_thread_that_waits(no_threads, monkeypatch):
    """A program may end before anything of it was recorded, and Python 3.12.0 and 3.12.1 start no thread then."""
    monkeypatch.setattr("rollcast.archive.worker.interpreter_exits", lambda: True)
    recorder = Recorder()
    worker = Worker(recorder, "w")
    worker.start()
    worker.start()
    assert worker.running
    assert worker.put(events(2)) is None
    assert worker.flush().done()
    full = worker.put(events(10_000))
    assert full is not None
    assert full.done()
    worker.put(events(3))
    assert worker.stop().done()
    assert worker.stop().done()
    assert not worker.running
    assert recorder.calls == ["open", 2, 10_000, 3, "finish"]
    assert recorder.threads == {threading.get_ident()}


def test_a_system_without_threads_is_said(no_threads):
    """At any other time it is an error."""
    worker = Worker(Recorder(), "w")
    with pytest.raises(RuntimeError, match="can't create new thread"):
        worker.start()
    assert not worker.running
    assert worker.flush().done()


def test_what_waits_is_bounded_by_the_memory_that_it_takes():
    """Lists of numbers take ten times as much as their JSON does."""
    line = encode(
        StreamEvent.now(
            StreamEventType.LLM_GENERATION_CHUNK,
            "chain_0",
            content="a" * 512,
            offset=0,
            token_ids=[7] * 512,
            logprobs=[-1.0] * 512,
        )
    )
    worker = Worker(Recorder(), "w")
    worker._thread = threading.current_thread()  # so that nothing is written meanwhile
    puts = 0
    while worker.put([chunk_of_line(line)], len(line)) is None:
        puts += 1
    assert puts * 512 * 128 <= 16 << 20


class Slow(Recorder):
    """Finishes only when it may."""

    def __init__(self):
        super().__init__()
        self.finishes, self.may_finish = threading.Event(), threading.Event()

    def finish(self):
        super().finish()
        self.finishes.set()
        assert self.may_finish.wait(60)


def test_what_comes_while_the_record_is_finished_is_written_too():
    """As when it is told to stop, and then is given what an attachment that ends has still to tell."""
    recorder = Slow()
    worker = Worker(recorder, "w")
    worker.start()
    worker.put(events(2))
    first = worker.stop()
    assert recorder.finishes.wait(60)
    worker.start()
    worker.put(events(3))
    last = worker.stop()
    recorder.may_finish.set()
    for promise in (first, last):
        promise.result(60)
    assert not worker.running
    assert recorder.calls == ["open", 2, "finish", "open", 3, "finish"]


def test_a_worker_that_is_started_again_before_it_stopped_goes_on():
    """Whoever waits for its stop waits no longer than for what was put in until then."""
    recorder = Slow()
    worker = Worker(recorder, "w")
    worker.start()
    first = worker.stop()
    worker.start()
    recorder.may_finish.set()
    first.result(60)
    worker.put(events(1))
    worker.flush().result(60)
    assert worker.running
    worker.stop().result(60)
    assert [call for call in recorder.calls if type(call) is int] == [1]
