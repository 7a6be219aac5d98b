"""Faults in our own code, for tests that what is attached gives the same results all the same.

    @pytest.mark.parametrize("defect", DEFECTS, ids=str)
    def test_results_are_equal(defect):
        expected = use(client)
        with defect.injected():
            handle = rollcast.attach(client, manager=manager, record=None)
            assert use(client) == expected
            handle.detach(0.1)

Each breaks one thing that adapters call, in one way: it raises, it hangs, or it returns something of a wrong type. `also` makes the
same of functions of an adapter's own.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from rollcast.attaching.attachment import Attachment
from rollcast.stream.chain import ChainWriter, GenerationWriter, ToolCallWriter, _TimedGenerationWriter
from rollcast.stream.run import RunWriter

__all__ = ["DEFECTS", "Defect", "also", "on_watch_thread"]

PARTS = (
    (Attachment, "open_run"),
    (RunWriter, "open"),
    (RunWriter, "chain"),
    (RunWriter, "close"),
    (ChainWriter, "start"),
    (ChainWriter, "message"),
    (ChainWriter, "generation"),
    (ChainWriter, "tool_call"),
    (ChainWriter, "reward"),
    (ChainWriter, "end"),
    (GenerationWriter, "start"),
    (GenerationWriter, "chunk"),
    (_TimedGenerationWriter, "chunk"),
    (GenerationWriter, "end"),
    (ToolCallWriter, "start"),
    (ToolCallWriter, "observation"),
    (ToolCallWriter, "end"),
)
WAYS = ("raises", "hangs", "returns a wrong type")


class OurFaultError(Exception):
    """What a broken part raises."""


def on_watch_thread():
    """Whether this is a thread on which our own code may hang without the host noticing."""
    return threading.current_thread().name.startswith("rollcast-attach-")


@dataclass(frozen=True)
class Defect:
    """One part of ours, broken in one way.

    Attributes:
        owner, name: the class or module, and the function of it.
        way: one of `WAYS`.
    """

    owner: object
    name: str
    way: str

    def __str__(self):
        return f"{getattr(self.owner, '__qualname__', self.owner.__name__)}.{self.name} {self.way}"

    @contextmanager
    def injected(self):
        """Break it while the block runs; what hangs goes on at its end. Yields a list that grows with each call of the part.

        What hangs does so only on a watch's thread: there is no other place where code of ours may.
        """
        whole, over, calls = getattr(self.owner, self.name), threading.Event(), []

        def broken(*args, **kwargs):
            calls.append(self.name)
            if self.way == "raises":
                raise OurFaultError(f"{self.name} is broken")
            if self.way == "hangs":
                if on_watch_thread():
                    over.wait()
                return whole(*args, **kwargs)
            return object()

        with mock.patch.object(self.owner, self.name, broken):
            try:
                yield calls
            finally:
                over.set()


def also(owner, *names, ways=WAYS):
    """The defects of these functions of an adapter: a module, or a class in it."""
    return [Defect(owner, name, way) for name in names for way in ways]


DEFECTS = [Defect(owner, name, way) for owner, name in PARTS for way in WAYS]
