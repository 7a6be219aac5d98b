"""The help of the commands that have many options: grouped, each group under its title."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["GroupedCommand"]


class GroupedCommand(TyperCommand):
    """A command whose help shows each option under the title that its `rich_help_panel` names."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options without a title, and then the groups."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            line = param.get_help_record(ctx)
            if line is not None:
                title = getattr(param, "rich_help_panel", None)
                if title is None:
                    title = "Arguments" if param.param_type_name == "argument" else "Options"
                sections.setdefault(title, []).append(line)
        for title, lines in sections.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)
