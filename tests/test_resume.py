"""Training that was stopped at any step and resumed equals training that was not, to the bit."""

from __future__ import annotations

import csv
import errno
import gc
import inspect
import warnings

import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeReward
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlopt import ALGORITHMS, HARPG, PPO, REBEL, Checkpoints, archive, as_vec_env, make_envs
from rlopt.checkpoint import agent_tensors
from tests.agents.test_every_agent import SMALL
from tests.small_envs import Walk

CLASSES = {cls.__name__: cls for cls in ALGORITHMS.values()}
BUDGET = 200


class Killed(BaseException):
    """What a process does not survive; nothing in the library catches it."""


class KilledAt(BaseCallback):
    """Ends the world at a call that is counted from the start of this process; None never does."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def __getstate__(self):
        raise AssertionError("callbacks are not pickled")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}

    def _on_step(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return True


class Curve(BaseCallback):
    """Remembers every reward, in attributes that are plain data."""

    def __init__(self):
        super().__init__()
        self.rewards = []
        self.last = np.zeros(0)

    def _on_step(self):
        self.rewards.append(np.asarray(self.locals["rewards"]).tolist())
        self.last = np.asarray(self.locals["rewards"], np.float64)
        return True


def walk():
    return Walk()


def make(algorithm, env=walk, folder=None, **kwargs):
    known = inspect.signature(algorithm).parameters
    small = {name: value for name, value in SMALL.items() if name in known}
    arguments = {"seed": 0, "n_envs": 3, "tensorboard_log": None if folder is None else str(folder), **kwargs}
    return algorithm("MlpPolicy", env, **{**small, **arguments})


def train(build, folder, budget=BUDGET, kill_at=(), save_freq=24, callbacks=list, **learn):
    """An agent trained to the end, killed at these calls on the way, and all that was remembered."""
    for call in [*kill_at, None]:
        agent, curve = build(), Curve()
        saved = Checkpoints(folder, save_freq, resume=True)
        callback = CallbackList([*callbacks(), curve, KilledAt(call)])
        try:
            agent.learn(budget, callback, checkpoints=saved, **learn)
        except Killed:
            agent.logger.close()
            del agent
            gc.collect()
            continue
        agent.logger.close()
        return agent, curve
    raise AssertionError


def content(agent):
    return {name: value.clone() for name, value in agent_tensors(agent).items() if not name.startswith("generators/prediction")}


def assert_same(first, second):
    (one, curve), (other, other_curve) = first, second
    mine, theirs = content(one), content(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    assert curve.rewards == other_curve.rewards
    assert np.array_equal(curve.last, other_curve.last)
    assert one.num_timesteps == other.num_timesteps
    records = [[(e["r"], e["l"]) for e in agent.ep_info_buffer] for agent in (one, other)]
    assert records[0] == records[1]


def scalars(folder):
    """All that TensorBoard has but times, by tag: (step, value)."""
    found = {}
    for path in sorted(folder.glob("*/events*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("time/"):
                found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(points) for tag, points in found.items()}  # files of the same second have no order


@pytest.fixture(params=CLASSES)
def algorithm(request):
    return CLASSES[request.param]


def test_every_agent_killed_and_resumed_is_the_agent_that_was_not(algorithm, tmp_path):
    check_killed_and_resumed(algorithm, tmp_path)


@pytest.mark.parametrize("algorithm", [PPO, HARPG, REBEL], ids=lambda cls: cls.__name__)
def test_with_memory(algorithm, tmp_path):
    check_killed_and_resumed(algorithm, tmp_path, memory="s2pg", memory_size=2)


def check_killed_and_resumed(algorithm, tmp_path, **kwargs):
    def build(name):
        return lambda: make(algorithm, folder=tmp_path / name, **kwargs)

    whole = train(build("logs"), tmp_path / "whole")
    random = np.random.default_rng(0)
    moments = random.integers(1, 40, 4).tolist()
    parts = train(build("logs of parts"), tmp_path / "parts", kill_at=moments)
    assert_same(whole, parts)
    assert scalars(tmp_path / "logs") == scalars(tmp_path / "logs of parts")
    assert len(list((tmp_path / "logs of parts").iterdir())) == 1


CASES = {
    "one after the other": {"env": walk},
    "vector of the library": {"env": "CartPole-v1"},
    "frames and normalisers": {"env": walk, "normalize_observations": True, "normalize_rewards": True},
    "Gymnasium's ids": {"env": "Acrobot-v1", "backend": "sync"},
    "objects": {"env": "rlopt/CueRecall-v0"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", [PPO, REBEL], ids=lambda cls: cls.__name__)
def test_environments_go_on_amid_their_episodes(algorithm, case, tmp_path):
    whole = train(lambda: make(algorithm, **CASES[case]), tmp_path / "whole")
    parts = train(lambda: make(algorithm, **CASES[case]), tmp_path / "parts", kill_at=[9, 33, 3])
    assert_same(whole, parts)


def test_workers_go_on_amid_their_episodes_whatever_their_number(tmp_path):
    whole = train(lambda: make(PPO), tmp_path / "whole")
    folder = tmp_path / "parts"
    for backend, kill_at in (("async", [20]), ("sync", [15])):
        agent = make(PPO, backend=backend)
        with pytest.raises(Killed):
            agent.learn(BUDGET, CallbackList([Curve(), KilledAt(kill_at[0])]), checkpoints=Checkpoints(folder, 24, resume=True))
        agent.environments.close()
    agent = make(PPO, backend="async")
    curve = Curve()
    agent.learn(BUDGET, CallbackList([curve, KilledAt(None)]), checkpoints=Checkpoints(folder, 24, resume=True))
    assert_same(whole, (agent, curve))
    agent.environments.close()


@pytest.mark.parametrize("kind", ["rlopt", "SB3"])
def test_callbacks_go_on_with_evaluations_of_their_own_environments(kind, tmp_path):
    def callbacks(folder):
        def build():
            envs = make_envs(walk, 2, seed=5) if kind == "rlopt" else None
            stop = StopTrainingOnNoModelImprovement(3, min_evals=2)
            evaluation = EvalCallback(
                make_vec(envs), n_eval_episodes=3, eval_freq=5, log_path=str(folder), callback_after_eval=stop, verbose=0
            )
            return [evaluation]

        return build

    def make_vec(envs):
        vec_env = DummyVecEnv([lambda: Monitor(Walk())] * 2) if envs is None else as_vec_env(envs)
        vec_env.seed(5)
        return vec_env

    whole = train(lambda: make(PPO), tmp_path / "whole", callbacks=callbacks(tmp_path / "a"))
    parts = train(lambda: make(PPO), tmp_path / "parts", kill_at=[22, 7, 29], callbacks=callbacks(tmp_path / "b"))
    assert_same(whole, parts)
    first, second = (np.load(tmp_path / name / "evaluations.npz") for name in "ab")
    for entry in ("timesteps", "results", "ep_lengths"):
        assert np.array_equal(first[entry], second[entry])


def test_what_the_logger_has_not_written_is_kept(tmp_path):
    whole = train(lambda: make(PPO, folder=tmp_path / "a"), tmp_path / "whole", log_interval=3)
    parts = train(lambda: make(PPO, folder=tmp_path / "b"), tmp_path / "parts", kill_at=[12, 12, 12], log_interval=3)
    assert_same(whole, parts)
    assert scalars(tmp_path / "a") == scalars(tmp_path / "b") != {}


def test_global_generators_go_on(tmp_path):
    class Noise(BaseCallback):
        def __init__(self):
            super().__init__()
            self.drawn = []

        def _on_step(self):
            self.drawn.append([float(np.random.random()), float(torch.rand(()))])  # noqa: NPY002
            return True

    def run(folder, kill_at):
        noises = []

        def callbacks():
            torch.manual_seed(3)
            np.random.seed(3)  # noqa: NPY002
            noises.append(Noise())
            return noises[-1:]

        train(lambda: make(PPO), folder, kill_at=kill_at, callbacks=callbacks)
        return noises[-1].drawn

    assert run(tmp_path / "a", []) == run(tmp_path / "b", [25, 14])


class Unseeded(Walk):
    """Random numbers of its own, which no seed determines."""

    random = np.random.default_rng(0)

    def step(self, action):
        self.x += float(Unseeded.random.normal())
        return super().step(action)


def test_an_environment_that_does_not_come_back_begins_anew_and_says_so(tmp_path):
    build = lambda: make(PPO, lambda: Unseeded(limit=500, edge=1e9))  # noqa: E731
    with pytest.raises(Killed):
        build().learn(BUDGET, KilledAt(30), checkpoints=Checkpoints(tmp_path, 24))
    agent = build()
    with pytest.warns(UserWarning, match="all environments could not be put back amid their episodes and begin new ones"):
        agent.learn(BUDGET, checkpoints=Checkpoints(tmp_path, 24, resume=True))
    assert agent.num_timesteps >= BUDGET


def test_one_of_several_environments_begins_anew_alone(tmp_path):
    envs = [lambda: Walk(limit=500, edge=1e9), lambda: Unseeded(limit=500, edge=1e9), lambda: Walk(limit=500, edge=1e9)]
    with pytest.raises(Killed):
        make(PPO, make_envs(envs), normalize_rewards=True).learn(BUDGET, KilledAt(30), checkpoints=Checkpoints(tmp_path, 24))
    agent = make(PPO, make_envs(envs), normalize_rewards=True)
    lengths = []

    class Look(BaseCallback):
        def _on_rollout_start(self):
            lengths.append(agent.statistics.lengths.tolist())

        def _on_step(self):
            return True

    with pytest.warns(UserWarning, match="environments 1 could not be put back"):
        agent.learn(BUDGET, Look(), checkpoints=Checkpoints(tmp_path, 24, resume=True))
    assert lengths[0] == [16, 0, 16]


def test_an_sb3_vecenv_begins_anew_and_training_goes_on(tmp_path):
    build = lambda: make(PPO, DummyVecEnv([walk] * 3))  # noqa: E731
    with pytest.raises(Killed):
        build().learn(BUDGET, KilledAt(30), checkpoints=Checkpoints(tmp_path, 24))
    with pytest.warns(UserWarning, match="all environments could not be put back"):
        agent = build().learn(BUDGET, checkpoints=Checkpoints(tmp_path, 24, resume=True))
    assert agent.num_timesteps >= BUDGET


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_newest_file_falls_back_to_the_one_before(damage, tmp_path):
    whole = train(lambda: make(PPO), tmp_path / "whole")
    folder = tmp_path / "parts"
    with pytest.raises(Killed):
        make(PPO).learn(BUDGET, CallbackList([Curve(), KilledAt(50)]), checkpoints=Checkpoints(folder, 24, resume=True))
    newest = max(folder.glob("*.zip"), key=lambda path: int(path.stem.split("_")[2]))
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    newest.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[damage])
    agent, curve = make(PPO), Curve()
    with pytest.warns(UserWarning, match=f"{newest.name} cannot be read, the one before it is taken"):
        agent.learn(BUDGET, CallbackList([curve, KilledAt(None)]), checkpoints=Checkpoints(folder, 24, resume=True))
    assert_same(whole, (agent, curve))
    assert (folder / f"{newest.name}.damaged").exists()


def test_the_newest_and_the_best_are_kept(tmp_path):
    agent = make(PPO, n_steps=8, n_envs=1, batch_size=8)
    scores = iter([5.0, 9.0, 1.0, 2.0, 3.0, 4.0])

    class Scored(type(agent.statistics)):
        @property
        def mean_return(self):
            return next(scores)

    run = Checkpoints(tmp_path, 8, keep_last=2, keep_best=1)
    run.open()
    agent.learn(8)
    agent.statistics.__class__ = Scored
    for steps in range(8, 56, 8):
        agent.num_timesteps = steps
        run.save(agent, None, 1)
    run.close()
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == [f"rl_model_{n}_steps.zip" for n in (16, 40, 48)]


def test_a_checkpoint_is_a_file_that_load_reads(tmp_path):
    agent = make(PPO).learn(BUDGET, checkpoints=Checkpoints(tmp_path, 48))
    loaded = PPO.load(next(tmp_path.glob(f"rl_model_{agent.num_timesteps}_steps.zip")))
    assert torch.equal(loaded.state.theta, agent.state.theta)


def test_a_longer_training_goes_on_from_the_end_of_a_shorter_one(tmp_path):
    whole = make(PPO).learn(192)
    make(PPO).learn(96, checkpoints=Checkpoints(tmp_path, 0))
    assert {path.name for path in tmp_path.glob("*.zip")} == {f"rl_model_{n}_steps.zip" for n in (0, 96)}
    longer = make(PPO).learn(192, checkpoints=Checkpoints(tmp_path, 0, resume=True))
    assert torch.equal(whole.state.theta, longer.state.theta)


def test_a_request_to_stop_ends_after_the_iteration_and_resumes_exactly(tmp_path):
    whole = make(PPO).learn(BUDGET)
    run = Checkpoints(tmp_path, 0)

    class Stop(BaseCallback):
        def _on_step(self):
            if self.n_calls == 20:
                run.request_stop()
            return True

    agent = make(PPO).learn(BUDGET, Stop(), checkpoints=run)
    assert run.stopped
    assert agent.num_timesteps == 96
    assert torch.equal(
        whole.state.theta, make(PPO).learn(BUDGET, checkpoints=Checkpoints(tmp_path, 0, resume=True)).state.theta
    )


def test_a_folder_with_files_of_another_training_is_refused(tmp_path):
    make(PPO).learn(48, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match=r"checkpoints: .* has 1 of another training; go on from there with resume=True"):
        make(PPO).learn(48, checkpoints=Checkpoints(tmp_path))


def test_two_trainings_at_once_do_not_share_a_folder(tmp_path):
    first = Checkpoints(tmp_path)
    first.open()
    with pytest.raises(ValueError, match="checkpoints: another process is training with"):
        make(PPO).learn(48, checkpoints=Checkpoints(tmp_path, resume=True))
    first.close()
    make(PPO).learn(48, checkpoints=Checkpoints(tmp_path, resume=True))


def test_another_make_of_agent_is_refused_and_other_values_are_told(tmp_path):
    make(PPO).learn(48, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="has algorithm PPO, not REBEL"):
        make(REBEL).learn(96, checkpoints=Checkpoints(tmp_path, resume=True))
    with pytest.raises(ValueError, match="has action_space"):
        make(PPO, lambda: Walk(actions="box")).learn(96, checkpoints=Checkpoints(tmp_path, resume=True))
    with pytest.warns(UserWarning, match=r"learning_rate was 0\.0003 and is 0\.01"):
        make(PPO, learning_rate=0.01).learn(96, checkpoints=Checkpoints(tmp_path, resume=True))


def test_a_file_that_is_no_run_is_refused(tmp_path):
    make(PPO).save(tmp_path / "rl_model_5_steps.zip")
    with pytest.raises(ValueError, match=r"holds an agent, but not a run; use PPO\.load"):
        make(PPO).learn(96, checkpoints=Checkpoints(tmp_path, resume=True))


def test_a_hyperparameter_that_no_file_holds_is_refused_before_training(tmp_path):
    agent = make(PPO, learning_rate=lambda progress: 1e-3 * progress)
    with pytest.raises(ValueError, match="learning_rate"):
        agent.learn(48, checkpoints=Checkpoints(tmp_path))
    assert agent.num_timesteps == 0


def test_a_training_that_failed_before_its_first_step_is_in_nobody_s_way(tmp_path):
    class Broken(BaseCallback):
        def _on_step(self):
            raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        make(PPO).learn(48, Broken(), checkpoints=Checkpoints(tmp_path))
    assert [path.name for path in tmp_path.glob("*.zip")] == ["rl_model_0_steps.zip"]
    make(PPO).learn(48, checkpoints=Checkpoints(tmp_path))


def test_a_disk_that_is_full_from_the_beginning_is_told_before_training(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    agent = make(PPO)
    with pytest.raises(OSError, match=r"checkpoints: .*_0_steps\.zip cannot be written"):
        agent.learn(BUDGET, checkpoints=Checkpoints(tmp_path))
    assert agent.num_timesteps == 0


def test_a_full_disk_stops_training_with_the_last_file_whole(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path, 48)
    replace, calls = __import__("os").replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(
        OSError, match=r"checkpoints: .*_96_steps\.zip cannot be written, the files before it are whole: No space"
    ):
        make(PPO).learn(BUDGET, checkpoints=saved)
    monkeypatch.undo()
    assert {path.name for path in tmp_path.glob("*.zip")} == {"rl_model_0_steps.zip", "rl_model_48_steps.zip"}
    assert Checkpoints(tmp_path, resume=True).newest().data["num_timesteps"] == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"save_freq": -1}, "save_freq"), ({"keep_last": 0}, "keep_last"), ({"keep_best": -1}, "keep_best")],
)
def test_numbers_out_of_range_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, **arguments)


def test_tables_go_on_without_rows_of_the_lost_future(tmp_path):
    from rlopt.log_files import ContinuedTable, rewind_table

    path = tmp_path / "progress.csv"
    path.write_text('time/total_timesteps,note,x\n5,"a, b",1\n10,c,2\n15,d,3\n2')
    rewind_table(path, "time/total_timesteps", 10)
    table = ContinuedTable(str(path))
    table.write({"time/total_timesteps": 15, "x": 4, "y": 5}, {"time/total_timesteps": (), "x": (), "y": ()})
    table.close()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["time/total_timesteps"], row["x"], row["y"]) for row in rows] == [
        ("5", "1", ""),
        ("10", "2", ""),
        ("15", "4", "5"),
    ]
    assert rows[0]["note"] == "a, b"


def test_gymnasiums_seeded_environments_come_back_to_the_bit():
    """The oracle of the replay: the environment's own continuation."""
    envs, twin = (make_envs("Acrobot-v1", 2, "sync") for _ in range(2))
    envs.reset(3)
    random = np.random.default_rng(0)
    for _ in range(30):
        envs.step(random.integers(envs.decoder.raw_space.n, size=2))
    assert twin.restore(envs.snapshot()) == []
    for _ in range(200):
        actions = random.integers(envs.decoder.raw_space.n, size=2)
        mine, theirs = envs.step(actions), twin.step(actions)
        assert np.array_equal(mine.observations, theirs.observations)
        assert np.array_equal(mine.rewards, theirs.rewards)


