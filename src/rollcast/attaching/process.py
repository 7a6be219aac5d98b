"""The one manager that all attachments of this process share, and what shows its runs: a record, the terminal, a server, a hub.

Like the commands, an attachment leaves a record that `rollcast runs` lists, and a line on the standard error that names it.
"""

from __future__ import annotations

import logging
import shlex
import shutil  # not at exit: a module that calls `eval` then would change the exit code after Ctrl-C
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rollcast import lifetime
from rollcast.errors import InputError
from rollcast.records.secrets import masked_arguments
from rollcast.stream.manager import StreamingManager
from rollcast.text import visible

if TYPE_CHECKING:
    from rollcast.archive import ArchiveObserver
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.serve.producer import HubProducer
    from rollcast.terminal import ConsoleStreamObserver

__all__ = ["EXIT_S", "Outlets", "all_outlets", "is_interactive", "outlets_of"]

logger = logging.getLogger("rollcast.attach")

LEVELS = ("auto", "turns", "tokens", "summary")
LOOK_S = 0.01  # how often to look whether the record is whole
EXIT_S = 10.0  # how long the exit of the interpreter waits for everything to be written


class Outlets:
    """What attachments have added to one manager: the record, the console and the server.

    They are there from the first attachment to the last. The server stays until the process exits.

    Args:
        manager: that the events go to.
        shared: it is the one of this process, and not the user's own.
    """

    def __init__(self, manager: StreamingManager, *, shared: bool) -> None:
        self.manager = manager
        self.shared = shared
        self._record: ArchiveObserver | None = None
        self._recording = False
        self._record_was_named = False
        self._console: ConsoleStreamObserver | None = None
        self._server: WebSocketStreamingServer | None = None
        self._joined: set[Any] = set()
        self._lock = threading.RLock()

    # -- what an attachment asks for -----------------------------------------------------------------------------------

    def ask(self, host: str, record: Any, show: Any, serve: Any) -> None:
        """Have what is attached recorded, shown and served as its caller asks. What is there already stays.

        Raises:
            InputError: one of the three is wrong, or the port cannot be listened on. Nothing is added then.
        """
        level = _checked_level(record)
        shown = _checked_count(show)
        with self._lock:
            if serve is not None and serve is not False:
                self._ask_for_server(serve)
            self._ask_for_record(host, level)
            if shown:
                self._ask_for_console(shown)

    def _ask_for_record(self, host: str, level: str | None) -> None:
        wanted = level is not None
        if level == "auto":
            wanted = (
                self.shared and not self.manager.publishes
            )  # otherwise the hub, or the manager's owner, records
        record = self._record
        if self._recording and record is not None:
            if level is None or level not in ("auto", record.level):
                logger.warning(
                    "%s is recorded at the level %s, like what was attached before it; for record=%r give it a manager of its own: "
                    "rollcast.attach(…, manager=rollcast.StreamingManager(), record=%r)",
                    host, record.level, level, level,
                )  # fmt: skip
            return
        if not wanted:
            return
        from rollcast.archive import ArchiveObserver  # noqa: PLC0415  (not with record=None)

        if any(isinstance(each, ArchiveObserver) for each in self.manager.observers):
            return  # its owner records already
        if record is None or record.level != level:
            record = ArchiveObserver.within(
                name=_name_of_program(host),
                level=level,
                about={
                    "command": masked_arguments([_program(), *sys.argv[1:]]),
                    "settings": {"attached": host},
                },
            )
            self._record_was_named = False
            if is_interactive():
                record.on_written.append(_SaysOnce(record))
        self.manager.add_observer(record)  # the same record goes on if all was detached in between
        self._record, self._recording = record, True

    def _ask_for_console(self, count: int) -> None:
        if self._console is not None:
            return
        from rollcast.terminal import ConsoleStreamObserver  # noqa: PLC0415  (only with show=N)

        names = [f"chain_{number}" for number in range(count)]
        self._console = ConsoleStreamObserver(chain_filter=names)
        self.manager.add_observer(self._console)
        delivery = self.manager.delivery_of(self._console)
        if delivery is not None:
            delivery.names_are_meant = False  # how many chains there will be is not known

    def _ask_for_server(self, serve: Any) -> None:
        if self._server is not None:
            if serve not in (True, 0, self._server.port):
                logger.warning("what is attached is served already, at %s", self._server.url)
            return
        from rollcast.serve import WebSocketStreamingServer  # noqa: PLC0415  (only with serve=PORT)

        if isinstance(serve, bool) or not isinstance(serve, int):
            raise InputError(
                f"serve is {serve!r:.60}; expected a port, such as 8765, or 0 for one that is free"
            )
        server = WebSocketStreamingServer("localhost", serve)
        server.start_thread()
        self.manager.add_observer(server.get_observer())
        self._server = server
        _say(f"watch it with: {_command()} watch {server.url}")
        _say(f"in a browser: {server.page_url}")

    # -- coming and going ----------------------------------------------------------------------------------------------

    def join(self, attachment: Any) -> None:
        """An attachment is there."""
        with self._lock:
            self._joined.add(attachment)

    def leave(self, attachment: Any, *, finish: bool = True) -> None:
        """An attachment has gone, and its runs are closed.

        Args:
            attachment: that joined.
            finish: if it was the last one, have the record whole, and print the line that names it.
        """
        with self._lock:
            self._joined.discard(attachment)
            if finish and not self._joined:
                self._finish(self.manager.drain_timeout)

    def finish_at_exit(self, timeout: float) -> None:
        """Wait for attachments that are leaving, then have the record whole, and end the server."""
        _wait_until(lambda: not self._joined, timeout)
        with self._lock:
            self._finish(timeout)
            server, self._server = self._server, None
            if server is not None:
                self.manager.remove_observer(server.get_observer())
                server.stop_thread()
            if self.shared:
                _say_published(self.manager, timeout)

    def _finish(self, timeout: float) -> None:
        console, self._console = self._console, None
        if console is not None:
            self.manager.remove_observer(console)
        record = self._record
        if record is None or not self._recording:
            return
        self._recording = False
        self.manager.remove_observer(record)
        _wait_until(lambda: record.ended, timeout)
        if not self._record_was_named:
            self._record_was_named = record.begun
            _say_record(record)

    def after_fork(self) -> None:
        """Forget, in a forked child, what is the parent's."""
        self._lock = threading.RLock()
        self._joined.clear()
        self._record = self._console = self._server = None
        self._recording = False


