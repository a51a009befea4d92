"""Files: what comes back, what is refused, and that nothing in a file is ever run."""

import io
import json
import pickle
import re
import resource
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

import rlopt
from rlopt import PPO, Constant, Linear, archive
from rlopt.agents import ALGORITHMS
from rlopt.archive import DOCUMENT, TENSORS
from rlopt.plain_data import decode, decode_space, encode, encode_space
from tests.small_envs import ACTION_SPACES, OBSERVATION_SPACES, Walk

OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


class Extractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 4)
        self.linear = nn.Linear(3, 4)

    def forward(self, observations):
        return self.linear(observations)


class Policy(ActorCriticPolicy):
    pass


def agent_of(actions="discrete", env=None, **kwargs):
    arguments = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0} | kwargs
    return PPO("MlpPolicy", env or (lambda: Walk(actions=actions)), **arguments)


def parts(path):
    """The two members of a file, to be changed and written back."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(DOCUMENT)), safetensors.torch.load(archive.read(TENSORS))


def write(path, document, tensors, extra=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(DOCUMENT, json.dumps(document))
        archive.writestr(TENSORS, safetensors.torch.save(tensors))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def saved(tmp_path):
    agent_of().learn(32).save(tmp_path / "agent.zip")
    return tmp_path / "agent.zip"


def assert_same_agent(first, second):
    assert torch.equal(first.state.theta, second.state.theta)
    np.testing.assert_array_equal(*(agent.predict(OBSERVATIONS, deterministic=True)[0] for agent in (first, second)))


# ---------------------------------------------------------------------- round trips


def test_everything_comes_back(tmp_path):
    kwargs = {
        "learning_rate": Linear(1e-3, 1e-4, 0.5),
        "clip_range": "linear:0.3",
        "clip_range_vf": 0.5,
        "gamma": 0.9,
        "target_kl": 0.1,
        "policy_kwargs": {
            "net_arch": {"pi": [8], "vf": [16]},
            "activation_fn": nn.ReLU,
            "optimizer_class": torch.optim.RMSprop,
        },
        "normalize_observations": True,
        "normalize_rewards": True,
        "stats_window_size": 7,
    }
    agent = agent_of("box", **kwargs).learn(48)
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", env=lambda: Walk(actions="box"))
    assert loaded.hyperparameters() == agent.hyperparameters()
    assert loaded.observation_space == agent.observation_space
    assert loaded.action_space == agent.action_space
    assert loaded.num_timesteps == 48
    assert loaded.state.num_updates == agent.state.num_updates == 6
    assert loaded.state.moments.keys() == agent.state.moments.keys()
    assert all(torch.equal(loaded.state.moments[key], agent.state.moments[key]) for key in agent.state.moments)
    for name, generator in agent.generators.items():
        assert torch.equal(loaded.generators[name].get_state(), generator.get_state())
    for mine, theirs in (
        (loaded.observation_normalizer, agent.observation_normalizer),
        (loaded.reward_normalizer, agent.reward_normalizer),
    ):
        assert all(np.array_equal(mine.state()[key], value) for key, value in theirs.state().items())
    assert loaded.environments.run_seed == agent.environments.run_seed
    assert_same_agent(agent, loaded)


def test_an_update_after_loading_equals_one_without(tmp_path):
    """Weights, optimiser and generators: the same batch gives the same bits."""
    agent = agent_of("box").learn(32)
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent")
    batch = agent.advantages(agent.state.theta, agent.collector.steps(agent.state.theta, 16))
    assert torch.equal(agent.update(agent.state, batch, 0.5)[0].theta, loaded.update(loaded.state, batch, 0.5)[0].theta)


def test_two_loads_train_on_with_the_same_bits(saved):
    """A loaded agent begins new episodes; their numbers go on from the file's, so they repeat none."""
    first, second = (PPO.load(saved, env=Walk).learn(32, reset_num_timesteps=False) for _ in range(2))
    assert first.num_timesteps == 64
    assert torch.equal(first.state.theta, second.state.theta)
    original = agent_of().learn(32)
    assert PPO.load(saved, env=Walk).environments.episodes.tolist() == original.environments.episodes.tolist()


