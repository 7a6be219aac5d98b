"""Text to tool calls, while the text is still arriving."""

from rollcast.models.parse.base import IncrementalParser, Parser
from rollcast.models.parse.hermes import HermesParser

__all__ = ["HermesParser", "IncrementalParser", "Parser"]
