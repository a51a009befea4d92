"""Atari games through ALE's own vector environment: emulation and preparation of N games in C++, on threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from rlopt.envs.base import Environments, Step, episode_seed
from rlopt.envs.cores import usable_cores
from rlopt.envs.gymnasium_vector import VectorInfos
from rlopt.envs.spaces import Array, ArrayTree

OPTIONS = ("repeat_action_probability", "full_action_space", "max_num_frames_per_episode")
"""Arguments of a game that its vector form has too."""

FIRE = 1  # in the order of actions that ALE gives a game which has it


class AtariEnvironments(Environments):
    """N copies of an Atari game, prepared as by DeepMind (Mnih et al. 2015) and Stable-Baselines3's `AtariWrapper`.

    Every action is taken for four frames, the last two are joined by their brighter pixels, in grey and 84 × 84; four of
    these are an observation, [4, 84, 84] bytes. A game begins with up to 30 frames of doing nothing, and with FIRE where it
    has to. Rewards are signs. A lost life ends an episode, but not the game, which goes on within the row that resets:
    with FIRE, as after a reset, where the game has it. What is reported (`monitored`) is the game: its score and frames.

    Three differences from those wrappers: after a lost life the stack still shows the frames before; two frames are joined by
    their grey, not by colours that turn into grey; and a new game begins with one frame of FIRE, not four and four of UP.

    Args:
        game: its name in ALE, "space_invaders".
        num_envs: N.
        name: for messages.
        **options: `repeat_action_probability`, `full_action_space`, `max_num_frames_per_episode`; as of the game's id.

    Raises:
        ImportError: ale-py is missing or older than 0.12.
    """

    resets_on_next_step = True
    restarts_rows = True
    monitored = True

    def __init__(self, game: str, num_envs: int, name: str | None = None, **options: Any):
        try:
            from ale_py.vector_env import AtariVectorEnv
        except ImportError as error:
            raise ImportError("env: Atari games need ale-py 0.12 or later: pip install 'rlopt[atari]'") from error
        threads = min(usable_cores(), num_envs)
        # An "episodic life" of ALE's own resets the game with it: nothing but its beginning would ever be played.
        self.env = AtariVectorEnv(
            game, num_envs, num_threads=threads, episodic_life=False, reward_clipping=False, use_fire_reset=True, **options
        )
        # Stated as Stable-Baselines3's wrappers show it, so that an agent may go on in theirs; policies read [4, 84, 84].
        frames = self.env.single_observation_space
        channels, height, width = frames.shape or ()
        shown: Any = spaces.Box(0, 255, (height, width, channels), np.uint8)
        super().__init__(num_envs, shown, self.env.single_action_space, name or game)
        self.backend_choice = f"native: ALE on {threads} threads"
        self._fires = any(action.name == "FIRE" for action in self.env.ale.get_action_set())
        self._lives = np.zeros(num_envs, np.int64)
        self._scores = np.zeros(num_envs)
        self._lost = np.zeros(num_envs, bool)  # a life with the last step, and the game goes on
        self._over = np.zeros(num_envs, bool)  # with the last step, so that the next one resets
        self._made = time.time()

    def reset(self, seed: int | None = None) -> ArrayTree:
        return self._begin(np.ones(self.num_envs, bool), None if seed is None else self._seeds(seed))

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        chosen = np.isin(np.arange(self.num_envs), rows)
        return self._begin(chosen, None if seeds is None else np.asarray(seeds))[rows]

    def step(self, actions: Array, active: Array | None = None) -> Step:
        del active  # all games are played
        resumed = self._lost
        actions = np.where(resumed, FIRE if self._fires else 0, actions)
        observations, rewards, terminated, truncated, told = self.env.step(actions)
        self._scores += rewards
        over = terminated | truncated
        infos: dict[str, Any] = {**told, "episode": self._reports(told), "_episode": over}
        self._scores[over] = 0.0
        lives = infos["lives"]
        self._lost = (lives < self._lives) & (lives > 0) & ~over & ~resumed & ~self._over
        self._lives, self._over = lives, over
        if (ended := over & resumed).any():  # the row counts nowhere, so that the next one has to open a game
            observations = self._begin(ended)
        readable = VectorInfos(infos, self.num_envs)
        return Step(observations, np.sign(rewards).astype(float), terminated | self._lost, truncated, (), None, readable)

    def close(self) -> None:
        """Nothing: the emulators go with the object."""

    def _begin(self, chosen: Array, seeds: Array | None = None) -> Array:
        """Observations of all games [N] after new ones in `chosen` [N] have begun."""
        options = None if chosen.all() else {"reset_mask": chosen}
        observations, infos = self.env.reset(seed=seeds, options=options)
        self._lives = infos["lives"]
        self._scores[chosen], self._lost[chosen], self._over[chosen] = 0.0, False, False
        return observations

    def _seeds(self, run_seed: int) -> Array:
        return np.array([episode_seed(run_seed, row, 0) for row in range(self.num_envs)])

    def _reports(self, infos: dict[str, Any]) -> dict[str, Array]:
        """What Stable-Baselines3's `Monitor` tells of games, [N] each: score, frames, seconds since these were made."""
        seconds = np.full(self.num_envs, time.time() - self._made)
        return {"r": self._scores.copy(), "l": infos["episode_frame_number"].copy(), "t": seconds}
