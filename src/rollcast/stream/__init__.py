"""Streaming: the manager, the delivery of events to observers, and the writers that produce them."""

from rollcast.stream.chain import ChainWriter, GenerationWriter, ToolCallWriter
from rollcast.stream.current import NoChain, current_chain
from rollcast.stream.delivery import ObserverStatistics
from rollcast.stream.manager import ManagerStatistics, StreamingManager
from rollcast.stream.observer import DeliveryMode, StreamObserver
from rollcast.stream.run import RunWriter

# The names of these classes in 0.1.
ChainStream, GenerationStream, RunStream, ToolStream = (
    ChainWriter,
    GenerationWriter,
    RunWriter,
    ToolCallWriter,
)

__all__ = [
    "ChainStream",
    "ChainWriter",
    "DeliveryMode",
    "GenerationStream",
    "GenerationWriter",
    "ManagerStatistics",
    "NoChain",
    "ObserverStatistics",
    "RunStream",
    "RunWriter",
    "StreamObserver",
    "StreamingManager",
    "ToolCallWriter",
    "ToolStream",
    "current_chain",
]
