"""Pages of rows: which rows, in which order, each once, and never too large."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast.archive.chain_rows import ChainQuery, merge_row, merged_page, page_of
from rollcast.archive.pages import PAGE_BYTES, encoded_row, page_by_number, page_by_run
from rollcast.errors import InputError

VALUES = (
    st.none()
    | st.integers(-3, 3)
    | st.floats(-3, 3)
    | st.sampled_from(["a", "b", "ab", "ä", "x" * 300])
    | st.booleans()
)


def row(number, value=None, run="r", **more):
    return {"run_id": run, "chain_id": f"chain_{number}", "reward": value} | more


def walked(sources, query):
    """All rows, page by page, from several sources that answer the same query."""
    rows, totals = [], set()
    while True:
        page = merged_page([page_of(source, query) for source in sources], query)
        totals.add(page.total)
        assert len(page.rows) <= query.limit
        rows += [json.loads(data) for data in page.rows]
        if page.next is None:
            return rows, totals
        assert page.rows
        query = msgspec.structs.replace(query, after=page.next)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(VALUES, st.sampled_from(["r", "s"]), st.booleans()), max_size=30),
    st.integers(1, 7),
    st.booleans(),
)
def test_pages_of_two_sources_have_each_row_once_and_in_order(given_rows, limit, descending):
    """Numbers before texts, rows without a value last, in either direction; whatever stands in which source."""
    rows = [(row(n, value, run), first) for n, (value, run, first) in enumerate(given_rows)]
    sources = [[r for r, first in rows if first], [r for r, first in rows if not first]]
    query = ChainQuery(sort="-reward" if descending else "reward", limit=limit)
    found, totals = walked(sources, query)
    assert totals == {len(rows)}
    assert sorted(map(str, found)) == sorted(str(r) for r, _ in rows)
    values = [r["reward"] for r in found]
    there = [value for value in values if value is not None]
    assert values == there + [None] * (len(values) - len(there))
    numbers = [value for value in there if not isinstance(value, str)]
    texts = [value[:256] for value in there if isinstance(value, str)]
    assert there == [*numbers, *(value for value in there if isinstance(value, str))]
    assert numbers == sorted(numbers, reverse=descending)
    assert texts == sorted(texts, reverse=descending)


def test_equal_values_are_in_the_order_of_their_chains():
    """`chain_2` before `chain_10`."""
    found, _ = walked([[row(n, 1.0) for n in (10, 2, 1)]], ChainQuery(sort="reward", limit=2))
    assert [r["chain_id"] for r in found] == ["chain_1", "chain_2", "chain_10"]


def test_rows_are_chosen_by_what_their_fields_have():
    """A value or one of several; all fields have to fit; a truth value is no number; chains may be left out."""
    rows = [row(0, 1), row(1, True), row(2, 1.0, state="ended"), row(3), row(4, 2, run="s")]

    def chosen(**about):
        return [json.loads(r.data)["chain_id"][6:] for r in page_of(rows, ChainQuery(**about)).rows]

    assert chosen(where={"reward": [1]}) == ["0", "2"]
    assert chosen(where={"reward": [True]}) == ["1"]
    assert chosen(where={"reward": [1, 2]}) == ["0", "2", "4"]
    assert chosen(where={"reward": [None]}) == ["3"]
    assert chosen(where={"reward": [1], "state": ["ended", "lost"]}) == ["2"]
    assert chosen(where={"reward": []}) == []
    assert chosen(run="s") == ["4"]
    assert chosen(run="r", without=[("r", "chain_0"), ("s", "chain_1")]) == ["1", "2", "3"]


@pytest.mark.parametrize("after", ["", "x", "é", "====", "W10", "bnVsbA", "eyJhIjoxfQ", "\x00", "A" * 9000])
def test_a_place_that_is_none_is_refused(after):
    """In a sentence, whatever it is."""
    with pytest.raises(InputError, match="is not the `next` of a page"):
        page_of([], ChainQuery(after=after))
    with pytest.raises(InputError, match="is not the `next` of a page"):
        page_by_number([], after, 1, 1000)
    with pytest.raises(InputError, match="is not the `next` of a page"):
        page_by_run([row(1)], after, 1, 1000)


@pytest.mark.parametrize("about", [{"sort": "beauty"}, {"sort": "--reward"}, {"where": {"answer": ["x"]}}])
def test_a_field_that_is_none_is_refused(about):
    """The message names those that there are."""
    with pytest.raises(InputError, match="the fields are activity, advantage"):
        page_of([], ChainQuery(**about))


def test_a_row_that_is_too_large_leaves_out_its_largest_fields():
    """And names them; what tells which chain it is stays."""
    large = row(1, 1.0, answer="x" * 5000, error="y" * 900, group_id="g")
    data = encoded_row(large, 2000)
    assert len(data) <= 2000
    assert json.loads(data) == row(1, 1.0, error="y" * 900, group_id="g", left_out=["answer"])
    assert json.loads(encoded_row(large, 10_000)) == large
    huge = {"run_id": "r" * 10_000, "chain_id": "c" * 10_000, "answer": 1}
    assert json.loads(encoded_row(huge, 1000))["chain_id"] == "c" * 256


def test_a_page_is_bounded():
    """It ends when it is large, and the next one goes on."""
    rows = [row(n, n, answer="x" * 10_000) for n in range(300)]
    page = page_of(rows, ChainQuery(sort="reward", limit=1000))
    assert sum(len(r.data) for r in page.rows) <= PAGE_BYTES
    assert page.more
    found, _ = walked([rows], ChainQuery(sort="reward", limit=1000))
    assert found == rows
    some = page_by_number(rows, None, 1000, 1 << 20)
    rest = page_by_number(rows, some.next, 1000, 1 << 20)
    assert len(some.rows) < 300
    assert [json.loads(r) for r in some.rows + rest.rows] == rows[: len(some.rows) + len(rest.rows)]


def test_later_rows_complete_earlier_ones():
    """Which training step learned from a chain does not say whose rollout it is of."""
    known = {"row": "start", "train_step": 1, "state": "running"}
    merge_row(known, {"row": "end", "state": "ended", "reward": 1.0})
    merge_row(known, {"row": "trained", "train_step": 7, "advantage": 0.5})
    assert known == {"row": "trained", "train_step": 1, "state": "ended", "reward": 1.0, "advantage": 0.5}
