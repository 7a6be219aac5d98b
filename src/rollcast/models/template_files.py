"""Reads the chat templates from a model's folder, and chooses among several named ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcast.errors import InputError

__all__ = ["Templates", "read_chat_templates", "read_special_tokens", "with_and_without_tools"]

Templates = str | Mapping[str, str]
"""One template, or several by name: `default`, `tool_use`, `rag` …"""

_MORE = "additional_chat_templates"


def read_chat_templates(folder: Path) -> Templates:
    """Read `chat_template.jinja` and the named ones in `additional_chat_templates/`, else those in `tokenizer_config.json`.

    Raises:
        InputError: there is no template, or one cannot be read.
    """
    found: dict[str, Any] = {path.stem: _read_text(path) for path in sorted((folder / _MORE).glob("*.jinja"))}
    path = folder / "chat_template.jinja"
    if path.exists():
        found["default"] = _read_text(path)
    else:
        found = _configured(folder / "tokenizer_config.json") | found
    if not found:
        raise InputError(
            f"{folder} has no chat template; expected chat_template.jinja, or one in tokenizer_config.json"
        )
    return found["default"] if set(found) == {"default"} else found


def _configured(path: Path) -> dict[str, str]:
    """The templates in a tokenizer's configuration, by name: Jinja, or a list of `{"name": …, "template": …}`."""
    given = _read_object(path).get("chat_template")
    if given is None:
        return {}
    listed = given if isinstance(given, list) else [{"name": "default", "template": given}]
    found: dict[Any, Any] = {
        each.get("name"): each.get("template") for each in listed if isinstance(each, dict)
    }
    if len(found) < len(listed) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise InputError(
            f"the chat_template in {path} is {given!r:.80}; expected Jinja, or a list of objects "
            '{"name": "default", "template": …}, each with a name of its own'
        )
    return found


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Read the tokens that a template may name: `bos_token`, `eos_token` …

    Raises:
        InputError: the tokenizer's configuration is missing or broken.
    """
    return {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in _read_object(folder / "tokenizer_config.json").items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }


def with_and_without_tools(templates: Templates) -> tuple[str, str]:
    """The templates for conversations with and without tools, chosen by name as transformers does.

    Raises:
        InputError: there are several, and none of them is named `default`.
    """
    if isinstance(templates, str):
        return templates, templates
    names = sorted(templates)
    if not templates or ("default" not in templates and len(templates) > 1):
        raise InputError(
            f"the tokenizer has the chat templates {', '.join(names) or '(none)'}; expected one that is named 'default': "
            "choose one of them (the transformers backend takes its name or Jinja as chat_template=…)"
        )
    default = templates.get("default", templates[names[0]])
    return templates.get("tool_use", default), default


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); expected a chat template, which is Jinja"
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a tokenizer's configuration") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} has {type(value).__name__}; expected a JSON object")
    return value
