"""The scripted backend behaves as a model's does."""

from rollcast import BaseAgent
from rollcast.testing import ScriptedBackend


async def test_a_text_that_max_tokens_cuts_has_the_reason_length():
    """And so the chain ends with `max_tokens`; one that just fits is whole."""
    agent = BaseAgent(backend=ScriptedBackend("one two three"))
    question = [{"role": "user", "content": "Count."}]
    (cut,) = await agent.run_async(1, question, sampling={"max_tokens": 2})
    (whole,) = await agent.run_async(1, question, sampling={"max_tokens": 3})
    assert (cut.turns[0].text, cut.turns[0].finish_reason, cut.finish_reason) == (
        "one two",
        "length",
        "max_tokens",
    )
    assert (whole.turns[0].finish_reason, whole.finish_reason) == ("stop", "answered")
