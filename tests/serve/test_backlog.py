"""What a producer's hub does not have yet, with a disk that is full now and then."""

import errno
import json
from contextlib import suppress

from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve.backlog import Backlog
from rollcast.serve.producing import Publishing
from rollcast.serve.protocol import Welcome, encode_frame
from rollcast.serve.settings import Limits
from rollcast.serve.spool import Spool, block_of


def errors(*seqs):
    """Events as a block."""
    data = {"error": "e", "error_type": "", "where": "agent"}
    return block_of(
        [StreamEvent(StreamEventType.ERROR, "", 1.0, data, seq=seq, run_id="r", source="w") for seq in seqs]
    )


class Stage:
    """A backlog whose disk has no room for what is written next if `full` says so, and what it has sent."""

    def __init__(self, directory, memory_bytes=0):
        self.full = False
        self.sent = []
        self.session = Publishing("w", "host", "e1", clock=lambda: 0.0)
        welcome = Welcome(
            1,
            [],
            20.0,
            Limits(message_bytes=1 << 20, messages_per_s=500),
            ["publish"],
            ["hub", "record"],
            acked=0,
        )
        self.session.receive(encode_frame(welcome))
        self.backlog = Backlog(
            self.session, lambda: self._spool(directory), memory_bytes=memory_bytes, directory=directory,
            shut=lambda _: None, say=lambda _: None, hub="ws://hub",
        )  # fmt: skip

    def _spool(self, directory):
        spool = Spool(directory, "ws://hub", "w", "e1")
        ensure = spool._recorder._ensure_open

        def ensure_room():
            if self.full:
                self.full = False  # there is room for the little that comes next
                raise OSError(errno.ENOSPC, "no space left on the device")
            ensure()

        spool._recorder._ensure_open = ensure_room
        return spool

    def work(self):
        """Keep within memory, and send what may be sent."""
        working = self.backlog.keep_within_memory(more_has_come=lambda: False, progress=lambda: None)
        with suppress(StopIteration):  # without an event loop, since it may wait for the disk
            while True:
                working.send(None)
        for frame in self.session.outbox.frames(number=not self.backlog.spooling):
            frame = json.loads(frame)
            self.sent += [
                (frame["seq"] + i, e["event_type"], e["seq"]) for i, e in enumerate(frame["events"])
            ]

    def put(self, *seqs):
        self.session.outbox.put(errors(*seqs))
        self.work()


def test_a_gap_has_a_number_of_its_own(tmp_path):
    """What comes after events that the disk did not take is not under the number of the gap that stands for them."""
    stage = Stage(tmp_path)
    stage.put(0, 1)
    stage.full = True
    stage.put(2, 3)
    for seq in range(4, 8):
        stage.work()
        stage.put(seq)
    numbers = [number for number, _, _ in stage.sent]
    assert len(set(numbers)) == len(numbers), stage.sent
    told = [(kind, seq) for _, kind, seq in stage.sent]
    assert [seq for kind, seq in told if kind == "error"] == [0, 1, 4, 5, 6, 7]
    assert any(kind == "gap" for kind, _ in told)
