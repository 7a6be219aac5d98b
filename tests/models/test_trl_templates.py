"""Every chat template that TRL ships, with conversations as people have them: all of it is shown, or one sentence says why not."""

import enum
import importlib.util
import json
import re
from pathlib import Path
from typing import Literal, Optional

import pytest
from pydantic import BaseModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rollcast import BaseAgent
from rollcast.errors import MessagesError
from rollcast.models import BaseBackend, Delta
from rollcast.models.chat import TemplateRenderer
from rollcast.tools import tool

trl = importlib.util.find_spec("trl")
if trl is None:
    pytest.skip("needs TRL, which has the templates: the extra train", allow_module_level=True)
FOLDER = Path(trl.submodule_search_locations[0]) / "chat_templates"
STEMS = sorted(path.stem for path in FOLDER.glob("*.jinja"))
ADDED = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", '<|"|>']


def make_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=True) for word in ADDED])
    return tokenizer


TOKENIZER = make_tokenizer()
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}
RENDERERS = {}


def renderer_of(stem):
    """One a template: what it found out about it is used by all tests, as by all conversations of an agent."""
    if stem not in RENDERERS:
        source = (FOLDER / f"{stem}.jinja").read_text("utf-8")
        RENDERERS[stem] = TemplateRenderer(TOKENIZER, source, SPECIAL, [])
    return RENDERERS[stem]


def prompt(stem, messages, tools=(), renderer=None):
    ids = (renderer or renderer_of(stem)).render(messages, [each.schema for each in tools])
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def user(text="usera7q"):
    return {"role": "user", "content": text}


def part(text, **more):
    return {"type": "text", "text": text, **more}


def call(text="calla7q", **more):
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": text}}, **more}


def calls(*given, content=""):
    return {"role": "assistant", "content": content, "tool_calls": list(given)}


def gave(text="toola7q", **more):
    return {"role": "tool", "content": text, **more}


ONE, TWO = {"id": "call_1_0"}, {"id": "call_1_1"}
FIRST, SECOND = {"tool_call_id": "call_1_0"}, {"tool_call_id": "call_1_1"}
NULLS = {"tool_calls": None, "tool_call_id": None, "name": None, "reasoning_content": None}
AS_TEXT = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "calla7q"}'}, **ONE}
LOOP = [user(), calls(call(**ONE)), gave(**FIRST, name="weather")]
CONVERSATIONS = {
    "a string": [user()],
    "parts": [{"role": "user", "content": [part("usera7q "), part("userb7q", image=None)]}],
    "keys of None": [
        {**user(), **NULLS},
        {"role": "assistant", "content": "saida7q", **NULLS},
        user("userb7q"),
    ],
    "a list of no calls": [
        user(),
        {"role": "assistant", "content": "saida7q", "tool_calls": []},
        user("userb7q"),
    ],
    "system": [{"role": "system", "content": "systema7q"}, user()],
    "system in parts": [{"role": "system", "content": [part("systema7q"), part("systemb7q")]}, user()],
    "developer": [{"role": "developer", "content": "developera7q"}, user()],
    "system and developer": [
        {"role": "system", "content": "systema7q"},
        {"role": "developer", "content": [part("developera7q")]},
        user(),
    ],
    "system in the middle": [
        user(),
        {"role": "assistant", "content": "saida7q"},
        {"role": "system", "content": "systema7q"},
        user("userb7q"),
    ],
    "two users": [user(), user("userb7q")],
    "an answer in parts": [user(), {"role": "assistant", "content": [part("saida7q")]}, user("userb7q")],
    "a loop": LOOP,
    "a loop and its answer": [*LOOP, {"role": "assistant", "content": "saida7q"}, user("userb7q")],
    "a system message and a loop": [{"role": "system", "content": "systema7q"}, *LOOP],
    "content None": [user(), calls(call(**ONE), content=None), gave(**FIRST)],
    "no content": [user(), {"role": "assistant", "tool_calls": [call(**ONE)]}, gave(**FIRST)],
    "content beside a call": [user(), calls(call(**ONE), content="saida7q"), gave(**FIRST)],
    "content in parts beside a call": [user(), calls(call(**ONE), content=[part("saida7q")]), gave(**FIRST)],
    "arguments as text": [user(), calls(AS_TEXT), gave(**FIRST)],
    "calls without ids": [user(), calls(call()), gave()],
    "two calls": [
        user(),
        calls(call(**ONE), call("callb7q", **TWO)),
        gave(**FIRST),
        gave("toolb7q", **SECOND),
    ],
    "two calls without ids": [user(), calls(call(), call("callb7q")), gave(), gave("toolb7q")],
    "two rounds": [*LOOP, calls(call("callb7q", **TWO)), gave("toolb7q", **SECOND)],
    "a result in parts": [user(), calls(call(**ONE)), gave([part("toola7q"), part("toolb7q")], **FIRST)],
    "a result without a call": [user(), gave(**FIRST), user("userb7q")],
    "a result of another call": [user(), calls(call(**ONE)), gave(**FIRST), gave("toolb7q", **SECOND)],
    "a call without a result": [user(), calls(call(**ONE)), user("userb7q")],
}


