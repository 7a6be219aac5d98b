import asyncio
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
import threading

import pyte
import pytest

from rollcast.observers import JSONStreamObserver
from rollcast.terminal import ConsoleStreamObserver


def console(terminal, **options):
    return ConsoleStreamObserver(show_timestamps=False, file=terminal, **options)


async def test_the_status_counts_and_shows_what_each_chain_is_writing(events, terminal, eventually):
    """Below the lines, apart from them: a row a chain, then the count."""
    observer = console(terminal)
    await observer.on_batch([events.run_start(2), events.start("chain_0", "Q"), events.start("chain_1", "R")])
    await observer.on_batch([events.generation_start("chain_1"), events.chunk("chain_1", "Let me")])
    await eventually(lambda: "Let me" in terminal.rows[-2])
    rows = terminal.rows
    assert rows[1:-1] == ["chain_0 │ ▸ Q", "chain_1 │ ▸ R", "", "chain_0 │  …", "chain_1 │ Let me"]
    assert rows[-1][2:].startswith("2 running · 0/2 done · ")
    await observer.aclose()


async def test_a_growing_line_is_printed_once_when_it_ends(events, terminal, eventually):
    """Where the status shows it, it needs no pieces in between."""
    observer = console(terminal, gather_s=0.001)
    await observer.on_batch([events.run_start(2), events.start("chain_0", "Q"), events.start("chain_1", "R")])
    await observer.on_batch([events.generation_start("chain_1")])
    for piece in ("one ", "two ", "three "):
        await observer.on_batch([events.chunk("chain_1", piece)])
        await eventually(lambda piece=piece: terminal.rows[-2].endswith(piece.strip()))
    await observer.on_batch([events.chunk("chain_1", "four\n")])
    await observer.aclose()
    assert terminal.rows[3:] == ["chain_1 │ one two three four"]


async def test_nothing_of_the_status_is_left_when_the_run_closes(events, terminal):
    """The screen holds the lines alone."""
    observer = console(terminal)
    await observer.on_run_opened(events.run_id)
    await observer.on_batch([events.run_start(1), events.start("chain_0", "Q")])
    assert "running" in terminal.rows[-1]
    await observer.on_batch([events.end("chain_0"), events.run_end()])
    await observer.on_run_closed(events.run_id)
    assert [row[:11] for row in terminal.rows] == ["── run · 1 ", "chain_0 │ ▸", "chain_0 │ ■", "── complete"]
    await observer.aclose()


async def test_nothing_of_the_status_is_left_when_the_observer_goes_in_the_middle(events, terminal):
    """As after an exception: its text is printed, its status gone."""
    observer = console(terminal)
    await observer.on_batch(
        [events.run_start(2), events.start("chain_0", "Q"), events.chunk("chain_1", "half")]
    )
    await observer.aclose()
    assert terminal.rows[1:] == ["chain_0 │ ▸ Q", "chain_1 │ half"]


async def test_a_lone_chains_open_line_stands_above_the_status(events, terminal):
    """Tokens are added to it, the status stays below."""
    observer = console(terminal)
    await observer.on_batch([events.run_start(1), events.start("chain_0", "Q")])
    for token in ("Hel", "lo ", "you", "!"):
        await observer.on_batch([events.chunk("chain_0", token)])
    assert terminal.rows[2] == "chain_0 │ Hello you!"
    assert "1 running" in terminal.rows[3]
    await observer.aclose()
    assert len(terminal.rows) == 3


async def test_lines_below_the_screen_scroll_and_stay_whole(events, terminal):
    """A hundred lines through a terminal of twenty-four rows, with the status below."""
    observer = console(terminal)
    await observer.on_batch([events.run_start(2), events.start("chain_0", "Q"), events.start("chain_1", "R")])
    for i in range(100):
        await observer.on_batch([events.chunk(f"chain_{i % 2}", f"line {i}\n")])
    assert "2 running" in terminal.rows[-1]
    await observer.aclose()
    assert terminal.rows[3:] == [f"chain_{i % 2} │ line {i}" for i in range(100)]


