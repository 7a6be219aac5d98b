"""Filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.errors import FilterError
from rollcast.records import EventFilter, StreamEvent, StreamEventType

T = StreamEventType
names = st.none() | st.sets(st.sampled_from(["a", "b", "c"]))
filters = st.builds(EventFilter, names, names, names, st.none() | st.sets(st.sampled_from(list(T))))
events = st.builds(
    StreamEvent,
    st.sampled_from(list(T)),
    st.sampled_from(["a", "b", ""]),
    st.just(0.0),
    st.just({}),
    run_id=st.sampled_from(["a", "b"]),
    group_id=st.sampled_from(["a", None]),
)


@given(filters, filters, events)
def test_filters_compose(a, b, event):
    """`&` wants what both want, `|` what either wants."""
    assert (a & b).matches(event) == (a.matches(event) and b.matches(event))
    assert (a | b).matches(event) == (a.matches(event) or b.matches(event))


@given(filters, filters, filters, events)
def test_unions_intersect(a, b, c, event):
    """Composition nests."""
    assert ((a | b) & c).matches(event) == ((a.matches(event) or b.matches(event)) and c.matches(event))


@given(filters)
def test_json_shape_survives(a):
    """A simple filter survives its JSON shape."""
    assert EventFilter.from_dict(a.to_dict()) == a


def test_one_name_may_be_bare():
    """A string is one name, not its letters."""
    assert EventFilter(chains="chain_0") == EventFilter(chains=["chain_0"]) == EventFilter.coerce("chain_0")


def test_unknown_types_are_refused():
    """With the types that there are."""
    with pytest.raises(FilterError, match=r"no event type 'tokens'.*llm_generation_chunk"):
        EventFilter(types=["tokens"])


@pytest.mark.parametrize("bad", [{"chains": 3}, {"runs": [None]}, {"groups": [b"x"]}])
def test_names_are_strings(bad):
    """Anything else is refused by its field's name."""
    with pytest.raises(FilterError, match=next(iter(bad))):
        EventFilter(**bad)


def test_unknown_fields_are_refused():
    """A misspelt field is not an empty filter."""
    with pytest.raises(FilterError, match="'chain'"):
        EventFilter.from_dict({"chain": ["chain_0"]})


def test_run_events_do_not_pass_a_chain_filter():
    """What concerns the run as a whole belongs to no chain."""
    assert not EventFilter(chains="chain_0").wants(T.RUN_END)
