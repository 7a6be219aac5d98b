"""One process of a TRL training over several, which torchrun starts: `trl_ranks.py FOLDER GENERATIONS`.

Each process writes what it emits to a log of its own, and publishes it if `ROLLCAST_HUB` is set.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM
from trl import GRPOConfig

from rollcast import BaseAgent, StreamingManager, numeric_match
from rollcast.models.hf import TransformersBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.observers import JSONStreamObserver
from rollcast.tasks import get_task
from rollcast.terminal import ConsoleStreamObserver
from rollcast.tools import calculator
from rollcast.train.trl import train


def main(folder, generations):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    manager = StreamingManager()
    manager.add_observer(JSONStreamObserver(folder / "events.jsonl"))
    manager.add_observer(ConsoleStreamObserver())
    agent = BaseAgent(
        backend=TransformersBackend(model, tokenizer, cache_bytes=1 << 24),
        tools=[calculator],
        reward=numeric_match,
        streaming_manager=manager,
    )
    config = GRPOConfig(
        str(folder / "out"), per_device_train_batch_size=6, num_generations=generations, max_completion_length=48,
        max_steps=2, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, bf16=False, use_cpu=True,
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=6, ddp_backend="gloo", temperature=0.9,
    )  # fmt: skip
    rows = get_task("arithmetic").rows(14, seed=3)
    train(agent, rows[:12], config, eval_rows=rows[12:], tokenizer=tokenizer, max_steps=2, max_tokens=24)
    manager.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
