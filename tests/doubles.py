"""Test doubles that the tests of several rooms use."""

import io

import pyte

from rollcast.observers import JSONStreamObserver


class Reporting(JSONStreamObserver):
    """Keeps what it reports."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.reported = []

    def report(self, error):
        self.reported.append(error)


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
