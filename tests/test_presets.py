import inspect

import gymnasium as gym
import pytest
import yaml
from stable_baselines3 import PPO as SB3PPO

from rlopt import ALGORITHMS, PPO, S2PG
from rlopt.cli.settings import parse_settings
from rlopt.presets import CLEANRL, PRESETS, SB3, TUNED, diff, preset_values
from rlopt.schedules import Linear, as_schedule
from tests.small_envs import Walk


def test_the_sb3_preset_is_sb3s_defaults():
    theirs = inspect.signature(SB3PPO).parameters
    for name, value in SB3["ppo"].items():
        if name in theirs:
            assert value == theirs[name].default, name


def test_the_sb3_preset_is_ours_too():
    ours = inspect.signature(PPO).parameters
    assert all(value == ours[name].default for name, value in SB3["ppo"].items())


@pytest.mark.parametrize("preset", [*SB3.values(), *CLEANRL.values(), *TUNED["ppo"].values()])
def test_every_name_in_a_preset_is_an_argument(preset):
    assert preset.keys() - {"total_timesteps"} <= inspect.signature(PPO).parameters.keys()


TUNED_TASKS = [(algorithm, env) for algorithm, envs in TUNED.items() for env in envs]


@pytest.mark.parametrize(("algorithm", "env"), TUNED_TASKS)
def test_the_command_line_and_its_config_file_keep_every_value_of_a_tuned_preset(algorithm, env, monkeypatch):
    """A name that is no argument would be lost in silence, a value that YAML cannot hold in the run's config.yaml."""
    monkeypatch.setattr("rlopt.cli.settings.find_spec", lambda env: None)  # of packages that may not be there
    preset = dict(TUNED[algorithm][env])
    arguments = inspect.signature(ALGORITHMS[algorithm]).parameters
    assert preset.keys() - {"total_timesteps"} <= arguments.keys()
    configuration = parse_settings(["--algo", algorithm, "--env", env]).configuration()
    expected = {"num_envs" if name == "n_envs" else name: value for name, value in preset.items()}
    assert {name: configuration[name] for name in expected} == expected
    assert yaml.safe_load(yaml.safe_dump(configuration)) == configuration


@pytest.mark.parametrize("env", ["CartPoleNoVel-v1", "PendulumNoVel-v1", "rlopt/CueRecall-v0", "rlopt/TMaze-v0"])
def test_presets_of_tasks_that_need_memory_make_an_agent(env):
    agent = S2PG("MlpPolicy", env, preset="tuned", device="cpu")
    expected = TUNED["s2pg"][env] | {"total_timesteps": None}
    assert {name: getattr(agent, name, None) for name in expected} == expected


def test_a_range_of_retentions_survives_a_file(tmp_path):
    """Written as a list, which YAML and JSON have, where the policy takes a pair."""
    kwargs = TUNED["s2pg"]["popgym-RepeatFirstEasy-v0"]["policy_kwargs"]
    agent = S2PG("MlpPolicy", "CartPoleNoVel-v1", policy_kwargs=kwargs, device="cpu", seed=0)
    assert agent.policy.retention == [1, 51]
    agent.save(tmp_path / "agent")
    assert S2PG.load(tmp_path / "agent").policy_kwargs == kwargs


@pytest.mark.parametrize("algorithm", ["mopg", "mo-tsivr-pg"])
@pytest.mark.parametrize("env", ["deep-sea-treasure-v0", "rlopt/Queues-v0"])
def test_presets_of_several_objectives_make_an_agent(algorithm, env):
    if env == "deep-sea-treasure-v0":
        pytest.importorskip("mo_gymnasium")
    agent = ALGORITHMS[algorithm]("MlpPolicy", env, preset="tuned", device="cpu", n_envs=1)
    expected = {name: value for name, value in TUNED[algorithm][env].items() if name not in ("total_timesteps", "n_envs")}
    assert {name: getattr(agent, name) for name in expected} == expected


def test_the_preset_of_many_preferences_needs_a_policy_that_reads_them():
    pytest.importorskip("mo_gymnasium")
    agent = PPO("MultiInputPolicy", "deep-sea-treasure-v0", preset="tuned", device="cpu")
    assert set(agent.observation_space.spaces) == {"observation", "preference"}
    with pytest.raises(ValueError, match="policy: 'MlpPolicy' cannot read a Dict"):
        PPO("MlpPolicy", "deep-sea-treasure-v0", preset="tuned", device="cpu")


