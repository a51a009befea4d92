"""S2PG, and every agent with memory="s2pg": ratios, losses and gradients, prediction with a state, files."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor

import rlopt.collector
from rlopt import ALGORITHMS, HARPG, NPGIGT, PPO, REBEL, S2PG, RecurrentPPO
from rlopt.agents.s2pg import StatefulBatch
from rlopt.envs.memory import MEMORY, OBSERVATION, PREVIOUS_ACTION, MemoryState
from rlopt.envs.normalize import ObservationNormalizer
from rlopt.estimators import approx_kl, approximate_kl, clipped_surrogate, log_ratio
from rlopt.evaluation import evaluate
from rlopt.policies.distributions import draw_noise
from rlopt.policies.stateful import JointDistribution
from rlopt.rollout import map_observations
from tests.small_envs import OBSERVATION_SPACES, Walk

CELLS = ["gru", "lstm", "mlp"]
ACTIONS = ["discrete", "shifted", "multi", "binary", "box", "squashed"]
SEEN = ["box", "dict", "image", "dict_image", "discrete", "matrix", "nested"]
KINDS = [*[("gru", actions, "box") for actions in ACTIONS], *[("gru", "discrete", seen) for seen in SEEN[1:]]]
KINDS += [("lstm", "box", "box"), ("mlp", "multi", "dict"), ("lstm", "squashed", "image")]
CLASSES = {cls.__name__: cls for name, cls in ALGORITHMS.items() if name != "recurrentppo"}  # whose memory is another
SMALL = {"n_steps": 24, "batch_size": 16, "n_epochs": 2, "num_episodes": 4, "num_small": 2, "num_initial": 4, "n_envs": 2}


def make(algorithm=S2PG, actions="discrete", observations="box", cell="gru", env=None, **kwargs):
    """A small agent with memory."""
    image = "image" in observations and "dict" not in observations
    alias = "MultiInputPolicy" if observations in ("dict", "dict_image", "nested") else "CnnPolicy" if image else "MlpPolicy"
    policy_kwargs = {"net_arch": [8], "encoder_size": 8, "cell": cell, **kwargs.pop("policy_kwargs", {})}
    if actions == "squashed":
        policy_kwargs["squash_output"] = True
    if "image" in observations and image:
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": 8}
    known = set(inspect.signature(algorithm).parameters) | {"memory_size"}
    small = {name: value for name, value in SMALL.items() if name in known}
    env = env or (lambda: Walk(observations, "box" if actions == "squashed" else actions))
    given = {"seed": 0, "device": "cpu", "memory": "s2pg", "memory_size": 3, **small, **kwargs}
    return algorithm(alias, env, policy_kwargs=policy_kwargs, **given)


def moved(agent, by=0.1, seed=1):
    """The agent with every parameter moved off its first value."""
    noise = torch.randn(agent.state.theta.shape, generator=torch.Generator().manual_seed(seed))
    agent._adopt(agent.state._replace(theta=agent.state.theta + by * noise))
    return agent


def batch_of(agent, num_steps=24):
    """A rollout of the agent and its rows."""
    rollout = agent.collector.steps(agent.state.theta, num_steps)
    return rollout, agent.stateful_advantages(agent.state.theta, rollout)


def begun(agent, theta=None):
    """The agent's network as `descend` uses it, at θ."""
    state = agent.state if theta is None else agent.state._replace(theta=theta)
    agent.begin_descent(state, 1e-3)
    return agent.descent.module


# ------------------------------------------------------------------ ratios are exact, first steps included


NORMALIZED = [(*kind, True) for kind in (KINDS[0], KINDS[4], KINDS[5], ("lstm", "multi", "dict"), ("mlp", "box", "nested"))]


@pytest.mark.parametrize(("cell", "actions", "observations", "normalize"), [*((*kind, False) for kind in KINDS), *NORMALIZED])
def test_ratios_are_one_at_the_parameters_that_sampled(cell, actions, observations, normalize):
    agent = moved(make(S2PG, actions, observations, cell, normalize_observations=normalize))
    for _ in range(2):
        rollout, batch = batch_of(agent)
    ends = rollout.terminated | rollout.truncated
    assert int(ends[:-1].sum()) >= 4  # first steps after resets are among the rows
    module = begun(agent)
    for part in agent.minibatches(batch, agent.shuffled(len(batch.advantages))):
        with torch.no_grad():
            log_ratios = agent.log_ratios(module.actor(part.observations), part)
        assert float((log_ratios.exp() - 1).abs().max()) < 1e-5
        assert float((log_ratios.sum(-1).exp() - 1).abs().max()) < 1e-5
    joint = module.actor(batch.observations).log_prob(batch.actions).detach()
    flat = rollout.log_probs.flatten()[rollout.valid_rows()]
    assert float((joint - flat).abs().max()) < 1e-5
    torch.testing.assert_close(batch.log_probs.sum(-1), flat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, NPGIGT, HARPG])
@pytest.mark.parametrize(("cell", "actions", "observations"), [("gru", "discrete", "box"), ("lstm", "box", "dict")])
@pytest.mark.parametrize("normalize", [False, True])
def test_joint_ratios_of_other_agents_are_one_at_the_parameters_that_sampled(algorithm, cell, actions, observations, normalize):
    agent = moved(make(algorithm, actions, observations, cell, normalize_observations=normalize))
    if algorithm is PPO:
        rollout = agent.collector.steps(agent.state.theta, 24)
        batch = agent.advantages(agent.state.theta, rollout)
        log_ratios = begun(agent).actor(batch.observations).log_prob(batch.actions) - batch.log_probs
    else:
        rollout = agent.collector.episodes(agent.state.theta, 7)
        log_ratios = log_ratio(agent.log_policy, agent.state.theta, rollout)
    assert float((log_ratios.detach().exp() - 1).abs().max()) < 1e-5


