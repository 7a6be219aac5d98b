"""Which records a hub takes from producers that did not write them, without sockets or disks."""

import pytest

from rollcast.fleet.handovers import Handovers
from rollcast.fleet.sources import Source

KEY = ("w", "e1")


def source(name, **facts):
    """A source of which the hub knows this."""
    known = Source(name)
    for fact, value in facts.items():
        setattr(known, fact, value)
    return known


HEIR = source("v", host="here")
LINK, NEXT_LINK = object(), object()


@pytest.mark.parametrize(
    ("owner", "says"),
    [
        (None, None),
        (source("w", host="here", epoch="e1"), None),
        (source("w", host="here", epoch="e2", link=object()), None),
        (source("w", host="here", epoch="e1", link=object()), "that producer is connected itself"),
        (source("w", host="there", epoch="e1"), "it was written on 'there'"),
    ],
)
def test_whose_record_is_taken(owner, says):
    """That of an unknown producer, or of one on the same host that does not speak for itself."""
    why = Handovers().why_not(LINK, HEIR, owner, KEY, 1)
    assert why is None if says is None else says in why


def test_what_follows_a_refusal_is_refused_until_the_record_begins_again():
    """A connection that comes later is not held to that."""
    handovers, away = Handovers(), source("w", host="here", epoch="e1")
    assert handovers.why_not(LINK, HEIR, source("w", epoch="e1", link=object()), KEY, 5)
    assert "from number 5 on" in handovers.why_not(LINK, HEIR, away, KEY, 9)
    assert handovers.why_not(NEXT_LINK, HEIR, away, KEY, 9) is None
    handovers.forget(LINK)
    assert handovers.why_not(LINK, HEIR, away, KEY, 9) is None


def test_a_record_that_begins_again_where_it_was_refused():
    """It is taken, and so is what follows."""
    handovers, away = Handovers(), source("w", host="here", epoch="e1")
    assert handovers.why_not(LINK, HEIR, source("w", epoch="e1", link=object()), KEY, 5)
    assert handovers.why_not(LINK, HEIR, away, KEY, 5) is None
    assert handovers.why_not(LINK, HEIR, away, KEY, 9) is None