class Shade(enum.Enum):
    dark = "darka7q"
    light = "lighta7q"


class Place(BaseModel):
    citya7q: str
    shade: Optional[Shade] = None  # noqa: UP045  (as people write it)


class Tree(BaseModel):
    leafa7q: int
    branchesa7q: list["Tree"] = []


@tool
def weather(
    city: str,
    place: Place | None = None,
    tree: Tree | None = None,
    kind: Literal["raina7q", "suna7q"] = "raina7q",
    level: Literal[735, 846] = 735,
    places: list[Place] = [],  # noqa: B006  (it is only described)
) -> str:
    """Tell the weather.

    Args:
        city: wherea7q.
    """
    return "sunny"


def words(value):
    return set(
        re.findall(r"[a-z]+[ab]7q|\b735\b|\b846\b", value if isinstance(value, str) else json.dumps(value))
    )


def shown_or_refused(stem, messages, tools):
    try:
        return prompt(stem, messages, tools), None
    except MessagesError as error:
        return "", str(error)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("tools", [(), (weather,)], ids=["without tools", "with tools"])
def test_every_text_is_shown_or_one_sentence_says_why_not(stem, tools):
    """Whatever the conversation holds, no word of it is lost in silence, and nothing is written as Python writes it."""
    for name, messages in CONVERSATIONS.items():
        seen, problem = shown_or_refused(stem, messages, tools)
        if problem is not None:
            assert re.search(r"messages\[\d\]|does not show tools|a tool's result|tool results?", problem), (
                name
            )
            assert "\n" not in problem
            continue
        said = words(messages) | (words([each.schema for each in tools]) if tools else set())
        assert said <= words(seen), f"{name}: {said - words(seen)} is not in {seen}"
        # Of a tool's default some write `None` by themselves.
        assert tools or not re.search(r"\bNone\b|'type': 'text'|\{'city'", seen), f"{name}: {seen}"


SHOWN = [
    "a string",
    "parts",
    "keys of None",
    "system",
    "system in parts",
    "developer",
    "system and developer",
]


@pytest.mark.parametrize("stem", STEMS)
def test_questions_and_instructions_are_shown_by_every_template(stem):
    """In whatever form the row has them: none of these is a reason to refuse it."""
    for name in SHOWN:
        assert words(CONVERSATIONS[name]) <= words(prompt(stem, CONVERSATIONS[name])), name


WITH_LOOPS = [
    stem
    for stem in STEMS
    if re.match(
        "deepseekv3|diffusion|gemma4|glm|gptoss|lfm2_[2v]|llama3_[12]|muse|nemotron|qwen2_5$|qwen2_5_t|qwen3",
        stem,
    )
]
LOOPS = [
    "a loop",
    "a loop and its answer",
    "content None",
    "no content",
    "arguments as text",
    "calls without ids",
]


@pytest.mark.parametrize("stem", WITH_LOOPS)
def test_demonstrations_of_calls_are_shown_by_templates_that_have_calls(stem):
    """Arguments as an object or as text, content that is empty, None or missing, results with ids or without."""
    assert len(WITH_LOOPS) > 40
    for name in [*LOOPS, "a result in parts"]:
        assert words(CONVERSATIONS[name]) <= words(prompt(stem, CONVERSATIONS[name])), name


def test_an_image_is_refused():
    """A template would write its placeholder, and the model see no image."""
    for stem in ("smolvlm", "qwen3_vl", "qwen3"):
        image = {"role": "user", "content": [part("What is it?"), {"type": "image", "url": "x"}]}
        with pytest.raises(MessagesError, match=r"user message messages\[1\] has a part of type 'image'"):
            prompt(stem, [{"role": "system", "content": "Look."}, image])


