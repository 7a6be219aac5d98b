"""Parses tool calls out of text that is still arriving."""

from rollcast.models.parse.base import IncrementalParser, Parser
from rollcast.models.parse.code import CodeParser
from rollcast.models.parse.hermes import HermesParser
from rollcast.models.parse.llama3 import Llama3Parser
from rollcast.models.parse.pythonic import PythonParser
from rollcast.models.parse.qwen3_coder import Qwen3CoderParser
from rollcast.models.parse.react import ReactParser

__all__ = [
    "CodeParser",
    "HermesParser",
    "IncrementalParser",
    "Llama3Parser",
    "Parser",
    "PythonParser",
    "Qwen3CoderParser",
    "ReactParser",
]
