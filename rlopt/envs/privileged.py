"""A simulator's full state for the critic, where the environment can tell it.

Only training needs a critic, and training may know more than the policy will: Pinto et al., arXiv:1710.06542.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from rlopt.envs.spaces import ArrayTree


class ShowState(gym.ObservationWrapper, RecordConstructorArgs):
    """Shows {"observation": o, "critic": the state as a vector} in place of o; only the critic reads the second.

    For environments with `state_space` and `get_state()`, which POPGym's have:
    `S2PG("MlpPolicy", make_envs(lambda: ShowState(make_env("popgym-RepeatFirstEasy-v0")), 16))`.

    Raises:
        ValueError: an environment that cannot tell its state.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        simulator: Any = env.unwrapped
        if not (hasattr(simulator, "get_state") and isinstance(getattr(simulator, "state_space", None), spaces.Space)):
            raise ValueError(f"env: {type(simulator).__name__} has no state_space and get_state(), and cannot show its state")
        self.state_space = simulator.state_space
        state = spaces.flatten_space(self.state_space)
        if not isinstance(state, spaces.Box):
            raise ValueError(f"env: states of {self.state_space} have no fixed length and cannot be shown as a vector")
        self.observation_space = spaces.Dict({"observation": env.observation_space, "critic": state})

    def observation(self, observation: Any) -> ArrayTree:
        simulator: Any = self.unwrapped
        return {"observation": observation, "critic": spaces.flatten(self.state_space, simulator.get_state())}
