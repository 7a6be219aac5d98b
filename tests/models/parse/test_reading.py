"""Facts about reasoning and output in a turn's text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linear import assert_linear
from rollcast.models import resolve_parser
from rollcast.models.parse import HermesParser
from rollcast.models.parse.reading import Reading, split
from rollcast.models.reasoning import FAMILIES, NONE, UNKNOWN, Thinking

CALL = '<tool_call>{"name": "f", "arguments": {"x": "real"}}</tool_call>'
DRAFT = '<tool_call>{"name": "f", "arguments": {"x": "draft"}}</tool_call>'
COMMON = [family for family in FAMILIES if not family.own]
INSIDE = Thinking(inside=FAMILIES[0])

# One draft and one call of each format, with what may follow on a call.
FORMATS = {
    "hermes": (DRAFT, CALL),
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=x>\ndraft\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=x>\nreal\n</parameter>\n</function>\n</tool_call>",
    ),
    "llama3": ('{"name": "f", "parameters": {"x": "draft"}}', '{"name": "f", "parameters": {"x": "real"}}'),
    "python": ("[f(x='draft')]", "[f(x='real')]"),
    "react": (
        'Action: f\nAction Input: {"x": "draft"}\nObservation: made up\n',
        'Action: f\nAction Input: {"x": "real"}\nObservation:',
    ),
    "code": ("```python\ndraft\n```\n```output\nmade up\n", "```python\nreal\n```"),
}
every = pytest.mark.parametrize("name", FORMATS)
common = pytest.mark.parametrize("family", COMMON, ids=lambda family: family.closing)


def texts(calls):
    return [next(iter(call.arguments.values())) for call in calls]


@every
@common
def test_a_draft_in_reasoning_is_no_call(name, family):
    """Of every format and every family: what is called stands behind the reasoning."""
    draft, call = FORMATS[name]
    parser = resolve_parser(name)
    for opening in family.openings:
        text = f"{opening}\nMaybe:\n{draft}\nno.\n{family.closing}\n\n{call}"
        assert texts(parser.parse(text)) == ["real"]


@every
def test_text_before_a_lone_closing_tag_is_reasoning(name):
    """Many prompts open the reasoning, and then the turn has the closing tag alone."""
    draft, call = FORMATS[name]
    for before in (draft, f"Maybe:\n{draft}", f"{draft}\nno.", draft[: len(draft) // 2]):
        turn = Reading(UNKNOWN, resolve_parser(name).turn)
        turn.feed(f"{before}\n</think>\n{call}")
        assert texts(turn.close()) == ["real"]
        assert turn.reasoning == before.strip()


@every
def test_reasoning_that_is_never_closed_has_no_calls(name):
    """It is cut by its length: nothing of it is output."""
    draft, _ = FORMATS[name]
    for text, thinking in ((f"<think>\n{draft}", UNKNOWN), (draft, INSIDE), (f"\n <think>{draft}", NONE)):
        turn = Reading(thinking, resolve_parser(name).turn)
        turn.feed(text)
        assert turn.close() == []
        assert (turn.output.strip(), turn.content.strip()) == ("", "")
        assert turn.reasoning == draft.strip()


@every
def test_a_turn_is_not_over_inside_of_reasoning(name):
    """Neither the format nor a stop string ends it, before it is known to be output."""
    draft, call = FORMATS[name]
    stops = resolve_parser(name).stop
    for text, thinking in ((f"<think>{draft}and more", UNKNOWN), (draft + "and more", INSIDE)):
        turn = Reading(thinking, resolve_parser(name).turn, stops)
        for character in text:
            turn.feed(character)
            assert not turn.over
        turn.feed(f"\n</think>\n{call}")
        assert texts(turn.close()) == ["real"]
    turn = Reading(UNKNOWN, resolve_parser(name).turn, stops)
    turn.feed(f"{draft}and more")
    assert not turn.over  # a lone closing tag may still come
    turn = Reading(NONE, resolve_parser(name).turn, stops)
    turn.feed(f"{draft}\nand more")
    assert turn.over
    turn = Reading(UNKNOWN, resolve_parser(name).turn, stops)
    turn.feed(f"<think>\n</think>\n{draft}\nand more")
    assert turn.over


def test_a_stop_string_ends_the_output():
    """What follows it is no output, though the text goes on."""
    turn = Reading(NONE, stops=("STOP", "\n\n"))
    for piece in ("one ST", "OP two", "\n\nthree"):
        turn.feed(piece)
    assert (turn.output, turn.over) == ("one STOP", True)


def test_a_stop_string_does_not_cut_reasoning():
    """A lone closing tag makes reasoning of all that stands before it, also of what follows a stop string."""
    turn = Reading(UNKNOWN, stops=("STOP",))
    turn.feed("one STOP two\n</think>three STOP four")
    assert (turn.reasoning, turn.output, turn.over) == ("one STOP two", "three STOP", True)


@pytest.mark.parametrize(
    ("text", "reasoning", "output"),
    [
        ("<think>a</think>b", "a", "b"),
        ("\n <think>\n\na\n</think>\n\nb", "a", "b"),
        ("a</think>\n\nb", "a", "b"),
        ("<think></think>b", "", "b"),
        ("</think>b", "", "b"),
        ("<think>a", "a", ""),
        ("<think>a</thin", "a</thin", ""),
        ("<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d"),
        ("<think>a</think>b<think>c</think>d", "a\n\nc", "bd"),
        ("<think>a</think>b\n<think>c</think>\nd", "a\n\nc", "b\nd"),
        ("b\n<think>c</think>\nd", "c", "b\nd"),
        (f"<think>a</think>{CALL}<think>b", "a\n\nb", CALL),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<|channel>thought\na\n<channel|>b", "a", "b"),
        ("a<channel|>b", "a", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=f<|message|>{}",
            "a",
            "<|start|>assistant<|channel|>commentary to=f<|message|>{}",
        ),
        ("<|channel|>final<|message|>b", "", "b"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b", "a", "b"),
        ("a<|end|>b", "", "a<|end|>b"),
        ("no tag", "", "no tag"),
        ("\n\nno tag", "", "\n\nno tag"),
        ("", "", ""),
    ],
)
def test_reasoning_is_told_from_output(text, reasoning, output):
    """With both tags, the closing one alone, or none; the whitespace and the frames between are of neither."""
    turn = split(text)
    assert (turn.reasoning, turn.output) == (reasoning, output)


@pytest.mark.parametrize(
    "text",
    [
        "Close it with `</think>`, then answer.",
        'The tag "</think>" ends it.',
        "It stands between <think> and </think>.",
        "The <think> tag begins it.",
        "Write `<think>` first.",
        "See:\n```\n<think>\nhm\n```\n",
        "Neither <thinking> nor </thin",
        CALL.replace("real", "a </think> b"),
    ],
)
def test_a_tag_that_an_answer_names_is_text(text):
    """In quotes, among a few words, in a fenced block, or in an argument of a call."""
    turn = Reading(UNKNOWN, HermesParser().turn)
    turn.feed(text)
    turn.close()
    assert (turn.reasoning, turn.output) == ("", text)


def test_a_tag_that_reasoning_names_does_not_end_it():
    """In quotes and backticks."""
    for named in ("`</think>`", '"</think>"', "('</think>')"):
        turn = split(f"<think>I end with {named}, not yet. {DRAFT}</think>{CALL}")
        assert turn.output == CALL
    assert split("<think>use `f`</think>`f`").output == "`f`"


def test_an_argument_keeps_a_closing_tag():
    """A lone closing tag inside of a call closes reasoning only if the call is none."""
    parse = HermesParser().parse
    call = '<tool_call>{"name": "f", "arguments": {"x": "a </think> b"}}</tool_call>'
    assert texts(parse(call)) == ["a </think> b"]
    assert texts(parse(call + call)) == ["a </think> b"] * 2
    assert texts(parse(f"<think>{DRAFT}</think>{call}")) == ["a </think> b"]
    assert texts(parse(f'<tool_call>{{"name": "f", "arg no</think>{CALL}')) == ["real"]
    assert texts(parse(f"{call} no</think>{CALL}")) == ["real"]


@pytest.mark.parametrize(
    ("name", "call", "value"),
    [
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=x>\n<think>\na\n</think>\nb\n</parameter>\n</function>\n</tool_call>",
            "<think>\na\n</think>\nb",
        ),
        ("code", '```python\ns = """\n</think>\n"""\n```', 's = """\n</think>\n"""'),
        ("code", '```python\ns = """\n</think>\n"""\n```\nThat is all.', 's = """\n</think>\n"""'),
        ("llama3", '{"name": "f", "parameters": {"x": "a\\n</think> b"}}', "a\n</think> b"),
        ("python", '[f(x="""\n</think>\n""")]', "\n</think>\n"),
        ("react", 'Action: f\nAction Input: {"x":\n"a</think>b"}\nObservation:', "a</think>b"),
    ],
)
def test_an_argument_keeps_a_closing_tag_on_a_line_of_its_own(name, call, value):
    """Files, prompts and code have such lines."""
    for before in ("", "I write it.\n") if name not in {"llama3", "python"} else ("",):
        turn = Reading(UNKNOWN, resolve_parser(name).turn)
        turn.feed(before + call)
        assert texts(turn.close()) == [value]
        assert turn.reasoning == ""


@every
def test_a_draft_that_was_not_ended_is_no_call(name):
    """The closing tag inside of it is none of its arguments: a call follows."""
    draft, call = FORMATS[name]
    for tag in ("\n</think>\n", " hm</think>\n", "</think>"):
        for size in range(1, len(draft) - 1, 5):
            if tag.endswith("\n") or name not in {"react", "code"}:  # their calls begin a line
                assert texts(resolve_parser(name).parse(draft[:size] + tag + call)) == ["real"], size


def test_a_broken_call_with_a_closing_tag_is_told():
    """The format has shown its end, so it was meant as a call; a draft that is left open is none."""
    (call,) = HermesParser().parse('<tool_call>{"name": "f", "arguments": {"x": "\n</think>\n"}}</tool_call>')
    assert (call.tool_name, call.error) == ("f", "error: bad json")
    assert HermesParser().parse('<tool_call>{"name": "f", hm</think>\nIt is 4.') == []


def test_reasoning_may_name_its_closing_tag_in_a_sentence_or_in_code():
    """A tag that closes follows; where none follows, the first one was it."""
    for named in (
        "I end with </think> here.",
        "```\n<think>\n</think>\n```",
        "The </think> and\tthe </think> tag",
    ):
        for begin, thinking in (("<think>", UNKNOWN), ("", UNKNOWN), ("", INSIDE), ("<think>", NONE)):
            turn = Reading(thinking, HermesParser().turn)
            turn.feed(f"{begin}{named} {DRAFT}")
            assert not turn.over
            turn.feed(f" no.\n</think>\nThe </think> tag. {CALL}\nSo.")
            assert texts(turn.close()) == ["real"]
            assert turn.reasoning == f"{named} {DRAFT} no."
            assert turn.output == f"The </think> tag. {CALL}\nSo."
            assert turn.finished
    turn = split("<think>It is 4. </think> so I say 4.")
    assert (turn.reasoning, turn.output) == ("It is 4.", "so I say 4.")


def test_a_block_takes_no_line_break_that_was_not_its_own():
    """The labels of a format stand at the beginning of a line."""
    text = 'Thought: a <think>b</think>\nAction: f\nAction Input: {"x": "real"}\nObservation:'
    assert texts(resolve_parser("react").parse(text)) == ["real"]
    assert texts(resolve_parser("code").parse("I run <think>b</think> \n\n```python\nreal\n```")) == ["real"]
    assert split("a <think>b</think>  c").output == "a c"
    assert split("a\n<think>b</think>\n\nc").output == "a\nc"


def test_ids_tell_a_tag_from_its_letters():
    """A tag that the vocabulary has as a token, and that was sampled in letters, is text."""
    thinking = Thinking(inside=FAMILIES[0], token_ids={7: "</think>", 6: "<think>"})
    turn = Reading(thinking)
    for text, ids in (
        ("I write ", [1]),
        ("</th", [2]),
        ("ink>", [3]),
        (" and", [4]),
        ("</think>", [7]),
        ("ok", [5]),
    ):
        turn.sampled(ids)
        turn.feed(text)
    turn.close()
    assert (turn.reasoning, turn.output) == ("I write </think> and", "ok")


def test_a_prompt_that_opened_reasoning_may_be_followed_by_the_tag_again():
    """It is a tag and no part of what was thought, once, and in front."""
    for before in ("", "\n", " \n\n"):
        turn = split(f"{before}<think>\na</think>b", INSIDE)
        assert (turn.reasoning, turn.output) == ("a", "b")
        assert turn.tags[0] == (len(before), len(f"{before}<think>"))
    assert split("<think><think>a</think>b", INSIDE).reasoning == "<think>a"
    assert split("a<think></think>b", INSIDE).reasoning == "a<think>"


def test_an_empty_piece_changes_nothing():
    """It is no character, and the characters before it still decide what a tag is."""
    turn = Reading(UNKNOWN)
    for piece in ("<think>", "it is x", "`", "", "</think>` yes"):
        turn.take(piece)
    turn.close()
    assert (turn.reasoning, turn.output) == ("it is x`", "` yes")


SHARDS = [
    "<think>", "</think>", "<thi", "nk>", "</", "`", '"', "<|channel>thought", "<channel|>", "[THINK]", "[/THINK]", "\n",
    " ", "a", "```", "STOP", "<tool_call>", "</tool_call>", CALL, DRAFT, "<|end|>", "<|start|>assistant", "STO",
    "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", '{"name": "f", "arguments": {"x": "',
]  # fmt: skip


def state(turn):
    return (
        turn.reasoning,
        turn.output,
        turn.content,
        turn.finished,
        turn.over,
        turn.lead,
        turn.tags,
        turn.interleaved,
    )


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.sampled_from(SHARDS), max_size=16).map("".join),
    thinking=st.sampled_from([UNKNOWN, NONE, INSIDE]),
    data=st.data(),
)
def test_any_cut_gives_the_same(text, thinking, data):
    """Reasoning, output, calls and the end are those of the whole, however the text is cut; no character is lost."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))

    def turn():
        return Reading(thinking, HermesParser().turn, ("STOP",))

    cut, whole, single = turn(), turn(), turn()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        assert cut.take(text[start:end]) == cut.over
    whole.feed(text)
    for end, character in enumerate(text, 1):
        single.feed(character)
        so_far = turn()
        so_far.feed(text[:end])
        assert state(single) == state(so_far)
    assert state(cut) == state(whole)
    assert cut.close() == whole.close() == single.close() == whole.close()
    assert state(cut) == state(whole) == state(single)
    if not (whole.interleaved or "STOP" in text):
        tagless = "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in whole.tags))
        assert sorted("".join(tagless.split())) == sorted("".join((whole.reasoning + whole.output).split()))


@pytest.mark.parametrize("unit", ["<", "<think>", "a`</think>`", " <think> a", "<think>a</think>", "\n", "\n<think> ",
    '<tool_call>{"name": "f", "arguments": {"x": "</think>', "</think>", "x<|channel|>analysis",
    "a </think> b", "```\n</think>\n", "<tool_call> the </think> tag", "<tool_call>{</think>}</tool_call>"])  # fmt: skip
def test_the_cost_is_linear(unit):
    """Endless text of any kind, in single characters or at once."""
    for thinking in (UNKNOWN, INSIDE):

        def work(text, thinking=thinking):
            turn, whole = Reading(thinking, HermesParser().turn), Reading(thinking, HermesParser().turn)
            for character in text:
                turn.feed(character)
            turn.close()
            whole.feed(text)
            whole.close()
            assert turn.reasoning == whole.reasoning

        assert_linear(work, lambda length: (unit * length)[:length])
