"""Whole programs with one line more: what they leave, and how they end."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rollcast.archive import Archive, list_records, recover
from rollcast.records import check_events

HEAD = """
import os, sys, threading, time
import rollcast

@rollcast.attach
def answer(question):
    return f"answer to {question}"
"""


class Program:
    """A script in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.records = folder / "rollcast-runs"

    def start(self, code, *options, head=HEAD, **environ):
        script = self.folder / "my_agent.py"
        script.write_text(head + textwrap.dedent(code))
        known = {name: value for name, value in os.environ.items() if not name.startswith("ROLLCAST_")}
        return subprocess.Popen(
            [sys.executable, "-W", "error", *options, str(script)],
            cwd=self.folder,
            env=known | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code, *options, **environ):
        process = self.start(code, *options, **environ)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def recorded(self):
        """The one record, by its entry, and how its chains ended."""
        (entry,) = list_records(self.records)
        rows = Archive.open(entry.path).chains().rows
        return entry, [(row["finish_reason"], row["answer"]) for row in rows]


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


def test_a_script_leaves_a_record_and_a_line_that_names_it(program):
    """One line is enough."""
    code, out, err = program.run("print(answer('why'))")
    assert (code, out) == (0, "answer to why\n")
    entry, chains = program.recorded()
    assert entry.state == "ended"
    assert entry.facts.name == "my_agent"
    assert entry.facts.status == "completed"
    assert entry.facts.command[0].endswith("my_agent.py")
    assert chains == [("answered", "answer to why")]
    assert err.endswith(f"show rollcast-runs/{entry.name}\n")
    assert err.startswith("recorded: ")
    assert err.count("\n") == 1


def test_a_record_is_finished_once(program):
    """At exit it is whole only when what is attached has ended: before that, more comes."""
    code, out, _ = program.run(
        """
        from rollcast.archive.writer import Recorder
        finish = Recorder.finish
        Recorder.finish = lambda recorder: (finish(recorder), print(recorder.about.totals.events))
        answer("why")
        answer.attachment.watch.flush()
        answer.streaming_manager.drain_sync()
        """
    )
    assert (code, out) == (0, "4\n")
    assert program.recorded()[1] == [("answered", "answer to why")]


def test_a_program_that_fails(program):
    """Its run has failed, and its own traceback comes as it would."""
    code, _, err = program.run("answer('why')\nraise ValueError('mine')")
    assert code == 1
    assert "ValueError: mine\nrecorded: " in err
    assert program.recorded()[0].facts.status == "failed"