@pytest.mark.parametrize("form", ["string", "path", "suffix", "other suffix", "folder"])
def test_a_path_may_be_given_in_any_form(tmp_path, form):
    agent = agent_of()
    given, expected = {
        "string": (str(tmp_path / "agent"), "agent.zip"),
        "path": (tmp_path / "agent", "agent.zip"),
        "suffix": (tmp_path / "agent.zip", "agent.zip"),
        "other suffix": (tmp_path / "agent.rlopt", "agent.rlopt"),
        "folder": (tmp_path / "new" / "folder" / "agent", "new/folder/agent.zip"),
    }[form]
    agent.save(given)
    assert (tmp_path / expected).is_file()
    assert_same_agent(agent, PPO.load(given))


def test_a_file_object_is_used_and_left_open(tmp_path):
    agent = agent_of()
    buffer = io.BytesIO()
    agent.save(buffer)
    buffer.seek(0)
    assert_same_agent(agent, PPO.load(buffer))
    assert not buffer.closed
    with (tmp_path / "agent.bin").open("wb") as file:
        agent.save(file)
        assert not file.closed
    with (tmp_path / "agent.bin").open("rb") as file:
        assert_same_agent(agent, PPO.load(file))


@pytest.mark.parametrize("space", [*OBSERVATION_SPACES.values(), *ACTION_SPACES.values()])
def test_spaces_survive_the_file(space):
    assert decode_space(json.loads(json.dumps(encode_space(space)))) == space


def test_a_space_with_many_bounds_survives_the_file():
    space = spaces.Box(np.array([-1, -np.inf]), np.array([2, 3.0]), dtype=np.float64)
    assert decode_space(json.loads(json.dumps(encode_space(space)))) == space
    assert decode_space(encode_space(spaces.MultiBinary([2, 3]))) == spaces.MultiBinary([2, 3])


@pytest.mark.parametrize("observations", ["image", "dict_image", "nested", "tuple", "shifted"])
def test_every_kind_of_policy_survives_the_file(tmp_path, observations):
    policy = {"image": "CnnPolicy", "shifted": "MlpPolicy"}.get(observations, "MultiInputPolicy")
    agent = PPO(policy, Walk(observations, "box"), seed=0)
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent")
    observation = agent.observation_space.sample()
    np.testing.assert_array_equal(*(a.predict(observation, deterministic=True)[0] for a in (agent, loaded)))


def test_the_statistics_of_a_vec_normalize_come_back(tmp_path):
    def env():
        return VecNormalize(DummyVecEnv([Walk, Walk]), gamma=0.99)

    agent = agent_of(env=env()).learn(32)
    agent.save(tmp_path / "agent")
    fresh = env()
    loaded = PPO.load(tmp_path / "agent", env=fresh)
    theirs = agent.get_vec_normalize_env()
    assert loaded.get_vec_normalize_env() is fresh
    assert fresh.obs_rms.count == theirs.obs_rms.count > 30
    np.testing.assert_array_equal(fresh.obs_rms.mean, theirs.obs_rms.mean)
    np.testing.assert_array_equal(fresh.ret_rms.var, theirs.ret_rms.var)
    np.testing.assert_array_equal(fresh.returns, theirs.returns)


# ---------------------------------------------------------------------- arguments of load


def test_keyword_arguments_replace_the_files(saved):
    loaded = PPO.load(saved, gamma=0.5, learning_rate="linear:0.1", n_envs=2)
    assert (loaded.gamma, loaded.learning_rate, loaded.n_envs) == (0.5, "linear:0.1", 2)


def test_an_unknown_keyword_argument_raises(saved):
    with pytest.raises(ValueError, match=r"load: PPO has no argument gama"):
        PPO.load(saved, gama=0.9)


def test_unknown_custom_objects_are_ignored(saved):
    """What the RL zoo always passes."""
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = PPO.load(saved, custom_objects=custom)
    assert loaded.learning_rate == 0.0
    assert not hasattr(loaded, "no_such_thing")


def test_other_policy_kwargs_are_refused_and_the_same_accepted(tmp_path):
    kwargs = {"net_arch": [8], "activation_fn": nn.ReLU}
    agent_of(policy_kwargs=kwargs).save(tmp_path / "agent")
    PPO.load(tmp_path / "agent", policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="policy_kwargs: the file was made with"):
        PPO.load(tmp_path / "agent", policy_kwargs={"net_arch": [9]})


