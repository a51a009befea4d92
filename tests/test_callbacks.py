"""SB3 as a tool belt: each of its callbacks, loggers and helpers drives an rlopt agent, on every kind of environment."""

import json
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlopt import PPO
from rlopt.agents.callbacks import as_callback
from tests.small_envs import Walk


def vector(mode):
    return gym.vector.SyncVectorEnv([Walk, Walk], autoreset_mode=mode)


ENVIRONMENTS = {
    "one": lambda: (Walk(), {}),
    "four": lambda: (Walk, {"n_envs": 4}),
    "sb3": lambda: (make_vec_env(Walk, n_envs=2), {}),
    "vec normalize": lambda: (VecNormalize(make_vec_env(Walk, n_envs=2), gamma=0.99), {}),
    "next step": lambda: (vector(AutoresetMode.NEXT_STEP), {}),
    "same step": lambda: (vector(AutoresetMode.SAME_STEP), {}),
    "disabled": lambda: (vector(AutoresetMode.DISABLED), {}),
}


@pytest.fixture(params=ENVIRONMENTS)
def agent(request):
    env, kwargs = ENVIRONMENTS[request.param]()
    return PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, **kwargs)


def evaluation_env(agent):
    if agent.get_vec_normalize_env() is not None:
        return VecNormalize(make_vec_env(Walk, n_envs=2), gamma=0.99, training=False, norm_reward=False)
    return Monitor(Walk())


def test_checkpoint_callback(agent, tmp_path):
    agent.learn(60, CheckpointCallback(save_freq=8, save_path=str(tmp_path), name_prefix="walk", save_vecnormalize=True))
    files = sorted(tmp_path.glob("walk_*_steps.zip"))
    assert files
    for file in files:
        steps = int(file.stem.split("_")[1])
        loaded = PPO.load(file)
        assert loaded.num_timesteps == steps <= agent.num_timesteps


def test_eval_callback_with_its_children(agent, tmp_path):
    after = []

    class After(BaseCallback):
        def _on_step(self):
            after.append((self.num_timesteps, self.parent.last_mean_reward))
            return True

    evaluation = EvalCallback(
        evaluation_env(agent),
        callback_on_new_best=StopTrainingOnRewardThreshold(-1e-9, verbose=0),
        callback_after_eval=After(),
        n_eval_episodes=3,
        eval_freq=8,
        log_path=str(tmp_path / "log"),
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    agent.learn(60, evaluation)
    stored = np.load(tmp_path / "log" / "evaluations.npz")
    assert len(stored["timesteps"]) == len(after) > 0
    assert stored["results"].shape == stored["ep_lengths"].shape == (len(after), 3)
    assert float(stored["results"][-1].mean()) == pytest.approx(after[-1][1])
    assert PPO.load(tmp_path / "best" / "best_model").num_timesteps > 0


def test_stop_training_on_reward_threshold(agent):
    stop = StopTrainingOnRewardThreshold(-1e9, verbose=0)
    agent.learn(1000, EvalCallback(evaluation_env(agent), callback_on_new_best=stop, eval_freq=4, n_eval_episodes=1, verbose=0))
    assert agent.num_timesteps <= 4 * agent.n_envs


def test_stop_training_on_no_model_improvement(agent):
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1, verbose=0)
    evaluation = EvalCallback(evaluation_env(agent), callback_after_eval=stop, eval_freq=4, n_eval_episodes=1, verbose=0)
    agent.learn(5000, evaluation)
    assert agent.num_timesteps < 5000


def test_stop_training_on_max_episodes(agent):
    stop = StopTrainingOnMaxEpisodes(3)
    agent.learn(5000, stop)
    assert 3 * agent.n_envs <= stop.n_episodes < 3 * agent.n_envs + agent.n_envs
    assert len(agent.ep_info_buffer) == stop.n_episodes
    assert sum(episode["l"] for episode in agent.ep_info_buffer) <= agent.num_timesteps


def test_every_n_timesteps(agent):
    seen = []

    class Note(BaseCallback):
        def _on_step(self):
            seen.append(self.num_timesteps)
            return True

    agent.learn(60, EveryNTimesteps(n_steps=20, callback=Note()))
    assert len(seen) >= 2
    assert np.diff(seen).min() >= 20


def test_log_every_n_timesteps(agent):
    agent.set_logger(configure(None, []))
    dumps = []
    agent.logger.dump = lambda step=0: dumps.append(step)
    agent.learn(60, LogEveryNTimesteps(n_steps=20), log_interval=None)
    assert len(dumps) >= 2
    assert dumps == sorted(dumps)


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar_callback(agent, capsys):
    bar = ProgressBarCallback()
    agent.learn(32, bar)
    assert bar.pbar.n >= agent.num_timesteps >= 32
    agent.learn(32, progress_bar=True)
    assert agent.num_timesteps >= 32


