"""What a producer may tell of its runs and chains beside what was sampled: where they come from, rewards of steps, messages."""

import pytest

from rollcast import EventFilter, current_chain
from rollcast.errors import InputError, MessagesError
from rollcast.records import StreamEventType, Trajectory, check_events, decode, encode, prompt_hash
from rollcast.records.view import ChainView
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events
from rollcast.testing.observers import EventCapture

T = StreamEventType
HELLO = [{"role": "user", "content": "What is 2 + 2?"}]


def of(capture, kind):
    """The data of the events of this type."""
    return [event.data for event in capture.events if event.event_type is kind]


def generate(chain, text="Hm"):
    """One generation of two tokens."""
    with chain.generation() as generation:
        for i, char in enumerate(text):
            generation.chunk(char, [i], [-0.5])


# -- where they come from ----------------------------------------------------------------------------------------------


def test_a_runs_start_tells_how_to_get_it_again():
    """Seed, sampling, settings, name, tags, tools, training step; what was not given is absent."""
    about = {
        "seed": 2**62 + 1,
        "sampling": {"temperature": 0.5},
        "settings": {"max_steps": 3},
        "name": "night",
        "tags": ["a", "b"],
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "train_step": 4,
        "parent_run_id": "p",
        "split": "train",
    }
    manager = StreamingManager()
    with capture_events(manager) as capture:
        with manager.run(**about):
            pass
        with manager.run():
            pass
    told, bare = of(capture, T.RUN_START)
    assert told.items() >= about.items()
    assert not bare.keys() & about.keys()
    assert all(decode(encode(event)) == event for event in capture.events)


def test_a_chains_start_tells_its_seed_its_row_and_which_question_it_was_asked():
    """The reference is not repeated in the row; what JSON cannot hold is described."""
    row = {"answer": 4, "level": "hard", "picture": b"123"}
    about = {"seed": 2**62 + 1, "attempt": 2, "parent_chain_id": "chain_9"}
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run:
        with run.chain(HELLO, row=row, reference=4, **about) as chain:
            snapshot = chain.snapshot()
        with run.chain():
            pass
    told, bare = of(capture, T.CHAIN_START)
    assert told.items() >= (about | {"prompt_hash": prompt_hash(HELLO), "reference": 4}).items()
    assert told["row"] == {"level": "hard", "picture": "<bytes (3)>"}
    assert not bare.keys() & {"row", "reference", "prompt_hash", *about}
    early, late = ChainView(), ChainView.from_snapshot(snapshot)
    for event in capture.events:
        early.apply(event)
    for view in (early, late):
        assert (view.seed, view.attempt, view.parent_chain_id) == tuple(about.values())
        assert view.prompt_hash == prompt_hash(HELLO)


def test_a_row_without_a_reference_keeps_its_answer():
    """Only an answer that `reference` shows is left out."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run, run.chain(HELLO, row={"answer": 4}):
        pass
    assert of(capture, T.CHAIN_START)[0]["row"] == {"answer": 4}


# -- rewards of steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_rewards_of_steps_stand_between_turns(live):
    """Each is an event with `final` false, and is kept in the trajectory; the chain's own says `final` and is its own."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run(live=live) as run, run.chain(HELLO) as chain:
        chain.step_reward(0.125)
        generate(chain)
        with chain.tool_call("look", {}) as call:
            call.observation("nothing")
        chain.step_reward(0.5, {"found": 1})
        generate(chain)
        chain.reward(1, {"exact": True})
    t = chain.trajectory
    assert [(r.step, r.reward, r.metrics) for r in t.step_rewards] == [(0, 0.125, {}), (1, 0.5, {"found": 1})]
    assert (t.reward, t.metrics) == (1.0, {"exact": True})
    assert Trajectory.from_dict(t.to_dict()).step_rewards == t.step_rewards
    if live:
        check_events(capture.events)
        rewards = [(d["reward"], d["final"]) for d in of(capture, T.REWARD)]
        assert rewards == [(0.125, False), (0.5, False), (1.0, True)]
        assert of(capture, T.CHAIN_END)[0]["reward"] == 1.0


def test_a_digest_covers_rewards_of_steps():
    """Chains that differ only in these have different digests."""
    digests = set()
    for reward in (None, 0.5, 0.25):
        with StreamingManager().run(live=False) as run, run.chain(HELLO) as chain:
            if reward is not None:
                chain.step_reward(reward)
        digests.add(chain.trajectory.digest())
    assert len(digests) == 3


def inside_a_generation(chain, give):
    with chain.generation():
        give()


def inside_a_call(chain, give):
    generate(chain)
    with chain.tool_call("look", {}):
        give()


def after_the_chains_own_reward(chain, give):
    generate(chain)
    chain.reward(1)
    give()


