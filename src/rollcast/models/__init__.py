"""Models: the `Backend` protocol, chat rendering, parsers of tool calls, and the backends themselves."""

from __future__ import annotations

from typing import Any

from rollcast.errors import InputError
from rollcast.models.backend import Backend, BaseBackend, ChatRenderer, Delta, GenerationRequest, Sampling
from rollcast.models.parse import (
    CodeParser,
    HermesParser,
    IncrementalParser,
    Llama3Parser,
    Parser,
    PythonParser,
    Qwen3CoderParser,
    ReactParser,
)

__all__ = [
    "Backend",
    "BaseBackend",
    "ChatRenderer",
    "Delta",
    "GenerationRequest",
    "IncrementalParser",
    "Parser",
    "Sampling",
    "resolve_backend",
    "resolve_parser",
]

EMBEDDED = "rollcast/tiny"
_PARSERS: dict[str, type[Any]] = {
    parser.name: parser
    for parser in (CodeParser, HermesParser, Llama3Parser, PythonParser, Qwen3CoderParser, ReactParser)
}


def resolve_backend(backend: str | Backend | None, model_name: str) -> Backend:
    """The backend that a name stands for, with the model loaded; a `Backend` stands for itself.

    Raises:
        InputError: there is none of that name, or it cannot load the model.
    """
    if backend is not None and not isinstance(backend, str):
        missing = [name for name in dir(BaseBackend) if name[0] != "_" and not hasattr(backend, name)]
        if missing:
            raise InputError(
                f"backend is {type(backend).__name__}, which has no {', '.join(missing)}; expected a name ('tiny') or an "
                "object such as one derived from rollcast.models.BaseBackend"
            )
        return backend
    if backend is None and model_name != EMBEDDED:
        raise InputError(
            f"no backend was named for model {model_name!r}; backends: tiny (loads {EMBEDDED!r} or a folder of its kind)"
        )
    if backend not in (None, "tiny"):
        raise InputError(f"there is no backend {backend!r}; backends: tiny")
    from rollcast.models.tiny import TinyBackend  # noqa: PLC0415  (loads NumPy and tokenizers)

    return TinyBackend(None if model_name == EMBEDDED else model_name)


def resolve_parser(parser: str | Parser | None) -> Parser:
    """The parser that a name stands for; a `Parser` stands for itself, None for Hermes.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(parser, str):
        if parser not in _PARSERS:
            raise InputError(f"there is no parser {parser!r}; parsers: {', '.join(sorted(_PARSERS))}")
        made: Parser = _PARSERS[parser]()
        return made
    if parser is not None and not isinstance(parser, Parser):
        raise InputError(
            f"parser is {type(parser).__name__}; expected a name ({', '.join(sorted(_PARSERS))}) or an object with the "
            "attributes and methods of rollcast.models.Parser"
        )
    return HermesParser() if parser is None else parser
