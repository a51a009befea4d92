"""`ShowState`: the critic's entry is the simulator's state at every step, an episode's last one included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from rlopt import S2PG, make_envs
from rlopt.envs.privileged import ShowState
from rlopt.envs.vector import make_env

REPEAT_FIRST = "popgym-RepeatFirstEasy-v0"
NUM = 3


def shown(**kwargs: Any) -> ShowState:
    """RepeatFirst that shows its state; it terminates after 51 steps."""
    pytest.importorskip("popgym")
    return ShowState(make_env(REPEAT_FIRST, **kwargs))


class Clock(gym.Env[Any, Any]):
    """Shows whether time is odd; its state is the time and a number drawn at the start. It ends at `limit`, in one way."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)
    state_space: spaces.Space = spaces.Dict({"time": spaces.Discrete(50), "drawn": spaces.Box(0, 1, (2,), np.float32)})

    def __init__(self, truncates: bool = True, limit: int = 4):
        self.truncates, self.limit = truncates, limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.drawn = 0, self.np_random.random(2).astype(np.float32)
        return 0, {}

    def step(self, action: Any) -> Any:
        self.time += 1
        over = self.time == self.limit
        return self.time % 2, 1.0, over and not self.truncates, over and self.truncates, {}

    def get_state(self) -> Any:
        return {"time": self.time, "drawn": self.drawn}


def test_the_state_is_a_vector_beside_the_observation() -> None:
    """POPGym's is the first card, one of four suits, and what share of each suit is left."""
    env = shown()
    assert isinstance(env.observation_space, spaces.Dict)
    assert env.observation_space["observation"] == spaces.Discrete(4)
    assert env.observation_space["critic"].shape == (4 + 4,)
    observation, _ = env.reset(seed=0)
    card, left = env.unwrapped.get_state()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(observation["critic"], [*np.eye(4)[card], *left])
    assert observation["observation"] == card
    assert env.spec is not None
    assert env.spec.id == REPEAT_FIRST


@pytest.mark.parametrize("truncates", [False, True])
def test_it_is_an_environment_as_gymnasium_wants_it(truncates: bool) -> None:
    check_env(ShowState(Clock(truncates)), warn=False)


def state_of(env: Any) -> np.ndarray:
    simulator = env.unwrapped
    return spaces.flatten(simulator.state_space, simulator.get_state())


MAKERS: dict[str, tuple[Callable[[], ShowState], int, bool]] = {
    "popgym, terminates": (shown, 51, False),
    "popgym, truncated": (lambda: shown(max_episode_steps=7), 7, True),
    "clock, terminates": (lambda: ShowState(Clock(truncates=False)), 4, False),
    "clock, truncated": (lambda: ShowState(Clock()), 4, True),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_critics_entry_is_the_state_at_every_step_and_at_an_end_that_from_before_the_reset(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, length, truncated = MAKERS[kind]
    envs: Any = make_envs(make, NUM)
    seen: Any = envs.reset(0)
    before_reset: dict[int, np.ndarray] = {}
    for env in envs.envs:

        def noting(env: Any = env, reset: Any = env.reset, **kwargs: Any) -> Any:
            before_reset[id(env)] = state_of(env)
            return reset(**kwargs)

        monkeypatch.setattr(env, "reset", noting)
    ends = 0
    for t in range(1, 2 * length + 2):
        now = np.stack([state_of(env) for env in envs.envs])
        np.testing.assert_allclose(seen["critic"], now, rtol=1e-6)  # after a reset, too
        step = envs.step(np.full(NUM, t % 2))
        seen = step.observations
        over = t % length == 0
        assert (step.terminated == (over and not truncated)).all()
        assert (step.truncated == (over and truncated)).all()
        assert (step.final_observations is not None) == over
        if over:
            ends += 1
            finals: Any = step.final_observations
            expected = np.stack([before_reset[id(env)] for env in envs.envs])
            np.testing.assert_allclose(finals["critic"], expected, rtol=1e-6)
            assert (finals["critic"] != seen["critic"]).any(-1).all()  # where the new episodes began
    assert ends == 2
    envs.close()


def test_states_differ_between_environments() -> None:
    envs: Any = make_envs(lambda: ShowState(Clock()), NUM)
    first = envs.reset(0)["critic"]
    assert len({tuple(row) for row in first.tolist()}) == NUM


def test_an_environment_that_cannot_tell_its_state_is_named() -> None:
    with pytest.raises(ValueError, match=r"^env: CartPoleEnv has no state_space and get_state\(\)"):
        ShowState(gym.make("CartPole-v1"))


def test_a_state_that_is_no_vector_is_named() -> None:
    class Growing(Clock):
        state_space = spaces.Sequence(spaces.Discrete(3))

    with pytest.raises(ValueError, match=r"^env: states of Sequence\(.*have no fixed length"):
        ShowState(Growing())


def test_an_agent_learns_with_the_state_shown_and_acts_without_it(tmp_path: Any) -> None:
    envs = make_envs(shown, 2)
    agent = S2PG("MlpPolicy", envs, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu", memory_size=4).learn(256)
    assert agent.num_timesteps == 256
    agent.save(tmp_path / "agent")
    loaded = S2PG.load(tmp_path / "agent", device="cpu")
    env, plain = shown(), make_env(REPEAT_FIRST)
    (observation, _), (bare, _) = env.reset(seed=3), plain.reset(seed=3)
    states: list[Any] = [loaded.initial_state() for _ in range(4)]
    for _ in range(51):
        visible = {"observation": observation["observation"]}
        calls = [(agent, observation), (loaded, observation), (loaded, visible), (loaded, bare)]
        results = [who.predict(what, state, deterministic=True) for (who, what), state in zip(calls, states, strict=True)]
        actions, states = [int(action) for action, _ in results], [state for _, state in results]
        assert len(set(actions)) == 1
        for state in states[1:]:
            np.testing.assert_array_equal(state.memory, states[0].memory)
        observation, *_ = env.step(actions[0])
        bare, *_ = plain.step(actions[0])
        assert observation["observation"] == bare
