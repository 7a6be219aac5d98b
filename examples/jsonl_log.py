"""Write a run as JSON lines; then read the file and put each chain's text together again."""

import tempfile
from collections import defaultdict
from pathlib import Path

from rollcast import BaseAgent, JSONStreamObserver, StreamEventType, numeric_match
from rollcast.records import check_events, decode
from rollcast.tasks import get_task
from rollcast.tools import calculator

task = get_task("arithmetic")
with tempfile.TemporaryDirectory() as folder:
    log = Path(folder) / "events.jsonl"
    agent = BaseAgent(tools=[calculator], reward=numeric_match)
    agent.streaming_manager.add_observer(JSONStreamObserver(log))
    result = agent.run(task.max_steps, task.rows(1, seed=7), num_chains=3, enable_streaming=True, seed=7)
    with log.open("rb") as lines:
        events = [decode(line) for line in lines]

check_events(events)  # each event is where the grammar allows it, and what was opened is closed
texts, rewards = defaultdict(str), {}
for event in events:
    if event.event_type == StreamEventType.LLM_GENERATION_CHUNK:
        texts[event.chain_id] += event.data["content"]
    elif event.event_type == StreamEventType.CHAIN_END:
        rewards[event.chain_id] = event.data["reward"]

print(len(events), "events")
for chain_id, text in texts.items():
    assert text == "".join(turn.text for turn in result[chain_id].turns)
    print(chain_id, rewards[chain_id], repr(text))
