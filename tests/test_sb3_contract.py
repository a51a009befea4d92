"""The shell that SB3 users see: one script, two libraries, and every place where they must agree."""

import inspect
import json
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from rlopt import PPO
from rlopt.checkpoints import NoCheckpoints
from tests.small_envs import Walk

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
BOTH = pytest.mark.parametrize("library", [SB3PPO, PPO], ids=["sb3", "rlopt"])


def agent_of(env=None, **kwargs):
    return PPO("MlpPolicy", env or Walk, **{**SMALL, **kwargs})


# ---------------------------------------------------------------------- signatures


def test_the_constructor_has_sb3s_names_order_and_defaults():
    theirs = list(inspect.signature(SB3PPO).parameters.values())
    mine = list(inspect.signature(PPO).parameters.values())
    for ours, parameter in zip(mine, theirs):
        assert (ours.name, ours.default, ours.kind) == (parameter.name, parameter.default, parameter.kind)
    assert all(ours.kind is inspect.Parameter.KEYWORD_ONLY for ours in mine[len(theirs) :])


@pytest.mark.parametrize(
    "method", ["learn", "predict", "save", "load", "set_parameters", "get_parameters", "set_env", "get_env", "set_logger",
               "set_random_seed", "dump_logs", "get_vec_normalize_env"]
)  # fmt: skip
def test_methods_have_sb3s_names_order_and_defaults(method):
    theirs = list(inspect.signature(getattr(SB3PPO, method)).parameters.values())
    mine = list(inspect.signature(getattr(PPO, method)).parameters.values())
    for ours, parameter in zip(mine, theirs, strict=False):
        assert (ours.name, ours.kind) == (parameter.name, parameter.kind)
        if parameter.name != "tb_log_name":  # ours is None, which means the algorithm's name
            assert ours.default == parameter.default
    assert all(ours.kind is inspect.Parameter.KEYWORD_ONLY for ours in mine[len(theirs) :])


def test_every_public_method_of_sb3s_base_class_is_here_or_left_out_on_purpose():
    left_out = {"train", "collect_rollouts", "rollout_buffer"}
    missing = {name for name in dir(BaseAlgorithm) if not name.startswith("_")} - set(dir(agent_of())) - left_out
    assert not missing


def test_the_attributes_that_scripts_read_are_here():
    model = SB3PPO("MlpPolicy", Walk(), **SMALL).learn(16)
    agent = agent_of().learn(16)
    names = [name for name in inspect.signature(SB3PPO).parameters if name not in ("env", "policy", "_init_setup_model")]
    names += ["policy", "policy_class", "policy_kwargs", "env", "n_envs", "observation_space", "action_space", "num_timesteps"]
    names += ["_total_timesteps", "_current_progress_remaining", "_n_updates", "lr_schedule", "ep_info_buffer", "logger"]
    names += ["ep_success_buffer", "_last_obs", "_last_episode_starts", "start_time", "seed", "verbose", "policy_aliases"]
    not_offered = {"use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs"}
    private_there = {"stats_window_size"}
    for name in set(names) - not_offered - private_there:
        assert hasattr(model, name), name
        assert hasattr(agent, name), name
    for name in ("n_envs", "num_timesteps", "_total_timesteps", "_n_updates", "observation_space", "action_space", "device"):
        assert getattr(agent, name) == getattr(model, name), name
    assert agent._last_obs.shape == model._last_obs.shape
    assert agent._last_episode_starts.shape == model._last_episode_starts.shape
    assert isinstance(agent.ep_info_buffer, deque)
    assert agent.ep_info_buffer.maxlen == agent.ep_success_buffer.maxlen == 100
    assert agent.ep_info_buffer[0].keys() == model.ep_info_buffer[0].keys() == {"r", "l", "t"}
    assert agent.lr_schedule(0.5) == model.lr_schedule(0.5)


# ---------------------------------------------------------------------- one script, two libraries


