import asyncio
import io
import re
import sys
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doubles import part_of_run
from rollcast.errors import FilterError, InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.terminal import ConsoleStreamObserver


@pytest.fixture
def printed():
    """Feed events to a console that prints to a file; returns the lines, without timestamps."""

    async def feed(events, **options):
        file = io.StringIO()
        observer = ConsoleStreamObserver(show_timestamps=False, file=file, **options)
        await observer.on_batch(events)
        await observer.aclose()
        return file.getvalue().splitlines()

    return feed


async def test_text_is_gathered_into_whole_lines_with_their_chains_ids(events, printed):
    """Tokens of two chains that come in turn are not mixed within a line."""
    one, two = events.generation_start("chain_0"), events.generation_start("chain_1")
    chunks = [
        events.chunk(chain, text)
        for chain, text in [
            ("chain_0", "Hel"),
            ("chain_1", "Good"),
            ("chain_0", "lo\nyou"),
            ("chain_1", " day"),
            ("chain_1", "\n"),
        ]
    ]
    ends = [events.generation_end("chain_0", "Hello\nyou"), events.generation_end("chain_1", "Good day\n")]
    lines = await printed([events.run_start(2), one, two, *chunks, *ends])
    assert lines[1:] == ["chain_0 │ Hello", "chain_1 │ Good day", "chain_0 │ you"]


async def test_a_run_without_chains_is_a_training(events, printed):
    """Its rollouts are runs of their own."""
    lines = await printed([events.run_start(0), events.run_end(0)])
    assert [line.strip("─ ") for line in lines] == ["training · m · policy 0", "training completed · 2.00 s"]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            {"name": "night", "tags": ["lr=0.1", "keep"]},
            "run · 1 chain · night · m · policy 0 · lr=0.1 · keep",
        ),
        (
            {"name": "a", "tags": []},
            "run · 1 chain · m · policy 0",
        ),  # as the agent, whom nobody named otherwise
        ({"name": 7, "tags": "no list"}, "run · 1 chain · 7 · m · policy 0"),
        ({"tags": list("abcdef")}, "run · 1 chain · m · policy 0 · a · b · c · d"),
        ({"name": "\x1b[31mred"}, "run · 1 chain · \\x1b[31mred · m · policy 0"),
    ],
)
async def test_a_run_is_called_by_its_name_and_tags(events, printed, told, line):
    """Unless its name is that of the agent; whatever stands in them."""
    start = events.run_start(1)
    start.data.update(told)
    assert (await printed([start]))[0].strip("─ ") == line


async def test_text_whose_line_does_not_end_is_printed_after_a_while(events, eventually):
    """The rest of the line is marked as going on."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=file, gather_s=0.02)
    await observer.on_batch([events.run_start(2), events.generation_start("chain_0")])
    await observer.on_batch([events.chunk("chain_0", "Let me think")])
    await eventually(lambda: "think" in file.getvalue())
    await observer.on_batch([events.chunk("chain_0", " about it\n")])
    await observer.aclose()
    text = " ".join(line.removeprefix("chain_0 │ ") for line in file.getvalue().splitlines()[1:])
    assert text.replace("… ", "") == "Let me think about it"
    assert "…" in text


async def test_text_is_held_back_until_then(events):
    """What may still grow to a whole line is not printed token by token where several chains are."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(file=file, gather_s=3600)
    await observer.on_batch([events.run_start(2), events.chunk("chain_0", "Let me")])
    assert "Let me" not in file.getvalue()
    await observer.aclose()
    assert "Let me" in file.getvalue()


async def test_a_chain_that_is_alone_is_printed_token_by_token(events):
    """Each token is on the output when its batch is done, and the line ends with the generation."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=file)
    await observer.on_batch([events.run_start(1), events.generation_start("chain_0")])
    for token, line in [("Hel", "chain_0 │ Hel"), ("lo", "chain_0 │ Hello"), (" you", "chain_0 │ Hello you")]:
        await observer.on_batch([events.chunk("chain_0", token)])
        assert file.getvalue().split("\n")[-1] == line
    await observer.on_batch([events.generation_end("chain_0", "Hello you")])
    assert file.getvalue().endswith("Hello you\n")
    await observer.aclose()


async def test_a_second_chain_ends_the_line_of_the_first(events):
    """The first goes on in lines of its own, marked as going on."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=file)
    await observer.on_batch([events.generation_start("chain_0"), events.chunk("chain_0", "Hel")])
    await observer.on_batch([events.start("chain_1", "Q")])
    await observer.on_batch([events.chunk("chain_0", "lo"), events.generation_end("chain_0", "Hello")])
    await observer.aclose()
    assert file.getvalue().splitlines() == ["chain_0 │ Hel", "chain_1 │ ▸ Q", "chain_0 │ … lo"]


