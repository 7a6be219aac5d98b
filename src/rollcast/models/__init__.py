"""Models: the `Backend` protocol, chat rendering, parsers of tool calls, and the backends themselves."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
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
    "BACKENDS",
    "EMBEDDED",
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
# Loaded when one is asked for.
_BACKENDS = {
    "tiny": "rollcast.models.tiny:TinyBackend",
    "transformers": "rollcast.models.hf:TransformersBackend",
    "async_vllm": "rollcast.models.vllm:AsyncVLLMBackend",
    "openai": "rollcast.models.openai:OpenAIBackend",
}
BACKENDS = tuple(_BACKENDS)
"""The names that `resolve_backend` knows."""

_PARSERS: dict[str, type[Any]] = {
    parser.name: parser
    for parser in (CodeParser, HermesParser, Llama3Parser, PythonParser, Qwen3CoderParser, ReactParser)
}


def resolve_backend(
    backend: str | Backend | None, model_name: str, options: Mapping[str, Any] | None = None
) -> Backend:
    """Load the backend of this name; return a `Backend` as it is.

    Args:
        backend: a name (`tiny`, `transformers`, `async_vllm`, `openai`) or a `Backend`; None is `tiny` for the embedded model.
        model_name: the model to load.
        options: keyword arguments of the named backend.

    Raises:
        InputError: no backend has that name, it cannot load the model, or it does not know an option.
        MissingExtraError: a package that the backend needs is not installed.
    """
    if backend is not None and not isinstance(backend, str):
        missing = [name for name in dir(BaseBackend) if name[0] != "_" and not hasattr(backend, name)]
        if missing:
            raise InputError(
                f"backend is {type(backend).__name__}, which has no {', '.join(missing)}; expected a name "
                f"({', '.join(_BACKENDS)}) or an object such as one derived from rollcast.models.BaseBackend"
            )
        if options:
            raise InputError(
                f"backend_options were given with a {type(backend).__name__}, which already exists; give them to it, or "
                f"name the backend ({', '.join(_BACKENDS)})"
            )
        return backend
    if backend is None and model_name != EMBEDDED:
        raise InputError(
            f"no backend was named for model {model_name!r}; backends: {', '.join(_BACKENDS)} (tiny loads {EMBEDDED!r} or "
            "a folder of its kind)"
        )
    name = "tiny" if backend is None else backend
    if name not in _BACKENDS:
        raise InputError(f"there is no backend {name!r}; backends: {', '.join(_BACKENDS)}")
    if name != "tiny" and model_name == EMBEDDED:
        raise InputError(
            f"the backend {name!r} needs a model: give model_name, a folder or a name on the Hugging Face hub"
        )
    module, _, kind = _BACKENDS[name].partition(":")
    made: type[Any] = getattr(importlib.import_module(module), kind)
    _check_options(name, made, options or {})
    loaded: Backend = made(
        None if name == "tiny" and model_name == EMBEDDED else model_name, **(options or {})
    )
    return loaded


def _check_options(name: str, kind: type[Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return  # it checks its options itself
    known = [parameter.name for parameter in parameters][1:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(
            f"the backend {name!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )


def resolve_parser(parser: str | Parser | None) -> Parser:
    """Return the parser of this name; a `Parser` is returned as it is, and None gives Hermes.

    Raises:
        InputError: no parser has that name.
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