class Counter(BaseCallback):
    """Every call, with the step count that it saw."""

    def __init__(self):
        super().__init__()
        self.calls, self.locals_seen, self.shapes = [], set(), {}

    def _note(self, name):
        self.calls.append((name, self.num_timesteps, self.model.num_timesteps))

    def _on_training_start(self):
        self._note("training start")
        self.first_locals = set(self.locals)

    def _on_rollout_start(self):
        self._note("rollout start")

    def _on_step(self):
        self._note("step")
        self.locals_seen |= self.locals.keys()
        for name in ("actions", "clipped_actions", "rewards", "dones", "new_obs", "values", "log_probs", "obs_tensor"):
            self.shapes[name] = tuple(self.locals[name].shape)
        assert len(self.locals["infos"]) == self.training_env.num_envs
        for info, done in zip(self.locals["infos"], self.locals["dones"]):
            assert done == ("terminal_observation" in info) == ("episode" in info)
        return True

    def _on_rollout_end(self):
        self._note("rollout end")

    def _on_training_end(self):
        self._note("training end")


def script(library, folder, actions="discrete", n_envs=2):
    """A training script as SB3's users write it."""
    env = make_vec_env(lambda: Walk(actions=actions), n_envs=n_envs, seed=0)
    evaluation = make_vec_env(lambda: Walk(actions=actions), n_envs=1, seed=1)
    counter = Counter()
    callbacks = [
        counter,
        CheckpointCallback(save_freq=16, save_path=folder / "checkpoints", name_prefix="ppo"),
        EvalCallback(
            evaluation,
            n_eval_episodes=2,
            eval_freq=20,
            log_path=folder / "eval",
            best_model_save_path=folder / "best",
            verbose=0,
        ),
    ]
    model = library("MlpPolicy", env, **SMALL, tensorboard_log=None)
    model.set_logger(configure(str(folder / "log"), ["csv", "json", "log", "tensorboard"]))
    model.learn(total_timesteps=80, callback=callbacks)
    model.learn(total_timesteps=32, callback=callbacks[0], reset_num_timesteps=False)
    model.save(folder / "final")
    model.logger.close()
    return counter


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_one_script_does_the_same_with_both_libraries(tmp_path, actions):
    mine, theirs = (script(library, tmp_path / name, actions) for library, name in ((PPO, "rlopt"), (SB3PPO, "sb3")))
    assert mine.calls == theirs.calls
    # obs_tensor, values and log_probs are computed when they are read; the others are of SB3's loop over truncated environments
    inner = {"obs_tensor", "values", "log_probs", "idx", "done", "terminal_obs", "terminal_value"}
    assert theirs.locals_seen - mine.locals_seen <= inner
    assert theirs.first_locals - mine.first_locals <= {"self", "__class__"}
    assert mine.shapes == theirs.shapes

    def files(name):
        found = {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        return {path if "tfevents" not in path else "events" for path in found}

    assert files("rlopt") == files("sb3")
    assert "checkpoints/ppo_32_steps.zip" in files("rlopt")
    assert "best/best_model.zip" in files("rlopt")

    def keys(name):
        return {
            key for line in (tmp_path / name / "log" / "progress.json").read_text().splitlines() for key in json.loads(line)
        }

    assert keys("sb3") <= keys("rlopt")
    assert {"train/approx_kl", "rollout/ep_rew_mean", "time/fps", "eval/mean_reward"} <= keys("rlopt")

    ours, evaluations = (np.load(tmp_path / name / "eval" / "evaluations.npz") for name in ("rlopt", "sb3"))
    assert sorted(ours.files) == sorted(evaluations.files)
    np.testing.assert_array_equal(ours["timesteps"], evaluations["timesteps"])


# ---------------------------------------------------------------------- learn


@BOTH
def test_total_timesteps_is_a_lower_bound_in_whole_rollouts(library):
    model = library("MlpPolicy", Walk(), **SMALL)
    assert model.learn(17) is model
    assert model.num_timesteps == 32


@BOTH
def test_the_counter_starts_anew_or_goes_on(library):
    model = library("MlpPolicy", Walk(), **SMALL).learn(32)
    episode = model._last_obs.copy()
    model.learn(16, reset_num_timesteps=False)
    assert (model.num_timesteps, model._total_timesteps) == (48, 48)
    assert model._n_updates == 6
    del episode
    model.learn(16)
    assert (model.num_timesteps, model._total_timesteps) == (16, 16)


@BOTH
def test_going_on_does_not_reset_the_environment(library):
    resets = []

    class Counted(Walk):
        def reset(self, **kwargs):
            resets.append(1)
            return super().reset(**kwargs)

    model = library("MlpPolicy", Counted(limit=1000, edge=1e9), **SMALL).learn(16)
    assert len(resets) == 1
    model.learn(16, reset_num_timesteps=False)
    assert len(resets) == 1
    model.learn(16)
    assert len(resets) == 2


def test_starting_anew_empties_the_episode_buffers():
    agent = agent_of().learn(64)
    agent._begin_learning(16, True, "PPO", NoCheckpoints())
    assert len(agent.ep_info_buffer) == len(agent.ep_success_buffer) == 0


@BOTH
@pytest.mark.parametrize("answer", [False, None, 0])
def test_any_falsy_answer_stops_and_the_partial_rollout_is_dropped(library, answer):
    model = library("MlpPolicy", Walk(), **SMALL)
    before = model.policy.state_dict()["action_net.weight"].clone()
    calls = []

    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 5 or answer

        def _on_rollout_end(self):
            calls.append("rollout end")

        def _on_training_end(self):
            calls.append("training end")

    model.learn(64, callback=Stop())
    assert model.num_timesteps == 5
    assert calls == ["training end"]
    assert torch.equal(model.policy.state_dict()["action_net.weight"], before)
    if answer is not None:
        return
    model.learn(64, callback=lambda local, globals_: None)  # a function that forgets to return
    assert model.num_timesteps == 1


def test_after_a_stop_training_goes_on_from_the_very_step():
    """SB3's `_last_obs` is one step stale then."""
    agent = agent_of()
    seen = []

    class Stop(BaseCallback):
        def _on_step(self):
            seen.append(self.locals["new_obs"].copy())
            return self.num_timesteps < 5

    agent.learn(64, callback=Stop())
    np.testing.assert_array_equal(agent._last_obs, seen[-1])
    first = []
    agent.learn(16, callback=lambda local, _: first.append(local["obs_tensor"].clone()) or True, reset_num_timesteps=False)
    np.testing.assert_array_equal(first[0].numpy(), seen[-1])


@BOTH
def test_run_directories_are_numbered(library, tmp_path):
    model = library("MlpPolicy", Walk(), tensorboard_log=str(tmp_path), **SMALL)
    model.learn(16)
    model.learn(16, reset_num_timesteps=False)
    model.learn(16)
    model.learn(16, tb_log_name="other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PPO_1", "PPO_2", "other_1"]
    assert all(any("tfevents" in file.name for file in path.iterdir()) for path in tmp_path.iterdir())


@BOTH
def test_log_interval_counts_iterations_and_none_logs_nothing(library):
    for log_interval, expected in ((1, 4), (2, 2), (3, 1), (None, 0)):
        model = library("MlpPolicy", Walk(), **SMALL)
        dumps = []
        model.set_logger(configure(None, []))
        model.logger.dump = lambda step=0, dumps=dumps: dumps.append(step)
        model.learn(64, log_interval=log_interval)
        assert len(dumps) == expected


@BOTH
def test_verbose_writes_tables_and_silence_is_silent(library, capsys):
    library("MlpPolicy", Walk(), **SMALL).learn(16)
    assert capsys.readouterr().out == ""
    library("MlpPolicy", Walk(), verbose=1, **SMALL).learn(16)
    out = capsys.readouterr().out
    assert "ep_rew_mean" in out
    assert "total_timesteps" in out


@BOTH
def test_an_argument_that_is_no_callback(library):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        library("MlpPolicy", Walk(), **SMALL).learn(16, callback=3)


def test_the_error_for_an_argument_that_is_no_callback_names_it():
    with pytest.raises(ValueError, match="callback: expected"):
        agent_of().learn(16, callback=3)


# ---------------------------------------------------------------------- environments


def test_what_get_env_gives_is_an_sb3_vec_env():
    agent = agent_of(n_envs=3)
    env = agent.get_env()
    assert isinstance(env, VecEnv)
    assert env.num_envs == agent.n_envs == 3
    assert env.observation_space == agent.observation_space
    observations = env.reset()
    assert observations.shape == (3, 3)
    observations, rewards, dones, infos = env.step(np.array([env.action_space.sample() for _ in range(3)]))
    assert rewards.dtype == np.float32
    assert dones.dtype == bool
    assert len(infos) == 3


def test_an_sb3_vec_env_stays_itself():
    env = make_vec_env(Walk, n_envs=2)
    assert agent_of(env).get_env() is env


@BOTH
def test_the_env_attribute_can_be_deleted(library):
    """The zoo's tuner does it."""
    model = library("MlpPolicy", Walk(), **SMALL).learn(16)
    model.env.close()
    del model.env
    model.predict(np.zeros(3, np.float32))


@BOTH
def test_another_environment_with_other_spaces_is_refused(library):
    model = library("MlpPolicy", Walk(), **SMALL)
    for env in (Walk("discrete"), Walk(actions="box")):
        with pytest.raises(ValueError, match="space"):
            model.set_env(env)


@pytest.mark.parametrize(
    "make", [lambda: Walk(), lambda: DummyVecEnv([Walk]), lambda: Walk, lambda: gym.vector.SyncVectorEnv([Walk])]
)
def test_training_goes_on_in_another_environment(make):
    agent = agent_of().learn(16)
    agent.set_env(make())
    agent.learn(16, reset_num_timesteps=False)
    assert agent.num_timesteps >= 31


def test_force_reset_begins_new_episodes():
    env = make_vec_env(Walk, n_envs=1)
    agent = agent_of(env).learn(16)
    agent.set_env(env)
    assert agent._last_obs is None


def test_the_vec_normalize_of_the_user_is_found():
    env = VecNormalize(DummyVecEnv([Walk]), gamma=0.99)
    assert agent_of(env).get_vec_normalize_env() is env
    assert agent_of().get_vec_normalize_env() is None


def test_a_vec_normalize_with_another_discount_is_noticed():
    with pytest.warns(UserWarning, match=r"gamma=0.9, the agent with gamma=0.99"):
        agent_of(VecNormalize(DummyVecEnv([Walk]), gamma=0.9))


def test_a_gymnasium_vector_env_is_taken():
    """SB3#1745: SB3 refuses it."""
    assert agent_of(gym.vector.SyncVectorEnv([Walk, Walk])).learn(32).n_envs == 2


def test_an_id_is_made_and_an_unknown_one_names_the_nearest():
    assert agent_of("CartPole-v1").learn(16).num_timesteps == 16
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'"):
        agent_of("CartPole-v11")


def test_no_environment_is_needed_to_construct():
    agent = PPO("MlpPolicy", None)
    assert agent.get_env() is None
    with pytest.raises(ValueError, match="set_env"):
        agent.learn(1)


# ---------------------------------------------------------------------- seeds and loggers


def test_a_seed_seeds_what_sb3_seeds():
    draws = []
    for library in (SB3PPO, PPO):
        model = library("MlpPolicy", Walk(), **{**SMALL, "seed": 11})
        draws.append([float(torch.rand(())), np.random.rand(), model.action_space.sample()])  # noqa: NPY002
    assert draws[0] == draws[1]


def test_no_seed_seeds_nothing():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    agents = [agent_of(seed=None) for _ in range(2)]
    assert np.random.rand() == expected  # noqa: NPY002
    assert not torch.equal(agents[0].generators["actions"].get_state(), agents[1].generators["actions"].get_state())


def test_a_logger_of_the_user_stays():
    agent = agent_of(verbose=1)
    logger = configure(None, [])
    agent.set_logger(logger)
    agent.learn(16)
    assert agent.logger is logger
    assert "train/loss" not in logger.name_to_value  # dumped


def test_the_device_is_checked():
    assert agent_of(device="auto").device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="device: cuda is not available"):
            assert agent_of(device="cuda").device.type == "cpu"


