"""Write your own tool and reward, which share the chain's state.

The embedded model knows one tool by name, `calculator(expression)`. Here it is our own function.
"""

from rollcast import BaseAgent, ChainContext, ToolError, Trajectory, reward, tool
from rollcast.tasks import get_task
from rollcast.tools.calc import evaluate


@tool(timeout=1)
def calculator(expression: str, ctx: ChainContext) -> int | float:
    """Evaluate an arithmetic expression of numbers with + and -."""
    ctx.state["asked"] = [*ctx.state.get("asked", []), expression]
    if "*" in expression:
        raise ToolError("this calculator cannot multiply")  # the model reads: error: this calculator …
    return evaluate(expression)


@reward
def right_and_asked(final_response: str, answer: int, ctx: ChainContext, trajectory: Trajectory) -> dict:
    """One for the right number, a tenth for having asked at all."""
    right = final_response.endswith(f" {answer}.")
    asked = ctx.state.get("asked", [])
    return {"reward": right + 0.1 * bool(asked), "right": right, "turns": len(trajectory.turns)}


agent = BaseAgent(tools=[calculator], reward=right_and_asked)
rows = get_task("arithmetic").rows(3, seed=7)
result = agent.run(max_steps=3, start_messages=rows, num_chains=4, seed=7)

for group_id, chains in result.groups.items():
    print(group_id, rows[int(group_id.removeprefix("group_"))]["messages"][0]["content"])
    for t in chains:
        calls = ", ".join(f"{r.call.arguments} -> {r.observation}" for r in t.tool_calls) or "no call"
        print(f"  {t.chain_id}: reward {t.reward}, {calls}")
print("mean reward", round(result.mean_reward, 3))