def test_runs_that_start_together_log_to_folders_of_their_own(tmp_path, monkeypatch):
    """Each looks for the newest number before the others have made theirs."""
    monkeypatch.setattr("rlopt.logging.get_latest_run_id", lambda *args: 0)
    for _ in range(3):
        make(PPO, folder=tmp_path).learn(48).logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PPO_1", "PPO_2", "PPO_3"]
    assert all(len(list(path.iterdir())) == 1 for path in tmp_path.iterdir())


def test_an_object_is_for_one_training(tmp_path):
    run = Checkpoints(tmp_path)
    agent = make(PPO).learn(48, checkpoints=run)
    with pytest.raises(ValueError, match="checkpoints: an object is for one training"):
        agent.learn(48, checkpoints=run)
    with pytest.raises(ValueError, match="its training began after 0 environment steps, this one begins after 48"):
        agent.learn(48, reset_num_timesteps=False, checkpoints=Checkpoints(tmp_path, resume=True))


def test_a_stop_that_was_asked_for_before_the_first_step_is_obeyed(tmp_path):
    run = Checkpoints(tmp_path)
    run.request_stop()
    assert make(PPO).learn(BUDGET, checkpoints=run).num_timesteps == 48


def test_an_environment_whose_rewards_remember_other_episodes_begins_anew(tmp_path):
    """Gymnasium's NormalizeReward shows the same and pays something else."""
    build = lambda: make(PPO, lambda: NormalizeReward(Walk(limit=500, edge=1e9)))  # noqa: E731
    with pytest.raises(Killed):
        build().learn(BUDGET, KilledAt(30), checkpoints=Checkpoints(tmp_path, 24))
    agent = build()
    agent.environments.envs[1].reset(seed=0)
    for _ in range(40):  # another past than that of the first agent's
        agent.environments.envs[1].step(0)
    with pytest.warns(UserWarning, match="environments 1 could not be put back"):
        agent.learn(BUDGET, checkpoints=Checkpoints(tmp_path, 24, resume=True))


