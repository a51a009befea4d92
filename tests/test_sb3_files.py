"""Weights from and to the real Stable-Baselines3."""

import io
import json
import pickle
import zipfile
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from rlopt import PPO, Linear, export_sb3, import_sb3
from tests.small_envs import Walk

CASES = {
    "discrete": ("MlpPolicy", "box", "discrete", None),
    "continuous": ("MlpPolicy", "box", "box", None),
    "multi": ("MlpPolicy", "discrete", "multi", None),
    "binary": ("MlpPolicy", "multi", "binary", None),
    "dict": ("MultiInputPolicy", "dict", "discrete", None),
    "dict with images": ("MultiInputPolicy", "dict_image", "box", None),
    "images": ("CnnPolicy", "image", "discrete", None),
    "images, channels first": ("CnnPolicy", "image_first", "discrete", None),
    "networks": ("MlpPolicy", "box", "box", {"net_arch": {"pi": [8, 8], "vf": [16]}, "activation_fn": nn.ReLU}),
    "two extractors": ("CnnPolicy", "image", "discrete", {"share_features_extractor": False}),
}


def samples(space, size=8):
    space.seed(0)
    drawn = [space.sample() for _ in range(size)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in drawn]) for key in space.spaces}
    return np.stack(drawn)


def sb3_model(name, **kwargs):
    policy, observations, actions, policy_kwargs = CASES[name]
    arguments = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 1, "device": "cpu"} | kwargs
    return SB3PPO(policy, Walk(observations, actions), policy_kwargs=policy_kwargs, **arguments)


def environment(name):
    return Walk(*CASES[name][1:3])


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_sb3_predicts_the_same_here(tmp_path, name):
    model = sb3_model(name, learning_rate=3e-3).learn(32)
    model.save(tmp_path / "model")
    policy_kwargs = CASES[name][3]
    agent = import_sb3(tmp_path / "model", environment(name), **({"policy_kwargs": policy_kwargs} if policy_kwargs else {}))
    observations = samples(model.get_env().observation_space if "images" in name else environment(name).observation_space)
    theirs, mine = (m.predict(observations, deterministic=True)[0] for m in (model, agent))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
    tensors = model.policy.obs_to_tensor(observations)[0]
    with torch.no_grad():
        values = agent.actor_critic.critic(tensors)
        torch.testing.assert_close(values, model.policy.predict_values(tensors)[:, 0], rtol=1e-6, atol=1e-6)
    assert agent.num_timesteps == 32
    agent.learn(16)


@pytest.mark.parametrize("name", CASES)
def test_a_file_for_sb3_predicts_the_same_there(tmp_path, name):
    policy, _, _, policy_kwargs = CASES[name]
    agent = PPO(policy, environment(name), n_steps=16, batch_size=16, seed=0, learning_rate=3e-3, policy_kwargs=policy_kwargs)
    agent.learn(32)
    path = export_sb3(agent, tmp_path / "exported")
    assert path == tmp_path / "exported.zip"
    model = SB3PPO.load(path, env=environment(name), device="cpu")
    observations = samples(model.observation_space if "images" in name else environment(name).observation_space)
    theirs, mine = (m.predict(observations, deterministic=True)[0] for m in (model, agent))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
    assert model.num_timesteps == 32
    model.learn(16)


def test_the_round_trip_through_sb3_keeps_every_bit(tmp_path):
    agent = PPO("MlpPolicy", Walk(actions="box"), n_steps=16, batch_size=16, seed=0).learn(32)
    back = import_sb3(export_sb3(agent, tmp_path / "model"), Walk(actions="box"))
    assert torch.equal(agent.state.theta, back.state.theta)
    for name in ("n_steps", "batch_size", "gamma", "seed", "learning_rate", "num_timesteps"):
        assert getattr(agent, name) == getattr(back, name)


def test_plain_hyperparameters_come_along(tmp_path):
    values = {
        "n_steps": 32,
        "batch_size": 8,
        "n_epochs": 3,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "normalize_advantage": False,
        "ent_coef": 0.01,
        "vf_coef": 0.4,
        "max_grad_norm": 0.7,
        "target_kl": 0.05,
        "learning_rate": 1e-3,
        "seed": 5,
    }
    sb3_model("discrete", **values).save(tmp_path / "model")
    agent = import_sb3(tmp_path / "model.zip", Walk(), clip_range="linear:0.3", n_epochs=4)
    assert {name: getattr(agent, name) for name in values} == values | {"n_epochs": 4}
    assert agent.clip_range == "linear:0.3"


def test_schedules_go_to_sb3(tmp_path):
    agent = PPO("MlpPolicy", Walk(), seed=0, learning_rate=Linear(1e-3, 1e-4), clip_range="linear:0.3", clip_range_vf=0.5)
    model = SB3PPO.load(export_sb3(agent, tmp_path / "model"))
    assert [model.lr_schedule(p) for p in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    assert model.clip_range(0.5) == pytest.approx(0.15)
    assert model.clip_range_vf(0.5) == 0.5


def test_normalisation_is_written_beside_the_file_as_sb3s(tmp_path):
    agent = PPO("MlpPolicy", Walk(), n_steps=16, batch_size=16, seed=0, normalize_observations=True, normalize_rewards=True)
    agent.learn(64)
    path = export_sb3(agent, tmp_path / "model.zip")
    env = VecNormalize.load(str(tmp_path / "model_vecnormalize.pkl"), DummyVecEnv([Walk]))
    model = SB3PPO.load(path)
    observations = samples(Walk().observation_space)
    theirs = model.predict(env.normalize_obs(observations), deterministic=True)[0]
    np.testing.assert_array_equal(agent.predict(observations, deterministic=True)[0], theirs)
    assert env.ret_rms.var == agent.reward_normalizer.moments.var


def test_a_name_with_a_dot_is_kept(tmp_path):
    path = export_sb3(PPO("MlpPolicy", Walk(), seed=0), tmp_path / "model.v1")
    assert path == tmp_path / "model.v1"
    assert path.is_file()


def test_exporting_leaves_global_generators_alone(tmp_path):
    agent = PPO("MlpPolicy", Walk(), seed=0)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    export_sb3(agent, tmp_path / "model")
    assert np.random.rand() == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"learning_rate": lambda progress: progress}, "learning_rate: .*function"),
        ({"clip_range": lambda progress: progress}, "clip_range: .*function"),
    ],
)
def test_functions_are_not_exported(tmp_path, kwargs, match):
    with pytest.raises(ValueError, match=match):
        export_sb3(PPO("MlpPolicy", Walk(), seed=0, **kwargs), tmp_path / "model")


