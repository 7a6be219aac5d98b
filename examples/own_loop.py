"""Watch your own rollout loop: without BaseAgent and backend, only with the producer API."""

import asyncio

from rollcast import ConsoleStreamObserver, StreamingManager
from rollcast.tools.calc import evaluate


async def some_engine(prompt: str):
    """Stand for the engine that samples tokens in your trainer."""
    expression = prompt.removeprefix("What is ").rstrip("?")
    for token in (expression, " makes", f" {evaluate(expression)}", "."):
        await asyncio.sleep(0.01)
        yield token


async def one_chain(run, question: str):
    """Tell the manager what happens. Whatever is raised inside, the blocks close what they opened."""
    with run.chain([{"role": "user", "content": question}]) as chain:
        with chain.generation() as generation:
            async for token in some_engine(question):
                generation.chunk(token)
                await run.manager.ready()  # if a lossless observer is behind, the loop waits here
        with chain.tool_call("checker", {"text": generation.turn.text}) as call:
            call.observation("correct")
        chain.reward(1.0, {"length": len(generation.turn.text)})
    return chain.trajectory


async def main():
    manager = StreamingManager()
    manager.add_observer(ConsoleStreamObserver(show_timestamps=False))
    async with manager.run(chains=2, agent="own-loop", model="mine") as run:
        questions = ["What is 17 + 25?", "What is 6 * 7?"]
        trajectories = await asyncio.gather(*(one_chain(run, question) for question in questions))
    # Here every observer has all events.
    for t in trajectories:
        print(t.chain_id, t.finish_reason, t.reward, t.turns[0].completion_tokens, "tokens")


asyncio.run(main())