def test_another_environment_must_have_the_same_spaces(saved):
    with pytest.raises(ValueError, match=r"env: its action space is .*the agent's is"):
        PPO.load(saved, env=lambda: Walk(actions="box"))
    with pytest.raises(ValueError, match=r"env: its observation space is .*the agent's is"):
        PPO.load(saved, env=lambda: Walk("discrete"))


def test_another_number_of_environments_is_accepted(saved):
    agent = PPO.load(saved, env=DummyVecEnv([Walk, Walk]))
    assert agent.n_envs == 2
    assert agent.learn(32, reset_num_timesteps=False).num_timesteps == 64


def test_loading_with_another_class_names_the_right_one(saved, monkeypatch):
    class Other(PPO):
        pass

    with pytest.raises(ValueError, match=r"holds an agent of PPO, not of Other; use PPO.load"):
        Other.load(saved)


def test_custom_classes_must_be_passed_to_load(tmp_path):
    kwargs = {"features_extractor_class": Extractor}
    agent = agent_of(policy_kwargs=kwargs)
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"policy_kwargs.*Extractor; pass policy_kwargs=\.\.\. to load"):
        PPO.load(tmp_path / "agent")
    assert_same_agent(agent, PPO.load(tmp_path / "agent", policy_kwargs=kwargs))
    assert_same_agent(agent, PPO.load(tmp_path / "agent", custom_objects={"policy_kwargs": kwargs}))


def test_a_custom_policy_must_be_passed_to_load(tmp_path):
    agent = PPO(Policy, Walk(), seed=0)
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"policy: .*load\(\.\.\., policy=Policy\)"):
        PPO.load(tmp_path / "agent")
    assert_same_agent(agent, PPO.load(tmp_path / "agent", policy=Policy))


def test_system_information_is_printed_on_request(saved, capsys):
    PPO.load(saved, print_system_info=True)
    assert "torch: " in capsys.readouterr().out


# ---------------------------------------------------------------------- what is refused at save


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_vf"])
def test_a_function_is_refused_at_save_naming_the_argument(tmp_path, name):
    """SB3#2115: lambdas in files."""
    agent = agent_of(**{name: lambda progress: 0.1 * progress + 0.1}).learn(16)
    with pytest.raises(ValueError, match=rf"^{name}: .*cannot be saved"):
        agent.save(tmp_path / "agent")
    assert not list(tmp_path.iterdir())


def test_an_object_in_policy_kwargs_is_refused_naming_the_place(tmp_path):
    agent = agent_of(policy_kwargs={"optimizer_kwargs": {"betas": (0.9, 0.99)}})
    agent.save(tmp_path / "fine")
    agent.policy_kwargs["optimizer_kwargs"]["hook"] = object()
    with pytest.raises(ValueError, match=r"policy_kwargs\['optimizer_kwargs'\]\['hook'\]"):
        agent.save(tmp_path / "agent")


def test_a_failing_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def broken(file, *_):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr("rlopt.archive._write_zip", broken)
    with pytest.raises(OSError, match="disk full"):
        agent_of(seed=3).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


# ---------------------------------------------------------------------- what is refused at load


def refused(path, match="."):
    with pytest.raises(ValueError, match=match) as caught:
        PPO.load(path)
    assert re.match(r"[\w\[\]']+( \w+)?: ", str(caught.value)), "the message names the argument"


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        PPO.load(tmp_path / "nothing")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    refused(saved, "not a whole file of rlopt")


def test_a_flipped_bit_anywhere_is_refused_or_harmless(saved):
    """A bit may lie in what zip does not use; whatever loads then holds the very same weights."""
    content, theta = saved.read_bytes(), PPO.load(saved).state.theta
    generator = np.random.default_rng(0)
    ends = np.arange(len(content) - 250, len(content))  # the zip's directory
    places = np.concatenate([np.arange(100), generator.integers(0, len(content), 150), ends])
    failures = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        try:
            loaded = PPO.load(io.BytesIO(bytes(changed)))
        except ValueError:
            failures += 1
        else:
            assert torch.equal(loaded.state.theta, theta)
    assert failures > 150


def test_something_else_is_refused(tmp_path):
    for content in (b"", b"not a zip", pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(100)):
        (tmp_path / "file").write_bytes(content)
        refused(tmp_path / "file", "not a whole file of rlopt")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    refused(tmp_path / "foreign.zip", "not one of rlopt")