def test_what_sb3_does_not_have_is_not_exported(tmp_path):
    squashed = PPO("MlpPolicy", Walk(actions="box"), seed=0, policy_kwargs={"squash_output": True})
    with pytest.raises(ValueError, match="squashed"):
        export_sb3(squashed, tmp_path / "model")
    for observations in ("nested", "tuple"):
        with pytest.raises(ValueError, match="cannot read observations"):
            export_sb3(PPO("MultiInputPolicy", Walk(observations), seed=0), tmp_path / "model")


# ---------------------------------------------------------------------- what is refused


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


class Bomb:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return Path.touch, (self.trap,)


def test_pickles_in_an_sb3_file_are_never_opened(tmp_path):
    trap = tmp_path / "trap"
    model = sb3_model("discrete")
    model.save(tmp_path / "model")
    content = members(tmp_path / "model.zip")
    data = json.loads(content["data"])
    poisoned = b64encode(pickle.dumps(Bomb(trap))).decode()
    for entry in data.values():
        if isinstance(entry, dict) and ":serialized:" in entry:
            entry[":serialized:"] = poisoned
    data["extra"] = {":type:": "<class 'x'>", ":serialized:": poisoned}
    write(tmp_path / "evil.zip", content | {"data": json.dumps(data), "pytorch_variables.pth": pickle.dumps(Bomb(trap))})
    agent = import_sb3(tmp_path / "evil.zip", Walk())
    observations = samples(Walk().observation_space)
    np.testing.assert_array_equal(*(m.predict(observations, deterministic=True)[0] for m in (agent, model)))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert trap.exists(), "negative control: the bomb works"


def test_weights_that_are_a_pickle_of_something_else_are_refused(tmp_path):
    trap = tmp_path / "trap"
    sb3_model("discrete").save(tmp_path / "model")
    content = members(tmp_path / "model.zip")
    buffer = io.BytesIO()
    torch.save(Bomb(trap), buffer)
    for weights in (pickle.dumps(Bomb(trap), protocol=2), buffer.getvalue(), b"", b"junk"):
        write(tmp_path / "evil.zip", content | {"policy.pth": weights})
        with pytest.raises(ValueError, match="path: "):
            import_sb3(tmp_path / "evil.zip", Walk())
    assert not trap.exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    sb3_model("discrete").save(tmp_path / "model")
    content = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "model.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="Stable-Baselines3"):
        import_sb3(tmp_path / "model.zip", Walk())


def test_flipped_bits_are_refused_or_harmless(tmp_path):
    model = sb3_model("discrete")
    model.save(tmp_path / "model")
    content = (tmp_path / "model.zip").read_bytes()
    theta = import_sb3(tmp_path / "model.zip", Walk()).state.theta
    generator = np.random.default_rng(0)
    places = [*generator.integers(0, len(content), 60), *generator.integers(len(content) - 600, len(content), 60)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "changed.zip").write_bytes(bytes(changed))
        try:
            agent = import_sb3(tmp_path / "changed.zip", Walk())
        except ValueError:
            continue
        assert torch.equal(agent.state.theta, theta)


def test_foreign_files_are_refused(tmp_path):
    PPO("MlpPolicy", Walk(), seed=0).save(tmp_path / "own")
    with pytest.raises(ValueError, match="not one of Stable-Baselines3"):
        import_sb3(tmp_path / "own.zip", Walk())
    SB3A2C("MlpPolicy", Walk(), device="cpu").save(tmp_path / "a2c")
    with pytest.raises(ValueError, match="not a file of Stable-Baselines3's PPO"):
        import_sb3(tmp_path / "a2c", Walk())
    with pytest.raises(FileNotFoundError, match="there is no file"):
        import_sb3(tmp_path / "nothing", Walk())
    sb3_model("discrete").save(tmp_path / "model")
    content = members(tmp_path / "model.zip")
    for data in (b"[]", b"{}", b"{", b"\xff", json.dumps({"n_epochs": "x", "gae_lambda": []}).encode()):
        write(tmp_path / "evil.zip", content | {"data": data})
        if data.startswith(b'{"n_epochs"'):
            import_sb3(tmp_path / "evil.zip", Walk())  # entries that are no numbers are skipped
            continue
        with pytest.raises(ValueError, match="path: "):
            import_sb3(tmp_path / "evil.zip", Walk())


def test_weights_that_do_not_fit_ask_for_policy_kwargs(tmp_path):
    sb3_model("networks").save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy_kwargs"):
        import_sb3(tmp_path / "model", Walk(actions="box"))
    sb3_model("discrete").save(tmp_path / "model")
    with pytest.raises(ValueError, match="do not fit"):
        import_sb3(tmp_path / "model", Walk(actions="box"))
