"""What verl needs on a CPU: a configuration, a batch, and a server client that answers without an engine."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import verl
from hydra import compose, initialize_config_dir
from verl.protocol import DataProto
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from conformance_subjects import untied_model

TOOLS = '''
from verl.tools.function_tool import function_tool


@function_tool()
def add(a: int, b: int) -> str:
    """Adds.

    Args:
        a: a number.
        b: another.
    """
    if a == 13:
        raise ValueError("unlucky")
    return str(a + b)
'''

# verl asks for a template that only ever appends.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_config(folder: Path, **overrides: Any) -> Any:
    """verl's own configuration, for a small model whose tokenizer is the embedded one's."""
    if not (folder / "model").exists():
        untied_model(folder / "model")
        (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "tools.py").write_text(TOOLS)
    settings = {
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.prompt_length": 256,
        "actor_rollout_ref.rollout.response_length": 256,
        "actor_rollout_ref.rollout.calculate_log_probs": True,
        "actor_rollout_ref.rollout.agent.num_workers": 2,
        "actor_rollout_ref.rollout.multi_turn.format": "hermes",
        "actor_rollout_ref.rollout.multi_turn.function_tool_path": folder / "tools.py",
        "trainer.experiment_name": "an-experiment",
        **overrides,
    }
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", [f"{name}={value}" for name, value in settings.items()])


class Answering(LLMServerClient):
    """Answers a question `A + B` with a call of `add`, and what a tool says with that; the same prompt gets the same answer."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config)
        self.reads = tokenizer
        self.asked: list[list[int]] = []

    async def generate(
        self, request_id: Any, *, prompt_ids: list[int], sampling_params: Any, **kwargs: Any
    ) -> Any:
        """See `LLMServerClient`."""
        self.asked.append(list(prompt_ids))
        prompt = self.reads.decode(prompt_ids)
        tail = prompt[prompt.rfind("user") :]
        sums = re.findall(r"(\d+) \+ (\d+)", tail)
        if sums and "tool" not in tail:
            a, b = sums[-1]
            text = f'<tool_call>\n{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}\n</tool_call>'
        else:
            text = f"It is {len(prompt_ids)}."
        ids = [*self.reads.encode(text, add_special_tokens=False), self.reads.eos_token_id]
        logprobs = [-((i * 7 + len(prompt_ids)) % 11) / 8 for i in ids]
        return TokenOutput(
            token_ids=ids, log_probs=logprobs, stop_reason="completed", num_preempted=0,
            extra_fields={"global_steps": 4, "min_global_steps": 4, "max_global_steps": 4},
        )  # fmt: skip


def objects(values: list[Any]) -> Any:
    """An array of these objects."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def make_batch(
    loop: str, *, step: int = 5, validate: bool = False, sums: Any = ((1, 2), (1, 2), (30, 4))
) -> Any:
    """A batch as verl's trainer makes it before a rollout: prompts, repeated."""
    return DataProto(
        non_tensor_batch={
            "raw_prompt": objects([[{"role": "user", "content": f"What is {a} + {b}?"}] for a, b in sums]),
            "uid": objects([f"uid-{a}-{b}" for a, b in sums]),
            "index": objects([a for a, _ in sums]),
            "data_source": objects(["sums" for _ in sums]),
            "reward_model": objects([{"style": "rule", "ground_truth": str(a + b)} for a, b in sums]),
            "agent_name": objects([loop for _ in sums]),
        },
        meta_info={"global_steps": step, "validate": validate},
    )
