"""Rollouts of ART 0.5. Its own interpreter runs this; see test_art.py."""

import asyncio
import json
import sys

import art


class Served:
    """A backend that trains nothing: it only says where the engine is, as ART's own backends do when a model is registered."""

    def __init__(self, base_url, model):
        self.base_url, self.model = base_url, model

    async def register(self, model):
        pass

    async def _prepare_backend_for_training(self, model, config):
        return self.base_url, "none"

    def _model_inference_name(self, model, step=None):
        return self.model


async def rollout(model, number):
    """Ask for a double, then for the double of that."""
    client, messages = model.openai_client(), []
    trajectory = art.Trajectory(messages_and_choices=[], reward=0.0)
    for question in (number, 2 * number):
        asked = {"role": "user", "content": f"What is {question} + {question}?"}
        messages.append(asked)
        answer = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=16, logprobs=True
        )
        choice = answer.choices[0]
        messages.append({"role": "assistant", "content": choice.message.content})
        trajectory.messages_and_choices += [asked, choice]
        trajectory.reward += (choice.message.content == f"It is {2 * question}.") / 2
    return trajectory


async def main(engine, model_name, endpoint):
    """Gather two groups of two, after one rollout alone."""
    model = art.TrainableModel(name="sums", run_name="sums", project="rollcast", base_model=model_name)
    await model.register(Served(engine, model_name))
    model.inference_base_url = endpoint
    first = await rollout(model, 7)
    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, number) for _ in range(2)) for number in (3, 5)]
    )
    await model.openai_client().close()
    trajectories = [first, *(trajectory for group in groups for trajectory in group)]
    kept = {"messages_and_choices", "reward"}
    print("ROLLOUTS", json.dumps([each.model_dump(mode="json", include=kept) for each in trajectories]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
