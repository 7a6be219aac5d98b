"""What it costs to be attached: CPU time of the same work, attached or not, with a model of a real size for two cores.

Each round runs the work of a host alone, attached but neither recorded nor watched, recorded, and watched token by token on a
terminal. The model is 25 million parameters in NumPy, one matrix-vector product each a token, or for TRL a Qwen3 of that size. CPU
time is that of the process with all threads, from before `attach` until everything is closed; the openai client's server is in it.
The same is done without a model, for what a token costs in microseconds.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import rollcast
from benchmarks.measure import Figure, NotInstalledError, figure, paired, ratios
from rollcast import ConsoleStreamObserver, StreamingManager, current_chain
from rollcast.archive import ArchiveObserver

__all__ = ["run"]

HOSTS = ("function", "openai", "langchain", "trl")
WAYS = ("alone", "unwatched", "recorded", "watched")
Way = Literal["alone", "unwatched", "recorded", "watched"]
WORDS = [f" word{i}" for i in range(64)]
Work = Callable[[bool], Any]


def run(quick: bool, part: str = "") -> list[Figure]:
    """Measure the hosts, or one of them. Those that are not installed are left out, unless one is asked for.

    Raises:
        NotInstalledError: the host that is asked for is not installed.
    """
    figures = []
    for host in (part,) if part else HOSTS:
        package = {"langchain": "langchain_core"}.get(host, host)
        if host != "function" and importlib.util.find_spec(package) is None:
            if part:
                raise NotInstalledError(f"{package} is not installed")
            continue
        figures += _trl(quick) if host == "trl" else _tokens(host, quick)
    return figures


# -- one trial ---------------------------------------------------------------------------------------------------------


@contextmanager
def _watchers(way: Way) -> Iterator[StreamingManager]:
    """A manager with what records or watches."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        manager = StreamingManager(publish=False)
        stack.callback(manager.close)  # before the folder goes
        if way == "recorded":
            manager.add_observer(ArchiveObserver(Path(folder) / "record"))
        elif way == "watched":
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            manager.add_observer(ConsoleStreamObserver(file=nowhere, status=False))
        yield manager


def _trial(
    way: Way, make: Callable[[], tuple[Any, Callable[[], Any]]], bind: Callable[[Any, Any], Any]
) -> float:
    """CPU seconds of the work, from before it is attached until it is detached, and the record and the terminal are closed.

    Args:
        way: how it is watched.
        make: gives what is to be attached, and the work that uses it.
        bind: attaches; returns the handle.
    """
    x, work = make()
    with _watchers(way) as manager:
        began = time.process_time()
        handle = None if way == "alone" else bind(x, manager)
        work()
        if handle is not None:
            handle.detach(60)
    return time.process_time() - began


# -- a model in NumPy --------------------------------------------------------------------------------------------------


@cache
def _weights() -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal((5000, 5000), dtype=np.float32) / 70


def _sample(model: bool, tokens: int) -> Iterator[str]:
    """Words, each after as much work as a token of the model takes."""
    if not model:
        yield from (WORDS[i % 64] for i in range(tokens))
        return
    import numpy as np

    weights = _weights()
    state = weights[0]
    for i in range(tokens):
        state = np.einsum(
            "ij,j->i", weights, state
        )  # one thread: those of a BLAS library spin while they wait
        yield WORDS[i % 64]


# -- hosts that stream tokens ------------------------------------------------------------------------------------------


def _tokens(host: str, quick: bool) -> list[Figure]:
    tokens, calls, rounds = (8, 2, 2) if quick else (96, 1, 7)
    trial = {"function": _function, "openai": _openai, "langchain": _langchain}[host]
    with_model = paired({way: lambda way=way: trial(way, True, tokens, calls) for way in WAYS}, rounds)  # type: ignore[misc]
    many = 4 * calls
    bare = paired({way: lambda way=way: trial(way, False, tokens, many) for way in WAYS}, rounds)  # type: ignore[misc]
    each = tokens * many
    name = f"attach: {host}"
    figures = [
        figure(f"{name}: a token alone, with its model", _micro(with_model["alone"], tokens * calls), "µs")
    ]
    for way, target in (("unwatched", "about 1"), ("recorded", None), ("watched", "<= 1.05")):
        ratio = ratios(with_model[way], with_model["alone"])
        figures.append(figure(f"{name}: {_said(way)} / not attached, with its model", ratio, "×", target))
    figures.append(figure(f"{name}: a token alone, without a model", _micro(bare["alone"], each), "µs"))
    for way in WAYS[1:]:
        added = [a - b for a, b in zip(bare[way], bare["alone"], strict=True)]
        figures.append(figure(f"{name}: {_said(way)}, what a token costs more", _micro(added, each), "µs"))
    return figures


