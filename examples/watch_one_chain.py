"""Run eight chains and watch one: what a filter leaves out is never made into an event."""

from rollcast import BaseAgent, ConsoleStreamObserver, numeric_match
from rollcast.tasks import get_task
from rollcast.tools import calculator

task = get_task("arithmetic")
agent = BaseAgent(tools=[calculator], reward=numeric_match)
agent.streaming_manager.add_observer(ConsoleStreamObserver(chain_filter="chain_5", show_timestamps=False))
result = agent.run(task.max_steps, task.rows(2, seed=7), num_chains=4, enable_streaming=True, seed=7)

print(f"{len(result)} chains ran, mean reward {result.mean_reward}")
