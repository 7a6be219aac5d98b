"""Whatever order the callbacks come in, what is written obeys the grammar. LangChain is not needed for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import StreamingManager
from rollcast.attaching.langchain_messages import Answer, Piece
from rollcast.attaching.langchain_runs import MOST_WAITING, Beginning, RunTree
from rollcast.records import ToolCall
from rollcast.testing import capture_events

RUNS = st.integers(1, 4)
PARENTS = st.sampled_from([0, 0, 0, 0, 1, 2, None, "unseen"])
CALLS = st.sampled_from([None, "call_0", "call_1", "call_2"])
WORDS = st.sampled_from(["one", "two", "three"])
TAGS = st.sampled_from(
    [(), (), (), ("graph:step:1",), ("graph:step:2",), ("seq:step:1",), ("map:key:a",), ("map:key:b",)]
)
MESSAGES = st.lists(
    st.builds(
        lambda word, role: {"role": role, "content": word},
        WORDS,
        st.sampled_from(["user", "assistant", "system"]),
    ),
    max_size=3,
)


class GraphBubbleUp(Exception):
    """Has the name of what LangGraph raises to interrupt a graph."""


ERRORS = st.sampled_from([ValueError("no"), GraphBubbleUp(()), KeyboardInterrupt(), GeneratorExit()])
BEGINNINGS = st.builds(
    Beginning, st.just(None), PARENTS, WORDS, TAGS, WORDS, st.booleans(),
    st.sampled_from([None, "thread"]), MESSAGES,
)  # fmt: skip
ANSWERS = st.builds(
    lambda word, calls: Answer(
        {"role": "assistant", "content": word},
        word,
        "",
        [ToolCall(call, "tool", {}) for call in calls if call],
        "stop",
        None,
        None,
    ),
    WORDS,
    st.lists(CALLS, max_size=2, unique=True),
)
ACTS = st.one_of(
    st.tuples(st.just("began"), RUNS, BEGINNINGS),
    st.tuples(st.just("model"), RUNS, BEGINNINGS),
    st.tuples(st.just("tool"), RUNS, BEGINNINGS, CALLS),
    st.tuples(st.just("token"), RUNS, WORDS),
    st.tuples(st.just("again"), RUNS),
    st.tuples(st.just("answered"), RUNS, ANSWERS, st.booleans()),
    st.tuples(st.just("failed"), RUNS, ERRORS),
    st.tuples(st.just("tool_ended"), RUNS, WORDS, st.one_of(st.none(), ERRORS)),
    st.tuples(st.just("ended"), RUNS, st.one_of(st.none(), ERRORS)),
)


def play(tree, act):
    match act:
        case "began", run, about:
            tree.began(about._replace(run_id=run))
        case "model", run, about:
            tree.model_began(about._replace(run_id=run), {}, ())
        case "tool", run, about, call:
            tree.tool_began(about._replace(run_id=run), {"a": 1}, call)
        case "token", run, word:
            tree.token(run, Piece(word, ""), "on_llm_new_token")
        case "again", run:
            tree.again(run)
        case "answered", run, answer, asks:
            tree.answered(run, answer, asks=asks)
        case "failed", run, error:
            tree.failed(run, error)
        case "tool_ended", run, word, error:
            tree.tool_ended(run, word, "success", error)
        case "ended", run, error:
            tree.ended(run, error)


@given(st.lists(ACTS, min_size=12, max_size=40))
def test_any_order_of_callbacks_obeys_the_grammar(acts):
    """Runs that begin twice, end before they begin, or outlive what they are in, raise nothing and break no chain."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run:
        tree = RunTree(lambda: run)
        play(tree, ("began", 0, Beginning(0, None, "graph")))
        for act in acts:
            play(tree, act)
        for chain in list(run.open_chains.values()):
            chain.end("unknown")
    capture.check()
    manager.close()


@pytest.fixture
def tree():
    manager = StreamingManager()
    with manager.run() as run:
        yield RunTree(lambda: run), run
    manager.close()


def test_a_call_that_is_tried_again_when_its_chain_has_ended_is_not_told(tree):
    """The graph around it has ended meanwhile, and its chain with it."""
    tree, run = tree
    tree.began(Beginning("graph", None, "graph"))
    tree.model_began(
        Beginning("model", "graph", "model", messages=[{"role": "user", "content": "?"}]), {}, ()
    )
    (chain,) = run.open_chains.values()
    tree.ended("graph")
    assert chain.ended
    tree.again("model")
    tree.failed("model", ValueError("no"))
    assert len(chain.trajectory.turns) == 1


def test_a_call_that_fails_when_its_chain_has_ended_is_not_told():
    """Such as one of several in a graph that was interrupted."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run:
        tree = RunTree(lambda: run)
        tree.began(Beginning("graph", None, "graph"))
        tree.model_began(
            Beginning("model", "graph", "model", messages=[{"role": "user", "content": "?"}]), {}, ()
        )
        tree.ended("graph", GraphBubbleUp(()))
        assert not run.open_chains
        tree.failed("model", ValueError("no"))
    capture.check()
    assert not [event for event in capture.events if event.event_type == "error"]
    manager.close()


def test_a_call_without_an_id_may_be_given_the_one_that_a_model_asked_for(tree):
    """Both are shown when the graph ends."""
    tree, run = tree
    tree.began(Beginning("graph", None, "graph"))
    tree.model_began(
        Beginning("model", "graph", "model", messages=[{"role": "user", "content": "?"}]), {}, ()
    )
    asks = Answer(
        {"role": "assistant", "content": ""}, "", "", [ToolCall("call_0", "search", {"q": "a"})], "tool_call", None, None
    )  # fmt: skip
    tree.answered("model", asks, asks=True)
    (chain,) = run.open_chains.values()
    tree.tool_began(Beginning("tool", "graph", "search"), {"q": "b"}, None)
    tree.ended("graph", ValueError("no"))
    assert chain.ended
    (turn,) = chain.trajectory.turns
    assert sorted(record.call.arguments["q"] for record in turn.tools) == ["a", "b"]


def test_chains_that_nobody_goes_on_with_do_not_pile_up(tree):
    """Of the chains that wait for their tools, the oldest end."""
    tree, run = tree
    asks = Answer(
        {"role": "assistant", "content": ""}, "", "", [ToolCall("call", "tool", {})], "tool_call", None, None
    )
    for i in range(MOST_WAITING + 10):
        tree.model_began(Beginning(i, None, "model", messages=[{"role": "user", "content": str(i)}]), {}, ())
        tree.answered(i, asks, asks=True)
    assert len(run.open_chains) == MOST_WAITING


def test_nothing_is_kept_of_what_has_ended(tree):
    """A program that runs for weeks does not fill the memory."""
    tree, run = tree
    for i in range(50):
        tree.began(Beginning(f"graph{i}", None, "graph"))
        tree.model_began(
            Beginning(f"model{i}", f"graph{i}", "model", messages=[{"role": "user", "content": "?"}]), {}, ()
        )
        tree.answered(
            f"model{i}",
            Answer({"role": "assistant", "content": "!"}, "!", "", [], "stop", None, None),
            asks=True,
        )
        tree.ended(f"graph{i}")
    assert not run.open_chains
    assert not tree._runs
    assert not tree._waiting