def test_a_file_that_cannot_be_made_is_told_before_training(tmp_path):
    class Odd(KilledAt):
        def state_dict(self):
            return {"kept": {1, 2}}

    agent = make(PPO)
    with pytest.raises(TypeError, match="run/callback/own/kept: set cannot be kept as data"):
        agent.learn(48, Odd(None), checkpoints=Checkpoints(tmp_path))
    assert agent.num_timesteps == 0


def damaged(value, random):
    """The document with one leaf replaced by something else."""
    odd = [None, -1, 10**30, float("nan"), "text", [], {}, {"$array": "nowhere"}, [[1]], True]
    if isinstance(value, dict) and value:
        key = list(value)[random.integers(len(value))]
        return {**value, key: damaged(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        index = random.integers(len(value))
        return [*value[:index], damaged(value[index], random), *value[index + 1 :]]
    return odd[random.integers(len(odd))]


@pytest.mark.parametrize("seed", range(60))
def test_a_run_that_somebody_changed_is_resumed_or_refused(seed, tmp_path):
    make(PPO).learn(48, Curve(), checkpoints=Checkpoints(tmp_path))
    path = tmp_path / "rl_model_48_steps.zip"
    contents, random = archive.read(path), np.random.default_rng(seed)
    data = {**contents.data, "run": damaged(contents.data["run"], random)}
    tensors = dict(contents.tensors)
    if seed % 3 == 0:
        name = sorted(name for name in tensors if name.startswith("run/"))[random.integers(5)]
        tensors[name] = torch.zeros(int(random.integers(4)), dtype=torch.int64)
    archive.write(path, data, tensors)
    agent = make(PPO)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="checkpoints: ")
        try:
            agent.learn(96, Curve(), checkpoints=Checkpoints(tmp_path, resume=True))
        except ValueError as error:
            assert str(error).startswith("checkpoints: ")  # noqa: PT017
        else:
            assert torch.isfinite(agent.state.theta).all()