def test_an_sb3_file_names_the_importer(tmp_path):
    SB3PPO("MlpPolicy", Walk(), device="cpu").save(tmp_path / "sb3")
    refused(tmp_path / "sb3", "rlopt.import_sb3")


def test_compressed_members_are_refused(saved):
    """What a file unpacks to is no larger than the file."""
    write(saved, *parts(saved), compression=zipfile.ZIP_DEFLATED)
    refused(saved, "compressed")


@pytest.mark.parametrize("form", [0, 2, 99, None, "1"])
def test_another_format_version_is_refused(saved, form):
    document, tensors = parts(saved)
    write(saved, document | {"format": form}, tensors)
    refused(saved, "format")


def test_a_malicious_member_is_never_opened(saved, tmp_path):
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (trap,)

    bomb = pickle.dumps(Bomb())
    document, tensors = parts(saved)
    write(saved, document, tensors, {"data.pkl": bomb, "policy.pth": bomb, "data": bomb})
    refused(saved, "expected the members")
    write(saved, document, tensors)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr(DOCUMENT, bomb)
        archive.writestr(TENSORS, bomb)
    refused(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr(DOCUMENT, json.dumps(document))
        archive.writestr(TENSORS, bomb)
    refused(saved, "damaged tensors")
    assert not trap.exists()
    pickle.loads(bomb)  # negative control: the bomb works
    assert trap.exists()


@pytest.mark.parametrize(
    "name",
    ["policy/action_net.weight", "policy/value_net.bias", "state.moments/exp_avg", "state.moments/step", "generators/actions"],
)
@pytest.mark.parametrize("change", ["missing", "other shape", "one number"])
def test_tensors_that_do_not_fit_are_refused(saved, name, change):
    document, tensors = parts(saved)
    value = tensors.pop(name)
    if change == "other shape":
        tensors[name] = torch.zeros(*value.shape, 2).to(value.dtype)
    elif change == "one number":
        tensors[name] = torch.zeros(1, dtype=value.dtype)
        if value.shape == (1,):
            pytest.skip("which is its shape")
    if name == "generators/actions" and change == "missing":
        pytest.skip("an older file may lack one")
    write(saved, document, tensors)
    refused(saved, "do not fit")


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "os.system"},
        {"algorithm": None},
        {"policy": "os.system"},
        {"policy": ["MlpPolicy"]},
        {"hyperparameters": []},
        {"hyperparameters": {"import": "os"}},
        {"hyperparameters": {"n_steps": {"class": "os.system", "known": "os.system"}}},
        {"hyperparameters": {"policy_kwargs": {"activation_fn": {"class": "x", "known": "torch.nn.init"}}}},
        {"hyperparameters": {"policy_kwargs": {"activation_fn": {"class": "x", "known": "torch.nn.Module.forward"}}}},
        {"hyperparameters": {"policy_kwargs": {"net_arch": "x"}}},
        {"hyperparameters": {"learning_rate": {"schedule": "lambda"}}},
        {"hyperparameters": {"learning_rate": {"schedule": "linear"}}},
        {"hyperparameters": {"n_steps": -1}},
        {"observation_space": {"space": "os"}},
        {"observation_space": {"space": "Box", "shape": [3], "dtype": "object", "low": 0, "high": 1}},
        {"observation_space": {"space": "Box", "shape": [3]}},
        {"observation_space": []},
        {"observation_space": {"space": "Box", "shape": [4], "dtype": "float32", "low": 0.0, "high": 1.0}},
        {"action_space": {"space": "Discrete", "n": -1, "start": 0}},
        {"num_timesteps": "many"},
        {"num_timesteps": None},
        {"state": {"no_such_field": 1}},
        {"state": []},
        {"state": {"num_updates": "x"}},
    ],
)
def test_a_document_that_makes_no_sense_is_refused(saved, change):
    document, tensors = parts(saved)
    write(saved, document | change, tensors)
    refused(saved)


@pytest.mark.parametrize("name", ["format", "algorithm", "policy", "hyperparameters", "observation_space", "num_timesteps"])
def test_a_document_that_lacks_something_is_refused(saved, name):
    document, tensors = parts(saved)
    del document[name]
    write(saved, document, tensors)
    refused(saved, name)


