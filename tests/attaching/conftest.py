"""What the tests of attachments share."""

import pytest

from rollcast import StreamingManager
from rollcast.attaching import front
from rollcast.testing import EventCapture


@pytest.fixture(autouse=True)
def nothing_stays_attached(monkeypatch, tmp_path):
    """Each test has records of its own, also for what is detached at its end."""
    monkeypatch.setattr(front, "_told_twice", set())
    monkeypatch.setenv("ROLLCAST_RECORDS", str(tmp_path / "records"))
    yield
    front.detach_all(timeout=60.0)


class Seen(EventCapture):
    """What a manager of its own was told; read it after `settle`."""

    threaded = True

    def __init__(self):
        super().__init__()
        self.manager_of_it = StreamingManager(publish=False)
        self.manager_of_it.add_observer(self)

    def settle(self):
        """Wait until everything that was attached to this manager has told everything."""
        from rollcast.attaching.attachment import all_attachments

        for attachment in all_attachments():
            if attachment.streaming_manager is self.manager_of_it:
                assert attachment.watch.flush(120)
        self.manager_of_it.drain_sync(120)
        return self

    def starts(self):
        """The data of each `chain_start`."""
        return [event.data for event in self.of("chain_start")]

    def ends(self):
        """Why each chain ended, and with which response, by run and chain."""
        return [(event.data["finish_reason"], event.data["final_response"]) for event in self.of("chain_end")]


@pytest.fixture
def seen():
    """A manager of one's own, and what it was told: `rollcast.attach(x, manager=seen.manager_of_it)`."""
    watcher = Seen()
    yield watcher
    watcher.manager_of_it.close()
