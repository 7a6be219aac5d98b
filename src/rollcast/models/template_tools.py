"""Fits tools to a chat template: each schema is given in the form that the template shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from rollcast.models.template_schema import (
    Render,
    shows_descriptions,
    shows_numbers_of_enums,
    shows_schemas_whole,
    undescribed_fields,
    with_described_fields,
    with_described_values,
    with_plain_fields,
    without_defaults,
)

__all__ = ["FittedTools"]


class FittedTools:
    """Gives tools to a template in the form that it shows whole.

    Args:
        render: renders messages and tools as the template does.
        question: a user's message that the template takes.
        renders: whether the template takes these messages and tools, after adaptation.
    """

    def __init__(
        self, render: Render, question: dict[str, Any], renders: Callable[[list[dict[str, Any]], Any], bool]
    ) -> None:
        self._render = render
        self._question = question
        self._renders = renders

    def prepared(self, tools: Sequence[Any]) -> list[Any]:
        """The tools, as the template reads them."""
        if not tools or self._shows_schemas_whole:
            return list(tools)
        plain = [with_plain_fields(tool) for tool in tools]
        if not shows_numbers_of_enums(self._render, self._question):
            plain = [with_described_values(tool) for tool in plain]
        bare = [without_defaults(tool) for tool in plain]
        if self._renders([self._question], bare) and not self._renders([self._question], plain):
            plain = bare
        if self._shows_descriptions and (hidden := self._undescribed(plain)):
            plain = [with_described_fields(tool, hidden) for tool in plain]
        return plain

    def undescribed_fields(self, tools: Any) -> list[str]:
        """The fields of the tools' parameters, such as `f.item.name`, that the template does not show."""
        if self._shows_schemas_whole:
            return []
        hidden = self._undescribed(tools)
        return [".".join(path) for path in hidden if len(path) == 2 or not self._shows_descriptions]

    def _undescribed(self, tools: Sequence[Any]) -> list[tuple[str, ...]]:
        return undescribed_fields(self._render, self._question, tools)

    @cached_property
    def _shows_descriptions(self) -> bool:
        return shows_descriptions(self._render, self._question)

    @cached_property
    def _shows_schemas_whole(self) -> bool:
        return shows_schemas_whole(self._render, self._question)