def test_a_function_a_list_and_a_callback_list(agent):
    calls = []

    class Note(BaseCallback):
        def _on_step(self):
            calls.append("class")
            return True

    agent.learn(32, lambda local, globals_: calls.append("function") or True)
    functions = len(calls)
    assert functions == len(range(0, 32 if agent.n_envs == 1 else functions * agent.n_envs, agent.n_envs))
    for callback in ([Note(), Note()], (Note(), Note()), CallbackList([Note(), Note()])):
        calls.clear()
        agent.learn(16, callback)
        assert len(calls) % 2 == 0
        assert len(calls) > 0


def test_evaluate_policy_on_the_agents_environments(agent):
    environment = agent.get_env()
    rewards, lengths = evaluate_policy(agent, environment, n_eval_episodes=6, return_episode_rewards=True, warn=True)
    assert len(rewards) == 6
    assert all(1 <= length <= 7 for length in lengths)
    agent.learn(16)


def test_the_locals_that_callbacks_read(agent):
    finals = []

    def look(local, _):
        assert len(local["infos"]) == len(local["dones"]) == len(local["rewards"]) == len(local["new_obs"]) == agent.n_envs
        assert local["values"].shape == (agent.n_envs, 1)
        assert local["log_probs"].shape == (agent.n_envs,)
        assert local["total_timesteps"] == 60
        for info, done in zip(local["infos"], local["dones"]):
            assert done == ("terminal_observation" in info)
            if done:
                assert isinstance(info["TimeLimit.truncated"], bool | np.bool_)
                finals.append(info["terminal_observation"])
        return True

    agent.learn(60, look)
    assert finals
    assert all(final.shape == (3,) for final in finals)


# ---------------------------------------------------------------------- once is enough


def small(**kwargs):
    return PPO("MlpPolicy", Walk, **{"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, **kwargs})


@pytest.mark.parametrize("form", ["stdout", "log", "json", "csv", "tensorboard"])
def test_every_logger_format_works(form, tmp_path, capsys):
    agent = small()
    agent.set_logger(configure(str(tmp_path), [form]))
    agent.learn(48)
    agent.logger.close()
    if form == "stdout":
        assert "approx_kl" in capsys.readouterr().out
        return
    (file,) = [path for path in tmp_path.iterdir() if path.is_file()]
    if form == "json":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["time/total_timesteps"] for line in lines] == [16, 32, 48]
        assert all(np.isfinite(line["train/loss"]) for line in lines)
    elif form == "csv":
        assert "train/approx_kl" in file.read_text().splitlines()[0]
    elif form == "log":
        assert "approx_kl" in file.read_text()


def test_tensorboard_holds_the_scalars_on_one_axis(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small(tensorboard_log=str(tmp_path)).learn(48)
    events = EventAccumulator(str(tmp_path / "PPO_1"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "rollout/ep_rew_mean", "time/fps"} <= set(tags)
    assert not {"train/n_updates", "time/iterations", "time/total_timesteps"} & set(tags)
    assert [event.step for event in events.Scalars("train/loss")] == [16, 32, 48]


def test_no_table_key_is_cut_to_the_same_text(capsys):
    """SB3's tables raise where two keys are equal after 36 characters."""
    agent = small(verbose=1, clip_range_vf=0.2)
    agent.learn(32)
    assert "policy_gradient_loss" in capsys.readouterr().out


def test_callbacks_keep_their_parents():
    parent = EvalCallback(Walk(), callback_on_new_best=CallbackList([StopTrainingOnRewardThreshold(0.0)]), verbose=0)
    small().learn(16, [parent])
    assert parent.callback_on_new_best.parent is parent


def test_a_callback_that_raises_leaves_the_agent_usable():
    agent = small()

    def broken(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        agent.learn(16, broken)
    assert agent.collector.on_step is None
    agent.learn(16)


def test_nothing_is_called_without_a_callback():
    assert as_callback(None, False) is None
    assert isinstance(as_callback([], False), CallbackList)


def test_evaluation_with_the_agents_own_normalisation():
    agent = small(normalize_observations=True).learn(64)
    mean, _ = evaluate_policy(agent, DummyVecEnv([Walk]), n_eval_episodes=5, warn=False)
    assert np.isfinite(mean)
    assert agent.observation_normalizer.moments[""].count < 70


def test_functions_with_arguments_are_callbacks_too():
    seen = []
    small().learn(16, partial(lambda mine, local, globals_: mine.append(1) or True, seen))
    assert len(seen) == 16