# ---------------------------------------------------------------------- the warts of section 13, one by one


def scalars(agent, steps, **kwargs):
    seen = []
    agent.set_logger(configure(None, []))
    dump = agent.logger.dump
    agent.logger.dump = lambda step=0: (seen.append(dict(agent.logger.name_to_value)), dump(step))
    agent.learn(steps, **kwargs)
    return seen


def test_wart_training_metrics_come_with_their_own_iteration_and_the_last_is_dumped():
    seen = scalars(agent_of(), 48)
    assert [values["train/n_updates"] for values in seen] == [2, 4, 6]
    assert all("train/loss" in values for values in seen)


def test_wart_episode_statistics_need_no_monitor():
    env = DummyVecEnv([Walk])  # without Monitor SB3 reports nothing
    assert "rollout/ep_rew_mean" not in scalars(SB3PPO("MlpPolicy", DummyVecEnv([lambda: Walk()]), **SMALL), 64)[-1]
    values = scalars(agent_of(env), 64)[-1]
    assert values["rollout/ep_len_mean"] > 1
    assert values["rollout/ep_rew_mean"] < 0
    assert 0 <= values["rollout/success_rate"] <= 1


def test_wart_the_statistics_equal_monitors():
    env = DummyVecEnv([lambda: Monitor(Walk())])
    records = []
    agent = agent_of(env)
    agent.statistics.monitored = False
    agent.learn(64, callback=lambda local, _: records.extend(i["episode"] for i in local["infos"] if "episode" in i) or True)
    assert len(records) == len(agent.ep_info_buffer) > 4
    for mine, theirs in zip(agent.ep_info_buffer, records):
        assert mine["l"] == theirs["l"]
        assert mine["r"] == pytest.approx(theirs["r"], abs=1e-5)


