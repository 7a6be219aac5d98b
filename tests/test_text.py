import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.text import (
    bounded,
    escape_surrogates,
    one_line,
    plain_line,
    printable_line,
    replace_surrogates,
    shorten,
    terminal_safe_json,
    visible,
    well_formed,
)


def shown(text, encoding=None):
    return "".join(t for t, _ in visible(text, encoding))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\x08c\x7f", r"a\rb\x08c\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eevil\u2066x\u2069", r"\u202eevil\u2066x\u2069"),
        ("pass\u200bword\ufeff", r"pass\u200bword\ufeff"),
        ("hidden\U000e0041\U000e0100", r"hidden\U000e0041\U000e0100"),
        ("\ud800", r"\ud800"),
        ("a\tb", "a    b"),
        ("日本語 🙂 é", "日本語 🙂 é"),
        ("\u3000wide space", "\u3000wide space"),
    ],
)
def test_what_is_invisible_or_obeyed_is_shown_as_an_escape(text, expected):
    """Escapes are Python's, the rest stays itself."""
    assert shown(text) == expected


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_gets_through(text):
    """Whatever the text is, no control, format, surrogate or unassigned character is left of it."""
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown(text))


def test_escapes_are_told_apart_from_text_that_looks_like_them():
    """Only what stands for a character is marked as an escape."""
    assert visible("\\x1b") == [("\\x1b", False)]
    assert visible("\x1b") == [("\\x1b", True)]


def test_characters_that_the_output_cannot_show_are_escaped():
    """A Latin-1 terminal gets an escape in place of a Japanese character."""
    assert shown("é日", "latin-1") == r"é\u65e5"


def test_shortening_counts_what_it_leaves_out():
    """The rest is a number of characters."""
    assert shorten("x" * 10, 4) == ("xxxx", 6)
    assert shorten("xxxx", 4) == ("xxxx", 0)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_json_made_safe_means_the_same(texts):
    """Escaping within JSON lines changes no value, and leaves only newlines between them."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    safe = terminal_safe_json(lines)
    assert [json.loads(line)["text"] for line in safe.split("\n")[:-1]] == texts
    assert not any(unicodedata.category(char) in ("Cc", "Cf") for char in safe.replace("\n", ""))


def test_a_no_break_space_is_a_space_in_every_encoding():
    """The console's own figures have one before their unit, on ASCII terminals too."""
    assert visible("2\u00a0ms", "ascii") == [("2\u00a0ms", False)]


SPLIT = "a\ud83d\ude00b\ud800c"
"""A pair of surrogates, which means an emoji, and a lone one."""


def test_surrogates_are_joined_replaced_or_escaped():
    """Three functions for three uses: what a reader should see, what must keep its length, what must tell which one it was."""
    assert well_formed(SPLIT) == "a\U0001f600b\ufffdc"
    assert replace_surrogates(SPLIT) == "a\ufffd\ufffdb\ufffdc"
    assert escape_surrogates(SPLIT) == r"a\ud83d\ude00b\ud800c"


@given(st.text(st.characters()))
def test_no_surrogate_is_left(text):
    """Whatever the text is, it can be encoded; one that could be stays the same object."""
    for made in (well_formed(text), replace_surrogates(text), escape_surrogates(text)):
        made.encode()
    assert len(replace_surrogates(text)) == len(text)
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert well_formed(text) is text


@given(st.text(st.characters()), st.integers(1, 40))
def test_a_line_is_one_line_within_its_limit(text, limit):
    """Of the three kinds of line, none has a line break; those that are cut at their limit keep to it."""
    lines = one_line(text, limit), plain_line(text, limit), printable_line(text, limit)
    assert not any(len(line.splitlines()) > 1 for line in lines)
    assert max(len(lines[0]), len(lines[1])) <= limit
    assert lines[1].isprintable()


def test_kinds_of_lines():
    """For a model, for words of our own, for a terminal."""
    text = "red:\n\x1b[31m  no"
    assert one_line(text) == "red: \x1b[31m no"
    assert plain_line(text, 20) == "red: [31m no"
    assert plain_line(text, 6) == "red: …"
    assert printable_line(text) == r"red:\x0a\x1b[31m  no"


def test_a_bounded_text_tells_how_long_it_was():
    """If there is no room for that, it is only cut."""
    assert bounded("x" * 100, 40) == "xxxxxxxxxx… [truncated: 100 characters]".rjust(40, "x")
    assert bounded("x" * 10, 40, 2000).endswith("… [truncated: 2000 characters]")
    assert bounded("x" * 100, 5) == "xxxxx"
