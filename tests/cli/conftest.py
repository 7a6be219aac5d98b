import pytest

from doubles import Terminal


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
