"""A function gets each piece of text as it is sampled: the simplest way to watch."""

from collections import defaultdict

from rollcast import BaseAgent, StreamEvent
from rollcast.tools import calculator

texts = defaultdict(str)


def on_text(text: str, event: StreamEvent):
    """Gather the text by chain and turn. A function of only `text` will do, too, and so will an async one."""
    texts[event.chain_id, event.step] += text


agent = BaseAgent(tools=[calculator])
question = [{"role": "user", "content": "Add 750 and 41."}]
agent.run(3, question, num_chains=2, enable_streaming=True, streaming_callback=on_text, seed=7)

for (chain_id, step), text in sorted(texts.items()):
    print(chain_id, "turn", step, repr(text))