def resolved(env, **kwargs):
    agent = PPO("MlpPolicy", env, **kwargs)
    return agent.hyperparameters()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            "CartPole-v1",
            {"n_envs": 4, "n_steps": 128, "batch_size": 128, "n_epochs": 4, "ent_coef": 0.01, "clip_range_vf": 0.2},
        ),
        (
            "Pendulum-v1",
            {"n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10, "ent_coef": 0.0, "clip_range_vf": 0.2},
        ),
    ],
)
def test_the_cleanrl_preset_resolves_as_in_its_scripts(env, expected):
    """Section 5 of the specification: value clip by maximum, schedules before the rollout, no bootstrap."""
    values = resolved(env, preset="cleanrl")
    rate = 2.5e-4 if env == "CartPole-v1" else 3e-4
    expected |= {
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "value_clip": "maximum",
        "vf_coef": 0.25,  # half the mean square with coefficient 0.5
        "max_grad_norm": 0.5,
        "target_kl": None,
        "bootstrap_truncation": False,
        "schedule_from": "rollout_start",
        "normalize_observations": env == "Pendulum-v1",
        "normalize_rewards": env == "Pendulum-v1",
        "carry_reward_returns": True,
    }
    assert {name: values[name] for name in expected} == expected
    assert as_schedule("learning_rate", values["learning_rate"]) == Linear(rate)


def test_the_cleanrl_preset_for_atari_has_its_clip():
    values = preset_values("ppo", "cleanrl", "ALE/Pong-v5")
    assert (values["n_envs"], values["n_steps"], values["batch_size"], values["clip_range"]) == (8, 128, 256, 0.1)
    assert preset_values("ppo", "cleanrl", "PongNoFrameskip-v4") == values


def test_the_kind_of_actions_is_read_from_environment_objects():
    assert preset_values("ppo", "cleanrl", Walk(actions="box"))["normalize_rewards"]
    assert "normalize_rewards" not in preset_values("ppo", "cleanrl", Walk())
    vector = gym.make_vec("CartPole-v1", num_envs=2)
    assert "normalize_rewards" not in preset_values("ppo", "cleanrl", vector)
    vector.close()


def test_the_tuned_preset_knows_single_environments_and_is_sb3s_elsewhere():
    values = resolved("CartPole-v1", preset="tuned")
    assert (values["n_envs"], values["n_steps"], values["gamma"]) == (8, 32, 0.98)
    assert preset_values("ppo", "tuned", Walk()) == SB3["ppo"]
    assert resolved(Walk(), preset="tuned")["n_steps"] == 2048


def test_explicit_arguments_win():
    values = resolved("CartPole-v1", preset="tuned", n_steps=64, gamma=0.5, n_envs=2, batch_size=32)
    assert (values["n_steps"], values["gamma"], values["n_envs"], values["batch_size"]) == (64, 0.5, 2, 32)
    assert values["gae_lambda"] == 0.8
    # positionally too, and where the value is the constructor's default
    agent = PPO("MlpPolicy", "CartPole-v1", 1e-5, 2048, preset="tuned")
    assert (agent.learning_rate, agent.n_steps) == (1e-5, 2048)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cleanrl'"):
        PPO("MlpPolicy", "CartPole-v1", preset="clean-rl")
    for preset in PRESETS:
        assert preset_values("ppo", preset, "CartPole-v1")


def test_diff_answers_why_two_presets_differ():
    assert diff({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == {"b": (2, 5), "c": (3, "—"), "d": ("—", 4)}
    assert diff(SB3["ppo"], SB3["ppo"]) == {}
    changed = diff(SB3["ppo"], CLEANRL["continuous"])
    assert changed["bootstrap_truncation"] == (True, False)
    assert changed["learning_rate"] == (3e-4, "linear:3e-4")
    assert "gamma" not in changed


def test_the_resolved_values_are_stored(tmp_path):
    agent = PPO("MlpPolicy", "CartPole-v1", preset="cleanrl", seed=0)
    agent.save(tmp_path / "agent")
    assert PPO.load(tmp_path / "agent").hyperparameters() == agent.hyperparameters()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(preset):
    agent = PPO("MlpPolicy", "CartPole-v1", preset=preset, seed=0, n_steps=16, batch_size=16, n_envs=2, n_epochs=1)
    assert agent.learn(32).num_timesteps >= 30
