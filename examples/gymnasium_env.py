"""Attach Rollcast to a Gymnasium environment: an action is a generation, a step is a tool call, the return is the reward."""

import gymnasium
from gymnasium.spaces import Discrete

from rollcast import ConsoleStreamObserver, StreamingManager


class Guess(gymnasium.Env):
    """Find a number from 0 to 15; the environment says whether it is higher or lower."""

    observation_space, action_space = Discrete(3), Discrete(16)

    def reset(self, *, seed=None, options=None):
        """Choose the number."""
        super().reset(seed=seed)
        self.secret = int(self.np_random.integers(16))
        return 0, {"text": "I think of a number from 0 to 15."}

    def step(self, action):
        """Take one guess, at a tenth of a point."""
        said = (action < self.secret) - (action > self.secret)
        found = said == 0
        return said, float(found) - 0.1, found, False, {"text": ("right", "higher", "lower")[said]}


def policy(low: int, high: int):
    """Stand for a model: it streams its action, token by token."""
    yield from ("I ", "guess ", f"{(low + high) // 2}")


def episode(run, env, seed: int):
    """Play one; the lines that attach it end with `# watch`."""
    _, info = env.reset(seed=seed)
    with run.chain([{"role": "user", "content": info["text"]}]) as chain:  # watch
        low, high, total, terminated, truncated = 0, 15, 0.0, False, False
        while not (terminated or truncated):
            with chain.generation() as generation:  # watch
                for token in policy(low, high):
                    generation.chunk(token)  # watch
            action = int(generation.turn.text.split()[-1])
            with chain.tool_call("step", {"action": action}) as call:  # watch
                said, reward, terminated, truncated, info = env.step(action)
                call.observation(info["text"])  # watch
            low, high = (max(low, action + 1), high) if said > 0 else (low, min(high, action - 1))
            total += reward
        chain.reward(total, {"steps": len(chain.trajectory.turns)})  # watch
        chain.end("max_steps" if truncated else "terminal_tool", info["text"])  # watch
    return chain.trajectory


manager = StreamingManager()
manager.add_observer(ConsoleStreamObserver(show_timestamps=False))
env = gymnasium.wrappers.TimeLimit(Guess(), 10)
with manager.run(chains=3, agent="bisection") as run:
    episodes = [episode(run, env, seed) for seed in (0, 4, 5)]
for t in episodes:
    print(t.chain_id, t.finish_reason, round(t.reward, 1), [turn.text for turn in t.turns])