def after_the_end(chain, give):
    chain.end("answered")
    give()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("what", ["reward", "message"])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        (inside_a_generation, "while its generation is open"),
        (inside_a_call, "while its tool call look is open"),
        (after_the_chains_own_reward, "has a reward already"),
        (after_the_end, "has ended"),
    ],
)
def test_nothing_is_given_at_the_wrong_moment(place, says, what, live):
    """Rewards of steps and messages from outside stand between turns, so that an event never breaks the grammar."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run(live=live) as run, run.chain(HELLO) as chain:

        def give():
            message = {"role": "user", "content": "And?"}
            given = {
                "reward": lambda: chain.step_reward(1),
                "message": lambda: chain.message(message, from_outside=True),
            }
            with pytest.raises(InputError, match=says):
                given[what]()

        place(chain, give)
    if live:
        check_events(capture.events)
    assert (len(chain.trajectory.messages), chain.trajectory.step_rewards) == (1, [])


def test_a_reward_of_a_step_is_a_finite_number():
    """Text and NaN are refused, and nothing is kept of them."""
    with StreamingManager().run(live=False) as run, run.chain(HELLO) as chain:
        for wrong in ("much", float("nan"), None):
            with pytest.raises(InputError, match="reward of a step of chain_0 is"):
                chain.step_reward(wrong)
    assert chain.trajectory.step_rewards == []


# -- messages from outside -----------------------------------------------------------------------------------------------


def test_a_message_from_outside_is_an_event():
    """A watcher sees it in its place in the conversation; one that a turn is behind has no event."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run, run.chain(HELLO) as chain:
        generate(chain, "4")
        chain.message({"role": "assistant", "content": "4"})
        chain.message({"role": "user", "content": "Sure?", "name": "ann"}, from_outside=True)
        generate(chain, "yes")
    check_events(capture.events)
    assert of(capture, T.MESSAGE) == [{"role": "user", "content": "Sure?", "name": "ann"}]
    view = ChainView()
    for event in capture.events:
        view.apply(event)
    said = [(m["role"], m["content"]) for m in view.messages]
    assert said == [("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "Sure?"), ("assistant", "yes")]
    assert [m["content"] for m in chain.trajectory.messages] == ["What is 2 + 2?", "4", "Sure?"]


def test_a_message_from_outside_is_checked():
    """One that no model could read is refused, and the conversation stays as it is."""
    with StreamingManager().run() as run, run.chain(HELLO) as chain:
        for wrong in ({"role": "nobody", "content": "x"}, {"role": "user", "content": 7}, "hello"):
            with pytest.raises(MessagesError, match="a message for chain_0"):
                chain.message(wrong, from_outside=True)
    assert len(chain.trajectory.messages) == 1


def test_after_a_message_from_outside_a_turn_comes_before_a_call():
    """A call belongs to a turn, and the message is after it."""
    with StreamingManager().run() as run, run.chain(HELLO) as chain:
        generate(chain)
        chain.message({"role": "user", "content": "And?"}, from_outside=True)
        with pytest.raises(InputError, match="calls look after a message from outside"):
            chain.tool_call("look", {}).start()
        generate(chain)
        with chain.tool_call("look", {}):
            pass
    assert [len(turn.tools) for turn in chain.trajectory.turns] == [0, 1]


def test_outside_a_chain_nothing_happens():
    """The calls of `current_chain()` cost nothing where no chain is."""
    chain = current_chain()
    chain.step_reward(1.0, {"x": 1})
    chain.message({"role": "user", "content": "x"}, from_outside=True)
    assert chain.trajectory is None


# -- when tokens came ----------------------------------------------------------------------------------------------------


def test_the_end_tells_when_tokens_came_to_whoever_asks_for_ids(monkeypatch):
    """Milliseconds from each token to the next, also for several that came at once; nobody else pays or gets them."""
    now = [100.0]
    monkeypatch.setattr("rollcast.stream.chain.time.perf_counter", lambda: now[0])
    manager = StreamingManager()
    with (
        capture_events(manager, EventFilter(ids=True)) as ids,
        capture_events(manager) as plain,
        manager.run() as run,
        run.chain(HELLO) as chain,
        chain.generation() as generation,
    ):
        generation.chunk("a", [1])
        now[0] += 0.0625
        generation.chunk("bc", [2, 3])
        generation.chunk("text without an id")
        now[0] += 0.5
        generation.chunk("d", [4])
    assert of(ids, T.LLM_GENERATION_END)[0]["dt_ms"] == [62.5, 0.0, 500.0]
    assert "dt_ms" not in of(plain, T.LLM_GENERATION_END)[0]
    assert all(decode(encode(event)) == event for event in ids.events)


def test_who_asks_in_the_middle_of_a_generation_gets_times_from_the_next():
    """What was not noted is absent, and never made up."""
    manager, capture = StreamingManager(), EventCapture(EventFilter(ids=True))
    with manager.run() as run, run.chain(HELLO) as chain:
        generation = chain.generation().start()
        generation.chunk("a", [1])
        manager.add_observer(capture)
        generation.chunk("b", [2])
        generation.end()
        generate(chain)
    manager.close()
    first, second = of(capture, T.LLM_GENERATION_END)
    assert (first["token_ids"], "dt_ms" in first) == ([1, 2], False)
    assert len(second["dt_ms"]) == 1


def test_an_unwatched_generation_notes_no_times():
    """Its writer is the plain one, whose path for a token has nothing added."""
    manager = StreamingManager()
    with capture_events(manager), manager.run() as run, run.chain(HELLO) as chain:
        assert type(chain.generation()).__name__ == "GenerationWriter"
    with manager.run(live=False) as run, run.chain(HELLO) as chain:
        assert type(chain.generation()).__name__ == "GenerationWriter"


@pytest.mark.parametrize("chains", [1, 300])
async def test_merged_chunks_tell_whoever_asks_for_ids_when_their_tokens_came(chains):
    """Also with so many chains open that tokens wait without their events."""
    manager = StreamingManager()
    async with manager.run(chains=chains) as run:
        opened = [run.chain(HELLO).start() for _ in range(chains)]
        readers = {
            asks: manager.subscribe(EventFilter(types=T.LLM_GENERATION_CHUNK, chains="chain_0", ids=asks))
            for asks in (True, False)
        }
        with opened[0].generation() as generation:
            for i in range(4_000):
                generation.chunk("x", [i], [-0.5])
        for asks, reader in readers.items():
            reader.close()
            merged = [event.data async for event in reader if "from_seq" in event.data]
            assert merged
            for data in merged:
                assert ("dt_ms" in data) is asks
                assert not asks or len(data["dt_ms"]) == len(data["token_ids"]) - 1
