"""Agents: one method per file, one shell for all."""

from rlopt.agents.base import Agent
from rlopt.agents.ppo import PPO

ALGORITHMS: dict[str, type[Agent]] = {"ppo": PPO}

__all__ = ["ALGORITHMS", "PPO", "Agent"]
