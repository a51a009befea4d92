"""The rollouts of several agents, whose environments are stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from rlopt.acting import make_actor
from rlopt.agents.base import Agent
from rlopt.collector import Collector
from rlopt.envs.base import EnvironmentFault, Info
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from rlopt.envs.spaces import ArrayTree
from rlopt.policies.distributions import draw_noise
from rlopt.rollout import Rollout
from rlopt.statistics import EpisodeStatistics
from rlopt.together.acting import joint_actor
from rlopt.together.environments import joined, parted
from rlopt.together.normalizing import JointObservationNormalizer, JointRewardNormalizer


class JointStatistics(EpisodeStatistics):
    """Of all environments; an episode that ends is for the agent whose environment it was in."""

    def __init__(self, members: Sequence[Collector]):
        super().__init__(sum(member.envs.num_envs for member in members))
        self.members = members
        self.returns = np.concatenate([member.statistics.returns for member in members])
        self.lengths = np.concatenate([member.statistics.lengths for member in members])

    def _finish(self, row: int, info: Info) -> None:
        index, own_row = divmod(row, self.members[0].envs.num_envs)
        theirs = self.members[index].statistics
        theirs.returns[own_row], theirs.lengths[own_row] = self.returns[row], self.lengths[row]
        theirs._finish(own_row, info)
        self.returns[row], self.lengths[row] = 0.0, 0


class JointCollector(Collector):
    """Steps the environments of K agents as one, each under its own policy and with its own random numbers.

    Args:
        agents: alike, each with N native environments; those that have not begun are reset.
    """

    def __init__(self, agents: Sequence[Agent]):
        self.agents, self.members = agents, [collector_of(agent) for agent in agents]
        for member in self.members:
            if member.observations is None:
                member.reset()
        first = self.members[0]
        self.rows = first.envs.num_envs  # N
        joint = GymnasiumEnvironments(joined([native(member) for member in self.members]))
        super().__init__(joint, first.policy, first.generator, JointStatistics(self.members), device=first.device)
        seen = [member.observation_normalizer for member in self.members if member.observation_normalizer is not None]
        paid = [member.reward_normalizer for member in self.members if member.reward_normalizer is not None]
        self.observation_normalizer = cast("Any", JointObservationNormalizer(seen) if seen else None)
        self.reward_normalizer = cast("Any", JointRewardNormalizer(paid) if paid else None)
        self.observations = np.concatenate([cast("Any", member.observations) for member in self.members])

    def rollouts(self, num_steps: int) -> list[Rollout]:
        """T = `num_steps` steps of every environment, under the policy of whose it is.

        Raises:
            EnvironmentFault: an observation or reward that is not finite.
        """
        modules = [agent.functional.bind(agent.state.theta) for agent in self.agents]
        actor = joint_actor([make_actor(module, self.rows) for module in modules])
        space, shape = self.envs.decoder.space, (num_steps, self.rows)
        noise = np.concatenate([draw_noise(space, shape, member.generator).numpy() for member in self.members], 1)
        try:
            arrays = self.recorded(actor, noise, modules[0].squash).arrays()
        except EnvironmentFault as error:
            raise EnvironmentFault(f"{error} (environments are counted over all agents, {self.rows} of each)") from error
        rollouts = []
        for k, (member, module) in enumerate(zip(self.members, modules, strict=True)):
            block = arrays.columns(slice(k * self.rows, (k + 1) * self.rows))
            rollouts.append(member._ended(block.rollout(module, self.device)))
        return rollouts

    def part(self) -> None:
        """Put every agent's environments and statistics where its rows are, so that it could go on alone."""
        joint: Any = cast("GymnasiumEnvironments", self.envs).env
        parted(joint, [native(member) for member in self.members])
        for k, member in enumerate(self.members):
            rows = slice(k * self.rows, (k + 1) * self.rows)
            member.observations = cast("Any", self.observations)[rows].copy()
            member.statistics.returns = self.statistics.returns[rows].copy()
            member.statistics.lengths = self.statistics.lengths[rows].copy()

    def _normalized_rows(self, observations: ArrayTree, rows: Any) -> ArrayTree:
        joint = cast("JointObservationNormalizer", self.observation_normalizer)
        return joint.of(np.asarray(rows) // self.rows, cast("Any", observations))

    def _report(self, event: Any, valid: Any) -> None:
        for member in self.members:
            member.num_timesteps += self.rows
        super()._report(event, valid)


def collector_of(agent: Agent) -> Collector:
    """The collector of an agent that has environments."""
    assert agent.collector is not None
    return agent.collector


def native(collector: Collector) -> FiniteHorizonVectorEnv:
    """Its environments, of this library's own kind."""
    env: FiniteHorizonVectorEnv = cast("GymnasiumEnvironments", collector.envs).env
    return env