# -- of the process ----------------------------------------------------------------------------------------------------

_lock = threading.RLock()
_shared: Outlets | None = None
_of_managers: WeakKeyDictionary[StreamingManager, Outlets] = WeakKeyDictionary()


def outlets_of(manager: StreamingManager | None) -> Outlets:
    """The outlets of this manager; None: of the one that all attachments of this process share.

    Raises:
        InputError: it is not a StreamingManager.
    """
    global _shared
    if manager is not None and not isinstance(manager, StreamingManager):
        raise InputError(
            f"manager is {type(manager).__name__}; expected a rollcast.StreamingManager, or None"
        )
    with _lock:
        if manager is None:
            if _shared is None:
                _shared = Outlets(StreamingManager(), shared=True)
            return _shared
        if _shared is not None and manager is _shared.manager:
            return _shared
        if manager not in _of_managers:
            _of_managers[manager] = Outlets(manager, shared=False)
        return _of_managers[manager]


def all_outlets() -> list[Outlets]:
    """Every manager's that something was attached to."""
    with _lock:
        return [*([] if _shared is None else [_shared]), *_of_managers.values()]


def _after_fork() -> None:
    global _shared, _lock
    _lock = threading.RLock()
    for outlets in [*([] if _shared is None else [_shared]), *_of_managers.values()]:
        outlets.after_fork()
    _shared = None  # what is attached in the child has a manager, and a record, of its own


lifetime.call_after_fork(_after_fork)


# -- what is checked and said ------------------------------------------------------------------------------------------


def _checked_level(record: Any) -> str | None:
    if record is None or record is False:
        return None
    if record is True:
        return "auto"
    if not isinstance(record, str) or record not in LEVELS:
        raise InputError(
            f"record is {record!r:.60}; expected {', '.join(map(repr, LEVELS))}, or None for no record"
        )
    return record


def _checked_count(show: Any) -> int:
    if show is None or show is False:
        return 0
    if isinstance(show, bool) or not isinstance(show, int) or not 0 <= show <= 64:
        raise InputError(f"show is {show!r:.60}; expected how many chains to show, from 0 to 64")
    return show


def is_interactive() -> bool:
    """Whether somebody types here, in a notebook or at a prompt, so that the process does not end soon."""
    return hasattr(sys, "ps1")


def _program() -> str:
    return sys.argv[0] if sys.argv and sys.argv[0] else "python"


def _name_of_program(host: str) -> str:
    """What a record is called: the script, or in a notebook what is attached."""
    name = Path(_program()).name
    if is_interactive() or not name.endswith(".py") or name in ("__main__.py", "ipykernel_launcher.py"):
        return host
    return Path(name).stem


def _command() -> str:
    """How the user can type Rollcast's command here."""
    return "rollcast" if shutil.which("rollcast") else f"{shlex.quote(sys.executable)} -m rollcast"


def _say(line: str) -> None:
    """Print a line on the standard error, if that can be written."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write("".join(piece for piece, _ in visible(line)) + "\n")
            sys.stderr.flush()


def _shown_path(path: Path) -> str:
    with suppress(ValueError, OSError):  # it is elsewhere, or the current folder was deleted
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def _say_record(record: ArchiveObserver) -> None:
    """Print the line that names the record, as the commands do. If nothing ran, nothing was recorded, and nothing is printed."""
    if not record.begun:
        return
    line = f"recorded: {_command()} show {_shown_path(record.path)}"
    lacking = record.incomplete or (None if record.ended else "its end is not written yet")
    _say(line if lacking is None else f"{line} (not complete: {lacking})")


class _SaysOnce:
    """Names the record as soon as something is in it: in a notebook the process does not end."""

    def __init__(self, record: ArchiveObserver) -> None:
        self._record = record
        self._said = False

    def __call__(self, written: Any) -> None:
        if not self._said:
            self._said = True
            _say(f"recording: {_command()} show {_shown_path(self._record.path)}")


def _say_published(manager: StreamingManager, timeout: float) -> None:
    """Print where the runs were published, if they were."""
    if not manager.publishes:
        return
    from rollcast.serve.hub_observer import HubStreamObserver  # noqa: PLC0415  (most processes publish nothing)

    for observer in manager.observers:
        if isinstance(observer, HubStreamObserver):
            producer: HubProducer = observer.producer
            producer.settle(timeout)
            if producer.has_delivered:
                line = f"published to {producer.url} as {producer.source}"
                _say(line if producer.is_up_to_date else f"{line} (the hub does not have all of it yet)")


def _wait_until(holds: Any, timeout: float) -> None:
    give_up = time.monotonic() + timeout
    while not holds() and time.monotonic() < give_up:
        time.sleep(LOOK_S)
