"""What a path of a request means to the proxy. Pure.

`/chains/ID/v1/chat/completions` is a generation of the chain ID, and the engine sees `/v1/chat/completions`. `/pause` or
`/update_weights` is a control path: it changes the engine for everybody. `/rollcast/…` is the proxy's own. Anything else is passed on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

__all__ = ["Kind", "Target", "target_of"]

Kind = Literal["generation", "control", "own", "other"]

OWN = "/rollcast/"
_CHAIN = re.compile(r"/chains/([^/?#]{1,1024})(?=/)")
_ROUTES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/inference/v1/generate": "generate",
}
# Words of paths that change an engine or stop it: of vLLM 0.32 (also those behind VLLM_SERVER_DEV_MODE), SGLang 0.5.23, llama.cpp's
# server, and prime-rl's and SkyRL's servers.
_CONTROL = re.compile(
    r"""
    (un)?pause(_generation)? | resume(_generation|_memory_occupation)? | continue_generation | is_paused
    | sleep | wake_up | is_sleeping | release_memory_occupation
    | (start_|finish_|prepare_)?(update|reload)_weights?(_.*)? | (start|finish)_weight_update | finish_update_weights
    | (init|destroy)_weights?_.* | init_broadcaster | get_weights_by_name | weights?_checker | update_weight_version
    | collective_rpc | abort_requests? | (load|unload)_lora_adapter(_.*)? | lora-adapters
    | (reset|flush|clear)_.*cache.* | scale_elastic_ep | is_scaling_elastic_ep | (start|stop)_profile | start_expert_.* | stop_expert_.*
    | dump_expert_.* | set_(internal_state|server_info|trace_level) | configure_logging | freeze_gc | slow_down
    | shutdown | admin | slots | props
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Target:
    """Where a request goes.

    Attributes:
        path: the path and the query for the engine, as the caller wrote them.
        kind: what it is.
        route: `chat`, `completions` or `generate` for a generation, else empty.
        chain: the chain that the path names, or None.
    """

    path: str
    kind: Kind
    route: str = ""
    chain: str | None = None


def target_of(path: str) -> Target:
    """Tell what a path is, with its query, as it stands in the request line."""
    chain = None
    if found := _CHAIN.match(path):
        chain, path = unquote(found.group(1)), path[found.end() :]
    plain = _plain(path)
    if chain is None and (plain + "/").startswith(OWN):
        return Target(path, "own")
    if any(_CONTROL.fullmatch(word) for word in plain.split("/")):
        return Target(path, "control", chain=chain)
    if route := _ROUTES.get(plain, ""):
        return Target(path, "generation", route, chain)
    return Target(path, "other", chain=chain)


def _plain(path: str) -> str:
    """The path as the most lenient server would read it: decoded, without a query, empty parts, dots or a slash at its end.

    The proxy passes on what it was given; this only decides what that is, so that no spelling of a control path slips through.
    """
    decoded = path.partition("?")[0]
    while (once := unquote(decoded)) != decoded:
        decoded = once
    parts: list[str] = []
    for part in decoded.replace("\\", "/").partition("?")[0].partition("#")[0].split("/"):
        word = part.partition(";")[0].strip()
        if word == "..":
            del parts[-1:]
        elif word not in ("", "."):
            parts.append(word)
    return "/" + "/".join(parts)
