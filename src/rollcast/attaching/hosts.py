"""What can be attached, and how it is recognised: by the names of its classes, so that no host is imported for it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rollcast.failures import class_name_of

__all__ = ["HOSTS", "Host", "host_of", "what_can_be_attached"]


class Host(NamedTuple):
    """One kind of thing that can be attached.

    Attributes:
        name: as in `rollcast.attach.NAME`.
        adapter: the module with `attach(x, attachment, **options)`.
        what: it in a few words, for messages.
        classes: the module, or the package, and the name of each class that is one of these, or a base of it.
        recognises: for what has no class of its own.
    """

    name: str
    adapter: str
    what: str
    classes: tuple[tuple[str, str], ...] = ()
    recognises: Callable[[Any], bool] = lambda _: False


_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    functools.partial,
    type(functools.lru_cache(len)),
)


def _is_function(x: Any) -> bool:
    return issubclass(type(x), _FUNCTIONS)


HOSTS = (
    Host(
        "trl",
        "rollcast.attaching.trl",
        "a GRPOTrainer of TRL",
        (("trl", "GRPOTrainer"), ("trl", "RLOOTrainer")),
    ),
    Host(
        "openai",
        "rollcast.attaching.openai_sdk",
        "a client of the openai package",
        (("openai", "OpenAI"), ("openai", "AsyncOpenAI")),
    ),
    Host(
        "langchain",
        "rollcast.attaching.langchain",
        "a model, chain or graph of LangChain or LangGraph",
        (("langchain_core", "Runnable"),),
    ),
    Host(
        "vllm",
        "rollcast.attaching.vllm_engine",
        "a vLLM engine in this process",
        (("vllm", "LLM"), ("vllm", "AsyncLLM"), ("vllm", "LLMEngine")),
    ),
    Host(
        "verl",
        "rollcast.attaching.verl",
        "an agent loop worker of verl",
        (("verl", "AgentLoopWorker"), ("verl", "AgentLoopManager")),
    ),
    Host("function", "rollcast.attaching.function", "a function", recognises=_is_function),
)


def host_of(x: Any) -> Host | None:
    """What `x` is; None if it cannot be attached. Nothing of `x` is called."""
    bases = list(_bases(x))
    for host in HOSTS:
        for package, name in host.classes:
            if any(
                name == found and (module == package or module.startswith(f"{package}."))
                for module, found in bases
            ):
                return host
    return next((host for host in HOSTS if host.recognises(x)), None)


def _bases(x: Any) -> Iterator[tuple[str, str]]:
    for base in type.__dict__["__mro__"].__get__(type(x)):
        module = base.__dict__.get("__module__")
        if isinstance(module, str):
            yield module, str(type.__dict__["__name__"].__get__(base))


def what_can_be_attached(x: Any) -> str:
    """The sentence for something that cannot."""
    found = f"the class {x.__name__}" if isinstance(x, type) else f"{class_name_of(x)}"
    can = ", ".join(host.what for host in HOSTS[:-1])
    hint = "; make one and attach that" if isinstance(x, type) else ""
    return f"attach got {found}{hint}; what can be attached is {can}, or {HOSTS[-1].what}"