def test_wart_a_learning_rate_is_never_negative():
    rates = []
    agent = agent_of(learning_rate=lambda progress: rates.append(progress) or progress)
    scalars(agent, 10)
    assert min(rates) == 0.0
    theirs = []
    SB3PPO("MlpPolicy", Walk(), **{**SMALL, "learning_rate": lambda p: theirs.append(p) or max(p, 0.0)}).learn(10)
    assert min(theirs) < 0.0


def test_wart_rewards_of_the_rollout_stay_raw():
    agent = agent_of(gamma=0.5)
    agent.collector.reset(0)
    rollout = agent.collector.steps(agent.state.theta, 64)
    assert bool(rollout.truncated.any())
    positions = rollout.next_observations[..., 0]
    torch.testing.assert_close(rollout.rewards, -positions.square(), rtol=1e-5, atol=1e-6)


def test_wart_critics_are_called_once_a_rollout_for_all_truncated_episodes():
    agent = agent_of(n_envs=4, n_steps=16)
    agent.collector.reset(0)
    rollout = agent.collector.steps(agent.state.theta, 16)
    assert len(rollout.final_rows) > 4
    calls = []
    rollout.values(lambda observations: calls.append(len(observations)) or torch.zeros(len(observations)))
    assert len(calls) == 2


def test_wart_float64_actions_are_cast_once_at_the_boundary():
    class Wide(Walk):
        def __init__(self):
            super().__init__(actions="box")
            self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)

    agent = agent_of(Wide)
    agent.collector.reset(0)
    assert agent.collector.steps(agent.state.theta, 8).actions.dtype == torch.float32
    assert agent.environments.envs[0].actions[0].dtype == np.float64


def test_wart_the_end_of_a_clipped_prediction_is_a_choice():
    assert agent_of().value_clip == "prediction"
    assert agent_of(preset="cleanrl").value_clip == "maximum"