def test_ctrl_c(program):
    """The run is cancelled, and the record is whole."""
    process = program.start(
        "answer('why')\nprint('ready', flush=True)\nanswer.attachment.watch.flush()\nwhile True: time.sleep(0.01)"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt\nrecorded: " in err
    assert program.recorded()[0].facts.status == "cancelled"


def test_sys_exit_is_no_failure(program):
    """The exit code is the program's own."""
    code, _, err = program.run("answer('why')\nsys.exit(7)")
    assert code == 7
    assert err.startswith("recorded: ")
    assert program.recorded()[0].facts.status == "completed"


def test_os_exit_leaves_what_was_written(program):
    """Nothing of ours keeps the process; what was written can be recovered."""
    code, _, err = program.run(
        """
        answer('why')
        answer.attachment.watch.flush()
        answer.streaming_manager.drain_sync()
        from rollcast.archive import ArchiveObserver
        (record,) = [each for each in answer.streaming_manager.observers if isinstance(each, ArchiveObserver)]
        while not record.totals.events: time.sleep(0.01)
        os._exit(5)
        """
    )
    assert (code, err) == (5, "")
    (entry,) = list_records(program.records)
    assert entry.state == "crashed"


def test_sigterm_leaves_what_was_written(program):
    """It kills a Python program at once; what was written until then can be recovered."""
    process = program.start("answer('why')\nprint('ready', flush=True)\nwhile True: time.sleep(0.01)")
    assert process.stdout.readline() == "ready\n"
    give_up = time.monotonic() + 60
    while not any(b"chain_end" in path.read_bytes() for path in program.records.glob("*/events/*.jsonl")):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (-signal.SIGTERM, "")
    (entry,) = list_records(program.records)
    assert entry.state == "crashed"
    recover(entry.path)
    _, chains = program.recorded()
    check_events([*Archive.open(entry.path).events()])
    assert chains == [("answered", "answer to why")]


def test_sigterm_with_a_handler_leaves_a_whole_record(program):
    """The line that docs/attach/index.md gives: the program ends as programs do."""
    process = program.start(
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        answer('why')
        print('ready', flush=True)
        while True: time.sleep(0.01)
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert err.startswith("recorded: ")
    entry, chains = program.recorded()
    assert entry.state == "ended"
    assert chains == [("answered", "answer to why")]


def test_a_thread_that_still_calls_at_the_end(program):
    """Python waits for threads that are no daemons, and so do we; what daemons do after that is not seen, and raises nothing."""
    code, out, err = program.run(
        """
        def works(times):
            for n in range(times):
                answer(n)
                time.sleep(0.0001)
            print("done")
        threading.Thread(target=works, args=(1000,)).start()
        threading.Thread(target=works, args=(10**9,), daemon=True).start()
        """
    )
    assert (code, out) == (0, "done\n")
    assert err.startswith("recorded: ")
    assert err.count("\n") == 1
    entry, _ = program.recorded()
    assert entry.state == "ended"
    assert entry.facts.totals.chains >= 1000


def test_calls_in_other_exit_handlers(program):
    """Whatever comes before ours is seen, and what comes after it goes on unseen."""
    code, out, _ = program.run(
        """
        print(answer("last"))
        """,
        head="import atexit\natexit.register(lambda: print(answer('after')))\n"
        + HEAD
        + "atexit.register(lambda: answer('before'))\n",
    )
    assert (code, out) == (0, "answer to last\nanswer to after\n")
    assert [response for _, response in program.recorded()[1]] == ["answer to last", "answer to before"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork(program):
    """The child goes on unwatched, which is said if it calls; attached there as well, it has a record of its own."""
    code, out, err = program.run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        answer("parent")
        answer.attachment.watch.flush()
        def child():
            print(answer("child"), flush=True)
            again = rollcast.attach(answer.__wrapped__)
            print(again("again"), flush=True)
            sys.exit(3)
        pid = os.fork()
        if pid == 0:
            child()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert (code, out) == (0, "answer to child\nanswer to again\n3\n")
    assert err.count("is not watched in this process") == 1
    assert err.count("recorded: ") == 2
    chains = set()
    for entry in list_records(program.records):
        assert entry.state == "ended"
        chains |= {row["answer"] for row in Archive.open(entry.path).chains().rows}
    assert chains == {"answer to parent", "answer to again"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_inside_a_call(program):
    """What is attached in the child and called there has no parent: that chain is the other process's."""
    code, _, err = program.run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        @rollcast.attach
        def forks():
            pid = os.fork()
            if pid == 0:
                rollcast.attach(answer.__wrapped__)("child")
                sys.exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.exit(forks())
        """
    )
    assert (code, err.count("recorded: ")) == (0, 2)
    rows = [row for entry in list_records(program.records) for row in Archive.open(entry.path).chains().rows]
    assert sorted(row["answer"] for row in rows) == ["0", "answer to child"]
    assert [row.get("parent_chain_id") for row in rows] == [None, None]
    assert len({row["run_id"] for row in rows}) == 2


def test_multiprocessing(program):
    """Children that were spawned attach for themselves, and each leaves a record."""
    code, out, _ = program.run(
        """
        if __name__ == "__main__":
            import multiprocessing
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(answer, ["a", "b"]))
                pool.close()
                pool.join()
        """
    )
    assert (code, out) == (0, "['answer to a', 'answer to b']\n")
    assert program.recorded()[1] == [("answered", "answer to a"), ("answered", "answer to b")]


def test_at_a_prompt_the_record_is_named_when_it_begins(program):
    """In a notebook the process does not end soon."""
    code, _, err = program.run(
        "answer('why')\nanswer.detach()\nsys.exit()", head="import sys\nsys.ps1 = 'In : '\n" + HEAD
    )
    entry, _ = program.recorded()
    assert code == 0
    assert entry.facts.name == "function"
    assert "recording: " in err
    assert err.count(f"show rollcast-runs/{entry.name}\n") == 2


def test_a_folder_that_cannot_be_written(program):
    """The program goes on, and a warning says why there is no record."""
    program.records.write_text("a file is in the way")
    code, out, err = program.run("print(answer('why'))")
    assert (code, out) == (0, "answer to why\n")
    assert "recorded" not in err
    assert "rollcast-runs" in err


def test_a_hub_that_is_named_records_instead(program):
    """It is published; whether the hub is there changes nothing for the program."""
    code, out, err = program.run(
        """
        print(answer("why"))
        print([type(each).__name__ for each in answer.streaming_manager.observers])
        """,
        ROLLCAST_HUB="ws://localhost:9",
    )
    assert (code, out) == (0, "answer to why\n['HubStreamObserver']\n")
    assert "recorded:" not in err
    first, *others = err.splitlines()
    assert "cannot be reached" in first
    assert [line.partition(", and")[0].partition("; ")[0] for line in others] == [
        "the hub ws://localhost:9 does not have everything yet",
        "the hub ws://localhost:9 does not have everything",
    ]


def test_import_stays_light(program):
    """The line itself loads no server, no terminal and no model."""
    code, out, _ = program.run(
        "print([m for m in ('rich', 'websockets', 'numpy', 'torch', 'pydantic', 'rollcast.serve') if m in sys.modules])"
    )
    assert (code, out) == (0, "[]\n")
