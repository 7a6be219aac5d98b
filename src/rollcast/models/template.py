"""A chat template: Jinja in a sandbox, with what transformers gives its templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from rollcast.errors import InputError, MessagesError

__all__ = ["ChatTemplate", "Moment"]

_DICT_ATTRIBUTES = frozenset(dir(dict))


class Moment:
    """The time at which a conversation began, which `strftime_now` writes in all of its prompts.

    A running clock would show a different date after midnight than the model has read.
    """

    def __init__(self) -> None:
        self._began = datetime.now().astimezone()
        self._written: dict[str, str] = {}

    def strftime(self, form: str) -> str:
        """The date or time in this form."""
        written = self._written.get(form)
        if written is None:
            written = self._written[form] = self._began.strftime(form)
        return written


class ChatTemplate:
    """Renders messages and tools to text.

    Args:
        source: the Jinja source.
        variables: what it may name beside messages and tools.

    Attributes:
        source: the Jinja source.

    Raises:
        InputError: the source is not valid Jinja.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self.source = source
        self._variables = dict(variables)
        self._template = _compiled(source)

    def text(self, messages: list[Any], tools: Any, moment: Moment | None = None) -> str:
        """Render a conversation, up to where the assistant speaks.

        Args:
            messages: as the template takes them.
            tools: descriptions; None if there are none.
            moment: the conversation's time; None: now.

        Raises:
            MessagesError: the template refuses the messages, or fails on them.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=True,
                **{"strftime_now": (moment or Moment()).strftime, **self._variables},
            )
        except jinja2.TemplateError as error:
            raise MessagesError(f"the chat template refuses the messages: {error}") from error
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            # Python operations inside a template raise these if a message lacks a field.
            raise MessagesError(
                f"the chat template failed on the messages ({type(error).__name__}: {error}); "
                "expected the fields that it reads"
            ) from error


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """Do what the sandbox does, without raising for each key of a message, which took half of the rendering time."""
        if obj.__class__ is dict and attribute not in _DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, with which templates mark what the assistant says; it writes its body."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compiled(source: str) -> jinja2.Template:
    """The template in a sandbox with what transformers gives its templates."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"the chat template is not valid Jinja (line {error.lineno}: {error.message})"
        ) from error
    template.globals = dict(template.globals)  # a ChainMap, which is copied for each rendering
    return template


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
