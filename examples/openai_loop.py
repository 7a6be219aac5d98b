"""Watch a loop over the `openai` SDK. Set OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL, and run it.

Any server with the chat completions API will do. `attach` is the line that shows every call: tokens, reasoning, tool calls, counts.
The lines that end with `# chain` are only there since the loop gives a reward: they say which calls are one chain.
"""

import asyncio
import os

from openai import AsyncOpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState

import rollcast
from rollcast import ConsoleStreamObserver, StreamingManager
from rollcast.tools import calculator

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


async def one_chain(client, run, question: str, answer: int):
    """Generate and call tools until the model answers."""
    messages = [{"role": "user", "content": question}]
    with run.chain(messages, group_id="group_0", tools=["calculator"], reference=answer) as chain:  # chain
        calls = True
        while calls:
            state = ChatCompletionStreamState()
            async for piece in await client.chat.completions.create(
                model=MODEL, messages=messages, tools=[calculator.schema], stream=True
            ):
                state.handle_chunk(piece)
            said = state.get_final_completion().choices[0].message
            messages.append(said.to_dict())
            calls = said.tool_calls or []
            for call in calls:
                result = await calculator.invoke(call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result.observation})
        chain.reward(float(str(answer) in said.content))  # chain
    return chain.trajectory


async def main():
    manager = StreamingManager()
    manager.add_observer(ConsoleStreamObserver(show_timestamps=False))
    async with AsyncOpenAI() as client, manager.run(chains=2, agent="openai-loop", model=MODEL) as run:
        rollcast.attach(client, manager=manager)
        chains = (one_chain(client, run, "What is 12 * 34?", 408) for _ in range(2))
        trajectories = await asyncio.gather(*chains)
    for t in trajectories:
        print(t.chain_id, t.finish_reason, t.reward, t.final_response)


asyncio.run(main())
