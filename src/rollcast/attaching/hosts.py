"""What can be attached, and how it is recognised: by the names of its classes, so that no host is imported for it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from rollcast.errors import InputError
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
        parts: as `classes`, for what hangs on one of these and makes no sense without it.
        packages: whose classes have the methods of these; a name is enough to mean all that begin with it.
    """

    name: str
    adapter: str
    what: str
    classes: tuple[tuple[str, str], ...] = ()
    recognises: Callable[[Any], bool] = lambda _: False
    parts: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()


_MOST_WRAPPERS = 16  # that are looked through, around a function

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
        packages=("trl", "transformers"),
    ),
    Host(
        "openai",
        "rollcast.attaching.openai_sdk",
        "a client of the openai package",
        (("openai", "OpenAI"), ("openai", "AsyncOpenAI")),
        parts=(("openai", "SyncAPIResource"), ("openai", "AsyncAPIResource")),
        packages=("openai",),
    ),
    Host(
        "langchain",
        "rollcast.attaching.langchain",
        "a model, chain or graph of LangChain or LangGraph",
        (("langchain_core", "Runnable"),),
        packages=("langchain", "langgraph"),
    ),
    Host(
        "vllm",
        "rollcast.attaching.vllm_engine",
        "a vLLM engine in this process",
        (("vllm", "LLM"), ("vllm", "AsyncLLM"), ("vllm", "LLMEngine")),
        packages=("vllm",),
    ),
    Host(
        "verl",
        "rollcast.attaching.verl",
        "an agent loop worker of verl",
        (("verl", "AgentLoopWorker"), ("verl", "AgentLoopManager")),
        packages=("verl",),
    ),
    Host("function", "rollcast.attaching.function", "a function", recognises=_is_function),
)


def host_of(x: Any) -> Host | None:
    """What `x` is; None if it cannot be attached. Nothing of `x` is called.

    Raises:
        InputError: it is only a part of something that can be attached, such as the method of a client; the sentence names that.
    """
    for host in HOSTS:
        if _is_one_of(x, host.classes):
            return host
    _refuse_a_part(x)
    return next((host for host in HOSTS if host.recognises(x)), None)


def _is_one_of(x: Any, classes: tuple[tuple[str, str], ...]) -> bool:
    bases = [*_bases(x)] if classes else ()
    return any(
        name == found and (module == package or module.startswith(f"{package}."))
        for package, name in classes
        for module, found in bases
    )


def _refuse_a_part(x: Any) -> None:
    method = _method_in(x)
    owner = x if method is None else method.__self__
    for host in HOSTS:
        if _is_one_of(owner, host.parts) or (method is not None and _is_one_of(owner, host.classes)):
            if method is None:
                got, alone = class_name_of(owner), ""
            elif _package_of_method(method).startswith(host.packages):
                got = f"the method {_name_of(method)} of {class_name_of(owner)}"
                alone = "; rollcast.attach.function(…) watches this one method alone"
            else:
                return  # somebody's own method of a subclass
            raise InputError(
                f"attach got {got}, which is a part of {host.what}: attach the whole, with rollcast.attach.{host.name}(…){alone}"
            )


def _method_in(x: Any) -> types.MethodType | None:
    """The method that a function is, or that it only wraps; None if it is another function."""
    for _ in range(_MOST_WRAPPERS):
        kind = type(x)
        if issubclass(kind, types.MethodType):
            return cast("types.MethodType", x)
        if issubclass(kind, functools.partial):
            x = x.func
        elif issubclass(kind, types.FunctionType) and "__wrapped__" in vars(x):
            inner = _method_in(x.__wrapped__)
            own = inner is None or _root(x.__globals__.get("__name__")) != _package_of_method(inner)
            return None if own else inner  # somebody's own function around a method is theirs
        else:
            return None
    return None


def _name_of(method: types.MethodType) -> str:
    return str(getattr(method.__func__, "__name__", ""))


def _package_of_method(method: types.MethodType) -> str:
    """The package of the class that has it."""
    for base in type.__dict__["__mro__"].__get__(type(method.__self__)):
        if _name_of(method) in base.__dict__:
            return _root(base.__dict__.get("__module__"))
    return ""


def _root(module: Any) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


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