async def test_the_status_moves_while_nothing_happens(events, terminal, eventually):
    """A few times a second, so that a slow model can be told from a hung terminal."""
    observer = console(terminal)
    await observer.on_batch([events.start("chain_0", "Q")])
    first = terminal.rows[-1]
    await eventually(lambda: terminal.rows[-1] != first)
    assert "1 running" in terminal.rows[-1]
    await observer.aclose()


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
async def test_a_terminal_that_cannot_move_its_cursor_is_not_told_to(
    events, terminal, monkeypatch, environment
):
    """No status and no colours."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    observer = console(terminal)
    await observer.on_batch([events.run_start(2), events.start("chain_0", "Q")])
    await observer.aclose()
    assert "\x1b" not in terminal.getvalue()


async def test_without_colours_the_status_stays(events, terminal, monkeypatch):
    """NO_COLOR is about colours: no style at all, but the cursor moves."""
    monkeypatch.setenv("NO_COLOR", "1")
    observer = console(terminal)
    await observer.on_batch([events.run_start(2), events.start("chain_0", "Q")])
    assert "running" in terminal.rows[-1]
    await observer.aclose()
    assert "m" not in {sequence[-1:] for sequence in terminal.getvalue().split("\x1b[")[1:]}


async def test_consoles_in_three_threads_never_mix_within_a_line(events, terminal):
    """One for each chain, each in a thread with a loop of its own, and a JSON observer beside them."""

    def run(i):
        async def feed():
            observer = console(terminal, chain_filter=f"chain_{i}")
            await observer.on_run_opened(events.run_id)
            for n in range(60):
                text = f"<{i}:{n}>"
                await observer.on_batch(
                    [events.chunk(f"chain_{i}", text[:3]), events.chunk(f"chain_{i}", text[3:])]
                )
                await observer.on_batch([events.chunk(f"chain_{i}", "\n")])
            await observer.on_run_closed(events.run_id)
            await observer.aclose()

        asyncio.run(feed())

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = dict.fromkeys(range(3), "")
    for row in terminal.rows:
        label, _, text = row.partition(" │ ")
        assert label in ("chain_0", "chain_1", "chain_2"), row
        seen[int(label[-1])] += text.removeprefix("… ")
    assert seen == {i: "".join(f"<{i}:{n}>" for n in range(60)) for i in range(3)}


async def test_a_json_observer_on_the_same_output_takes_its_turn(events, monkeypatch):
    """Its lines stand between the console's, and end an open one first."""
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    observer, lines = console(None), JSONStreamObserver(flush_interval=0)
    await observer.on_batch([events.start("chain_0", "Q"), events.chunk("chain_0", "half ")])
    await lines.on_batch([events.end("chain_0")])
    await observer.on_batch([events.chunk("chain_0", "whole")])
    await observer.aclose()
    await lines.aclose()
    one, two, three, four = file.getvalue().splitlines()
    assert (one, two, four) == ("chain_0 │ ▸ Q", "chain_0 │ half ", "chain_0 │ … whole")
    assert three.startswith('{"event_type":"chain_end"')


SCRIPT = """
import asyncio, sys
from rollcast.records import StreamEvent
from rollcast.terminal import ConsoleStreamObserver
def event(n, text):
    return StreamEvent.now("llm_generation_chunk", f"chain_{n}", content=text)
async def main():
    asyncio.get_running_loop().slow_callback_duration = 1e6  # in debug mode asyncio would tell of a slow machine
    observer = ConsoleStreamObserver(show_timestamps=False)
    await observer.on_batch([event(0, "zero"), event(1, "one")])
BODY
asyncio.run(main())
"""


def run(body, **options):
    """A process whose console has printed, and which goes on with `body`; to be entered, so that nothing of it is left."""
    body = textwrap.indent(textwrap.dedent(body), "    ")
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT.replace("BODY", body)],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1"},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_closed_pipe_is_silent():
    """No traceback while it prints and none at exit; the program goes on."""
    body = """
        for n in range(2000):
            await observer.on_batch([event(n % 2, "x" * 50 + chr(10))])
        await observer.aclose()
        print("more that nobody reads")
        print("done", file=sys.stderr)
        """
    with run(body, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "done\n"
        assert process.wait() == 0


def test_the_status_leaves_a_real_terminal_even_at_an_exception():
    """In a pseudo-terminal of 50 columns: nothing but whole lines is left after the program died without closing."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
    with run("raise SystemExit(3)", stdout=child) as process:
        os.close(child)
        output = b""
        try:
            while chunk := os.read(parent, 65536):
                output += chunk
        except OSError:  # Linux says so at the end of a pseudo-terminal
            pass
        os.close(parent)
        assert process.stderr.read() == ""
        assert process.wait() == 3
    assert b"running" in output
    screen = pyte.Screen(50, 20)
    pyte.ByteStream(screen).feed(output)
    assert [row.rstrip() for row in screen.display if row.strip()] == ["chain_0 │ zero"]
