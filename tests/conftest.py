"""What every test shares."""

import asyncio
import threading

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

# How fast the machine is decides nothing: no deadline for an example, no complaint about slow drawing.
settings.register_profile(
    "rollcast", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("rollcast")


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """Rollcast never blocks the event loop: a blocking call of its own there raises. Constructors
    that load a model or look whether a file can be written are the exception, and observers on threads of their own."""
    with blockbuster_ctx("rollcast") as blockbuster:
        for function in blockbuster.functions.values():
            function.can_block_in("rollcast/models/tiny/backend.py", {"__init__"})
            function.can_block_in("rollcast/models/hf/backend.py", {"__init__"})
            function.can_block_in("rollcast/models/hf/__init__.py", {"__getattr__"})  # imports torch
            function.can_block_in("rollcast/stream/observers/jsonl.py", {"__init__"})
            function.can_block_in("rollcast/stream/pump.py", {"_run_on_a_thread"})
            # A trainer blocks, and so does what it calls; its modules are imported with ours.
            function.can_block_in("rollcast/train/trl.py", {"<module>", "__init__", "__call__", "train"})
        yield


@pytest.fixture(autouse=True)
def nothing_left_running():
    """No test leaves an observer's or a tool's thread behind that still works on something."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("rollcast-observer-"):
            thread.join(timeout=10)
            assert not thread.is_alive(), f"{thread.name} was left running"


async def until(condition, timeout=10.0):
    """Wait for a state, not for a duration."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(name="until")
def until_fixture():
    return until
