"""What every test shares."""

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from leftovers import Running, end_what_a_process_ends

# Tests talk to nobody but themselves. TRL's trainers would report their use from a thread that goes on after its test.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import rollcast

# Lazy names are imported now, and not in the first test that needs one: in an event loop their import counts as blocking, and a
# test would pass or fail by what ran before it.
for name in rollcast.__all__:
    getattr(rollcast, name)

# Records of the commands that tests run, in this process and in others, go where nobody keeps them.
RECORDS = tempfile.mkdtemp(prefix="rollcast-records-of-tests-")
os.environ["ROLLCAST_RECORDS"] = RECORDS


def pytest_unconfigure():
    """Take away what they left."""
    shutil.rmtree(RECORDS, ignore_errors=True)


# What `make quick` leaves out: these take most of the time of all tests, and are run by `make test`.
SLOW = (
    "cli/test_files_and_pipes.py",
    "cli/test_printed_commands.py",
    "cli/test_recording.py",
    "cli/test_run.py",
    "cli/test_train.py",
    "cli/test_train_with_trl.py",
    "cli/test_watch.py",
    "models/hf/",
    "models/test_trl_templates.py",
    "proxy/test_fuzz.py",
    "scripts/",
    "serve/test_fuzz.py",
    "serve/test_hostile.py",
    "serve/test_many.py",
    "serve/test_restart.py",
    "serve/test_slow.py",
    "test_benchmark_fleet.py",
    "test_benchmark_page.py",
    "test_benchmarks.py",
    "test_docs.py",
    "test_examples.py",
    "testing/",
    "train/",
)
SLOW_NAMES = ("test_the_cost_is_linear", "test_any_split", "test_any_cut", "test_nothing_is_raised_whatever")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Mark what is slow."""
    for item in items:
        where = item.path.relative_to(HERE).as_posix()
        if where.startswith(SLOW) or item.name.startswith(SLOW_NAMES):
            item.add_marker(pytest.mark.slow)


# `make explore` draws new examples, so many times as many; without it each run plays the same, on any machine.
EXPLORE = int(os.environ.get("ROLLCAST_EXPLORE", "0"))
# How fast the machine is decides nothing: no deadline for an example, no complaint about slow drawing.
settings.register_profile(
    "rollcast",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize=not EXPLORE,
    max_examples=100 * max(EXPLORE, 1),
)
settings.load_profile("rollcast")


@pytest.fixture(autouse=True)
def ctrl_c_reaches_what_tests_start():
    """Under `nohup` and in the background this process ignores SIGINT, and what it starts would too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def commands_silence_no_later_test():
    """The commands silence a logger of their process; a test that calls one gives it back."""
    names = ("rollcast.observers.waiting_lines.count", "rollcast.archive.count")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """Rollcast never blocks the event loop: a blocking call of its own there raises. Constructors
    that load a model or look whether a file can be written are the exception, and observers on threads of their own."""
    with blockbuster_ctx("rollcast") as blockbuster:
        for function in blockbuster.functions.values():
            function.can_block_in("rollcast/models/tiny/backend.py", {"__init__"})
            function.can_block_in("rollcast/models/hf/backend.py", {"__init__"})
            function.can_block_in("rollcast/models/hf/__init__.py", {"__getattr__"})  # imports torch
            function.can_block_in("rollcast/observers/jsonl.py", {"__init__"})
            function.can_block_in("rollcast/archive/observer.py", {"__init__", "within"})
            function.can_block_in("rollcast/stream/pump.py", {"_run_on_a_thread"})
            function.can_block_in("rollcast/serve/producer.py", {"_run"})  # on a thread of its own
            function.can_block_in("rollcast/serve/hub_observer.py", {"__init__"})
            function.can_block_in(
                "rollcast/stream/playback.py", {"play"}
            )  # reads a record in a loop that has nothing else
            function.can_block_in(
                "rollcast/fleet/runner.py", {"_unpacked"}
            )  # loads an agent, before anything runs
            # A trainer blocks, and so does what it calls; its modules are imported with ours.
            function.can_block_in("rollcast/train/trl.py", {"<module>", "__init__", "__call__", "train"})
        yield


@pytest.fixture(autouse=True)
def nothing_left_running():
    """A test that leaves a thread of ours or a process behind fails, and not one that comes later and finds it."""
    before = Running()
    yield
    end_what_a_process_ends()
    left = before.left()
    assert not left, "this test leaves running:\n" + "\n".join(left)


async def until(condition, timeout=60.0):
    """Wait for a state, not for a duration."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(name="until")
def until_fixture():
    return until
