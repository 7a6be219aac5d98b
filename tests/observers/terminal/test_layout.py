import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from rich.color import ColorSystem

from rollcast.terminal.layout import ASCII, UNICODE, Painter, chain_number, row_cells, wrap
from rollcast.terminal.tags import style_tags


@given(st.text(st.characters(categories=["L", "Nd", "Zs", "So"])), st.integers(4, 40), st.integers(4, 40))
def test_wrapped_rows_fit_and_lose_only_the_spaces_at_their_breaks(text, first, rest):
    """No row is wider than allowed, in cells, and all that is not a space is there in order."""
    rows = wrap([(text, "")], first, rest)
    for row, limit in zip(rows, [first, *[rest] * len(rows)], strict=False):
        assert row_cells(row) <= limit
    joined = "".join(t for row in rows for t, _ in row)
    assert joined.replace(" ", "") == text.replace(" ", "")


def test_words_stay_whole_where_they_fit():
    """A row is broken at its last space."""
    assert wrap([("one two three", "")], 9, 9) == [[("one two", "")], [("three", "")]]


def test_wide_characters_count_as_two_cells():
    """Four cells hold two Japanese characters."""
    assert [row[0][0] for row in wrap([("日本語日", "")], 4, 4)] == ["日本", "語日"]


def test_a_chain_has_the_same_colour_in_every_process():
    """The colour comes from the number at the end of the id, never from Python's hash."""
    painter = Painter(ColorSystem.EIGHT_BIT)
    assert painter.chain_style("chain_17") == f"chain:{17 % painter.colors}"
    code = "from rollcast.terminal.layout import chain_number as n; print(n('uuid-x'))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{chain_number('uuid-x')}\n"}


def test_without_a_colour_system_nothing_is_painted():
    """The row is its text."""
    assert Painter(None).paint([("a", "fail"), ("b", "chain:3")]) == "ab"


def test_both_sets_of_glyphs_are_told_apart_without_colours():
    """No two kinds of line begin alike."""
    for g in (UNICODE, ASCII):
        heads = [
            g.start,
            g.call,
            g.result,
            g.below,
            g.fail,
            g.reward,
            g.end,
            g.more,
            g.gap,
            g.joined,
            g.train,
        ]
        assert len(set(heads)) == len(heads)
    assert ASCII.encodable("ascii")
    assert not UNICODE.encodable("latin-1")


def split_anywhere(text):
    return st.lists(st.integers(0, len(text)), max_size=8).map(
        lambda cuts: [text[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True)]
    )


@given(split_anywhere("So: <tool_call>{1 < 2}</tool_call> and <think>x</think><b>"))
def test_tags_are_found_however_the_text_is_cut(pieces):
    """Raw calls and thoughts are styled the same whether they come at once or in pieces."""
    tag, held, styled = None, "", []
    for i, piece in enumerate(pieces):
        row, tag, held = style_tags(held + piece, tag, final=i == len(pieces) - 1)
        styled += [(char, style) for text, style in row for char in text]
    whole = style_tags("".join(pieces), None, final=True)[0]
    assert styled == [(char, style) for text, style in whole for char in text]
    raw = "".join(char for char, style in styled if style == "raw")
    assert raw == "<tool_call>{1 < 2}</tool_call>"