@pytest.mark.parametrize(("cell", "actions", "observations"), KINDS)
def test_actions_and_memories_are_draws_of_the_policy_given_the_recorded_rows(cell, actions, observations):
    """Drawn again with the same noise, in one pass over all rows."""
    agent = moved(make(S2PG, actions, observations, cell))
    state = agent.generators["actions"].get_state()
    rollout = agent.collector.steps(agent.state.theta, 24)
    agent.generators["actions"].set_state(state)
    noise = draw_noise(agent.policy.action_space, (24, 2), agent.generators["actions"])
    rows = map_observations(lambda x: x.flatten(0, 1), rollout.observations)
    with torch.no_grad():
        again = agent.actor_critic.actor(rows).sample(noise.flatten(0, 1))
    torch.testing.assert_close(again, rollout.actions.flatten(0, 1), rtol=0, atol=2e-6)


def test_a_previous_action_that_is_not_reset_is_seen():
    """A negative control: with zeros in training and something else while acting, the first ratio is not 1."""
    agent = moved(make(S2PG, "discrete"))
    _, batch = batch_of(agent)
    changed = dict(batch.observations)
    first = ~changed[PREVIOUS_ACTION].any(-1)
    assert int(first.sum()) >= 4
    changed[PREVIOUS_ACTION] = torch.where(first[:, None], 1.0, changed[PREVIOUS_ACTION])
    with torch.no_grad():
        log_ratios = agent.log_ratios(begun(agent).actor(changed), batch)
    assert float(log_ratios[first].abs().max()) > 1e-3
    assert float(log_ratios[~first].abs().max()) < 1e-5


# ------------------------------------------------------------------ the loss


def by_hand(agent, module, batch, epsilon_a=0.2, epsilon_z=0.2):
    """The loss of the source, written out with one ratio, clip and mean for each factor; all rows at once."""
    distribution = module.actor(batch.observations)
    actions, memories = agent.policy.action_space.split(batch.actions)
    of_action = (distribution.action.log_prob(actions) - batch.log_probs[:, 0]).exp()
    of_memory = (distribution.memory.log_prob(memories) - batch.log_probs[:, 1]).exp()
    of_memory = torch.where(batch.lasting, of_memory, torch.ones_like(of_memory))

    def clipped(ratio, epsilon):
        return torch.minimum(ratio * batch.advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * batch.advantages)

    if agent.ratio == "joint":
        surrogate = clipped(of_action * of_memory, epsilon_a)
    elif agent.ratio == "action":
        surrogate = clipped(of_action, epsilon_a)
    else:
        surrogate = clipped(of_action, epsilon_a) + clipped(of_memory, epsilon_z)
    value_error = (module.critic(batch.observations) - batch.targets) ** 2
    return -surrogate.mean() + agent.vf_coef * value_error.mean() - agent.ent_coef * distribution.action.entropy().mean()


def descended_gradient(agent, theta, parts):
    """What plain gradient descent with step 1 moves θ by on these minibatches, each from θ."""
    steps = []
    for part in parts:
        agent.begin_descent(agent.state._replace(theta=theta), 1.0)
        agent.descend(part, (0.2, 0.2 if agent.memory_clip_range is None else agent.memory_clip_range))
        steps.append((theta - agent.descent.theta(), len(part.advantages)))
    total = sum(size for _, size in steps)
    return sum(step * size for step, size in steps) / total


def plain_agent(**kwargs):
    """An agent whose steps are those of gradient descent, and rows sampled at θ_old ≠ θ."""
    optimizer = {"optimizer_class": torch.optim.SGD}
    agent = moved(
        make(
            S2PG, normalize_advantage=False, max_grad_norm=1e9, ent_coef=0.03, policy_kwargs=optimizer, gae_lambda=0.9, **kwargs
        )
    )
    _, batch = batch_of(agent)
    batch = batch._replace(advantages=batch.advantages * 3)
    theta = agent.state.theta + 0.05 * torch.randn(agent.state.theta.shape, generator=torch.Generator().manual_seed(4))
    return agent, batch, theta


def permuted(batch, order):
    return StatefulBatch(*(map_observations(lambda x: x[order], field) for field in batch))


