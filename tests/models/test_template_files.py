"""Named chat templates: where folders keep them, and which of them a conversation gets."""

import json
import shutil

import pytest

from rollcast import BaseAgent
from rollcast.errors import InputError, PromptTooLongError
from rollcast.models.chat import TemplateRenderer
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.tools import calculator

USER = [{"role": "user", "content": "hi"}]
DEFAULT = "plain{% for m in messages %} {{ m.content }}{% endfor %}"
TOOL_USE = "tools:{{ tools[0].function.name if tools }}{% for m in messages %} {{ m.content }}{% endfor %}"
RAG = "rag{% for m in messages %} {{ m.content }}{% endfor %}"
NAMED = {"default": DEFAULT, "tool_use": TOOL_USE, "rag": RAG}
LISTED = [{"name": name, "template": template} for name, template in NAMED.items()]


def folder_with(tmp_path, listed=None, **files):
    """A copy of the embedded model's folder with these chat templates in its configuration and as files."""
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if listed is not None:
        config["chat_template"] = listed
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, template in files.items():
        path = folder / "chat_template.jinja"
        if name != "default":
            path = folder / "additional_chat_templates" / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template)
    return folder


def prompt(renderer, tools):
    return renderer.codec._first.decode(renderer.render(USER, tools)).strip()


def prompts(renderer):
    """The prompt without and with tools, as text."""
    return [prompt(renderer, tools) for tools in ([], [calculator.schema])]


BOTH = ["plain hi", "tools:calculator hi"]


@pytest.mark.parametrize(
    ("listed", "files", "texts"),
    [
        (LISTED, {}, BOTH),
        (None, NAMED, BOTH),
        (LISTED, {"tool_use": "new " + TOOL_USE}, ["plain hi", "new tools:calculator hi"]),
        ([{"name": "rag", "template": RAG}], {"default": TOOL_USE}, ["tools: hi", "tools:calculator hi"]),
        ([{"name": "tool_use", "template": TOOL_USE}], {}, ["tools: hi", "tools:calculator hi"]),
        (TOOL_USE, {}, ["tools: hi", "tools:calculator hi"]),
        ("old", {"default": TOOL_USE}, ["tools: hi", "tools:calculator hi"]),
    ],
    ids=["list", "files", "files first", "no tool_use", "one", "text", "file first"],
)
def test_a_conversation_with_tools_gets_the_template_for_them(tmp_path, listed, files, texts):
    """By name as in transformers; what files say comes before the configuration, and one alone is for both."""
    assert prompts(TemplateRenderer.from_folder(folder_with(tmp_path, listed, **files), [2])) == texts


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ([{"name": "rag", "template": RAG}, {"name": "tool_use", "template": TOOL_USE}], "templates rag, tool_use; expected"),
        ([], "no chat template"),
        ([DEFAULT], "expected Jinja, or a list of objects"),
        ([{"name": "default"}], "expected Jinja, or a list of objects"),
        (LISTED + LISTED, "each with a name of its own"),
        (5, "is 5; expected Jinja"),
        ([{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": "{% if %}"}], "not valid Jinja"),
    ],
    ids=["no default", "none", "no names", "no template", "twice", "a number", "broken"],
)  # fmt: skip
def test_a_configuration_that_names_no_template_is_refused(tmp_path, listed, says):
    """In one sentence that says what was found."""
    with pytest.raises(InputError, match=says):
        TemplateRenderer.from_folder(folder_with(tmp_path, listed), [2])


def test_both_templates_have_the_same_limits(tmp_path):
    """What a backend sets later holds of the template for tools as well."""
    renderer = TemplateRenderer.from_folder(folder_with(tmp_path, LISTED), [2])
    renderer.max_characters = 1
    for tools in ([], [calculator.schema]):
        with pytest.raises(PromptTooLongError, match="expected at most 1"):
            renderer.render(USER, tools)


async def test_an_agent_with_tools_gets_them_told(tmp_path):
    """From a folder whose `default` shows no tools, on the embedded backend."""
    folder = folder_with(tmp_path, LISTED)
    seen = []
    for tools in ([], [calculator]):
        backend = TinyBackend(folder)
        (t,) = await BaseAgent(backend=backend, tools=tools).run_async(1, USER, sampling={"max_tokens": 1})
        assert t.error is None
        seen.append(backend.renderer.codec._first.decode(t.turns[0].prompt_ids).strip())
        await backend.close()
    assert seen == BOTH


@pytest.mark.torch
def test_the_transformers_backend_chooses_the_same(tmp_path):
    """From a tokenizer's dictionary, from what it saved, and by the name of a template."""
    transformers = pytest.importorskip("transformers")
    loading = pytest.importorskip("rollcast.models.hf.loading")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_with(tmp_path, LISTED))
    assert isinstance(tokenizer.chat_template, dict)
    assert prompts(loading.make_renderer(tokenizer, frozenset({2}), None, {})) == BOTH
    for chosen, text in (("rag", "rag hi"), (RAG, "rag hi"), ("tool_use", "tools: hi")):
        assert prompt(loading.make_renderer(tokenizer, frozenset({2}), chosen, {}), []) == text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "additional_chat_templates" / "tool_use.jinja").exists()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert prompts(loading.make_renderer(again, frozenset({2}), None, {})) == BOTH
    assert prompts(TemplateRenderer.from_folder(tmp_path / "saved", [2])) == BOTH
