"""Records that tests write."""

import asyncio

import pytest
from blockbuster import blockbuster_ctx

from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver, worker
from rollcast.archive.reader import Archive

READING = {
    "reader.py": {
        "open",
        "refresh",
        "length",
        "new_events",
        "chains",
        "chain",
        "train_rows",
        "open_parts",
        "notes",
        "add_note",
        "trajectory",
        "state",
    },
    "index.py": {"read_run_file", "list_records", "find_record", "state_of"},
    "segments.py": {"segments_in"},
    "recovery.py": {"recover"},
    "budget.py": {"trim_records"},
}


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """As everywhere, but that tests read a record in their event loop: reading blocks, and says so."""
    with blockbuster_ctx("rollcast") as blockbuster:
        for function in blockbuster.functions.values():
            function.can_block_in("rollcast/archive/observer.py", {"__init__", "within"})
            function.can_block_in("rollcast/stream/pump.py", {"_run_on_a_thread"})
            for name, functions in READING.items():
                function.can_block_in(f"rollcast/archive/{name}", functions)
        yield


def say(chain, text, *, step_ids=100):
    """One generation, a token a word."""
    with chain.generation(prompt_ids=[1, 2]) as generation:
        for i, word in enumerate(text.split()):
            generation.chunk(word + " ", [step_ids + i], [-0.25])


def talk(run, number=0, *, messages=None, reward=None, tools=1):
    """One chain: a generation, some calls, an answer and a reward."""
    messages = messages or [{"role": "user", "content": f"question {number}"}]
    with run.chain(messages, group_id=f"group_{number}", tools=["look"], reference=number) as chain:
        say(chain, "let me see")
        for _ in range(tools):
            with chain.tool_call("look", {"at": number}) as call:
                call.observation(f"saw {number}")
        say(chain, f"it is {number}")
        chain.reward(float(number) if reward is None else reward, {"exact": 1.0})


class Stage:
    """A manager with an observer that records into a folder."""

    def __init__(self, path):
        self.path = path
        self.manager = StreamingManager()

    def observe(self, **options):
        options.setdefault("masker", False)
        self.observer = ArchiveObserver(self.path, **options)
        self.manager.add_observer(self.observer)
        return self.observer

    async def run(self, chains=3, **about):
        async with self.manager.run(chains=chains, groups=chains, **about) as run:
            for number in range(chains):
                talk(run, number)
        return run.run_id

    async def recorded(self):
        """All that was emitted until now is written, or could not be."""
        await self.manager.drain()
        await asyncio.wrap_future(self.observer._worker.flush())

    async def close(self):
        await self.manager.aclose()
        return self.open()

    def open(self):
        return Archive.open(self.path)


@pytest.fixture
async def stage(tmp_path, monkeypatch):
    monkeypatch.setattr(
        worker, "FIRST_BEAT_S", worker.BEAT_S
    )  # tests beat themselves, and copy the folder meanwhile
    stage = Stage(tmp_path / "runs" / "r")
    yield stage
    await stage.manager.aclose()


@pytest.fixture(name="talk")
def talk_fixture():
    return talk


@pytest.fixture(name="say")
def say_fixture():
    return say
