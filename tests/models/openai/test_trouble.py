"""What goes wrong between a client and a server."""

import pytest

from rollcast.models.openai.trouble import TroubleError, error_of


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2", 2.0), ("-1", 0.0), ("inf", 300.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_the_server_says_how_long_to_wait(value, seconds):
    """`Retry-After` is a number or a date, and no longer than five minutes are waited."""
    error = error_of(429, b"", {"Retry-After": value}, "here")
    assert isinstance(error, TroubleError)
    assert error.wait_s(1) == seconds


@pytest.mark.parametrize("value", ["nan", "soon", "", "Wed, 99 Oct 99999 07:28:00 GMT"])
def test_what_says_nothing_is_left_out(value):
    """A `Retry-After` that is no time is as good as none."""
    error = error_of(503, b"", {"Retry-After": value}, "here")
    assert error.after_s is None
    assert 0 < error.wait_s(1) <= 0.25