async def test_each_kind_of_event_can_be_told_apart_without_colours(events, printed):
    """Calls, results, failures, rewards and ends have signs of their own."""
    lines = await printed(
        [
            events.run_start(2),
            events.start("chain_0", "What is 347 * 28?"),
            events.call("chain_0", arguments={"expression": "347 * 28"}),
            events.observation("chain_0", "9716"),
            events.call_end("chain_0"),
            events.call("chain_0", name="search", arguments="not json", call_id="c2"),
            events.observation("chain_0", "no such tool", status="error", name="search", call_id="c2"),
            events.call_end("chain_0", status="error", name="search", call_id="c2"),
            events("error", "chain_0", error="it broke", error_type="BackendError", where="backend"),
            events("reward", "chain_0", reward=1.0, metrics={"exact": 1}),
            events.end("chain_0"),
            events.run_end(2),
        ]
    )
    assert lines == [
        "── run · 2 chains · m · policy 0 ──",
        "chain_0 │ ▸ What is 347 * 28?",
        'chain_0 │ → calculator({"expression": "347 * 28"})',
        "chain_0 │ ← 9716  (1 ms)",
        "chain_0 │ → search(not json)",
        "chain_0 │ ✗ search failed: no such tool  (1 ms)",
        "chain_0 │ ✗ BackendError in backend: it broke",
        "chain_0 │ ★ reward 1.0 · exact 1",
        "chain_0 │ ■ answered · 1 step · 3 tokens · 0.50 s",
        "── completed · 2 chains · mean reward 0.5 · 10 tokens · 2.00 s · 5 tokens/s ──",
    ]


async def test_results_of_parallel_calls_name_their_tools(events, printed):
    """While two calls are open, a result says whose it is."""
    lines = await printed(
        [
            events.run_start(2),
            events.call("chain_0", name="add", call_id="a"),
            events.call("chain_0", name="mul", call_id="b"),
            events.observation("chain_0", "6", name="mul", call_id="b"),
            events.observation("chain_0", "5", name="add", call_id="a"),
            events.call_end("chain_0", name="mul", call_id="b"),
            events.call_end("chain_0", name="add", call_id="a"),
        ]
    )
    assert lines[-2:] == ["chain_0 │ ← mul: 6  (1 ms)", "chain_0 │ ← 5  (1 ms)"]


async def test_a_result_does_not_wait_long_for_the_end_of_its_call(events, eventually):
    """An observation whose call stays open is printed after a while, and not again at the end."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(file=file, gather_s=0.01)
    await observer.on_batch(
        [events.run_start(2), events.call("chain_0"), events.observation("chain_0", "42")]
    )
    await eventually(lambda: "← 42" in file.getvalue())
    await observer.on_batch([events.call_end("chain_0")])
    await observer.aclose()
    assert file.getvalue().count("←") == 1


async def test_text_that_came_in_no_chunk_is_printed_at_the_end_of_its_generation(events, printed):
    """A backend that does not stream, or a filter without chunks, loses no text."""
    events_ = [events.run_start(2), events.generation_start("chain_0"), events.chunk("chain_0", "The ")]
    lines = await printed([*events_, events.generation_end("chain_0", "The answer", "length")])
    assert lines[1:] == ["chain_0 │ The answer", "chain_0 │ … cut off after 3 tokens"]


async def test_chunks_that_were_left_out_are_counted(events, printed):
    """A jump of the offset leaves a note where the text would have stood."""
    first, _, third = [events.chunk("chain_0", text) for text in ("one", "two", "three")]
    lines = await printed([events.run_start(2), events.generation_start("chain_0"), first, third])
    assert lines[1:] == ["chain_0 │ one", "chain_0 │ … 3 characters not shown", "chain_0 │ three"]


async def test_a_gap_and_a_late_joiners_snapshot_have_their_own_lines(events, printed):
    """What was lost is counted; the open text goes on after the snapshot's."""
    gap = events("gap", from_seq=3, to_seq=9, dropped={"llm_generation_chunk": 7}, reason="fell behind")
    snapshot = events(
        "chain_snapshot", "chain_3", 2, messages=[{}, {}], content="so far", tool_calls=[], as_of=9
    )
    rest = events("llm_generation_chunk", "chain_3", 2, content=" so good\n", offset=6)
    lines = await printed([events.run_start(4), gap, snapshot, rest])
    assert lines[1:] == [
        "run     │ ≋ 7 events not shown (7 llm_generation_chunk): fell behind",
        "chain_3 │ ↪ joined at step 2 · 2 messages before",
        "chain_3 │ … so far so good",
    ]


