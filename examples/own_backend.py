"""Write your own backend: anything that can stream text can be an agent's model."""

import asyncio
import json

from rollcast import BaseAgent, Delta, GenerationRequest, numeric_match
from rollcast.models import BaseBackend
from rollcast.tools import calculator


class Parrot(BaseBackend):
    """Calls the calculator with the question, and repeats the result."""

    name, model_name = "parrot", "example/parrot"

    async def generate(self, request: GenerationRequest):
        """Yield one delta per piece of text; the last has the finish reason."""
        last = request.messages[-1]
        if last["role"] == "tool":
            pieces = ["The answer", " is ", last["content"], "."]
        else:
            expression = last["content"].removeprefix("What is ").rstrip("?")
            call = {"name": "calculator", "arguments": {"expression": expression}}
            pieces = ["<tool_call>\n", json.dumps(call), "\n</tool_call>"]
        for piece in pieces:
            await asyncio.sleep(0)  # a real one waits for its model here
            yield Delta(piece)
        yield Delta("", finish_reason="stop")


agent = BaseAgent(backend=Parrot(), model_name=Parrot.model_name, tools=[calculator], reward=numeric_match)
row = {"messages": [{"role": "user", "content": "What is 6 * 7?"}], "answer": 42}
(t,) = agent.run(max_steps=3, start_messages=[row])
for message in t.messages:
    print(f"{message['role']}: {message.get('tool_calls') or message['content']}")
print("reward", t.reward)
