"""The summary of a run: it fits where it is printed."""

import io

import pytest

from rollcast import BaseAgent
from rollcast.cli.output import Output
from rollcast.cli.summary import print_about, print_summary, summary_rows, totals_rows
from rollcast.terminal.layout import ASCII, row_cells
from rollcast.testing import ScriptedBackend

LONG = (
    "If a train leaves at nine and another one at ten, how far apart are they when both have arrived at noon?"
)


async def played(questions, chains=4, reward=lambda final_response: 1.0):
    agent = BaseAgent(backend=ScriptedBackend("It is 4."), reward=reward)
    rows = [
        {"messages": [{"role": "user", "content": question}], "answer": answer}
        for question, answer in questions
    ]
    return await agent.prepare(3, rows, chains).execute(), rows


def text(rows):
    return ["".join(piece for piece, _ in row) for row in rows]


@pytest.fixture(params=["short", "long", "wide", "many"])
async def run(request):
    questions = {
        "short": [("What is 2 + 2?", 4)],
        "long": [(LONG, "a long answer " * 9), ("1+1", 2)],
        "wide": [("日本語の質問" * 20, "答え" * 20)],
        "many": [(f"What is {i} + {i}?", 2 * i) for i in range(30)],
    }
    return await played(questions[request.param])


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
async def test_no_line_is_wider_than_the_terminal(run, width):
    """The terminal would break it anywhere."""
    result, rows = run
    lines = summary_rows(result, rows, width) + totals_rows(result, width)
    assert (
        max(map(row_cells, lines)) < width or width == 20
    )  # a fact of the totals may be wider: it wraps by words


async def test_at_80_columns_a_group_is_one_line():
    """Its question is cut, with a sign; the whole of it stands among the lines before."""
    result, rows = await played([(LONG, 42), ("1+1", 2)])
    head, first, second = text(summary_rows(result, rows, 80))
    assert head == "group    mean  rewards  answer  question"
    assert first == f"group_0  1.00  1 1 1 1  42      {LONG[:46]}…"
    assert second == "group_1  1.00  1 1 1 1  2       1+1"


async def test_at_40_columns_a_group_is_a_paragraph_of_whole_words():
    """No word is broken, and nothing is cut."""
    result, rows = await played([(LONG, 42)])
    name, rewards, answer, *question = text(summary_rows(result, rows, 40))
    assert (name, rewards, answer) == ("group_0  mean 1.00", "  1 1 1 1", "  answer 42")
    assert " ".join(line.strip() for line in question) == LONG
    assert len(question) > 2


async def test_without_a_terminal_nothing_is_wrapped_or_cut():
    """One line a group, one for the totals, whatever their length."""
    result, rows = await played([(LONG * 3, 42)])
    _, line = text(summary_rows(result, rows, None))
    assert line.endswith(LONG)
    (totals,) = text(totals_rows(result, None))
    assert totals.startswith("completed: 4 chains (4 answered), mean reward 1.00, ")
    assert totals.endswith(f"seed {result.seed}")


async def test_the_totals_break_between_facts():
    """A number and its unit stay together."""
    result, _ = await played([("1+1", 2)])
    lines = text(totals_rows(result, 40))
    assert lines[0] == "completed: 4 chains (4 answered),"
    assert lines[1].startswith("mean reward 1.00,")
    assert " ".join(lines) == text(totals_rows(result, None))[0]


async def test_one_chain_is_no_plural():
    """As the console counts it."""
    result, _ = await played([("1+1", 2)], chains=1)
    assert text(totals_rows(result, None))[0].startswith("completed: 1 chain (1 answered), ")


async def test_rewards_of_many_chains_are_counted():
    """Sixty-four numbers say less than two with their counts."""
    rewards = iter([1.0] * 40 + [0.0] * 24)
    result, rows = await played([("1+1", 2)], 64, lambda final_response: next(rewards))
    assert "40×1 24×0" in text(summary_rows(result, rows, 80))[1]
    assert "40x1 24x0" in text(summary_rows(result, rows, 80, ASCII))[1]


async def test_rows_without_answers_have_no_column_for_them():
    """And a group without rewards has no mean."""
    result, rows = await played([("1+1", ""), ("2+2", "")], 1, None)
    assert text(summary_rows(result, rows, 80)) == [
        "group    mean  rewards   question",
        "group_0  -     answered  1+1",
        "group_1  -     answered  2+2",
    ]


async def test_control_characters_and_newlines_of_a_question_are_harmless():
    """Escapes are shown, and a line stays one."""
    result, rows = await played([("a\x1b[2J\nb", "\r")])
    _, line = text(summary_rows(result, rows, None))
    assert line.endswith("a\\x1b[2J b")
    assert "\x1b" not in line


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize(("stream", "unread", "says"), [(Full, False, 1), (Closed, True, 0)])
async def test_a_stream_that_cannot_be_written_ends_nothing_and_is_told_of_once(stream, unread, says, capsys):
    """A closed pipe is silent."""
    result, rows = await played([("1+1", 2)])
    out = Output(stream(), color=None)
    print_about("About\nit.", out)
    print_summary(result, rows, out, log=None)
    out.warn_if_broken()
    out.warn_if_broken()
    assert out.unread is unread
    assert capsys.readouterr().err.count("the output cannot be written: No space left on device") == says