async def test_a_snapshot_of_a_chain_that_is_shown_adds_only_the_text_that_is_new(events, printed):
    """As in a hub's record, each time that somebody has opened the chain anew: no text stands there twice."""
    known = {"messages": [{}], "tool_calls": [], "state": "generating", "generation_step": 1}
    lines = await printed(
        [
            events.run_start(1),
            events("chain_start", "chain_0", messages=[], tools=[], index=0, policy_version=0),
            events.generation_start("chain_0"),
            events("chain_snapshot", "chain_0", 1, content="one ", as_of=2, **known),
            events("llm_generation_chunk", "chain_0", 1, content="two ", offset=4, token_ids=[2]),
            events("chain_snapshot", "chain_0", 1, content="one two three ", as_of=4, **known),
            events("llm_generation_chunk", "chain_0", 1, content="four", offset=14, token_ids=[4]),
            events("llm_generation_end", "chain_0", 1, content="one two three four", finish_reason="stop"),
        ]
    )
    assert lines[-1] == "chain_0 │ one two three four"
    assert not [line for line in lines if "joined" in line]


async def test_what_is_missing_is_at_most_what_lies_between_if_nobody_counted_it(events, printed):
    """A filter may have left some out; where even the end is not known, no number is given."""
    known, unknown = (
        events("gap", from_seq=3, to_seq=last, dropped={}, reason="the history was too short")
        for last in (1002, 3)
    )
    assert (await printed([events.run_start(2), known, unknown]))[1:] == [
        "run     │ ≋ up to 1,000 events not shown: the history was too short",
        "run     │ ≋ events not shown: the history was too short",
    ]


async def test_after_a_gap_a_chain_counts_as_done_until_it_is_heard_of_again(events):
    """Its end may be among what is missing."""
    console = ConsoleStreamObserver(show_timestamps=False, file=io.StringIO())
    start = events.run_start(2)
    await console.on_batch([start, events.start("chain_0"), events.start("chain_1")])
    await console.on_batch([events("gap", from_seq=3, to_seq=9, dropped={}, reason="")])
    run = console.runs[start.run_id]
    assert ([*run.chains], run.ended) == ([], {"chain_0", "chain_1"})
    await console.on_batch([events.generation_start("chain_1")])
    assert ([*run.chains], run.ended) == (["chain_1"], {"chain_0"})
    await console.aclose()


async def test_runs_are_named_where_two_share_the_output(events, other_run, printed):
    """The end of the run's id stands before the chain's."""
    lines = await printed([events.run_start(1), other_run.run_start(1), other_run.start("chain_0", "Q")])
    assert lines[-1] == "0002 chain_0 │ ▸ Q"


async def test_huge_observations_are_bounded_and_what_is_left_out_is_counted(events, printed):
    """A megabyte in one line, and a thousand lines."""
    wide = [
        events.call("chain_0"),
        events.observation("chain_0", "x" * 1_000_000),
        events.call_end("chain_0"),
    ]
    tall = [events.call("chain_0"), events.observation("chain_0", "y\n" * 1000), events.call_end("chain_0")]
    lines = await printed([events.run_start(2), *wide, *tall], max_lines=3, max_chars=10)
    assert lines[2] == "chain_0 │ ← xxxxxxxxxx … 999,990 more characters  (1 ms)"
    assert lines[4:] == [
        "chain_0 │ ← y  (1 ms)",
        "chain_0 │ ┊ y",
        "chain_0 │ ┊ y",
        "chain_0 │ ┊ 997 more lines",
    ]


HOSTILE = "a\x1b[2Jb\x07\x08\r\x9b1m\u202ec\u2066\u200bd\x1b]0;t\x1b\\"


