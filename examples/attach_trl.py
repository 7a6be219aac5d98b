"""Watch a TRL trainer that knows nothing of Rollcast: one line, and every chain's reward is seen as it comes.

The model is the embedded one as a Hugging Face folder; yours is watched in the same way, and so are its tokens, its tools and its
evaluations. It takes a few steps by default; try: python examples/attach_trl.py 40
"""

import sys
import tempfile

import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import rollcast
from rollcast import CallbackStreamObserver
from rollcast.models.tiny.backend import CHECKPOINT

transformers.utils.logging.disable_progress_bar()


def is_right(completions, answer, **_):
    return [float(str(right) in c[0]["content"]) for c, right in zip(completions, answer, strict=True)]


rows = [{"prompt": [{"role": "user", "content": f"What is {n} + 4?"}], "answer": n + 4} for n in range(32)]


def new_trainer(folder):
    config = GRPOConfig(
        folder, max_steps=int(sys.argv[1]) if len(sys.argv) > 1 else 2, per_device_train_batch_size=8, num_generations=8,
        max_completion_length=32, learning_rate=4e-4, logging_steps=1, bf16=False, use_cpu=True, save_strategy="no",
        report_to="none", disable_tqdm=True, log_level="error",
    )  # fmt: skip
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(CHECKPOINT),
        reward_funcs=[is_right],
        train_dataset=Dataset.from_list(rows),
        args=config,
    )


def show(_, event):
    if event.event_type == "chain_end":
        print(f"{event.chain_id}: reward {event.data['reward']}, {event.data['final_response'][:60]!r}")
    else:
        print(f"step {event.data['train_step']}: reward {event.data['metrics']['reward']:.2f}")


with tempfile.TemporaryDirectory() as folder:
    trainer = new_trainer(folder)
    handle = rollcast.attach(trainer, record=None)  # the line; leave record=None out, and it leaves a record
    handle.streaming_manager.add_observer(CallbackStreamObserver(show, types=("chain_end", "train_step")))
    trainer.train()
    handle.detach()
