"""Notes that people add to a record."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rollcast
from rollcast import StreamingManager
from rollcast.archive import Archive, ArchiveObserver
from rollcast.errors import ArchiveError, InputError


@pytest.fixture
def archive(tmp_path, talk):
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    for run_id in ("r1", "r2"):
        with manager.run(chains=2, groups=2, run_id=run_id) as run:
            talk(run, 0)
            talk(run, 1)
    manager.close()
    return Archive.open(tmp_path / "r")


def test_a_note_is_about_a_record_or_a_part_of_it(archive):
    """Each has its author, its time and a name; a chain without a run is that of the last run that has one."""
    archive.add_note("a fine run", author="ann")
    archive.add_note(flag="odd", author="bob", chain_id="chain_1")
    archive.add_note("look", author="bob", chain_id="chain_0", run_id="r1", step=2, tokens=(0, 3))
    archive.add_note("both guess", author="ann", group_id="group_1")
    archive.add_note("the first", author="ann", run_id="r1")
    notes = Archive.open(archive.path).notes()
    assert [(n["author"], n.get("run_id"), n.get("group_id"), n.get("chain_id")) for n in notes] == [
        ("ann", None, None, None),
        ("bob", "r2", "group_1", "chain_1"),
        ("bob", "r1", "group_0", "chain_0"),
        ("ann", "r2", "group_1", None),
        ("ann", "r1", None, None),
    ]
    assert (notes[1]["flag"], notes[2]["step"], notes[2]["tokens"]) == ("odd", 2, [0, 3])
    assert len({n["id"] for n in notes}) == 5
    assert all(n["at"] > 1e9 for n in notes)


@pytest.mark.parametrize(
    ("note", "error", "why"),
    [
        ({}, InputError, "a note is empty"),
        ({"text": "  "}, InputError, "a note is empty"),
        ({"text": "x" * 70_000}, InputError, "70,000 characters; expected at most 65,536"),
        ({"text": "x", "author": " "}, InputError, "has no author"),
        ({"text": "x", "step": 1}, InputError, "turn 1; expected a number from 1 upward, and the chain_id"),
        ({"text": "x", "chain_id": "chain_0", "step": 0}, InputError, "turn 0"),
        ({"text": "x", "chain_id": "chain_0", "tokens": (0, 1)}, InputError, "the step of their turn"),
        ({"text": "x", "chain_id": "chain_0", "step": 1, "tokens": (3, 3)}, InputError, r"tokens \(3, 3\)"),
        ({"text": "x", "chain_id": "chain_9"}, ArchiveError, "no chain 'chain_9'"),
        ({"text": "x", "group_id": "group_9"}, ArchiveError, "no group 'group_9'"),
        ({"text": "x", "run_id": "r9"}, ArchiveError, "no run 'r9'"),
    ],
)
def test_what_says_nothing_or_is_about_nothing_is_refused(archive, note, error, why):
    """In a sentence, and nothing is written."""
    with pytest.raises(error, match=why):
        archive.add_note(**{"author": "ann"} | note)
    assert archive.notes() == []


def test_a_torn_note_costs_itself(archive):
    """A process that died while it wrote leaves a piece; what comes after it is a line of its own."""
    archive.add_note("one", author="ann")
    path = archive.path / "notes.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id":"abc","at":1.0,"aut')
    assert [n["text"] for n in archive.notes()] == ["one"]
    archive.add_note("two", author="ann")
    assert [n["text"] for n in archive.notes()] == ["one", "two"]


def test_a_full_disk_leaves_no_piece_of_a_note(archive, monkeypatch):
    """What could be written of it is cut off, and the error says why."""
    archive.add_note("one", author="ann")
    before = (archive.path / "notes.jsonl").read_bytes()
    write = os.write

    def full(fd, data):
        if len(data) <= 10:
            raise OSError(28, "No space left on device")
        return write(fd, bytes(data)[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            archive.add_note("a long text " * 3, author="ann")
    assert (archive.path / "notes.jsonl").read_bytes()[: len(before)] == before
    archive.add_note("two", author="ann")
    assert [n["text"] for n in archive.notes()] == ["one", "two"]


def test_several_people_add_notes_at_once(archive):
    """Processes and threads: every note is there, whole."""
    code = (
        "import sys; from rollcast.archive import Archive; a = Archive.open(sys.argv[1])\n"
        "for i in range(20): a.add_note(f'{sys.argv[2]} {i} ' + 'x' * 5000, author='p')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parent.parent)}
    others = [
        subprocess.Popen([sys.executable, "-c", code, archive.path, name], env=environment) for name in "ab"
    ]

    def write(name):
        for i in range(20):
            archive.add_note(f"{name} {i} " + "x" * 5000, author="t")

    threads = [threading.Thread(target=write, args=(name,)) for name in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    found = [n["text"].split()[:2] for n in archive.notes()]
    assert sorted(found) == sorted([name, str(i)] for name in "abcd" for i in range(20))
    assert [i for name, i in found if name == "c"] == [str(i) for i in range(20)]


def test_fields_of_a_later_version_are_carried(archive):
    """A note comes out as it went in."""
    (archive.path / "notes.jsonl").write_bytes(
        b'{"id":"a","at":1.0,"author":"ann","text":"x","mood":"good"}\n'
    )
    assert archive.notes() == [{"id": "a", "at": 1.0, "author": "ann", "text": "x", "mood": "good"}]


async def test_a_record_that_is_being_written_can_have_notes(stage, talk):
    """Its writer leaves them alone."""
    stage.observe()
    async with stage.manager.run() as run:
        talk(run, 0)
        await stage.recorded()
        stage.open().add_note("while it runs", author="ann", chain_id="chain_0")
        talk(run, 1)
    archive = await stage.close()
    assert [n["text"] for n in archive.notes()] == ["while it runs"]
    assert archive.chain("chain_1")["state"] == "ended"
