"""Reasoning through the chat templates of families, as TRL ships them: told from output, and given back."""

import re
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rollcast import BaseAgent, Delta, ReactAgent
from rollcast.models.backend import BaseBackend
from rollcast.models.chat import TemplateRenderer

Q = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "f", "arguments": {"x": "real"}}</tool_call>'
DRAFT = CALL.replace("real", "draft")
REACT = 'Action: f\nAction Input: {"x": "real"}\nObservation:'


def make_tokenizer(words):
    """One token for each byte, and one for each of these words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=True) for word in words])
    return tokenizer


def f(x: str) -> str:
    """Give back x."""
    return f"got {x}"


async def play(agent, steps=3):
    (t,) = await agent.run_async(steps, Q, seed=1)
    assert t.error is None
    return t


TEMPLATES = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"


class Speaks(BaseBackend):
    """Says a script through a chat template, with a token for each tag and each byte."""

    token_exact = logprobs = True

    def __init__(self, name, script, end, **variables):
        source = (TEMPLATES / f"{name}.jinja").read_text()
        words = set(
            re.findall(
                r"</?[\w:]+>|<\|[^|<>{}'\" ]+\|>|<\|\w+>|<\w+\|>|<｜[^｜]+｜>|\[/?[A-Z_]{3,}\]", source
            )
        )
        self.tokenizer = make_tokenizer(sorted(words | {end}))
        self.end = self.tokenizer.token_to_id(end)
        self.renderer = TemplateRenderer(
            self.tokenizer, source, {"bos_token": "", "eos_token": end}, [self.end], variables
        )
        self.script, self.requests = script, []

    async def generate(self, request):
        text = self.script[len(self.requests)]
        self.requests.append(request)
        for piece in re.findall(r"<[^<>]*>|\[/?[A-Z]+\]|.", text, re.DOTALL):
            ids = self.tokenizer.encode(piece).ids
            for i, index in enumerate(ids):
                yield Delta(piece if i == len(ids) - 1 else "", [index], [-0.5], 0)
        yield Delta("", [self.end], [-0.5], 0, finish_reason="stop")


QWEN_CALL = CALL.replace("{", "\n{", 1).replace("</tool", "\n</tool")
CODER_CALL = "<tool_call>\n<function=f>\n<parameter=x>\nreal\n</parameter>\n</function>\n</tool_call>"
OPENED, OPENS = "Let me {DRAFT} see.\n</think>\n\n", "<think>\nLet me {DRAFT} see.\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "end", "thought", "call", "parser", "variables"),
    [
        ("qwen3", "<|im_end|>", OPENS, QWEN_CALL, "hermes", {}),
        ("qwen3_5_think", "<|im_end|>", OPENED, CODER_CALL, "qwen3_coder", {}),
        ("qwen3_6", "<|im_end|>", OPENED, CODER_CALL, "qwen3_coder", {}),
        ("qwen3_8", "<|im_end|>", OPENED, CODER_CALL, "qwen3_coder", {}),
        ("nemotron_3_nano", "<|im_end|>", OPENED, CODER_CALL, "qwen3_coder", {}),
        ("nemotron_3_ultra", "<|im_end|>", OPENED, CODER_CALL, "qwen3_coder", {}),
        ("qwen2_5", "<|im_end|>", OPENS, QWEN_CALL, "hermes", {}),
        ("qwen3_5_think", "<|im_end|>", OPENS, CODER_CALL, "qwen3_coder", {}),  # the prompt's tag again
        ("nemotron_3_nano", "<|im_end|>", OPENS, CODER_CALL, "qwen3_coder", {}),
    ],
)
async def test_reasoning_is_given_back_as_the_template_reads_it(name, end, thought, call, parser, variables):
    """A loop of calls goes on from the ids that were sampled: nothing of the past is shown otherwise."""
    thought = thought.replace("{DRAFT}", DRAFT)
    backend = Speaks(name, [thought + call, thought + call, thought + "done"], end, **variables)
    t = await play(BaseAgent(tools=[f], backend=backend, parser=parser))
    assert [record.call.arguments for record in t.tool_calls] == [{"x": "real"}] * 2
    assert [turn.fresh for turn in t.turns] == [False] * 3
    assert {m["reasoning_content"] for m in t.messages if m["role"] == "assistant"} == {
        f"Let me {DRAFT} see."
    }
    assert not any("see." in (m["content"] or "") for m in t.messages)
    assert t.final_response == "done"


@pytest.mark.parametrize(
    ("name", "end", "thought"),
    [
        ("deepseekv3", "<｜end▁of▁sentence｜>", "Let me {REACT}\n</think>\n\n"),
        ("deepseek_r1_distill", "<｜end▁of▁sentence｜>", "Let me {REACT}\n</think>\n\n"),
        ("qwen3", "<|im_end|>", "<think>\nLet me {REACT}\n</think>\n\n"),
        ("glm4moe", "<|user|>", "\n<think>Let me {REACT}</think>\n"),
        ("gemma4_v5", "<turn|>", "<|channel>thought\nLet me {REACT}\n<channel|>"),
        ("nemotron_3_nano", "<|im_end|>", "Let me {REACT}\n</think>\n"),
        ("lfm2_2_5", "<|im_end|>", "<think>Let me {REACT}</think>"),
        ("cohere2", "<|END_RESPONSE|>", "<|START_THINKING|>Let me {REACT}<|END_THINKING|><|START_RESPONSE|>"),
        (
            "gptoss",
            "<|return|>",
            "<|channel|>analysis<|message|>Let me {REACT}<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
)
async def test_every_family_reasons(name, end, thought):
    """A ReactAgent acts on what stands behind the reasoning, and answers without it."""
    thought = thought.replace("{REACT}", f"\n{REACT} draft\n")
    backend = Speaks(name, [f"{thought}{REACT}", f"{thought}Final Answer: done"], end)
    t = await play(ReactAgent(tools=[f], backend=backend))
    assert [record.observation for record in t.tool_calls] == ["got real"]
    assert t.final_response == "done"
    assert all(m["reasoning_content"].startswith("Let me") for m in t.messages if m["role"] == "assistant")
    assert not any("Let me" in m["content"] for m in t.messages)


async def test_a_tag_that_was_spelt_in_letters_does_not_end_reasoning():
    """The vocabulary has a token for it, and the model sampled other ones."""

    class Spells(Speaks):
        async def generate(self, request):
            async for delta in super().generate(request):
                if delta.text != "<tag>":
                    yield delta
                    continue
                for character in "</think>":
                    yield Delta(character, self.tokenizer.encode(character).ids, [-0.5], 0)

    backend = Spells("qwen3_8", [f"I close with <tag> later. {CODER_CALL}\n</think>\n\ndone"], "<|im_end|>")
    t = await play(BaseAgent(tools=[f], backend=backend, parser="qwen3_coder"))
    assert (t.final_response, len(t.tool_calls)) == ("done", 0)


async def test_a_prompt_that_closed_an_empty_reasoning_tells_that_there_is_none():
    """The format's stop strings are the backend's again."""
    backend = Speaks("qwen3", [REACT, "Final Answer: done"], "<|im_end|>", enable_thinking=False)
    await play(ReactAgent(tools=[f], backend=backend))
    assert backend.requests[0].sampling.stop == ("\nObservation:",)
