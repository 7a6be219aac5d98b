"""Spread the chains of an agent over the runners of a Ray cluster, and watch them here.

It starts a cluster on this machine. Another one is used by its address: python examples/on_ray.py 10.0.0.1:6379
"""

import asyncio
import sys

from rollcast import BaseAgent, CallbackStreamObserver
from rollcast.fleet import RayWorkers
from rollcast.tasks import get_task

task = get_task("arithmetic")
agent = BaseAgent(tools=task.tools, reward=task.reward)


def show(_, event):
    print(f"{event.chain_id} on {event.source}: {event.data['final_response']}")


async def main(address):
    rows = task.rows(2, seed=0)
    here = await agent.run_async(task.max_steps, rows, 2, seed=7)
    agent.streaming_manager.add_observer(CallbackStreamObserver(show, types="chain_end"))
    async with agent, RayWorkers(address, runners=2, cpus=0.5) as workers:
        there = await agent.run_async(task.max_steps, rows, 2, True, seed=7, workers=workers)
    same = [t.digest() for t in there] == [t.digest() for t in here]
    print(f"mean reward {there.mean_reward:.2f}, {'the same' if same else 'not the same'} as without Ray")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "local"))
