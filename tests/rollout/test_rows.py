"""Facts about rows: however people hold them, they run, and what they hold never costs an event."""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid

import msgspec
import numpy as np
import pydantic
import pytest

from rollcast import BaseAgent, InputError, StreamingManager, reward, tool
from rollcast.errors import MessagesError
from rollcast.records import Trajectory, check_events, decode, encode
from rollcast.rollout.rows import as_rows
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.train.export import to_atif

HELLO = [{"role": "user", "content": "hello"}]
ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}]


def datasets_dataset():
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def dataset_of_tables():
    return datasets_dataset().with_format("pandas")


def dataset_of_arrow_tables():
    return datasets_dataset().with_format("arrow")


def pandas_table():
    return pytest.importorskip("pandas").DataFrame(ROWS)


def arrow_table():
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


def numpy_array():
    return np.array(ROWS, dtype=object)


@pytest.mark.torch
@pytest.mark.parametrize(
    "rows",
    [
        datasets_dataset,
        dataset_of_tables,
        dataset_of_arrow_tables,
        pandas_table,
        arrow_table,
        numpy_array,
        lambda: tuple(ROWS),
    ],
)
def test_a_table_of_any_library_is_its_rows(rows):
    """A dataset, a frame, an array and a tuple give the same conversations and fields."""
    found = as_rows(rows())
    assert [row.messages for row in found] == [[{"role": "user", "content": word}] for word in ("one", "two")]
    assert [row.fields for row in found] == [{"answer": 1}, {"answer": 2}]


@pytest.mark.parametrize(
    ("given", "messages", "fields"),
    [
        ([{"prompt": HELLO, "answer": 3}], HELLO, {"answer": 3}),
        ([{"prompt": "hello", "answer": 3}], HELLO, {"answer": 3}),
        ([{"prompt": np.str_("hello")}], HELLO, {}),
        ([{"messages": HELLO, "prompt": "a field"}], HELLO, {"prompt": "a field"}),
        ([{"messages": None, "prompt": "hello", "x": None}], HELLO, {"x": None}),
        ([{"messages": np.array(HELLO, dtype=object)}], HELLO, {}),
        ([{"messages": tuple(HELLO)}], HELLO, {}),
        ({"prompt": "hello", "answer": 3}, HELLO, {"answer": 3}),
        ({"messages": HELLO}, HELLO, {}),
        ([{"role": np.str_("user"), "content": np.str_("hello")}], HELLO, {}),
    ],
)
def test_a_row_is_a_conversation_and_fields(given, messages, fields):
    """Under `messages` or under `prompt`, as text or as messages; one row needs no list around it."""
    (row,) = as_rows(given)
    assert (row.messages, row.fields) == (messages, fields)
    assert type(row.messages[0]["content"]) is str


def test_one_row_of_a_table_is_a_row():
    """`table.iloc[0]` is a Series, whose values alone would say nothing."""
    (row,) = as_rows(pandas_table().iloc[0])
    assert (row.messages[0]["content"], row.fields) == ("one", {"answer": 1})


class Splits(dict):
    """As datasets' DatasetDict."""


class Split:
    column_names = ("prompt",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Splits(train=Split(), test=Split()), r"Splits with the splits train, test; .*dataset\['train'\]"),
        (Split(), r"Split, which may have no end; give some of its rows: list\(dataset.take\(100\)\)"),
        (
            [{"question": "q", "answer": 1}],
            r"neither 'messages' nor 'prompt' \(its fields: question, answer\)",
        ),
        ([{"prompt": 5}], r"start_messages\[0\]\['prompt'\] is int; expected text"),
        ([{"prompt": None}], r"start_messages\[0\] is not a row"),
        (
            {"prompt": ["one", "two"]},
            r"\['prompt'\] is a list of 2 prompts; expected one for each row: .*select",
        ),
        ({"prompt": [HELLO, HELLO, HELLO]}, r"\['prompt'\] is a list of 3 prompts"),
        ({"question": "q"}, "start_messages is dict; expected"),
        ((item for item in ROWS), "start_messages is generator; expected"),
        (5, "start_messages is int; expected"),
        (None, "start_messages is NoneType; expected"),
    ],
)
def test_what_holds_no_rows_is_told_in_one_sentence(given, says):
    """It names what was found and what to do."""
    with pytest.raises(MessagesError, match=says):
        as_rows(given)


@pytest.mark.torch
def test_the_splits_of_a_real_dataset_are_named():
    """A DatasetDict and an IterableDataset are told apart from a Dataset."""
    datasets = pytest.importorskip("datasets")
    whole = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    with pytest.raises(MessagesError, match="DatasetDict with the splits train"):
        as_rows(whole)
    with pytest.raises(MessagesError, match="take"):
        as_rows(whole["train"].to_iterable_dataset())


class Level(enum.IntEnum):
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: object


class Model(pydantic.BaseModel):
    n: int = 1


class Struct(msgspec.Struct):
    n: int = 1


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")

    def __len__(self):
        raise RuntimeError("no")


