"""Small trainings of TRL on the embedded model, with and without us, for the tests of `attach`."""

from contextlib import contextmanager

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.tasks import get_task

TASK = get_task("arithmetic")


@contextmanager
def one_thread():
    """Have torch use one thread meanwhile: on a busy machine two threads wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_model():
    return Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


def new_tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def tokenizer_for_tools():
    """The embedded model's tokenizer, with the chat template that TRL's tool loop needs: what is rendered stays when messages are added.

    So the newline after an assistant's turn is written by the message that comes next.
    """
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.response_template = qwen3_template
    newline = "{% if loop.previtem and loop.previtem.role == 'assistant' %}{{ '\\n' }}{% endif %}"
    template = tokenizer.chat_template.replace("{% endgeneration %}{{ '\\n' }}", "{% endgeneration %}")
    tokenizer.chat_template = template.replace("<|im_start|>user", newline + "<|im_start|>user")
    return tokenizer


def data(count=8):
    return Dataset.from_list(
        [{"prompt": row["messages"], "answer": row["answer"]} for row in TASK.rows(count, seed=3)]
    )


def shortness(completions, **_):
    return [-len(completion[-1]["content"]) / 100 for completion in completions]


def turns(completions, **_):
    return [float(len(completion)) for completion in completions]


def config(folder, kind=GRPOConfig, **options):
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
    }
    return kind(str(folder), **given | options)


def new_trainer(
    folder, kind=GRPOTrainer, config_kind=GRPOConfig, rewards=(shortness,), parts=None, **options
):
    """A trainer of a new model; `parts` are further arguments of the trainer, `options` of its configuration."""
    given = {"processing_class": new_tokenizer(), "train_dataset": data(), **(parts or {})}
    return kind(
        model=new_model(), args=config(folder, config_kind, **options), reward_funcs=[*rewards], **given
    )


def outcome(trainer):
    """What a training came to: its weights, and its logs without what depends on the clock."""
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    logs = [
        {name: value for name, value in log.items() if "time" not in name and "per_second" not in name}
        for log in trainer.state.log_history
    ]
    return weights, logs


def is_equal(one, other):
    """Whether two outcomes are equal to the bit."""
    return (
        one[1] == other[1]
        and one[0].keys() == other[0].keys()
        and all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    )
