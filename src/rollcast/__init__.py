"""Rollcast runs tool-using LLM agents as many parallel chains and streams every token, tool call and reward live.

The names here are lazy: `import rollcast` loads no model, no server and no NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names
from rollcast.version import __version__

if TYPE_CHECKING:
    from rollcast.attaching import attach
    from rollcast.errors import InputError, RollcastError, ToolError
    from rollcast.models.backend import Delta, GenerationRequest, Sampling
    from rollcast.observers import (
        AsyncGeneratorStreamObserver,
        CallbackStreamObserver,
        ChainSpecificStreamObserver,
        JSONStreamObserver,
        MultiChainStreamObserver,
        OpenTelemetryStreamObserver,
        PrometheusStreamObserver,
    )
    from rollcast.records import EventFilter, StreamEvent, StreamEventType, Trajectory
    from rollcast.rollout import (
        BaseAgent,
        ChainContext,
        ChainGeneration,
        CodeAgent,
        ReactAgent,
        RunResult,
        ToolAgent,
    )
    from rollcast.rollout.reward import exact_match, numeric_match, reward
    from rollcast.serve import HubStreamObserver, WebSocketStreamingClient, WebSocketStreamingServer
    from rollcast.stream import StreamingManager, StreamObserver, current_chain
    from rollcast.terminal import ConsoleStreamObserver
    from rollcast.tools import tool

__all__ = [
    "AsyncGeneratorStreamObserver",
    "BaseAgent",
    "CallbackStreamObserver",
    "ChainContext",
    "ChainGeneration",
    "ChainSpecificStreamObserver",
    "CodeAgent",
    "ConsoleStreamObserver",
    "Delta",
    "EventFilter",
    "GenerationRequest",
    "HubStreamObserver",
    "InputError",
    "JSONStreamObserver",
    "MultiChainStreamObserver",
    "OpenTelemetryStreamObserver",
    "PrometheusStreamObserver",
    "ReactAgent",
    "RollcastError",
    "RunResult",
    "Sampling",
    "StreamEvent",
    "StreamEventType",
    "StreamObserver",
    "StreamingManager",
    "ToolAgent",
    "ToolError",
    "Trajectory",
    "WebSocketStreamingClient",
    "WebSocketStreamingServer",
    "__version__",
    "attach",
    "current_chain",
    "exact_match",
    "numeric_match",
    "reward",
    "tool",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "rollcast.attaching": "attach",
        "rollcast.errors": "InputError RollcastError ToolError",
        "rollcast.models.backend": "Delta GenerationRequest Sampling",
        "rollcast.records": "EventFilter StreamEvent StreamEventType Trajectory",
        "rollcast.rollout": "BaseAgent ChainContext ChainGeneration CodeAgent ReactAgent RunResult ToolAgent",
        "rollcast.rollout.reward": "exact_match numeric_match reward",
        "rollcast.serve": "HubStreamObserver WebSocketStreamingClient WebSocketStreamingServer",
        "rollcast.stream": "StreamingManager StreamObserver current_chain",
        "rollcast.observers": (
            "AsyncGeneratorStreamObserver CallbackStreamObserver ChainSpecificStreamObserver JSONStreamObserver "
            "MultiChainStreamObserver OpenTelemetryStreamObserver PrometheusStreamObserver"
        ),
        "rollcast.terminal": "ConsoleStreamObserver",
        "rollcast.tools": "tool",
    },
)
