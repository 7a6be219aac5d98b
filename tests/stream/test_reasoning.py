"""A generation's reasoning that comes apart from its text, and tokens that the engine counted."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest

from rollcast import ConsoleStreamObserver, InputError, StreamingManager, current_chain
from rollcast.archive import ArchiveObserver
from rollcast.records import EventFilter, Trajectory
from rollcast.records.view import ChainView
from rollcast.testing import EventCapture, capture_events

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def think(chain):
    """A turn with reasoning, then its answer."""
    with chain.generation(model="a-model") as generation:
        generation.chunk("", reasoning="Two and ")
        generation.chunk("", reasoning="two.")
        generation.chunk("It is ", [7], [-0.5])
        generation.chunk("4.", [8], [-0.25], reasoning="!")
        generation.end("stop", completion_tokens=11, prompt_tokens=5)


@pytest.mark.parametrize("live", [True, False])
def test_it_is_kept_apart_from_the_text(live):
    """In the turn, in its events, and in what is made of them."""
    manager = StreamingManager(publish=False)
    with capture_events(manager) as capture, manager.run(live=live) as run, run.chain(QUESTION) as chain:
        think(chain)
    turn = chain.trajectory.turns[0]
    assert (turn.text, turn.reasoning) == ("It is 4.", "Two and two.!")
    assert (turn.token_ids, turn.logprobs) == ([7, 8], [-0.5, -0.25])
    assert Trajectory.from_dict(chain.trajectory.to_dict()).turns[0].reasoning == "Two and two.!"
    if live:
        capture.check()
        chunks = [event.data for event in capture.of("llm_generation_chunk")]
        assert [data.get("reasoning") for data in chunks] == ["Two and ", "two.", None, "!"]
        assert [data["offset"] for data in chunks] == [0, 0, 0, 6]
        (end,) = capture.of("llm_generation_end")
        assert (end.data["content"], end.data["reasoning"]) == ("It is 4.", "Two and two.!")
        assert capture.of("llm_generation_start")[0].data["model"] == "a-model"
    manager.close()


def test_who_sees_no_tokens_has_it_at_the_end():
    """A view of ends alone knows as much as one of chunks."""
    manager = StreamingManager(publish=False)
    all_of_it = EventCapture()
    ends = EventCapture(EventFilter(types=("chain_start", "llm_generation_start", "llm_generation_end")))
    manager.add_observer(all_of_it)
    manager.add_observer(ends)
    with manager.run() as run, run.chain(QUESTION) as chain:
        think(chain)
    manager.close()
    views = [ChainView(), ChainView()]
    for view, capture in zip(views, (all_of_it, ends), strict=True):
        for event in capture.events:
            if event.chain_id and event.event_type != "chain_end":
                view.apply(event)
    assert views[0].messages == views[1].messages
    assert views[0].messages[-1]["reasoning"] == "Two and two.!"


def test_a_late_observer_has_it_in_the_snapshot():
    """Of the open generation, and of those before."""
    manager, late = StreamingManager(publish=False), EventCapture()
    with manager.run() as run, run.chain(QUESTION) as chain:
        think(chain)
        with chain.generation() as generation:
            generation.chunk("", reasoning="Or is ")
            manager.add_observer(late)
            generation.chunk("", reasoning="it?")
    manager.close()
    view = ChainView()
    for event in late.events:
        if event.chain_id and event.event_type != "chain_end":
            view.apply(event)
    late.check(late=True)
    assert [message.get("reasoning") for message in view.messages] == [None, "Two and two.!", "Or is it?"]


def test_the_record_shows_it(tmp_path):
    """Also if nobody watched its tokens."""
    manager = StreamingManager(publish=False)
    manager.add_observer(ArchiveObserver(tmp_path / "record"))
    with manager.run() as run, run.chain(QUESTION) as chain:
        think(chain)
    manager.close()
    shown = subprocess.run(
        [sys.executable, "-m", "rollcast", "show", str(tmp_path / "record"), "--chain", "chain_0"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Two and two.!" in shown.stdout


def test_the_console_prints_it_above_the_answer(tmp_path):
    """On lines of its own."""
    path = tmp_path / "out.txt"
    with path.open("w") as file:
        manager = StreamingManager(publish=False)
        manager.add_observer(ConsoleStreamObserver(show_timestamps=False, file=file))
        with manager.run() as run, run.chain(QUESTION) as chain:
            think(chain)
        manager.close()
    lines = [line.removeprefix("chain_0 │ ") for line in path.read_text().splitlines()]
    assert [line.strip() for line in lines][2:6] == ["Two and two.", "It is", "!", "4."]


def test_what_the_engine_counted_is_taken():
    """It is better than counting ids or chunks; without it those are counted."""
    manager = StreamingManager(publish=False)
    with capture_events(manager) as capture, manager.run() as run, run.chain(QUESTION) as chain:
        think(chain)
        with chain.generation(prompt_tokens=3) as generation:
            generation.chunk("", reasoning="Hm.")
            generation.chunk("So.")
        with chain.generation() as generation:
            generation.chunk("x")
            generation.end("length", completion_tokens=np.int64(9))
    manager.close()
    ends = [event.data for event in capture.of("llm_generation_end")]
    assert [(end["completion_tokens"], end["prompt_tokens"]) for end in ends] == [(11, 5), (2, 3), (9, None)]
    assert capture.of("run_end")[0].data["completion_tokens"] == 22


@pytest.mark.parametrize("wrong", [-1, 1.5, "7", True])
def test_a_count_that_is_none_is_refused(wrong):
    """The sentence says what was found."""
    manager = StreamingManager(publish=False)
    with manager.run() as run, run.chain(QUESTION) as chain:
        generation = chain.generation().start()
        with pytest.raises(InputError, match=r"^completion_tokens is .+; expected a whole number"):
            generation.end(completion_tokens=wrong)
    manager.close()


def test_reasoning_that_is_no_text_is_refused():
    """Like text."""
    manager = StreamingManager(publish=False)
    with manager.run() as run, run.chain(QUESTION) as chain:
        generation = chain.generation().start()
        with pytest.raises(InputError, match="expected a string"):
            generation.chunk("", reasoning=["no text"])
    manager.close()


def test_outside_a_chain_the_same_calls_do_nothing():
    """A function that reports also works without a chain."""
    think(current_chain())


async def test_it_is_merged_for_who_falls_behind():
    """Nothing of it is lost."""
    manager, slow = StreamingManager(publish=False), EventCapture(mode="coalesce")
    manager.add_observer(slow)
    async with manager.run() as run:
        with run.chain(QUESTION) as chain, chain.generation() as generation:
            for i in range(2000):
                generation.chunk("", reasoning=f"{i} ")
    assert "".join(e.data["reasoning"] for e in slow.of("llm_generation_chunk")) == "".join(
        f"{i} " for i in range(2000)
    )
    await asyncio.to_thread(manager.close)
