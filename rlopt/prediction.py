"""Acting outside training: one observation or a batch, with what a stateful policy remembers handed in and out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import is_vectorized_observation

from rlopt.envs.memory import OBSERVATION, MemoryActions, MemoryObservations, MemoryState, encode_actions
from rlopt.envs.normalize import ObservationNormalizer
from rlopt.envs.spaces import ActionDecoder, Array, ArrayTree, ObservationEncoder, map_arrays
from rlopt.policies import draw_noise
from rlopt.policies.stateful import actor_spaces, as_actor_critic


class Predictor:
    """What `Agent.predict` does; draws from a generator of its own and changes nothing of the agent.

    What an environment showed the critic alone may be missing: the actor of a policy with memory does not read it.

    Args:
        policy: of the agent.
        encoder, decoder: between the environment's spaces and the policy's.
        generator: for the noise of sampled actions.
        normalizer: of observations, used as it is; or None.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        encoder: ObservationEncoder,
        decoder: ActionDecoder,
        generator: torch.Generator,
        normalizer: ObservationNormalizer | None,
    ):
        self.policy, self.encoder, self.decoder = policy, encoder, decoder
        self.generator, self.normalizer = generator, normalizer
        self.actor_critic = as_actor_critic(policy)
        others = actor_spaces(encoder.raw_space) if isinstance(policy.observation_space, MemoryObservations) else []
        self.actor_encoder = ObservationEncoder(others[0]) if others else None  # of observations without the critic's entries
        self.bare_space = others[1] if len(others) == 2 else None  # "observation", where the actor reads nothing else
        self._state_missing = False  # in the last call

    def __call__(
        self, observation: Any, state: Any, episode_start: Any, deterministic: bool
    ) -> tuple[Array, MemoryState | None]:
        """See `Agent.predict`."""
        observations, batched = self._encoded(observation)
        space = self.policy.observation_space
        if isinstance(space, MemoryObservations):
            before = self._resumed(state, episode_start, space.initial(batch_size(observations)))
            actions, after = self._remembering(space.join(observations, before), deterministic)
        else:
            actions, after = self._act(observations, deterministic), None
        decoded = self.decoder(actions, self.policy.squash_output)
        return (decoded if batched else np.asarray(decoded[0])), after

    def initial_state(self, num: int) -> MemoryState | None:
        """Memory at the start of `num` episodes; None without memory."""
        space = self.policy.observation_space
        return space.initial(num) if isinstance(space, MemoryObservations) else None

    def _encoded(self, observation: Any) -> tuple[ArrayTree, bool]:
        """The observation [n, *obs] as arrays that policies read, and whether it was a batch."""
        bare = self._is_bare(observation)
        raw_space = self.bare_space if bare else self.encoder.raw_space
        if isinstance(observation, tuple) and not isinstance(raw_space, spaces.Tuple):
            raise ValueError(
                "observation: got a tuple, expected an array or a dict. Gymnasium's reset returns (observation, info) and "
                "its step five values; pass the first of them"
            )
        if bare:
            observation = {OBSERVATION: observation}
        encoder = self._encoder_of(observation)
        try:
            encoded = encoder(observation)
            # before normalisation, which would broadcast
            batched = is_vectorized_observation(encoded, encoder.space)  # type: ignore[arg-type]
            _check_entries(encoder.space, encoded, batched)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"observation: expected {encoder.raw_space}, or a batch of that: {error}") from error
        return (encoded if batched else map_arrays(lambda array: np.asarray(array)[None], encoded)), batched

    def _is_bare(self, observation: Any) -> bool:
        """Whether it is what stands at "observation" where the critic sees more, as if the environment never showed it."""
        if self.bare_space is None:
            return False
        return not isinstance(observation, Mapping) or (
            isinstance(self.bare_space, spaces.Dict) and OBSERVATION not in observation
        )

    def _encoder_of(self, observation: Any) -> ObservationEncoder:
        """The encoder of the whole observation or, where entries of the critic's are missing, of what the actor reads.

        Raises:
            ValueError: an entry is missing that the actor reads.
        """
        if self.actor_encoder is None or not isinstance(observation, Mapping):
            return self.encoder
        needed = self.actor_encoder.raw_space
        assert isinstance(needed, spaces.Dict)
        if missing := sorted(needed.spaces.keys() - observation.keys()):
            raise ValueError(f"observation: the actor reads {sorted(needed.spaces)}, of which {missing} is missing")
        whole = self.encoder.raw_space
        assert isinstance(whole, spaces.Dict)
        return self.encoder if whole.spaces.keys() <= observation.keys() else self.actor_encoder

    def _resumed(self, state: Any, episode_start: Any, initial: MemoryState) -> MemoryState:
        """`state` with the rows that begin an episode as they are then; warns if a caller seems to forget it."""
        if state is None:
            if self._state_missing:
                warnings.warn(
                    "state: predict was called twice in a row without one, so that the policy remembers nothing; pass the "
                    "state that the call before returned, and episode_start where an episode began",
                    stacklevel=4,
                )
            self._state_missing = True
            return initial
        self._state_missing = False
        try:
            arrays = [np.asarray(array, np.float32) for array in state]
        except (TypeError, ValueError) as error:
            raise ValueError(f"state: expected what predict returned, (memory, previous action): {error}") from error
        shapes, expected = [array.shape for array in arrays], [array.shape for array in initial]
        if shapes != expected:
            raise ValueError(f"state: expected arrays of shapes {expected} (memory, previous action), got {shapes}")
        if episode_start is None:
            return MemoryState(*arrays)
        begins = np.asarray(episode_start, bool)
        if begins.shape not in ((), (1,), shapes[0][:1]):
            raise ValueError(f"episode_start: expected one boolean for each of {shapes[0][0]} rows, got shape {begins.shape}")
        begun = np.broadcast_to(begins, shapes[0][0])[:, None]
        return MemoryState(*(np.where(begun, np.float32(0.0), array) for array in arrays))

    def _remembering(self, observations: ArrayTree, deterministic: bool) -> tuple[Array, MemoryState]:
        """Actions and what is remembered after them, for (o, z, a_prev)."""
        space = self.policy.action_space
        assert isinstance(space, MemoryActions)
        actions, memories = space.split(self._act(observations, deterministic))
        return actions, MemoryState(memories, encode_actions(space.action, actions))

    @torch.no_grad()
    def distribution(self, observations: ArrayTree) -> Any:
        """The policy's for encoded observations [n, *obs], (o, z, a_prev) with memory; normalised here."""
        self.policy.set_training_mode(False)
        if self.normalizer is not None:
            observations = self.normalizer(observations)
        device = self.policy.device
        if isinstance(observations, dict):
            return self.actor_critic.actor({key: torch.as_tensor(array, device=device) for key, array in observations.items()})
        return self.actor_critic.actor(torch.as_tensor(observations, device=device))

    @torch.no_grad()
    def _act(self, observations: ArrayTree, deterministic: bool) -> Array:
        """Actions of the policy [n, *act]."""
        distribution = self.distribution(observations)
        if deterministic:
            return distribution.mode().cpu().numpy()
        noise = draw_noise(self.policy.action_space, (batch_size(observations),), self.generator)
        return distribution.sample(noise.to(self.policy.device)).cpu().numpy()


def _check_entries(space: spaces.Space, encoded: ArrayTree, batched: bool) -> None:
    """Raises ValueError unless all entries are as many, and choices are among those that there are."""
    entries = encoded if isinstance(encoded, dict) else {"": encoded}
    if batched and len(sizes := {len(array) for array in entries.values()}) > 1:
        raise ValueError(f"its entries are batches of different sizes: {sorted(sizes)}")
    for name, array in entries.items():
        part = space[name] if isinstance(space, spaces.Dict) else space
        if not isinstance(part, spaces.Discrete | spaces.MultiDiscrete):
            continue
        num_choices = part.n if isinstance(part, spaces.Discrete) else part.nvec
        whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
        if not whole or not bool(((array >= 0) & (array < num_choices)).all()):
            raise ValueError(f"{array.tolist()} is none of its choices, counted from 0")


def batch_size(observations: ArrayTree) -> int:
    """n of observations [n, *obs]."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
