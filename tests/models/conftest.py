"""What the tests of models share."""

import pytest

from leftovers import end_what_a_process_ends


@pytest.fixture(autouse=True)
def nothing_left_running():
    """Engines and servers are shared here by the tests of a file, which make them when the first one needs them; so a test may leave them."""
    yield
    end_what_a_process_ends()
