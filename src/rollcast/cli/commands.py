"""Commands made of functions: a parameter's annotation says which option or argument it is, and of which type.

A command is built when it is looked up, and its code is imported when it is called, so that `rollcast --help` and each command start at
once.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from rollcast.cli.exit_codes import INTERRUPTED

__all__ = ["Argument", "Commands", "Option"]

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        flag: how it is typed. None: `--` and the parameter's name, with `-` for `_`.
        help: what it does.
        metavar: the placeholder for its value in the help. None: the name of its type.
        min, max: the smallest and the largest whole number that it takes.
        envvar: the environment variable that sets it, too.
        group: the section of the help that lists it. None: Options.
    """

    flag: str | None = None
    help: str = ""
    metavar: str | None = None
    min: int | None = None
    max: int | None = None
    envvar: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
        metavar: its placeholder in the usage and the help.
        help: what it means.
    """

    metavar: str
    help: str = ""


class Commands(click.Group):
    """Commands in the order in which their functions were added."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._functions: dict[str, Callable[..., None]] = {}
        self._grouped: set[str] = set()

    def add(self, function: F) -> F:
        """Make the function a command of its name; an underscore at the end of the name is left out."""
        self._functions[function.__name__.rstrip("_")] = function
        return function

    def add_grouped(self, function: F) -> F:
        """Like `add`, for a command with so many options that its help lists them in sections."""
        self._grouped.add(function.__name__.rstrip("_"))
        return self.add(function)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in order."""
        return list(self._functions)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with that name, or None if there is no such command."""
        if cmd_name not in self.commands and cmd_name in self._functions:
            grouped = cmd_name in self._grouped
            self.add_command(_command(cmd_name, self._functions[cmd_name], grouped=grouped))
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names.

        Raises:
            UsageError: no command has this name; the message suggests the closest one.
        """
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in self._functions:
            near = ", ".join(repr(each) for each in difflib.get_close_matches(name, self._functions))
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near}?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command.

        Raises:
            BrokenPipeError: the output's reader has gone. It has no `errno`, since click handles one with `EPIPE` itself.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise BrokenPipeError from None


class _Command(click.Command):
    """A command whose help lists its arguments, and if it is `grouped`, its options in sections."""

    def __init__(self, *args: Any, grouped: bool, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._grouped = grouped

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, the options without a group, and then each group."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            title = "Arguments" if isinstance(param, _Argument) else "Options"
            if self._grouped and isinstance(param, _Option) and param.group is not None:
                title = param.group
            line = param.help_line if isinstance(param, _Argument) else param.get_help_record(ctx)
            if line is not None:
                sections.setdefault(title, []).append(line)
        for title, lines in sections.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


class _Option(click.Option):
    def __init__(self, *args: Any, group: str | None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


class _Argument(click.Argument):
    """An argument with a line of its own in the help, which click has only since a later version than the oldest that is supported."""

    def __init__(self, name: str, about: Argument, *, required: bool, **settings: Any) -> None:
        metavar = about.metavar if required or about.metavar.startswith("[") else f"[{about.metavar}]"
        super().__init__([name], metavar=metavar, required=required, **settings)
        default = None if required else settings["default"]
        fact = "required" if required else f"default: {default}" if default is not None else ""
        self.help_line = (about.metavar, f"{about.help}  [{fact}]" if fact else about.help)


class _WholeNumber(click.IntRange):
    name = "integer"  # not "integer range": an error says which numbers it takes


def _command(name: str, function: Callable[..., None], *, grouped: bool) -> click.Command:
    hints = get_type_hints(function, include_extras=True)
    lists = [name for name, hint in hints.items() if _type_of(hint) is list]

    def call(**given: Any) -> None:
        function(**given | {name: list(given[name]) for name in lists})

    params = [
        _param(name, hints[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    return _Command(name, callback=call, params=params, help=inspect.getdoc(function), grouped=grouped)


def _param(name: str, hint: Any, default: Any) -> click.Parameter:
    """The click parameter for a function's parameter that is annotated with an `Option` or an `Argument`."""
    (about,) = hint.__metadata__
    required = default is inspect.Parameter.empty
    given: dict[str, Any] = {} if required else {"default": default}
    if isinstance(about, Argument):
        return _Argument(name, about, required=required, **given)
    kind = _type_of(hint)
    bounded = about.min is not None or about.max is not None
    settings: dict[str, Any] = {
        "help": about.help,
        "group": about.group,
        "metavar": about.metavar,
        "envvar": about.envvar,
        "show_envvar": about.envvar is not None,
        "required": required,
        "show_default": not required and default is not None,
    }
    if kind is bool:
        settings |= {"is_flag": True, **given}
    elif kind is list:
        settings |= {"multiple": True, "type": str}
    else:
        settings |= {"type": _WholeNumber(about.min, about.max) if bounded else kind, **given}
    return _Option([about.flag or "--" + name.replace("_", "-"), name], **settings)


def _type_of(hint: Any) -> type:
    """`bool`, `int`, `float`, `str` or `list`, whether or not it may be None."""
    inner = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(inner) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(inner) if each is not types.NoneType)
    origin: type = get_origin(inner) or inner
    return origin
