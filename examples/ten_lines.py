"""Four chains of one question, on the terminal, with the embedded model."""

from rollcast import BaseAgent, ConsoleStreamObserver, numeric_match
from rollcast.tools import calculator

agent = BaseAgent(tools=[calculator], reward=numeric_match)
agent.streaming_manager.add_observer(ConsoleStreamObserver())
row = {"messages": [{"role": "user", "content": "What is 12 * 34?"}], "answer": 408}
result = agent.run(max_steps=3, start_messages=[row], num_chains=4, enable_streaming=True, seed=7)
for t in result:
    print(t.chain_id, t.finish_reason, t.reward, t.final_response)