def test_classes_are_looked_up_and_never_imported():
    assert decode("x", json.loads(json.dumps(encode("x", nn.ReLU)))) is nn.ReLU
    assert decode("x", json.loads(json.dumps(encode("x", torch.optim.AdamW)))) is torch.optim.AdamW
    for name in ("os.system", "torch.nn.functional.os", "torch.optim.torch", "builtins.eval", "torch.nn.Module.__init__"):
        with pytest.raises(ValueError, match="the file was made with the class"):
            decode("x", {"class": "harmless", "known": name})


def test_nothing_in_the_library_unpickles_or_evaluates():
    # `.eval()` is a module's mode; cloudpickle sends callables to this program's own workers
    forbidden = re.compile(
        r"pickle\.loads?\(|weights_only\s*=\s*False|(?<![.\w])eval\(|(?<![.\w])exec\(|(?<!safetensors\.)torch\.load\((?!.*weights_only=True)"
    )
    allowed = {("parallel.py", "cloudpickle.loads(payload)")}
    lines = [
        (path.name, line.strip())
        for path in Path(rlopt.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
    ]
    found = [(name, line) for name, line in lines if forbidden.search(line)]
    found = [(name, line) for name, line in found if not any(name == file and text in line for file, text in allowed)]
    assert not found


def test_every_algorithm_is_named_in_its_file(tmp_path):
    for algorithm in ALGORITHMS.values():
        algorithm("MlpPolicy", Walk(), seed=0).save(tmp_path / "agent")
        assert parts(tmp_path / "agent.zip")[0]["algorithm"] == algorithm.__name__


# ---------------------------------------------------------------------- parameters


def test_parameters_go_from_one_agent_to_another():
    first, second = agent_of().learn(32), agent_of(seed=1)
    second.set_parameters(first.get_parameters())
    assert torch.equal(first.state.theta, second.state.theta)
    assert second.state.moments.keys() == first.state.moments.keys()
    second.learn(16)
    assert not torch.equal(first.state.theta, second.state.theta)


def test_parameters_are_copies():
    agent = agent_of()
    before = agent.state.theta.clone()
    for tensor in agent.get_parameters()["policy"].values():
        tensor.zero_()
    assert torch.equal(agent.state.theta, before)


def test_parameters_come_from_a_file(saved):
    agent = agent_of(seed=9)
    agent.set_parameters(saved)
    assert torch.equal(agent.state.theta, PPO.load(saved).state.theta)
    agent.set_parameters(str(saved.with_suffix("")), device="cpu")


def test_the_keys_of_the_parameters_are_sb3s():
    theirs = SB3PPO("MlpPolicy", Walk(), device="cpu").get_parameters()
    mine = agent_of().get_parameters()
    assert mine.keys() == theirs.keys()
    assert mine["policy"].keys() == theirs["policy"].keys()


def test_parameters_that_do_not_fit_are_refused():
    agent = agent_of()
    good = agent.get_parameters()
    before = agent.state.theta.clone()
    with pytest.raises(ValueError, match=r"load_path_or_dict: .*critic"):
        agent.set_parameters(good | {"critic": {}})
    with pytest.raises(ValueError, match=r"exact_match=True the keys \['policy.optimizer'\] are missing"):
        agent.set_parameters({"policy": good["policy"]})
    with pytest.raises(ValueError, match=r"'policy' differs in these names: \['value_net.bias'\]"):
        agent.set_parameters(good | {"policy": {k: v for k, v in good["policy"].items() if k != "value_net.bias"}})
    with pytest.raises(RuntimeError, match="size mismatch"):
        agent.set_parameters(good | {"policy": good["policy"] | {"value_net.bias": torch.zeros(2)}})
    with pytest.raises(RuntimeError, match="moments: expected"):
        agent.set_parameters(good | {"policy.optimizer": {"exp_avg": torch.zeros(3)}})
    assert torch.equal(agent.state.theta, before)
    agent.set_parameters({"policy": {"value_net.bias": torch.ones(1)}}, exact_match=False)
    assert agent.policy.value_net.bias.tolist() == [1.0]


def test_parameters_of_a_compiled_policy_are_unwrapped():
    """SB3#2137."""
    agent, other = agent_of(), agent_of(seed=4)
    weights = {f"_orig_mod.{key}": value for key, value in other.get_parameters()["policy"].items()}
    agent.set_parameters({"policy": weights, "policy.optimizer": {}})
    assert torch.equal(agent.state.theta, other.state.theta)


@pytest.mark.parametrize(
    "change",
    [
        {"observation_space": {"space": "Box", "shape": [200000, 20000], "dtype": "float32", "low": 0.0, "high": 1.0}},
        {"observation_space": {"space": "Discrete", "n": 10**9, "start": 0}},
        {"action_space": {"space": "Discrete", "n": 10**9, "start": 0}},
        {"policy_kwargs": {"net_arch": [60000, 60000]}},
        {"policy_kwargs": {"net_arch": {"pi": [64], "vf": [10**9]}}},
    ],
    ids=["huge box", "huge one-hot", "huge head", "huge net_arch", "huge tower"],
)
def test_a_small_file_that_describes_a_huge_agent_is_refused_before_anything_is_allocated(tmp_path, change):
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu")
    data = archive.read(file_of(agent, tmp_path / "small.zip")).data
    if "policy_kwargs" in change:
        data["hyperparameters"]["policy_kwargs"] = change["policy_kwargs"]
    else:
        data |= change
    archive.write(tmp_path / "huge.zip", data, archive.read(tmp_path / "small.zip").tensors)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="path: the file"):
        PPO.load(tmp_path / "huge.zip")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_file_cannot_put_uninitialised_memory_into_theta(tmp_path):
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu")
    path = file_of(agent, tmp_path / "agent.zip")
    contents = archive.read(path)
    contents.data["state"]["theta"] = agent.state.theta.numel()
    archive.write(tmp_path / "other.zip", contents.data, contents.tensors)
    assert torch.equal(PPO.load(tmp_path / "other.zip").state.theta, agent.state.theta)


