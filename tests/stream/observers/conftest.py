"""The console and the JSON lines are threaded observers: here they are driven directly, in the test's own loop."""

import pytest


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """They may block, since the manager gives them a thread of their own."""