def _micro(seconds: list[float], tokens: int) -> list[float]:
    return [each / tokens * 1e6 for each in seconds]


def _said(way: str) -> str:
    return {"unwatched": "attached, record=None, unwatched", "recorded": "recorded", "watched": "watched"}[
        way
    ]


def _function(way: Way, model: bool, tokens: int, calls: int) -> float:
    def agent(question: str) -> str:
        with current_chain().generation() as generation:
            for token in _sample(model, tokens):
                generation.chunk(token)
        return question

    def make() -> tuple[Any, Callable[[], Any]]:
        at = {"agent": agent}

        def work() -> None:
            for i in range(calls):
                at["agent"](f"question {i}")

        return at, work

    def bind(at: Any, manager: StreamingManager) -> Any:
        at["agent"] = rollcast.attach.function(agent, manager=manager, record=None)
        return at["agent"]

    return _trial(way, make, bind)


def _openai(way: Way, model: bool, tokens: int, calls: int) -> float:
    from openai import OpenAI

    from rollcast.testing import OpenAIServer

    work_of_a_chunk: list[Iterator[str]] = []

    async def before_chunk(_request: Any, index: int) -> None:
        if index == 0:
            work_of_a_chunk.append(_sample(model, tokens + 8))
        next(work_of_a_chunk[-1], None)

    with ExitStack() as stack:
        server = stack.enter_context(OpenAIServer("".join(WORDS)[: 6 * tokens], before_chunk=before_chunk))
        client = stack.enter_context(OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))

        def work() -> None:
            for i in range(calls):
                messages: Any = [{"role": "user", "content": f"question {i}"}]
                stream = client.chat.completions.create(model="scripted", messages=messages, stream=True)
                for _ in stream:
                    pass

        return _trial(way, lambda: (client, work), _bind_any)


def _bind_any(x: Any, manager: StreamingManager) -> Any:
    return rollcast.attach(x, manager=manager, record=None)


def _langchain(way: Way, model: bool, tokens: int, calls: int) -> float:
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessageChunk
    from langchain_core.outputs import ChatGenerationChunk, ChatResult

    class Model(BaseChatModel):
        """Streams what the model in NumPy samples."""

        @property
        def _llm_type(self) -> str:
            return "numpy"

        def _generate(self, *_: Any, **__: Any) -> ChatResult:
            raise NotImplementedError("it is only streamed here")

        def _stream(
            self, _messages: Any, stop: Any = None, run_manager: Any = None, **_: Any
        ) -> Iterator[Any]:
            for token in _sample(model, tokens):
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=token))
                if run_manager is not None:
                    run_manager.on_llm_new_token(token, chunk=chunk)
                yield chunk

    chat = Model()

    def work() -> None:
        for i in range(calls):
            for _ in chat.stream(f"question {i}"):
                pass

    return _trial(
        way,
        lambda: (None, work),
        lambda _, manager: rollcast.attach.langchain(manager=manager, record=None),
    )


# -- TRL ---------------------------------------------------------------------------------------------------------------


def _trl(quick: bool) -> list[Figure]:
    rounds = 1 if quick else 11
    results = paired({way: lambda way=way: _training(way, quick) for way in WAYS}, rounds)  # type: ignore[misc]
    figures = [figure("attach: trl: a step alone", results["alone"], "s")]
    for way, target in (("unwatched", "about 1"), ("recorded", None), ("watched", "<= 1.05")):
        ratio = ratios(results[way], results["alone"])
        figures.append(figure(f"attach: trl: {_said(way)} / not attached", ratio, "×", target))
    return figures


def _training(way: Way, quick: bool) -> float:
    """One step of GRPO: 8 completions of 32 tokens, and an update."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from rollcast.models.tiny.backend import CHECKPOINT
    from rollcast.tasks import get_task

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several spin while they wait for each other, which hides everything else
    width = 64 if quick else 512
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2 if quick else 7,
        num_attention_heads=8, num_key_value_heads=8, head_dim=width // 8, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": row["messages"]} for row in get_task("arithmetic").rows(8, seed=3)])

    def make() -> tuple[Any, Callable[[], Any]]:
        config = GRPOConfig(
            tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=8, num_generations=8,
            max_completion_length=4 if quick else 32, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
            bf16=False, gradient_checkpointing=False, logging_steps=1,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=Qwen3ForCausalLM(shape),
            args=config,
            reward_funcs=[lambda completions, **_: [float(len(each[-1]["content"])) for each in completions]],
            processing_class=tokenizer,
            train_dataset=rows,
        )
        return trainer, trainer.train

    return _trial(way, make, _bind_any)
