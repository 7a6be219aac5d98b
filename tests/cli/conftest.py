import io
import signal

import pyte
import pytest


class Terminal(io.StringIO):
    """A terminal whose screen can be read; its size is `columns` and `lines`."""

    encoding = "utf-8"

    def __init__(self, columns=80, lines=24):
        super().__init__()
        self.columns, self.lines = columns, lines
        self.screen = pyte.HistoryScreen(columns, lines, history=5000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)

    def isatty(self):
        return True

    def write(self, text):
        self._stream.feed(text.replace("\n", "\r\n"))
        return super().write(text)

    @property
    def rows(self):
        """The rows above and on the screen, without the empty ones at the end."""
        top = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        return [row.rstrip() for row in "\n".join([*top, *self.screen.display]).rstrip().split("\n")]


@pytest.fixture
def make_terminal(monkeypatch):
    """Makes terminals; the printer asks each for its size."""
    from rollcast.terminal.printer import Printer

    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    ask = Printer.size

    def size(self):
        stream = self.output.stream
        return (stream.columns, stream.lines) if isinstance(stream, Terminal) else ask(self)

    monkeypatch.setattr(Printer, "size", size)
    return Terminal


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """The command may block: it owns its event loop, and its panel is ended from within it."""


@pytest.fixture(autouse=True)
def ctrl_c_reaches_what_tests_start():
    """Under `nohup` and in the background this process ignores SIGINT, and what it starts would too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
