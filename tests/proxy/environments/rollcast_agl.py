"""Rollouts of agent-lightning 1.0. Its own interpreter runs this; see test_agent_lightning.py."""

import json
import os
import sys


class SumsAgent:
    """Asks for a double, then for the double of that, and reports its reward; the local runner starts one for each rollout."""

    def run(self):
        import httpx
        import openai

        number, right = int(os.environ["NUMBER"]), 0
        messages = []
        with openai.OpenAI(base_url=os.environ["AGL_OPENAI_BASE_URL"], api_key="none") as client:
            for question in (number, 2 * number):
                messages.append({"role": "user", "content": f"What is {question} + {question}?"})
                answer = client.chat.completions.create(model="any", messages=messages, max_tokens=16)
                said = answer.choices[0].message.content
                messages.append({"role": "assistant", "content": said})
                right += said == f"It is {2 * question}."
        reward = {"event_type": "reward", "data": {"value": right / 2}}
        httpx.post(os.environ["AGL_EVENT_URL"], json=reward).raise_for_status()


def main(agl_url, model, endpoint):
    """Do what agent-lightning's trainer does before it trains: register the model, and wait for a batch of rollouts."""
    from agentlightning.verl.agl_rollout_manager import AglRolloutManager

    manager = AglRolloutManager(
        agl_base_url=agl_url,
        agl_key="",
        model=model,
        step=0,
        train_rollout_n=2,
        rollout_timeout_seconds=120,
        poll_interval_seconds=0.1,
        local_agent_class="rollcast_agl:SumsAgent",
        local_env_map={"NUMBER": "input.number"},
    )
    manager.delete_model()
    manager.register_model([endpoint])
    done = manager.enqueue_and_wait_until_completed({"number": [3, 5]}, is_train=True)
    rollouts = [
        {
            "number": each.input["number"],
            "state": each.rollout_state,
            "reward": each.final_reward,
            "triplets": [(triplet.prompt, triplet.response, triplet.reward) for triplet in each.triplets],
        }
        for each in done
    ]
    print("ROLLOUTS", json.dumps(rollouts))


if __name__ == "__main__":
    main(*sys.argv[1:])
