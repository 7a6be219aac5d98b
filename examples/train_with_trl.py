"""Train a model with TRL's GRPOTrainer on the chains of an agent, and watch it.

The model is the embedded one as a Hugging Face folder; any other that calls tools is trained in the same way. It takes a few
steps by default; try: python examples/train_with_trl.py 40
"""

import sys
import tempfile

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from rollcast import BaseAgent, CallbackStreamObserver
from rollcast.models.hf import TransformersBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.tasks import get_task
from rollcast.train.trl import train

transformers.utils.logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
task = get_task("arithmetic")
agent = BaseAgent(backend=TransformersBackend(model, tokenizer), tools=task.tools, reward=task.reward)


def show(_, event):
    metrics = event.data["metrics"]
    print(f"step {event.data['train_step']}: reward {metrics['reward']:.2f}, loss {metrics['loss']:+.3f}")


agent.streaming_manager.add_observer(CallbackStreamObserver(show, types="train_step"))

with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(
        folder,
        max_steps=int(sys.argv[1]) if len(sys.argv) > 1 else 3,
        per_device_train_batch_size=16,
        num_generations=8,  # chains of one question, which are compared with each other
        max_completion_length=128,
        learning_rate=4e-4,
        lr_scheduler_type="constant",
        use_cpu=True,  # the model is small
        bf16=False,  # as precise as the rollouts
        logging_steps=1,  # an event for each step
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    trainer = train(agent, task.rows(256, seed=1), config, tokenizer=tokenizer, max_steps=3, max_tokens=64)
print(f"trained for {trainer.state.global_step} steps")
