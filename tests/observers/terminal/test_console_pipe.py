"""The console on a pipe: whole lines, so that `grep` finds what it looks for."""

import io
import os
import time

import pytest

from rollcast.terminal import ConsoleStreamObserver


class Pipe:
    """The two ends of a pipe; `read` gives what has arrived."""

    def __init__(self):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._reader = reader
        self.end = io.TextIOWrapper(io.FileIO(writer, "w"), encoding="utf-8")

    def read(self):
        try:
            return os.read(self._reader, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self):
        self.end.close()
        os.close(self._reader)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


def console(pipe, **options):
    return ConsoleStreamObserver(show_timestamps=False, file=pipe.end, **options)


@pytest.mark.parametrize("chains", [1, 2])
async def test_a_line_is_written_when_it_is_whole_however_long_that_takes(events, pipe, chains):
    """Whether one chain is there or several; the end of the line or of the generation makes it whole."""
    observer = console(pipe)
    await observer.on_batch(
        [events.run_start(chains), events.start("chain_0"), events.generation_start("chain_0")]
    )
    pipe.read()
    hours = 0
    observer._clock = lambda: time.monotonic() + hours
    for text in ("Let ", "me ", "think", " about it"):
        await observer.on_batch([events.chunk("chain_0", text)])
        hours += 3600
        observer._on_timer()
        assert pipe.read() == ""
    await observer.on_batch([events.chunk("chain_0", ".\nThe answer")])
    assert pipe.read() == "chain_0 │ Let me think about it.\n"
    await observer.on_batch([events.chunk("chain_0", " is 4.")])
    assert pipe.read() == ""
    await observer.on_batch(
        [events.generation_end("chain_0", "Let me think about it.\nThe answer is 4."), events.end("chain_0")]
    )
    assert pipe.read().splitlines()[0] == "chain_0 │ The answer is 4."
    await observer.aclose()


async def test_a_line_that_never_ends_is_written_in_pieces_of_4000_characters(events, pipe):
    """So what waits is bounded."""
    observer = console(pipe)
    await observer.on_batch([events.run_start(1), events.generation_start("chain_0")])
    pipe.read()
    for _ in range(1000):
        await observer.on_batch([events.chunk("chain_0", "word word ")])
    first, second = pipe.read().splitlines()
    assert 3900 < len(first) <= 4010
    assert second.startswith("chain_0 │ … word")
    await observer.aclose()
    assert sum(line.count("word") for line in [first, second, *pipe.read().splitlines()]) == 2000


async def test_a_number_for_gather_s_holds_on_a_pipe_too(events, pipe, eventually):
    """Who asks for pieces gets them."""
    observer = console(pipe, gather_s=0.01)
    await observer.on_batch([events.run_start(2), events.generation_start("chain_0")])
    pipe.read()
    await observer.on_batch([events.chunk("chain_0", "Let me think")])
    got = []
    await eventually(lambda: got.append(pipe.read()) or "think" in "".join(got))
    await observer.aclose()
    assert "".join([*got, pipe.read()]).count("think") == 1


async def test_a_tools_result_does_not_wait_for_its_call_to_end(events, pipe, eventually):
    """It is whole already."""
    observer = console(pipe)
    await observer.on_batch(
        [events.run_start(2), events.call("chain_0"), events.observation("chain_0", "9716")]
    )
    got = []
    await eventually(lambda: got.append(pipe.read()) or "← 9716" in "".join(got))
    await observer.aclose()
    assert "".join([*got, pipe.read()]).count("9716") == 1


async def test_what_is_left_when_the_run_is_cut_short_is_written(events, pipe):
    """Cancelled, or the observer removed: no text stays behind."""
    observer = console(pipe)
    await observer.on_batch(
        [events.run_start(1), events.generation_start("chain_0"), events.chunk("chain_0", "So fa")]
    )
    await observer.aclose()
    assert pipe.read().endswith("chain_0 │ So fa\n")


async def test_text_in_memory_and_a_notebook_are_no_pipe(events):
    """A chain that is alone is seen token by token there."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=file)
    await observer.on_batch([events.generation_start("chain_0"), events.chunk("chain_0", "Hel")])
    assert file.getvalue() == "chain_0 │ Hel"
    await observer.aclose()