ANYTHING = [
    np.float64(4),
    np.float32("nan"),
    np.int64(4),
    np.bool_(True),
    np.str_("4"),
    np.zeros((3, 224, 224), np.float32),
    float("inf"),
    Level.HIGH,
    b"\x00\xff",
    decimal.Decimal("4.0"),
    dt.datetime(2024, 5, 6, tzinfo=dt.UTC),
    uuid.UUID(int=1),
    {1, 2},
    (1, 2),
    {(1, 2): {3: b"x"}},
    Point(np.int8(1)),
    Model(),
    Struct(),
    Hostile(),
    object(),
    "\ud800",
    10**5000,
    ["x" * 10**6],
]


@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: type(value).__name__)
async def test_a_row_may_hold_anything(value):
    """Its events are JSON and obey the grammar, its trajectory is JSON, and its reward and tools get the object itself."""
    seen = []

    @tool
    def look(ctx_of: str = "") -> str:
        """Look."""
        return "seen"

    @reward(inline=True)
    def score(answer, other):
        seen.extend([answer, other])
        return {"reward": 1.0, "part": np.float32(0.5)}

    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    agent = BaseAgent("m", backend=ScriptedBackend([call, "done"]), tools=[look], reward=score)
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(
            2, [{"messages": HELLO, "answer": value, "other": {"deep": [value]}}], 2, enable_streaming=True
        )
    assert seen[0] is value
    assert seen[1]["deep"][0] is value
    check_events(capture.events)
    lines = [encode(event) for event in capture.events]
    assert [decode(line) for line in lines] == capture.events
    assert max(map(len, lines)) < 100_000
    (start, _) = capture.of("chain_start")
    assert "reference" in start.data
    for trajectory in result:
        whole = json.loads(json.dumps(trajectory.to_dict(), allow_nan=False))
        assert Trajectory.from_dict(whole).to_dict() == whole
        assert trajectory.digest()
    await agent.aclose()


async def test_an_answer_that_is_none_is_no_reference():
    """A key whose value is None is absent, as datasets fill them."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(1, [{"messages": HELLO, "answer": None}], enable_streaming=True)
    (start,) = capture.of("chain_start")
    assert "reference" not in start.data


def test_a_trajectory_as_a_dict_is_a_copy():
    """Changing it changes nothing of the trajectory."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    trajectory = agent.run(1, HELLO)["chain_0"]
    whole = trajectory.to_dict()
    whole["messages"][0]["content"] = "changed"
    whole["turns"][0]["token_ids"].append(7)
    assert trajectory.messages[0]["content"] == "hello"
    assert 7 not in trajectory.turns[0].token_ids[-1:]


async def test_a_loop_of_ones_own_may_give_anything():
    """Arguments, metrics, observations and descriptions of other libraries' types become JSON in its events."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        async with manager.run(chains=1, agent=np.str_("me"), policy_version=np.int64(3)) as run:
            with run.chain(HELLO, reference=np.zeros(3)) as chain:
                with chain.generation(
                    sampling={"temperature": np.float64(0.5)}, prompt_tokens=np.int64(7)
                ) as generation:
                    generation.chunk(np.str_("a"))
                with chain.tool_call(np.str_("look"), {"x": np.float32(1), "y": {1}, "z": b"1"}) as call:
                    call.observation(np.str_("seen"))
                with chain.tool_call("look", np.array([1, 2])) as call:
                    call.observation("half \ud800")
                chain.reward(
                    np.float32(0.5), {"right": np.bool_(True), "where": {1: np.nan}, "all": [1.5] * 10**5}
                )
    check_events(capture.events)
    assert [decode(encode(event)) for event in capture.events] == capture.events
    assert capture.of("tool_call_start")[0].data["arguments"] == {"x": 1.0, "y": [1], "z": "<bytes (1)>"}
    metrics = {"right": True, "where": {"1": "NaN"}, "all": "<list (100000)>"}
    assert capture.of("reward")[0].data["metrics"] == capture.of("chain_end")[0].data["metrics"] == metrics
    assert len(chain.trajectory.metrics["all"]) == 10**5
    json.dumps(chain.trajectory.to_dict(), allow_nan=False)
    assert chain.trajectory.digest()


def test_a_trajectory_of_any_row_can_be_exported():
    """As ATIF, too: what JSON cannot hold is described."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    rows = [{"messages": HELLO, "image": np.zeros((2, 2)), "answer": np.float64(1)}]
    document = to_atif(agent.run(1, rows)["chain_0"])
    assert document["extra"]["row"] == {"image": "<ndarray float64 (2, 2)>", "answer": 1.0}


def test_a_reward_that_is_not_finite_is_refused_in_a_loop_of_ones_own():
    """No reader of the log could take it."""
    with (
        pytest.raises(InputError, match=r"chain_0's reward is nan; expected a finite number"),
        StreamingManager().run() as run,
        run.chain(HELLO) as chain,
    ):
        chain.reward(float("nan"))