def test_a_vec_normalize_of_rewards_alone_is_saved_and_one_that_has_counted_keeps_its_own(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False, gamma=0.99)
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, device="cpu").learn(32)
    path = file_of(agent, tmp_path / "agent.zip")
    fresh = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False, gamma=0.99)
    PPO.load(path, env=fresh)
    assert fresh.ret_rms.var == env.ret_rms.var
    used = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False, gamma=0.99)
    used.reset()
    used.step(np.zeros(1, int))
    used.step(np.zeros(1, int))
    before = used.ret_rms.var
    PPO.load(path, env=used)
    assert used.ret_rms.var == before


def test_schedules_of_sb3_are_saved_as_ours(tmp_path):
    agent = PPO(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        clip_range=FloatSchedule(0.3),
        n_steps=16,
        batch_size=16,
        device="cpu",
    )
    loaded = PPO.load(file_of(agent, tmp_path / "agent.zip"))
    assert loaded.learning_rate == Linear(1e-3, 0.0, 1.0)
    assert loaded.clip_range == Constant(0.3)


def test_an_environment_object_is_taken_whatever_the_number_of_environments_was(tmp_path):
    path = file_of(PPO("MlpPolicy", "CartPole-v1", n_envs=4, n_steps=16, batch_size=16, device="cpu"), tmp_path / "agent.zip")
    assert PPO.load(path, env=gym.make("CartPole-v1")).n_envs == 1
    assert PPO.load(path, env="CartPole-v1").n_envs == 4


def test_normalisation_may_be_left_out_or_added_at_load(tmp_path):
    plain = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu")
    agent = PPO(
        "MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, normalize_rewards=True, normalize_observations=True, device="cpu"
    ).learn(16)
    without = PPO.load(file_of(agent, tmp_path / "a.zip"), env="Pendulum-v1", normalize_rewards=False)
    assert without.collector.reward_normalizer is None
    added = PPO.load(file_of(plain, tmp_path / "b.zip"), env="Pendulum-v1", normalize_observations=True)
    assert added.observation_normalizer.moments[""].count < 1


def test_a_subclass_keeps_its_hyperparameters(tmp_path):
    class MyPPO(PPO):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    agent = MyPPO("MlpPolicy", "CartPole-v1", gamma=0.5, n_steps=16, batch_size=16, device="cpu")
    loaded = MyPPO.load(file_of(agent, tmp_path / "agent.zip"))
    assert (loaded.gamma, loaded.n_steps) == (0.5, 16)


def file_of(agent, path):
    """`path`, with the agent in it."""
    agent.save(path)
    return path