async def test_control_characters_are_shown_and_never_obeyed_wherever_they_stand(events, terminal):
    """In text, names, arguments, results, errors, ids, messages and metrics."""
    observer = ConsoleStreamObserver(file=terminal, color=False, status=False)
    chain = "chain_\x1b[31m0"
    await observer.on_batch(
        [
            events.start(chain, HOSTILE),
            *events.generation(chain, HOSTILE, HOSTILE),
            events.call(chain, name=HOSTILE, arguments={HOSTILE: HOSTILE}),
            events.observation(chain, HOSTILE, name=HOSTILE),
            events.call_end(chain, name=HOSTILE),
            events("error", chain, error=HOSTILE, error_type=HOSTILE, where=HOSTILE),
            events("reward", chain, reward=1, metrics={HOSTILE: HOSTILE}),
            events("train_step", train_step=1, policy_version=HOSTILE, metrics={}),
            events("gap", from_seq=0, to_seq=1, dropped={HOSTILE: 1}, reason=HOSTILE),
            events.end(chain, reason=HOSTILE),
            StreamEvent(StreamEventType.RUN_START, "", 0.0, {HOSTILE: HOSTILE}, run_id=HOSTILE),
        ]
    )
    await observer.aclose()
    bad = {char for char in terminal.getvalue() if unicodedata.category(char) in ("Cc", "Cf")}
    assert bad == {"\n"}
    assert r"\x1b[2Jb\x07\x08\r\x9b1m\u202ec\u2066\u200bd" in terminal.getvalue().replace("\n", "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = """
    content offset token_ids call_id tool_name arguments observation status partial duration_s reward metrics messages
    finish_reason steps completion_tokens error error_type where chains groups model policy_version tool_calls dropped
    reason mean_reward failed
"""
fields = st.sampled_from(NAMES.split())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(
    st.lists(
        st.builds(
            StreamEvent,
            st.sampled_from([*StreamEventType, "of_a_later_version"]),
            st.sampled_from(["", "chain_0", "chain_1"]),
            st.floats(),
            st.dictionaries(fields, json_values, max_size=6),
            run_id=st.sampled_from(["", "r1"]),
        ),
        max_size=12,
    )
)
def test_no_payload_raises_and_none_gets_a_control_character_through(events):
    """Whatever shape the data of whatever type has."""

    async def feed():
        file = io.StringIO()
        observer = ConsoleStreamObserver(file=file)
        await observer.on_batch(events)
        await observer.on_run_closed("r1")
        await observer.aclose()
        return file.getvalue()

    assert {c for c in asyncio.run(feed()) if unicodedata.category(c) in ("Cc", "Cf")} <= {"\n"}


async def test_an_event_of_a_wrong_shape_is_shown_raw(events, printed):
    """So is one of an unknown type."""
    later = StreamEvent("new_kind", "chain_0", 0.0, {"x": 1}, run_id="run-0001")
    lines = await printed([events("reward", "chain_0", points=3), later])
    assert lines == ['chain_0 │ reward {"points": 3}', 'chain_0 │ new_kind {"x": 1}']


async def test_a_file_gets_neither_colours_nor_cursor_movements(events, printed):
    """Unless colours are forced; then colours alone."""
    assert not any("\x1b" in line for line in await printed([events.start("chain_0")]))


@pytest.mark.parametrize(
    ("environment", "color", "colours"),
    [
        ({"FORCE_COLOR": "1"}, None, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, None, False),
        ({"FORCE_COLOR": "1"}, False, False),
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, True),
    ],
)
async def test_colours_are_forced_and_forbidden_as_elsewhere(
    events, monkeypatch, environment, color, colours
):
    """By argument, then NO_COLOR, then FORCE_COLOR."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    observer = ConsoleStreamObserver(file=file, color=color)
    await observer.on_batch([events.start("chain_0")])
    await observer.aclose()
    text = file.getvalue()
    assert bool(re.search(r"\x1b\[[0-9;]*m", text)) is colours
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", text)


async def test_an_output_without_the_signs_gets_plain_ones(events):
    """Latin-1 has no arrows; what it lacks of the text is escaped."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="latin-1")
    observer = ConsoleStreamObserver(show_timestamps=False, file=file)
    await observer.on_batch([events.start("chain_0", "é 日"), events.call("chain_0")])
    await observer.aclose()
    assert raw.getvalue().decode("latin-1").splitlines() == [
        r"chain_0 | > é \u65e5",
        'chain_0 | -> calculator({"x": 1})',
    ]


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 100])
async def test_lines_fit_the_width_and_each_has_its_chains_id(events, printed, columns):
    """Wide characters count as two cells; at every width the text is there in order."""
    text = "Das ist 日本語のテキスト and some English words " * 3
    lines = await printed(
        [events.run_start(2), events.generation_start("chain_1"), events.chunk("chain_1", text + "\n")],
        width=columns,
    )
    rows = [line for line in lines if "│" in line]
    cells = [sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in row) for row in rows]
    assert max(cells) <= columns
    assert all(row.startswith(("chain_1 │ ", "1 │ ")) for row in rows)
    joined = "".join(row.partition("│ ")[2].removeprefix("… ") for row in rows)
    assert joined.replace(" ", "") == text.replace(" ", "")


@given(st.lists(st.integers(1, 7), min_size=60, max_size=60), st.sampled_from([None, 24, 40]), st.booleans())
def test_text_is_complete_and_in_order_however_it_comes(sizes, columns, at_once):
    """Cut into tokens anywhere, wrapped or not, with or without waiting: nothing is lost, doubled or moved."""
    text = "I think <think>so, or <tool not</think>\n\n<tool_call>{a: <b>}</tool_call> <end\r\n  of it "

    async def feed():
        file = io.StringIO()
        observer = ConsoleStreamObserver(
            show_timestamps=False, file=file, width=columns, gather_s=0 if at_once else 3600
        )
        rest = text
        for size in sizes:
            for chain in ("chain_0", "chain_1"):
                await observer.on_event(StreamEvent.now("llm_generation_chunk", chain, content=rest[:size]))
            rest = rest[size:]
        for chain in ("chain_0", "chain_1"):
            await observer.on_event(StreamEvent.now("llm_generation_end", chain, content=text))
        await observer.aclose()
        return file.getvalue().splitlines()

    lines = asyncio.run(feed())
    for chain in ("chain_0", "chain_1"):
        said = "".join(
            line.partition("│ ")[2] for line in lines if re.match(rf"({chain}|{chain[-1]}) │", line)
        )
        assert re.sub("[… ]", "", said) == re.sub(r"\s", "", text)


async def test_timestamps_are_local_times_with_milliseconds(events):
    """HH:MM:SS.mmm; a time that no clock shows is no error."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(file=file)
    start = events.start("chain_0", "Q")
    await observer.on_batch(
        [start, StreamEvent("reward", "chain_0", 1e300, {"reward": 1}, run_id=events.run_id)]
    )
    await observer.aclose()
    one, two = file.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} chain_0 │ ▸ Q", one)
    assert two == "--:--:--.--- chain_0 │ ★ reward 1"


