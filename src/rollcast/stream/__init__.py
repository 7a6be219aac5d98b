"""Who watches and who gets what: the manager, delivery, the producer API, observers."""

from rollcast.stream.chain import ChainStream, GenerationStream, ToolStream
from rollcast.stream.current import NoChain, current_chain
from rollcast.stream.delivery import ObserverStatistics
from rollcast.stream.manager import ManagerStatistics, StreamingManager
from rollcast.stream.observer import DeliveryMode, StreamObserver
from rollcast.stream.run import RunStream

__all__ = [
    "ChainStream",
    "DeliveryMode",
    "GenerationStream",
    "ManagerStatistics",
    "NoChain",
    "ObserverStatistics",
    "RunStream",
    "StreamObserver",
    "StreamingManager",
    "ToolStream",
    "current_chain",
]