@pytest.mark.parametrize("ratio", ["factor", "joint", "action"])
@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_the_gradient_is_that_of_the_loss_by_hand(ratio, actions):
    agent, batch, theta = plain_agent(ratio=ratio, memory_clip_range=0.1, actions=actions)
    found = descended_gradient(agent, theta, [batch])
    module = begun(agent, theta)
    gradients = torch.autograd.grad(by_hand(agent, module, batch, 0.2, 0.1), list(module.parameters()), allow_unused=True)
    expected = torch.cat([
        (torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(module.parameters(), gradients, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    with torch.no_grad():  # the clip binds on some rows of either factor
        log_ratios = agent.log_ratios(module.actor(batch.observations), batch)
    if actions == "box":
        assert ((log_ratios.exp() - 1).abs() > torch.tensor([0.2, 0.1])).any(0).all()


@pytest.mark.parametrize("ratio", ["factor", "joint", "action"])
def test_the_gradient_does_not_depend_on_the_order_of_rows_nor_on_how_they_are_cut(ratio):
    agent, batch, theta = plain_agent(ratio=ratio)
    whole = descended_gradient(agent, theta, [batch])
    assert whole.norm() > 0.1
    order = torch.randperm(len(batch.advantages), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(descended_gradient(agent, theta, [permuted(batch, order)]), whole, rtol=1e-4, atol=2e-6)
    for size in (1, 5, 16):
        agent.batch_size = size
        parts = list(agent.minibatches(batch, order))
        assert sum(len(part.advantages) for part in parts) == len(order)
        torch.testing.assert_close(descended_gradient(agent, theta, parts), whole, rtol=1e-4, atol=2e-6)


def test_everything_recorded_is_data():
    agent = moved(make())
    rollout, batch = batch_of(agent)
    tensors = [*batch.observations.values(), *batch[1:], *rollout.states.values(), rollout.actions, rollout.log_probs]
    for tensor in tensors:
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    kept = {key: value.clone() for key, value in batch.observations.items()}
    agent.update(agent.state, batch, 1.0)
    assert all(torch.equal(batch.observations[key], value) for key, value in kept.items())


def gradients_of(agent, batch, **changes):
    """∂ surrogate / ∂ parameters by name, at θ_old with random advantages."""
    module = begun(agent)
    random = torch.randn(len(batch.advantages), generator=torch.Generator().manual_seed(0))
    part = batch._replace(advantages=random, **changes)
    surrogate = agent.surrogate(agent.log_ratios(module.actor(part.observations), part), random, (0.2, 0.2))
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(surrogate, parameters, allow_unused=True, materialize_grads=True)
    return {name.removeprefix("policy."): gradient for name, gradient in zip(names, found, strict=True)}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("ratio", ["factor", "joint"])
def test_the_kernel_learns_from_the_score_of_the_memory_and_without_it_through_the_action_alone(cell, ratio):
    agent = moved(make(cell=cell, ratio=ratio))
    _, batch = batch_of(agent)
    kernel = [name for name, _ in agent.policy.named_parameters() if name.startswith(("kernel.", "encoder."))]
    assert all(gradients_of(agent, batch)[name].abs().max() > 0 for name in [*kernel, "memory_log_excess"])
    agent.ratio = "action"
    through_action = gradients_of(agent, batch)
    assert all(through_action[name].abs().max() > 0 for name in kernel)
    assert not through_action["memory_log_excess"].any()
    seen = agent.policy.actor_net[0].in_features - agent.policy.cell_size
    with torch.no_grad():
        agent.policy.actor_net[0].weight[:, seen:] = 0.0  # views of θ: the head reads no memory now
    assert not any(gradients_of(agent, batch)[name].any() for name in kernel)
    agent.ratio = ratio
    assert all(gradients_of(agent, batch)[name].abs().max() > 0 for name in kernel)


def test_a_memory_without_effect_has_no_score():
    """Where s' is absorbing; at a truncation z' counts."""
    agent = moved(make())
    rollout, batch = batch_of(agent)
    assert torch.equal(batch.lasting, ~rollout.terminated.flatten()[rollout.valid_rows()])
    assert (~batch.lasting).any()
    assert (rollout.truncated.flatten()[rollout.valid_rows()] & batch.lasting).any()
    shifted = batch._replace(log_probs=batch.log_probs - 0.3)
    with torch.no_grad():
        log_ratios = agent.log_ratios(begun(agent).actor(batch.observations), shifted)
    torch.testing.assert_close(log_ratios[:, 0], torch.full((len(log_ratios),), 0.3), rtol=0, atol=1e-5)
    torch.testing.assert_close(log_ratios[:, 1], 0.3 * batch.lasting, rtol=0, atol=1e-5)
    none = gradients_of(agent, batch, lasting=torch.zeros_like(batch.lasting))
    assert not none["memory_log_excess"].any()


@pytest.mark.parametrize("algorithm", [S2PG, PPO])
def test_the_entropy_bonus_leaves_the_memorys_noise_alone(algorithm):
    agent = moved(make(algorithm, actions="box", ent_coef=1.0, vf_coef=0.0, target_kl=None, normalize_advantage=False))
    rollout = agent.collector.steps(agent.state.theta, 24)
    batch = (
        agent.stateful_advantages(agent.state.theta, rollout)
        if algorithm is S2PG
        else agent.advantages(agent.state.theta, rollout)
    )
    after, metrics = agent.update(agent.state, batch._replace(advantages=torch.zeros_like(batch.advantages)), 1.0)
    before, after = (agent.functional.unravel(theta) for theta in (agent.state.theta, after.theta))
    assert torch.equal(after["policy.memory_log_excess"], before["policy.memory_log_excess"])
    assert (after["policy.log_std"] > before["policy.log_std"]).all()
    expected = 2 * (0.5 + 0.5 * np.log(2 * np.pi)) + float(before["policy.log_std"].sum())
    assert float(metrics["entropy_loss"]) == pytest.approx(-expected, abs=0.1)


def test_clipping_memory_by_itself_is_not_clipping_the_product():
    """A memory of many dimensions can use up the range of a joint ratio; a factor's own it cannot."""
    agent = make()
    log_ratios = torch.tensor([[0.0, 0.5], [0.0, -0.5], [0.1, 0.0]])
    advantages = torch.tensor([1.0, -1.0, 2.0])
    factor = clipped_surrogate(log_ratios[:, 0], advantages, 0.2) + clipped_surrogate(log_ratios[:, 1], advantages, 0.1)
    assert float(agent.surrogate(log_ratios, advantages, (0.2, 0.1))) == pytest.approx(float(factor.mean()))
    agent.ratio = "joint"
    joint = clipped_surrogate(log_ratios.sum(-1), advantages, 0.2)
    assert float(agent.surrogate(log_ratios, advantages, (0.2, 0.1))) == pytest.approx(float(joint.mean()))
    agent.ratio = "action"
    alone = clipped_surrogate(log_ratios[:, 0], advantages, 0.2)
    assert float(agent.surrogate(log_ratios, advantages, (0.2, 0.1))) == pytest.approx(float(alone.mean()))


def test_clip_ranges_of_action_and_memory_follow_their_own_schedules():
    agent = make(clip_range="linear:0.4", memory_clip_range=0.1)
    assert agent.clip_ranges(0.5) == (0.2, 0.1)
    assert make(clip_range="linear:0.4").clip_ranges(0.5) == (0.2, 0.2)


@pytest.mark.parametrize("which", [0, 1])
def test_an_update_stops_when_the_kl_of_either_factor_passes_the_target(which):
    """One factor's log-ratios are far off, the other's are exact."""
    agent = make(n_epochs=5, target_kl=0.02, learning_rate=0.0)
    _, batch = batch_of(agent)
    assert agent.update(agent.state, batch, 1.0)[1]["n_updates"] == 5
    log_probs = batch.log_probs.clone()
    log_probs[:, which] -= 0.5
    _, metrics = agent.update(agent.state, batch._replace(log_probs=log_probs), 1.0)
    assert metrics["n_updates"] == 1
    assert not batch.lasting.all()  # a memory without effect counts in no mean
    off, exact = ("approx_kl", "approx_kl_memory") if which == 0 else ("approx_kl_memory", "approx_kl")
    assert float(metrics[off]) == pytest.approx(float(approximate_kl(torch.tensor([0.5]))), rel=1e-4)
    assert abs(float(metrics[exact])) < 1e-6
    assert float(metrics["clip_fraction" if which == 0 else "clip_fraction_memory"]) == pytest.approx(1.0, abs=1e-6)
    agent.target_kl = None
    assert agent.update(agent.state, batch._replace(log_probs=log_probs), 1.0)[1]["n_updates"] == 5


def test_metrics_speak_of_action_and_memory_separately():
    agent = make(policy_kwargs={"memory_std": 0.3, "min_memory_std": 0.0}, actions="box")
    _, metrics = agent.step(agent.state, agent.collector)
    names = {"approx_kl", "approx_kl_memory", "clip_fraction", "clip_fraction_memory", "memory_std", "std", "grad_norm"}
    assert names <= metrics.keys()
    assert float(metrics["memory_std"]) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(("algorithm", "mode"), [(PPO, {}), (REBEL, {}), (REBEL, {"mode": "trajectory"})])
@pytest.mark.filterwarnings("ignore:batch_size")
def test_agents_of_one_ratio_tell_how_far_action_and_memory_moved_each(algorithm, mode, monkeypatch):
    grouped = {"num_groups": 2, "group_size": 2, "n_envs": 4} if mode else {}
    agent = make(algorithm, "box", learning_rate=1e-2, target_kl=None, **mode, **grouped)
    name = "episodes" if mode else "steps"
    given = (4, None) if mode else (24,)
    rollout = getattr(agent.collector, name)(agent.state.theta, *given)
    monkeypatch.setattr(agent.collector, name, lambda *_: rollout)
    state, metrics = agent.step(agent.state, agent.collector)
    valid = rollout.valid_rows()
    flat = map_observations(lambda x: x.flatten(0, 1)[valid], rollout.observations)
    actions = rollout.actions.flatten(0, 1)[valid]
    with torch.no_grad():
        both = [agent.functional.bind(theta).actor(flat).log_probs(actions) for theta in (agent.state.theta, state.theta)]
    kl = approximate_kl if algorithm is PPO else approx_kl
    for index, name in enumerate(("action", "memory")):
        log_ratio = both[1][index] - both[0][index]
        assert float(kl(log_ratio)) > 1e-5
        torch.testing.assert_close(metrics[f"approx_kl_{name}"], kl(log_ratio))
        if algorithm is PPO:
            beyond = (log_ratio.expm1().abs() > 0.2).float().mean()
            torch.testing.assert_close(metrics[f"clip_fraction_{name}"], beyond)
    std = agent.functional.bind(state.theta).policy.memory_log_std.detach().exp().mean()
    assert float(metrics["memory_std"]) == pytest.approx(float(std))
    plain = algorithm("MlpPolicy", lambda: Walk(actions="box"), n_steps=24, batch_size=24, n_envs=4, device="cpu", **mode)
    assert not {"approx_kl_action", "approx_kl_memory", "memory_std"} & plain.step(plain.state, plain.collector)[1].keys()


# ------------------------------------------------------------------ prediction with a state


def observations_of(num, steps=6, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, num, 3)).astype(np.float32)


@pytest.mark.parametrize("actions", ACTIONS)
def test_prediction_is_the_policys_mode_fed_with_what_it_remembers(actions):
    agent = moved(make(S2PG, actions, policy_kwargs={"log_std_init": 1.0}), by=0.5)
    state, memory, previous = None, torch.zeros(4, 3), None
    for observation in observations_of(4):
        actions_, state = agent.predict(observation, state, deterministic=True)
        rows = {OBSERVATION: torch.from_numpy(observation), MEMORY: memory}
        rows[PREVIOUS_ACTION] = torch.zeros_like(torch.from_numpy(state.previous_action)) if previous is None else previous
        with torch.no_grad():
            distribution = agent.actor_critic.actor(rows)
        mode, memory = distribution.action.mode(), distribution.memory.mean
        np.testing.assert_allclose(state.memory, memory, atol=1e-6)
        if actions in ("box", "squashed"):  # carried as it was made, played within the bounds
            np.testing.assert_allclose(state.previous_action, mode, atol=1e-6)
            assert (actions_ >= -0.5).all()
            assert (actions_ <= 1.5).all()
            expected = mode.numpy().clip(-0.5, 1.5) if actions == "box" else mode.numpy() + 0.5
            np.testing.assert_allclose(actions_, expected, atol=1e-6)
        else:
            assert (state.previous_action.sum(-1) == (2 if actions == "multi" else 1)).all() or actions == "binary"
            assert agent.action_space.contains(actions_[0])
        previous = torch.from_numpy(state.previous_action)


def test_unclipped_actions_go_out_of_bounds_in_the_state():
    agent = moved(make(S2PG, "box", policy_kwargs={"log_std_init": 2.0}))
    played, state = agent.predict(observations_of(50)[0])
    assert played.max() == 1.5
    assert state.previous_action.max() > 3.0
    assert isinstance(state, MemoryState)


@pytest.mark.parametrize("normalize", [False, True])
def test_prediction_without_noise_is_what_the_collector_does_without_noise(monkeypatch, normalize):
    """Acting in training and outside: the same memories, from what the environment showed."""
    agent = make(S2PG, "box", n_envs=1, batch_size=24, normalize_observations=normalize, policy_kwargs={"log_std_init": 1.0})
    moved(agent).learn(48)
    real = rlopt.collector.make_actor
    monkeypatch.setattr(rlopt.collector, "make_actor", lambda module, num: quiet(real(module, num)))
    shown, step = [], Walk._observation

    def observed(env):
        shown.append(step(env))
        return shown[-1]

    monkeypatch.setattr(Walk, "_observation", observed)
    if normalize:  # statistics as they are
        monkeypatch.setattr(ObservationNormalizer, "update", lambda *_: None)
    agent.collector.observations = None
    rollout = agent.collector.steps(agent.state.theta, 30)
    state, over = None, True
    for t in range(30):
        action, state = agent.predict(shown.pop(0), state, np.array([over]), deterministic=True)
        np.testing.assert_allclose(state.memory[0], rollout.actions[t, 0, 2:], atol=2e-6)
        np.testing.assert_allclose(state.previous_action[0], rollout.actions[t, 0, :2], atol=2e-6)
        np.testing.assert_allclose(action, rollout.actions[t, 0, :2].clamp(-0.5, 1.5), atol=2e-6)
        over = bool(rollout.terminated[t, 0] | rollout.truncated[t, 0])
        if over:
            shown.pop(0)  # the last one of the episode, for which nobody acts
    assert int((rollout.terminated | rollout.truncated).sum()) >= 3


def quiet(actor):
    """The actor without its noise."""
    return lambda observations, noise: actor(observations, 0 * noise)


def test_rows_that_begin_an_episode_forget_and_the_others_do_not():
    agent = moved(make(S2PG, "multi"))
    first, second = observations_of(4)[:2]
    _, state = agent.predict(first, None, deterministic=True)
    kept = MemoryState(*(array.copy() for array in state))
    begins = np.array([True, False, False, True])
    mixed, after = agent.predict(second, state, begins, deterministic=True)
    fresh, after_fresh = agent.predict(second, agent.initial_state(4), deterministic=True)
    carried, after_carried = agent.predict(second, state, np.zeros(4, bool), deterministic=True)
    for n, begun_ in enumerate(begins):
        np.testing.assert_array_equal(mixed[n], (fresh if begun_ else carried)[n])
        np.testing.assert_allclose(after.memory[n], (after_fresh if begun_ else after_carried).memory[n], atol=1e-7)
    assert np.abs(after_fresh.memory - after_carried.memory).max() > 1e-4
    for array, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(array, before)  # the caller's arrays are left alone
    everyone, _ = agent.predict(second, state, True, deterministic=True)
    np.testing.assert_array_equal(everyone, fresh)


@pytest.mark.parametrize("actions", ACTIONS)
def test_an_observation_without_a_batch_gives_an_action_without_one(actions):
    agent = moved(make(S2PG, actions))
    single_state = batch_state = agent.initial_state(1)
    for observation in observations_of(1):
        single, single_state = agent.predict(observation[0], single_state, deterministic=True)
        batch, batch_state = agent.predict(observation, batch_state, deterministic=True)
        assert single.shape == agent.action_space.shape
        np.testing.assert_array_equal(single, batch[0])
        assert single_state.memory.shape == (1, 3)
        np.testing.assert_array_equal(single_state.memory, batch_state.memory)


def test_deterministic_calls_repeat_and_draws_do_not():
    agent = moved(make(S2PG, "box"))
    observation, state = observations_of(4)[0], agent.initial_state(4)
    first, second = (agent.predict(observation, state, deterministic=True) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    for mine, theirs in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    drawn, again = (agent.predict(observation, state) for _ in range(2))
    assert np.abs(drawn[0] - again[0]).max() > 1e-3
    assert np.abs(drawn[1].memory - again[1].memory).max() > 1e-3


def test_a_forgotten_state_warns_at_the_second_call_and_at_the_line_of_the_caller():
    agent = make()
    observation = observations_of(2)[0]
    agent.predict(observation)
    with pytest.warns(UserWarning, match=r"^state: predict was called twice in a row without one") as caught:
        agent.predict(observation)
    assert caught[0].filename == __file__


def test_a_state_that_is_passed_does_not_warn():
    agent, state = make(), None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for observation in observations_of(2):
            _, state = agent.predict(observation, state)
        agent.predict(observation)  # a new episode
        for _ in range(3):
            agent.predict(observation, agent.initial_state(2))
        PPO("MlpPolicy", Walk()).predict(observation)
        PPO("MlpPolicy", Walk()).predict(observation)


@pytest.mark.parametrize(
    "state",
    [
        (np.zeros((2, 3)),),
        (np.zeros((2, 4)), np.zeros((2, 3))),
        (np.zeros((1, 3)), np.zeros((1, 3))),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((2, 3)), np.zeros((2, 2))),
        (np.zeros((2, 3)), None),
        np.zeros((2, 3)),
        7,
        "state",
    ],
)
def test_a_state_of_another_shape_is_refused(state):
    with pytest.raises(ValueError, match=r"^state: expected"):
        make().predict(observations_of(2)[0], state)


@pytest.mark.parametrize("starts", [np.zeros(3, bool), np.zeros((2, 1), bool), [True, False, True]])
def test_starts_of_other_rows_are_refused(starts):
    agent = make()
    with pytest.raises(ValueError, match=r"^episode_start: expected one boolean for each of 2 rows, got shape \("):
        agent.predict(observations_of(2)[0], agent.initial_state(2), starts)


def test_the_initial_state_is_that_of_an_episode():
    agent = make(S2PG, "multi", cell="lstm")
    assert [array.shape for array in agent.initial_state()] == [(1, 6), (1, 5)]
    state = agent.initial_state(3)
    assert [array.shape for array in state] == [(3, 6), (3, 5)]
    assert PPO("MlpPolicy", Walk()).initial_state(3) is None
    first, second = (agent.predict(observations_of(3)[0], s, deterministic=True)[0] for s in (None, state))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("algorithm", [S2PG, RecurrentPPO])
def test_an_agent_from_a_file_knows_its_initial_state_and_one_that_never_had_an_environment_says_so(algorithm, tmp_path):
    agent = algorithm("MlpPolicy", Walk(), n_steps=16, batch_size=16, device="cpu", memory_size=3)
    agent.save(tmp_path / "agent")
    state, loaded = agent.initial_state(2), algorithm.load(tmp_path / "agent").initial_state(2)
    assert [array.shape for array in loaded] == [array.shape for array in state]
    nowhere = algorithm("MlpPolicy", n_steps=16, batch_size=16, device="cpu", memory_size=3)
    for call in (nowhere.initial_state, lambda: nowhere.predict(np.zeros(3, np.float32))):
        with pytest.raises(ValueError, match=r"^agent: it has no environment yet.*call set_env\(env\) first"):
            call()
    nowhere.set_env(Walk())
    assert [array.shape for array in nowhere.initial_state(2)] == [array.shape for array in state]


def test_sb3s_evaluation_passes_the_state_on():
    agent = make(normalize_observations=True).learn(48)
    before = agent.observation_normalizer.state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Evaluation environment is not wrapped")
        for deterministic in (True, False):
            mean, _ = evaluate_policy(agent, Walk(), n_eval_episodes=3, deterministic=deterministic)
            assert np.isfinite(mean)
    assert all(np.array_equal(before[key], value) for key, value in agent.observation_normalizer.state().items())


# ------------------------------------------------------------------ a critic that sees more


class Informed(Walk):
    """What the walk shows, and for the critic something else."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        hidden = spaces.Box(-5, 5, (2,), np.float32)
        self.observation_space = spaces.Dict({"observation": OBSERVATION_SPACES["box"], "critic": hidden})

    def _observation(self):
        seen = np.array([self.x, self.velocity, self.time / self.limit], np.float32)
        return {"observation": seen, "critic": np.clip(10 * seen[:2], -5, 5)}


@pytest.mark.parametrize("algorithm", [S2PG, PPO])
def test_what_only_the_critic_sees_does_not_change_what_is_done(algorithm, tmp_path):
    agent = make(algorithm, env=Informed, normalize_observations=True, policy_kwargs={"net_arch": [8]}).learn(96)
    assert set(agent.observation_normalizer.moments) == {"observation", "critic"}
    seen = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    first, second = ({"observation": seen, "critic": np.full((5, 2), fill, np.float32)} for fill in (0.0, 4.0))
    here, there = (agent.predict(obs, agent.initial_state(5), deterministic=True) for obs in (first, second))
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1].memory, there[1].memory)
    joined = [agent.policy.observation_space.join(obs, agent.initial_state(5)) for obs in (first, second)]
    with torch.no_grad():
        values = [agent.actor_critic.critic(agent.as_tensors(obs)) for obs in joined]
    assert (values[0] - values[1]).abs().max() > 1e-4
    agent.save(tmp_path / "agent")
    again = algorithm.load(tmp_path / "agent").predict(first, agent.initial_state(5), deterministic=True)
    np.testing.assert_array_equal(again[0], here[0])


class Divided(Walk):
    """Two entries for the actor and two for the critic, one of them nested."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        critic = spaces.Dict({"time": spaces.Discrete(50), "x": spaces.Box(-5, 5, (1,), np.float64)})
        self.observation_space = spaces.Dict(
            {"position": spaces.Box(-5, 5, (2,), np.float32), "room": spaces.Discrete(3, start=1), "critic": critic}
        )


class Camera(Walk):
    """An image for the actor, a vector for the critic."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Dict(
            {"observation": OBSERVATION_SPACES["image"], "critic/a": spaces.Box(-5, 5, (2,)), "critic/b": spaces.Discrete(3)}
        )


class Pair(Walk):
    """A tuple for the actor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Dict({"observation": OBSERVATION_SPACES["tuple"], "critic": spaces.Box(-5, 5, (2,))})


class Arm(Walk):
    """A Dict for the actor at "observation"."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Dict({"observation": OBSERVATION_SPACES["nested"], "critic": spaces.Box(-5, 5, (2,))})


SMALL_ROLLOUTS = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu", "memory_size": 3}
SHOWING = {"plain": Informed, "divided": Divided, "camera": Camera, "pair": Pair, "arm": Arm}
READERS = {"plain": "MlpPolicy", "camera": "CnnPolicy", "divided": "MultiInputPolicy", "pair": "MultiInputPolicy"}


def shown_to_the_critic(kind, algorithm=S2PG, **kwargs):
    """An agent that was trained with entries for the critic, its weights moved."""
    policy_kwargs = {"net_arch": [8]} | ({"features_extractor_kwargs": {"features_dim": 8}} if kind == "camera" else {})
    memory = {} if algorithm is RecurrentPPO else {"memory": "s2pg"}
    return moved(
        algorithm(
            READERS.get(kind, "MultiInputPolicy"),
            SHOWING[kind],
            policy_kwargs=policy_kwargs,
            **{**SMALL_ROLLOUTS, **memory, **kwargs},
        ).learn(32)
    )


def some_of(agent, num):
    """Observations [num, *obs] as the environment gives them."""
    agent.observation_space.seed(0)
    samples = [agent.encoder(agent.observation_space.sample()) for _ in range(num)]
    return agent.encoder.decode({key: np.stack([sample[key] for sample in samples]) for key in samples[0]})


def at(observations, row):
    """One of a batch."""
    if isinstance(observations, dict):
        return {key: at(value, row) for key, value in observations.items()}
    return tuple(at(value, row) for value in observations) if isinstance(observations, tuple) else observations[row]


@pytest.mark.parametrize("algorithm", [S2PG, PPO, RecurrentPPO])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", SHOWING)
def test_an_actor_acts_alike_where_nobody_shows_what_the_critic_saw(kind, normalize, algorithm):
    if normalize and kind == "camera":
        pytest.skip("an image is not normalised")
    agent = shown_to_the_critic(kind, algorithm, normalize_observations=normalize)
    whole = some_of(agent, 5)
    visible = {key: value for key, value in whole.items() if not key.startswith("critic")}
    partly = {**visible, **({"critic/a": whole["critic/a"]} if kind == "camera" else {})}
    bare = [] if kind == "divided" else [visible["observation"]]
    ours = sum(agent.policy.state_sizes[:1]) if algorithm is RecurrentPPO else 3
    for batch in (visible, partly, *bare):
        for deterministic in (True, False):
            state = agent.initial_state(5)._replace(memory=np.full((5, agent.policy.action_space.memory_size), 0.3, np.float32))
            agent.generators["prediction"].manual_seed(0)
            expected, after = agent.predict(whole, state, deterministic=deterministic)
            agent.generators["prediction"].manual_seed(0)
            actions, following = agent.predict(batch, state, deterministic=deterministic)
            np.testing.assert_array_equal(actions, expected)
            np.testing.assert_array_equal(following.memory[:, :ours], after.memory[:, :ours])
            np.testing.assert_array_equal(following.memory[:, ours:], state.memory[:, ours:])  # a critic's own stays
            np.testing.assert_array_equal(following.previous_action, after.previous_action)
        one, _ = agent.predict(at(batch, 2), MemoryState(*(array[2:3] for array in state)), deterministic=True)
        assert one.shape == ()
        assert one == agent.predict(whole, state, deterministic=True)[0][2]


def test_an_entry_that_the_actor_needs_may_not_be_missing():
    agent = shown_to_the_critic("divided")
    whole = some_of(agent, 2)
    for missing in ("position", "room"):
        for kept in (True, False):
            seen = {key: value for key, value in whole.items() if key != missing and (kept or key != "critic")}
            with pytest.raises(ValueError, match=rf"^observation: the actor reads .*, of which \['{missing}'\] is missing"):
                agent.predict(seen, agent.initial_state(2))
    with pytest.raises(ValueError, match=r"^observation: expected Dict\('critic'.*, or a batch of that"):
        agent.predict(whole["position"], agent.initial_state(2))
    plain = shown_to_the_critic("plain")
    with pytest.raises(ValueError, match=r"^observation: the actor reads .*, of which \['observation'\] is missing"):
        plain.predict({"critic": np.zeros(2, np.float32)}, plain.initial_state())
    with pytest.raises(ValueError, match=r"^observation: expected Dict\('observation'"):
        plain.predict(np.zeros(4, np.float32), plain.initial_state())
    with pytest.raises(ValueError, match=r"^observation: got a tuple.*Gymnasium's reset"):
        plain.predict((np.zeros(3, np.float32), {}), plain.initial_state())


def test_an_agent_without_memory_reads_what_is_named_after_the_critic_and_needs_it():
    agent = PPO("MultiInputPolicy", Informed, n_envs=2, n_steps=16, batch_size=16, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"^observation: expected Dict\('critic'"):
        agent.predict({"observation": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"^env: the observation space of"):
        evaluate(agent, Walk, 2)


@pytest.mark.parametrize("algorithm", [S2PG, RecurrentPPO])
def test_evaluation_needs_no_environment_that_shows_the_critic_more(algorithm):
    agent = shown_to_the_critic("plain", algorithm, normalize_observations=True)
    assert evaluate(agent, Informed, 4, seed=1) == evaluate(agent, Walk, 4, seed=1)
    with pytest.raises(ValueError, match=r"^env: the observation space of"):
        evaluate(agent, lambda: Walk("matrix"), 4)
    with pytest.raises(ValueError, match=r"^env: its observation space"):  # to train takes the whole of it
        agent.set_env(Walk)


def test_a_file_keeps_the_critics_extractor(tmp_path):
    kwargs = {"critic_features_extractor_class": CombinedExtractor, "critic_features_extractor_kwargs": {"cnn_output_dim": 4}}
    agent = make(env=Informed, policy_kwargs=kwargs)
    agent.save(tmp_path / "agent")
    loaded = S2PG.load(tmp_path / "agent")
    assert loaded.policy_kwargs == agent.policy_kwargs
    assert torch.equal(loaded.state.theta, agent.state.theta)


def test_a_file_with_a_critic_that_sees_much_more_can_be_loaded(tmp_path):
    class Much(Informed):
        def __init__(self):
            super().__init__()
            hidden = spaces.Box(-5, 5, (500,), np.float32)
            self.observation_space = spaces.Dict({"observation": OBSERVATION_SPACES["box"], "critic": hidden})

        def _observation(self):
            seen = np.array([self.x, self.velocity, self.time / self.limit], np.float32)
            return {"observation": seen, "critic": np.resize(seen, 500)}

    agent = make(env=Much, policy_kwargs={"net_arch": {"pi": [64], "vf": [64]}})
    agent.save(tmp_path / "agent")
    assert torch.equal(S2PG.load(tmp_path / "agent").state.theta, agent.state.theta)


# ------------------------------------------------------------------ every agent with a memory


@pytest.fixture(params=CLASSES)
def algorithm(request):
    return CLASSES[request.param]


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.filterwarnings("ignore:batch_size")
def test_every_agent_learns_with_a_memory_the_same_way_twice(algorithm):
    first, second = (make(algorithm, "squashed", cell="lstm").learn(48) for _ in range(2))
    assert torch.equal(first.state.theta, second.state.theta)
    start = make(algorithm, "squashed", cell="lstm")
    change = start.functional.unravel(first.state.theta - start.state.theta)
    assert change["policy.kernel.weight_hh"].abs().max() > 0
    assert first.state.theta.isfinite().all()
    assert first.hyperparameters()["memory"] == "s2pg"


@pytest.mark.filterwarnings("ignore:batch_size")
def test_a_saved_agent_goes_on_with_the_same_bits(algorithm, tmp_path):
    agent = make(algorithm, "box", normalize_observations=True, normalize_rewards=True).learn(48)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent")
    for mine, theirs in zip(agent.state, loaded.state, strict=True):
        assert same(mine, theirs)
    assert loaded.hyperparameters() == agent.hyperparameters()
    state = loaded_state = None
    for t, observation in enumerate(observations_of(4)):
        deterministic = t % 2 == 0
        mine, state = agent.predict(observation, state, deterministic=deterministic)
        theirs, loaded_state = loaded.predict(observation, loaded_state, deterministic=deterministic)
        np.testing.assert_array_equal(mine, theirs)
        for array, other in zip(state, loaded_state, strict=True):
            np.testing.assert_array_equal(array, other)

    def env():
        return Walk(actions="box")

    first, second = (algorithm.load(tmp_path / "agent", env=env).learn(48, reset_num_timesteps=False) for _ in range(2))
    assert torch.equal(first.state.theta, second.state.theta)
    assert not torch.equal(first.state.theta, agent.state.theta)


def test_an_update_after_loading_equals_one_without(tmp_path):
    agent = make(S2PG, "box").learn(96)
    agent.save(tmp_path / "agent")
    loaded = S2PG.load(tmp_path / "agent")
    _, batch = batch_of(agent)
    mine, theirs = (a.update(a.state, batch, 0.5)[0].theta for a in (agent, loaded))
    assert torch.equal(mine, theirs)


def test_training_in_parts_equals_training_at_once():
    """Memory under way is kept between calls of `learn`."""
    parts = make().learn(48)
    parts.learn(96, reset_num_timesteps=False)
    whole = make().learn(144)
    assert parts.num_timesteps == whole.num_timesteps == 144
    assert torch.equal(parts.state.theta, whole.state.theta)


def test_an_agent_of_eight_environments_acts_in_one(tmp_path):
    agent = make(n_envs=8, batch_size=64).learn(192)
    agent.save(tmp_path / "agent")
    loaded = S2PG.load(tmp_path / "agent", env=Walk())
    env, state = Walk(), None
    observation, _ = env.reset(seed=0)
    over = False
    while not over:
        action, state = loaded.predict(observation, state, deterministic=True)
        assert state.memory.shape == (1, 3)
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    many, _ = agent.predict(observations_of(5)[0], agent.initial_state(5), deterministic=True)
    one, _ = agent.predict(observations_of(5)[0][2], agent.initial_state(1), deterministic=True)
    assert many[2] == one
    loaded.n_steps = 16
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 208


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": "both"}, r"^ratio: expected one of .*factor.*, got 'both'"),
        ({"memory_clip_range": -0.1}, r"^memory_clip_range: "),
        ({"memory": None}, r"^memory: expected 's2pg', which S2PG is about, got None"),
        ({"memory_size": 0}, r"^memory_size: expected a positive integer, got 0"),
        ({"memory_size": -1}, r"^memory_size: "),
        ({"policy_kwargs": {"cell": "rnn"}}, r"^cell: expected one of .*gru.*, got 'rnn'"),
        ({"policy_kwargs": {"memory_std": 0.01}}, r"^memory_std: expected more than min_memory_std"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_an_unknown_memory_is_named():
    with pytest.raises(ValueError, match=r"^memory: expected one of .*s2pg.*, got 'lstm'"):
        PPO("MlpPolicy", Walk(), memory="lstm")


def test_the_distribution_of_an_agent_is_that_of_action_and_memory():
    agent = make(S2PG, "box")
    distribution = agent.actor_critic.actor(
        agent.as_tensors(agent.policy.observation_space.join(observations_of(2)[0], agent.initial_state(2)))
    )
    assert isinstance(distribution, JointDistribution)
