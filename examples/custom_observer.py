"""Write your own observer: this one measures how long the tools take, by name."""

import statistics
from collections import defaultdict

from rollcast import BaseAgent, EventFilter, StreamEvent, StreamObserver
from rollcast.tasks import get_task
from rollcast.tools import calculator


class ToolLatency(StreamObserver):
    """Gathers the duration of each tool call, in seconds. It gets no other event, so tokens cost nothing."""

    filter = EventFilter(types="tool_call_end")

    def __init__(self):
        self.seconds = defaultdict(list)

    async def on_event(self, event: StreamEvent):
        """Take one tool call."""
        self.seconds[event.data["tool_name"], event.data["status"]].append(event.data["duration_s"])


task, latency = get_task("arithmetic"), ToolLatency()
agent = BaseAgent(tools=[calculator], reward=task.reward)
agent.streaming_manager.add_observer(latency)
agent.run(task.max_steps, task.rows(4, seed=7), num_chains=8, enable_streaming=True, seed=7)

# When `run` returns, every observer has all events of that run.
for (tool_name, status), seconds in latency.seconds.items():
    print(f"{tool_name} ({status}): {len(seconds)} calls, median {statistics.median(seconds) * 1e3:.2f} ms")