@pytest.mark.parametrize(
    ("stem", "name", "says"),
    [
        ("gemma", "two users", r"messages\[1\], whose role is user, cannot be shown.*roles must alternate"),
        (
            "qwen3_8",
            "system in the middle",
            r"messages\[2\], whose role is system.*must be at the beginning; leave",
        ),
        ("gptoss", "system in the middle", r"does not show the system message messages\[2\]"),
        ("gptoss", "two calls", r"does not show all tool calls of the assistant's message messages\[1\]"),
        (
            "llama3_1",
            "content beside a call",
            r"the content of the assistant's message messages\[1\] beside its",
        ),
        ("gemma4_v5", "a result without a call", r"does not show the tool result in messages\[1\]"),
    ],
)
def test_a_refusal_names_the_message(stem, name, says):
    """By its place and role, with what to do."""
    with pytest.raises(MessagesError, match=says):
        prompt(stem, CONVERSATIONS[name])


def test_a_name_that_is_not_shown_is_told_once(caplog):
    """Who speaks is no message of its own: the conversation goes on, and a warning says what the model does not know."""
    renderer = TemplateRenderer(TOKENIZER, (FOLDER / "qwen3.jinja").read_text("utf-8"), SPECIAL, [])
    for _ in range(2):
        renderer.render([{**user(), "name": "Ada"}], [])
    (record,) = caplog.records
    assert "does not show the `name` of messages[0], whose role is user" in record.getMessage()


# -- whole chains ------------------------------------------------------------------------------------------------------


class Says(BaseBackend):
    """Says a script through a template."""

    name = model_name = "says"
    token_exact = logprobs = True

    def __init__(self, stem, script):
        source = (FOLDER / f"{stem}.jinja").read_text("utf-8")
        self.renderer = TemplateRenderer(TOKENIZER, source, SPECIAL, [TOKENIZER.token_to_id("<|im_end|>")])
        self.script, self.requests = script, []

    async def generate(self, request):
        text = self.script[len(self.requests)]
        self.requests.append(request)
        for index in TOKENIZER.encode(text).ids:
            yield Delta(TOKENIZER.decode([index], skip_special_tokens=False), [index], [-0.5], 0)
        yield Delta("", [TOKENIZER.token_to_id("<|im_end|>")], [-0.5], 0, finish_reason="stop")

    def seen(self, turn):
        return TOKENIZER.decode(self.requests[turn].prompt_ids, skip_special_tokens=False)


async def test_a_template_of_parts_shows_what_is_a_string():
    """SmolVLM's writes nothing of a string, and would leave the model without the question."""
    backend = Says("smolvlm", ["ok"])
    (t,) = await BaseAgent(backend=backend, system_prompt="Be brief.").run_async(1, [user("zebra?")])
    assert t.error is None
    assert "System: Be brief.<end_of_utterance>\nUser: zebra?<end_of_utterance>" in backend.seen(0)


async def test_a_field_by_field_template_is_told_of_nested_fields_and_optional_types():
    """Gemma 4's looks for the type and the fields where the field stands, and not under `$defs` and `anyOf`."""

    class Item(BaseModel):
        name: str

    def f(x: Item, n: Optional[int] = None) -> str:  # noqa: UP045  (as people write it)
        """F."""

    backend = Says("gemma4_v5", ["ok"])
    await BaseAgent(backend=backend, tools=[f]).run_async(1, [user()])
    quoted = '<|"|>'
    assert f"x:{{properties:{{name:{{type:{quoted}STRING{quoted}}}}}" in backend.seen(0)
    assert f"n:{{nullable:true,type:{quoted}INTEGER{quoted}}}" in backend.seen(0)


async def test_a_content_of_none_is_not_written():
    """GLM 4.5's template writes Python's None for it."""
    backend = Says("glm4moe", ["ok"])
    (t,) = await BaseAgent(backend=backend).run_async(1, [*CONVERSATIONS["content None"], user("And?")])
    assert t.error is None
    assert "None" not in backend.seen(0)
    assert "<tool_call>weather\n" in backend.seen(0)


async def test_a_null_that_the_model_wrote_is_shown_again():
    """What a table filled in is left out of a row's calls, and nothing is taken from the model's own."""
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "place": null}}\n</tool_call>'

    class Forgets(BaseAgent):
        def assistant_message(self, text, content, calls):
            return {**super().assistant_message(text, content, calls), "content": "Once more."}

        def keeps_turn(self, message, text, content, calls):
            return True

    backend = Says("qwen3", [said, "ok"])
    await Forgets(backend=backend, tools=[weather]).run_async(2, [user()])
    assert '"arguments": {"city": "Oslo", "place": null}' in backend.seen(1)