async def test_the_standard_output_is_looked_up_when_it_is_used(events, capsys):
    """So redirection works, and the observer can be used again after it was closed."""
    observer = ConsoleStreamObserver(show_timestamps=False)
    await observer.on_batch([events.start("chain_0", "one")])
    await observer.aclose()
    file = io.StringIO()
    sys.stdout, before = file, sys.stdout
    try:
        await observer.on_batch([events.start("chain_0", "two")])
        await observer.aclose()
    finally:
        sys.stdout = before
    assert capsys.readouterr().out == "chain_0 │ ▸ one\n"
    assert file.getvalue() == "chain_0 │ ▸ two\n"


async def test_without_a_standard_output_nothing_happens(events, monkeypatch, capfd):
    """As under pythonw: nothing is raised, and nothing comes out elsewhere."""
    monkeypatch.setattr(sys, "stdout", None)
    observer = ConsoleStreamObserver()
    await observer.on_run_opened(events.run_id)
    await observer.on_batch([events.start("chain_0")])
    await observer.on_run_closed(events.run_id)
    await observer.aclose()
    assert capfd.readouterr() == ("", "")


async def test_one_observer_serves_successive_event_loops(events, eventually):
    """Its timer belongs to the loop that runs."""
    file = io.StringIO()
    observer = ConsoleStreamObserver(show_timestamps=False, file=file, gather_s=0.01)

    def in_a_thread(text):
        async def feed():
            await observer.on_batch([events.run_start(2), events.chunk("chain_0", text)])
            await eventually(lambda: text.strip() in file.getvalue())

        asyncio.run(feed())

    await asyncio.to_thread(in_a_thread, "one ")
    await asyncio.to_thread(in_a_thread, "two ")
    await observer.aclose()
    assert file.getvalue().index("one") < file.getvalue().index("two")


def test_filters_mean_what_they_mean_everywhere():
    """A chain's id, several, a filter; what is none of these is refused."""
    assert ConsoleStreamObserver(chain_filter="chain_0").filter == EventFilter(chains="chain_0")
    assert ConsoleStreamObserver(chain_filter=["a", "b"]).filter == EventFilter(chains=["a", "b"])
    with pytest.raises(FilterError):
        ConsoleStreamObserver(chain_filter=3)


