"""One process of a TRL training over several, which torchrun starts: `trl_attached_rank.py FOLDER GENERATIONS`.

The trainer knows nothing of Rollcast. It is attached by one line, and what is seen is published to `ROLLCAST_HUB`.
"""

import json
import sys
from pathlib import Path

import torch

import rollcast
from attaching.trl_trainings import data, new_trainer, shortness


def main(folder, generations):
    torch.set_num_threads(1)
    parts = {"train_dataset": data(12), "eval_dataset": data(2)}
    trainer = new_trainer(
        folder / "out", parts=parts, rewards=(shortness,), per_device_train_batch_size=6, num_generations=generations,
        eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=6, ddp_backend="gloo", max_completion_length=8,
    )  # fmt: skip
    rollcast.attach(trainer)
    trainer.train()
    if trainer.accelerator.is_main_process:
        (folder / "logs.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
