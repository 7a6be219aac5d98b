"""Facts about copies and pickles of agents, rewards and parsers."""

import copy
import pickle

import pytest

from rollcast import BaseAgent, CodeAgent, ReactAgent, ToolAgent, exact_match, numeric_match, reward, tool
from rollcast.models import resolve_parser
from rollcast.models.engine_backend import EngineBackend
from rollcast.models.parse import (
    CodeParser,
    HermesParser,
    Llama3Parser,
    PythonParser,
    Qwen3CoderParser,
    ReactParser,
)
from rollcast.testing import EventCapture, ScriptedBackend

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "double", "arguments": {"x": 2}}</tool_call>'
COPIES = [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy]


@tool
def double(x: int) -> int:
    """Double it."""
    return 2 * x


@tool
def python(code: str) -> str:
    """Run it."""
    return code


@reward(timeout=3)
def scored(final_response):
    return float(final_response == "done")


def plain(final_response):
    return 1.0


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("kind", [BaseAgent, ToolAgent, ReactAgent, CodeAgent])
async def test_a_copy_of_an_agent_runs_as_it_does(kind, copied):
    """Before and after a run, an agent that was pickled or deep-copied gives the same trajectories."""
    agent = kind("m", tools=[double, python], backend=ScriptedBackend([CALL, "done"]), reward=scored)
    before = await copied(agent).run_async(3, HELLO, seed=1)
    first = await agent.run_async(3, HELLO, seed=1)
    after = await copied(agent).run_async(3, HELLO, seed=1)
    assert before["chain_0"].digest() == first["chain_0"].digest() == after["chain_0"].digest()
    assert after.rewards == first.rewards


@pytest.mark.parametrize("copied", COPIES)
async def test_a_copy_has_nobody_who_watches(copied):
    """Who watches is not carried: a copy has a streaming manager of its own."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    capture = EventCapture()
    agent.streaming_manager.add_observer(capture)
    again = copied(agent)
    await again.run_async(1, HELLO, enable_streaming=True)
    assert again.streaming_manager is not agent.streaming_manager
    assert capture.events == []
    await again.aclose()
    await agent.aclose()


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_with_the_embedded_model_samples_the_same(copied):
    """The copy of an agent with the embedded model loads it again."""
    agent = BaseAgent(tools=[double])
    again = copied(agent)
    settings = {"sampling": {"max_tokens": 6}, "seed": 3}
    assert again.backend is not agent.backend
    assert (
        again.run(1, HELLO, **settings)["chain_0"].digest()
        == agent.run(1, HELLO, **settings)["chain_0"].digest()
    )
    assert copied(agent).backend.policy_version == 0


async def test_other_weights_are_not_lost_silently():
    """A backend whose weights were changed says that a copy would not have them."""
    agent = BaseAgent()
    await agent.backend.update_weights(agent.backend.folder, 3)
    for copied in COPIES:
        with pytest.raises(
            TypeError, match="has the weights of version 3, which its checkpoint does not"
        ) as told:
            copied(agent)
        assert "\n" not in str(told.value)
    await agent.aclose()


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("value", [scored, numeric_match, exact_match], ids=repr)
def test_a_decorated_reward_is_found_by_its_name(value, copied):
    """What a module has under the function's name is found there again."""
    assert copied(value) is value


@pytest.mark.parametrize("copied", COPIES)
def test_a_reward_of_a_plain_function_is_made_again(copied):
    """Its settings are carried."""
    again = copied(reward(plain, name="other", timeout=2, inline=True))
    assert (again.name, again.timeout, again.inline, again.function) == ("other", 2, True, plain)


def test_a_local_reward_is_refused_in_a_sentence():
    """What no other process could find is named, with what to do."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"), reward=lambda final_response: 1.0)
    assert copy.deepcopy(agent).reward is agent.reward
    with pytest.raises(pickle.PicklingError, match=r"Reward.* cannot be pickled: .* define it there"):
        pickle.dumps(agent)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize(
    "parser",
    [HermesParser(), Llama3Parser(), PythonParser(), Qwen3CoderParser(), ReactParser(), CodeParser("python"), resolve_parser(None)],
    ids=lambda parser: type(parser).__name__,
)  # fmt: skip
def test_parsers_can_be_copied(parser, copied):
    """A copied parser reads what the parser reads."""
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call> ```python\nf()\n```'
    assert copied(parser).parse(text) == parser.parse(text)


class Loaded(EngineBackend):
    """As a backend that holds a model."""

    name = "loaded"

    def _generation(self, prompt_ids, sampling, limit):
        raise AssertionError("a backend that is only copied generates nothing")

    async def close(self):
        """Nothing to let go of."""


@pytest.mark.parametrize("copied", COPIES)
def test_a_loaded_model_is_refused_in_a_sentence(copied):
    """A backend that holds a model elsewhere says that it cannot be copied, and what to do."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    agent.backend = object.__new__(Loaded)
    with pytest.raises(
        TypeError, match=r"^a Loaded holds a loaded model and cannot be copied or pickled; make"
    ) as told:
        copied(agent)
    assert "\n" not in str(told.value)