@pytest.mark.parametrize("options", [{"width": 5}, {"gather_s": -1}, {"max_lines": 0}, {"max_chars": 0}])
def test_numbers_out_of_range_are_refused_in_one_sentence(options):
    """The sentence names the number and what was expected."""
    with pytest.raises(InputError, match=rf"{next(iter(options))} of the console is .*; expected"):
        ConsoleStreamObserver(**options)


async def test_a_run_without_a_model_is_called_by_its_agent(events, printed):
    """A loop of one's own may name neither; then there is no gap in the line."""
    began = events.run_start(1)
    without = {**began.data, "model": "", "agent": ""}
    lines = [
        (await printed([StreamEvent.now(StreamEventType.RUN_START, **data)]))[0].strip("─ ")
        for data in (began.data, {**without, "agent": "mine"}, without)
    ]
    assert lines[0].startswith(f"run · 1 chain · {began.data['model']} · policy")
    assert [line.partition(" · policy")[0] for line in lines[1:]] == ["run · 1 chain · mine", "run · 1 chain"]


async def test_rewards_of_steps_and_messages_from_outside_are_lines(printed):
    """A step's reward says so; a message shows who said it, unless it was the user."""

    def made(kind, **data):
        return StreamEvent(StreamEventType(kind), "chain_0", 0.0, data, 1)

    lines = await printed(
        [
            made("reward", reward=0.25, metrics={"seen": 1}, final=False),
            made("message", role="user", content="Hurry!\nNow."),
            made("message", role="system", content=[{"type": "text", "text": "Stop."}, {"type": "image"}]),
            made("message", role="user", content="\x1b[2Jx"),
            made("message", role="user", content=7),
            made("reward", reward=1.0, metrics={}, final=True),
        ],
        color=False,
    )
    assert [line.split(" │ ")[1] for line in lines] == [
        "★ step reward 0.25 · seen 1",
        "▸ Hurry! Now.",
        "▸ system: Stop. [image]",
        r"▸ \x1b[2Jx",
        "▸ 7",
        "★ reward 1.0",
    ]


async def test_several_sources_of_a_run_are_named_and_the_run_ends_once(printed):
    """From the second one on, each line names its own; the last rule tells what they add up to."""
    one = part_of_run("r", "host-rank0", ["chain_0"], words=("four\n",))
    two = part_of_run("r", "host-rank1", ["chain_1"], words=("five\n",))
    lines = await printed([one[0], two[0], *one[1:4], *two[1:4], *one[4:], *two[4:]])
    assert lines[0].strip("─ ") == "run · 1 chain · m · policy 0"
    assert lines[1] == "host-rank1 run     │ run · 1 chain · m · policy 0"
    assert "host-rank0 chain_0 │ four" in lines
    assert "host-rank1 chain_1 │ five" in lines
    assert [line for line in lines if "completed" in line and "─" not in line] == [
        "host-rank0 run     │ completed · 1 chain · mean reward 1 · 1 token · 1.00 s · 1 tokens/s"
    ]
    assert lines[-1].strip("─ ") == "completed · 2 chains · mean reward 1 · 2 tokens · 1.00 s · 2 tokens/s"


async def test_a_chain_whose_id_ends_with_its_source_names_it_once(printed):
    """Before the id; and from the first source on, since such an id says that there are others."""
    one = part_of_run("r", "alpha", ["chain_0@alpha"], words=("four\n",))
    two = part_of_run("r", "beta", ["chain_0@beta", "mine"], words=("five\n",))
    lines = await printed([one[0], *one[1:4], two[0], *two[1:], *one[4:]])
    assert "alpha chain_0 │ four" in lines
    assert "beta  chain_0 │ five" in lines
    assert "beta  mine    │ five" in lines


async def test_a_narrow_terminal_shows_the_whole_id(printed):
    """There is no room for the source before it."""
    lines = await printed(part_of_run("r", "alpha", ["chain_0@alpha"], words=("four\n",)), width=50)
    assert "chain_0@alpha │ four" in lines


async def test_one_source_is_not_named(printed):
    """Whatever its name: there is nothing to tell apart."""
    lines = await printed(part_of_run("r", "host-rank0", ["chain_0"]))
    assert not [line for line in lines if "host" in line]
