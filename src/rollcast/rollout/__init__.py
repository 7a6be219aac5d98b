"""Agents and their chains: the loop, its context, rewards and results."""

from rollcast.rollout.agent import BaseAgent
from rollcast.rollout.agents import CodeAgent, ReactAgent, ToolAgent
from rollcast.rollout.chain import ChainGeneration
from rollcast.rollout.context import ChainContext
from rollcast.rollout.result import RunResult
from rollcast.rollout.reward import Reward, as_reward, exact_match, numeric_match, reward
from rollcast.rollout.run import Run
from rollcast.rollout.settings import RunSettings

__all__ = [
    "BaseAgent",
    "ChainContext",
    "ChainGeneration",
    "CodeAgent",
    "ReactAgent",
    "Reward",
    "Run",
    "RunResult",
    "RunSettings",
    "ToolAgent",
    "as_reward",
    "exact_match",
    "numeric_match",
    "reward",
]
