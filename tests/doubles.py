"""Test doubles that the tests of several rooms use."""

import io

import pyte

from rollcast.observers import JSONStreamObserver
from rollcast.records import StreamEvent, StreamEventType


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


def part_of_run(run_id, source, chains=(), status="completed", words=("Hel", "lo")):
    """The events that one source emits of a run: its chains one after the other, its own numbers."""
    events = []

    def add(kind, chain_id="", step=None, **data):
        place = (run_id, None if not chain_id else f"group_of_{chain_id}", source)
        at = 1e9 + len(events)
        events.append(StreamEvent(StreamEventType(kind), chain_id, at, data, step, step, len(events), *place))

    about = {"agent": "a", "model": "m", "backend": "b", "policy_version": 0}
    add("run_start", chains=len(chains), groups=len(chains), **about)
    for name in chains:
        hello = [{"role": "user", "content": "hello"}]
        add("chain_start", name, messages=hello, tools=[], index=0, policy_version=0)
        add("llm_generation_start", name, 1, prompt_tokens=1, model="m", policy_version=0, sampling={})
        for number, word in enumerate(words):
            add("llm_generation_chunk", name, 1, content=word, offset=sum(map(len, words[:number])))
        text, counts = "".join(words), {"prompt_tokens": 1, "completion_tokens": len(words)}
        times = {"ttft_s": 0.0, "duration_s": 0.0}
        add("llm_generation_end", name, 1, content=text, finish_reason="stop", **counts, **times)
        add("reward", name, reward=1.0, metrics={}, final=True)
        told = {"finish_reason": "answered", "final_response": text, "steps": 1, "duration_s": 0.0}
        add("chain_end", name, completion_tokens=len(words), reward=1.0, metrics={}, **told)
    totals = {"failed": 0, "mean_reward": 1.0 if chains else None, "duration_s": 1.0}
    tokens = len(words) * len(chains)
    add("run_end", status=status, chains=len(chains), completion_tokens=tokens, **totals)
    return events


def interleaved(streams, dice):
    """The events of all streams, each stream's in its order."""
    waiting = [list(stream) for stream in streams]
    while any(waiting):
        yield dice.choice([stream for stream in waiting if stream]).pop(0)
