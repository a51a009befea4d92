"""Stateful policies against closed forms: every course of an episode with a binary memory, and a linear Gaussian one.

All estimates go through the library: its distributions, estimators and agents, in float64. Only the policies are small.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlopt import ALGORITHMS, HARPG, NPGIGT, PPO, S2PG
from rlopt.agents.ppo import Rates
from rlopt.agents.proximal import Batch
from rlopt.agents.s2pg import StatefulBatch
from rlopt.collector import Collector
from rlopt.envs.memory import MEMORY, OBSERVATION, PREVIOUS_ACTION, Memory, MemoryActions
from rlopt.estimators import hessian_vector_product, policy_gradient, reward_to_go, total_return
from rlopt.policies.actor_critic import ActionLogProb
from rlopt.policies.distributions import Bernoulli, Categorical, DiagonalGaussian
from rlopt.policies.functional import Functional
from rlopt.policies.stateful import JointDistribution
from rlopt.rollout import Rollout, map_observations
from rlopt.statistics import EpisodeStatistics
from rlopt.verification.agents import PAPER
from rlopt.verification.memory import memory_checks
from rlopt.verification.run import OF_OTHERS, OWN, STATEFUL, verify_main
from tests.oracles import F64, Expected, assert_exact, assert_misses, miss
from tests.small_envs import Walk

DELAYS = [0, 1, 4, 8]
# θ1, θ0: after the cue 1 / 0; φ1, φ0: answers of the memory 1 / 0; κ1, κ0: at a blank, of the memory 1 / 0
WORKED = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=F64)
UNEVEN = torch.tensor([0.7, -0.2, 1.1, -0.4, 1.5, -0.9], dtype=F64)
OTHER = UNEVEN + torch.tensor([0.3, 0.4, -0.2, 0.3, -0.5, 0.2], dtype=F64)
VECTOR = torch.linspace(-1, 2, 6, dtype=F64)
WRITES, ANSWERS, CARRIES = slice(0, 2), slice(2, 4), slice(4, 6)
FORMS = ["per_step", "trajectory", "doubly_robust"]


# ------------------------------------------------------------------ cue-recall in closed form


def value(logits, delay):
    """J = ½ [1 + (p − q) λ^D (u − v)]."""
    p, q, u, v, k1, k0 = logits.sigmoid()
    return 0.5 * (1 + (p - q) * (k1 - k0) ** delay * (u - v))


def gradient(logits, delay):
    """∇J, [6], as the differences of the spec's formulas; differentiable."""
    p, q, u, v, k1, k0 = chances = logits.sigmoid()
    kept = (k1 - k0) ** delay
    slope = delay * (k1 - k0) ** max(delay - 1, 0)
    write, read, carry = kept * (u - v), kept * (p - q), slope * (p - q) * (u - v)
    return 0.5 * torch.stack([write, -write, read, -read, carry, -carry]) * chances * (1 - chances)


def hessian(logits, delay):
    return torch.func.jacfwd(gradient)(logits, delay)


class Binary(nn.Module):
    """A memory of one bit and its six logits, as what agents call an actor-critic.

    Args:
        logits: [6].
        action: the answer as a choice of two or as a coin.
        inert: give actions before the question and z' at it logits too, though they change nothing.
        table: the critic, v(what is seen, z) [4, 2], or v(s, what is seen, z) [2, 4, 2] if it is privileged.
    """

    squash = False

    def __init__(self, logits=UNEVEN, action="categorical", inert=False, table=None):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.coin, self.inert = action == "bernoulli", inert
        self.space = MemoryActions(spaces.MultiBinary(1) if self.coin else spaces.Discrete(2), 1)
        self.register_buffer("table", torch.zeros(4, 2, dtype=F64) if table is None else table)

    def actor(self, observations):
        seen, memory = observations[OBSERVATION], observations[MEMORY]
        theta_1, theta_0, phi_1, phi_0, kappa_1, kappa_0 = self.logits
        asked, bit = seen[..., 3:] > 0, memory > 0
        carry = torch.where(bit, kappa_1, kappa_0)
        write = torch.where(seen[..., 1:2] > 0, theta_1, torch.where(seen[..., :1] > 0, theta_0, carry))
        answer = torch.where(bit, phi_1, phi_0)
        if not self.inert:
            write, answer = torch.where(asked, 0.0, write), torch.where(asked, answer, 0.0)
        chosen = Bernoulli(answer) if self.coin else Categorical.from_logits(torch.cat([0 * answer, answer], -1))
        return JointDistribution(chosen, Bernoulli(write), self.space)

    def critic(self, observations):
        seen, bit = observations[OBSERVATION].argmax(-1), observations[MEMORY][..., 0].long()
        if self.table.ndim == 2:
            return self.table[seen, bit]
        return self.table[observations["critic"][..., 0].long(), seen, bit]

    def forward(self, observations):
        return self.actor(observations), self.critic(observations)


def policy_of(module):
    """(θ, observations, actions) -> log π_θ, as the agents make it."""
    return Functional(ActionLogProb(module))


def enumerate_courses(module, delay):
    """All courses of an episode as a rollout, one a column, and their probabilities [N]."""
    steps = delay + 2
    courses = torch.tensor(list(product((0.0, 1.0), repeat=1 + 2 * steps if module.inert else delay + 3)), dtype=F64).T
    cue, memories = courses[0], torch.zeros(steps + 1, courses.shape[1], dtype=F64)
    answers = torch.zeros(steps, courses.shape[1], dtype=F64)
    if module.inert:
        memories[1:], answers[:] = courses[1 : steps + 1], courses[steps + 1 :]
    else:
        memories[1:-1], answers[-1] = courses[1:-1], courses[-1]
    seen = torch.zeros(steps + 1, len(cue), 4, dtype=F64)
    seen[0, :, 0], seen[0, :, 1] = 1 - cue, cue
    seen[1:-2, :, 2], seen[-2:, :, 3] = 1, 1
    states = {OBSERVATION: seen, MEMORY: memories[..., None], "critic": cue.expand(steps + 1, -1)[..., None]}
    actions = torch.stack([answers, memories[1:]], -1)
    rewards = torch.zeros(steps, len(cue), dtype=F64)
    rewards[-1] = (answers[-1] == cue).to(F64)
    return rollout_of(module, states, actions, rewards)


def rollout_of(module, states, actions, rewards):
    """A rollout of whole episodes that end in termination, and their probabilities [N] but for inert factors."""
    everywhere = torch.ones(rewards.shape, dtype=torch.bool)
    terminated = torch.zeros_like(everywhere)
    terminated[-1] = True
    with torch.no_grad():
        of_action, of_memory = module.actor({key: value[:-1] for key, value in states.items()}).log_probs(actions)
    live = of_action + of_memory
    if isinstance(module, Binary) and not module.inert:
        live = torch.cat([of_memory[:-1], of_action[-1:]])
    rollout = Rollout(
        states=states,
        actions=actions,
        log_probs=of_action + of_memory,
        rewards=rewards,
        terminated=terminated,
        truncated=~everywhere,
        mask=everywhere,
        final_rows=torch.zeros(0, dtype=torch.int64),
        final_observations={key: value[:0, 0] for key, value in states.items()},
    )
    return rollout, 0.5 * live.sum(0).exp()


def column(rollout, n):
    """One episode as a batch; under `vmap` too."""
    fields = ("actions", "log_probs", "rewards", "terminated", "truncated", "mask")
    picked = {name: getattr(rollout, name)[:, n][:, None] for name in fields}
    return replace(rollout, states=map_observations(lambda x: x[:, n][:, None], rollout.states), **picked)


def of_every_episode(function, rollout):
    """`function` of every single column as a rollout, [N, ...]."""
    return torch.func.vmap(lambda n: function(column(rollout, n)))(torch.arange(rollout.mask.shape[1]))


def some_baseline(rollout):
    """Some b(t, o_t, z_t), [T, N]: of what is known before the action."""
    table = torch.randn(len(rollout.mask), 4, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    times = torch.arange(len(rollout.mask))[:, None]
    return table[times, rollout.observations[OBSERVATION].argmax(-1), rollout.observations[MEMORY][..., 0].long()]


# ------------------------------------------------------------------ estimators of whole episodes


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("action", ["categorical", "bernoulli"])
@pytest.mark.parametrize("logits", [WORKED, UNEVEN], ids=["worked", "uneven"])
def test_the_expected_gradient_is_that_of_the_closed_form(delay, action, logits):
    module = Binary(logits, action)
    rollout, probabilities = enumerate_courses(module, delay)
    assert abs(float(probabilities.sum()) - 1) < 1e-12
    assert abs(float(probabilities @ rollout.rewards.sum(0) - value(logits, delay))) < 1e-12
    for make_psi in (reward_to_go, total_return):
        for baseline in (None, some_baseline(rollout)):
            if make_psi is total_return and baseline is not None:
                baseline = baseline[:1].expand_as(baseline)  # of the whole return: known before the first action
            psi = make_psi(rollout.rewards, rollout.mask, 1.0, baseline)
            found = policy_gradient(policy_of(module), logits, rollout, Expected(psi, probabilities))
            assert_exact(found, gradient(logits, delay), 1e-12)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_factors_that_change_nothing_change_no_expectation(delay):
    """Actions before the question and z' at the end: they have scores, whose mean is 0."""
    module = Binary(UNEVEN, inert=True)
    rollout, probabilities = enumerate_courses(module, delay)
    assert abs(float(probabilities.sum()) - 1) < 1e-12
    psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0), probabilities)
    assert_exact(policy_gradient(policy_of(module), UNEVEN, rollout, psi), gradient(UNEVEN, delay), 1e-12)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampled_at", [UNEVEN, OTHER], ids=["on policy", "off policy"])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_gradient_and_hessian_vector_product_of_every_form(delay, form, sampled_at, with_baseline):
    module = Binary(sampled_at)
    rollout, probabilities = enumerate_courses(module, delay)
    baseline = some_baseline(rollout) if with_baseline else None
    psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0, baseline, form), probabilities)
    policy = policy_of(module)
    assert_exact(policy_gradient(policy, UNEVEN, rollout, psi), gradient(UNEVEN, delay))
    found = hessian_vector_product(policy, UNEVEN, rollout, psi, VECTOR)
    assert_exact(found, hessian(UNEVEN, delay) @ VECTOR)


def test_the_worked_row_and_the_variances_of_one_trajectory():
    module = Binary(WORKED)
    rollout, probabilities = enumerate_courses(module, 4)
    policy = policy_of(module)

    def estimate(episode):
        return policy_gradient(policy, WORKED, episode, reward_to_go(episode.rewards, episode.mask, 1.0))

    estimates = of_every_episode(estimate, rollout)
    mean = probabilities @ estimates
    variances = probabilities @ estimates**2 - mean**2
    assert abs(float(probabilities @ rollout.rewards.sum(0)) - 0.5190387) < 5e-8
    np.testing.assert_allclose(mean, [0.0081002, -0.0081002, 0.0182680, -0.0182680, 0.0104987, -0.0104987], atol=5e-8)
    np.testing.assert_allclose(variances[[0, 2, 4]], [0.047216, 0.056180, 0.105228], atol=5e-7)
    assert_exact(mean, gradient(WORKED, 4), 1e-12)


def test_the_tasks_own_closed_form_agrees():
    problem = pytest.importorskip("rlopt.envs.cue_recall").CueRecall(4)
    assert_exact(problem.gradient(UNEVEN), gradient(UNEVEN, 4), 1e-14)
    assert abs(float(problem.value(UNEVEN) - value(UNEVEN, 4))) < 1e-14


@pytest.mark.parametrize("delay", [2, 4])
@pytest.mark.parametrize(
    ("equal", "gone"),
    [
        ([ANSWERS], [WRITES, CARRIES]),
        ([WRITES], [ANSWERS, CARRIES]),
        ([WRITES, ANSWERS], [WRITES, ANSWERS, CARRIES]),
        ([CARRIES], [WRITES, ANSWERS, CARRIES]),
    ],
    ids=["u = v", "p = q", "both", "λ = 0"],
)
def test_symmetric_policies_have_no_gradient(delay, equal, gone):
    logits = UNEVEN.clone()
    for part in equal:
        logits[part] = float(logits[part][0])
    module = Binary(logits)
    rollout, probabilities = enumerate_courses(module, delay)
    psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0), probabilities)
    found = policy_gradient(policy_of(module), logits, rollout, psi)
    assert_exact(found, gradient(logits, delay), 1e-12)
    for part in (WRITES, ANSWERS, CARRIES):
        assert (found[part].abs().max() < 1e-15) == (part in gone)


def test_without_the_score_of_the_memory_what_writes_and_carries_learns_nothing():
    class ActionAlone(ActionLogProb):
        def forward(self, observations, actions):
            return self.actor_critic.actor(observations).log_probs(actions)[0]

    module = Binary(UNEVEN)
    rollout, probabilities = enumerate_courses(module, 4)
    with torch.no_grad():
        log_probs = module.actor(rollout.observations).log_probs(rollout.actions)[0]
    psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0), probabilities)
    found = policy_gradient(Functional(ActionAlone(module)), UNEVEN, replace(rollout, log_probs=log_probs), psi)
    assert (found[[0, 1, 4, 5]] == 0).all()
    assert_exact(found[ANSWERS], gradient(UNEVEN, 4)[ANSWERS], 1e-12)
    assert_misses(found[WRITES], gradient(UNEVEN, 4)[WRITES])


@pytest.mark.parametrize("num", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_sampled_episodes_have_the_mean_of_the_worked_row(num):
    """Drawn by the library's distributions; the standard errors are those of the exact variances."""
    delay, module = 4, Binary(WORKED, "bernoulli")
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(delay + 3, num, 4, dtype=F64)
    cue = torch.randint(2, (num,), generator=generator)
    seen[0].scatter_(1, cue[:, None], 1.0)
    seen[1:-2, :, 2], seen[-2:, :, 3] = 1, 1
    memories, actions = torch.zeros(delay + 3, num, 1, dtype=F64), torch.zeros(delay + 2, num, 2, dtype=F64)
    for t in range(delay + 2):
        noise = torch.rand(num, 2, generator=generator, dtype=F64).logit()
        with torch.no_grad():
            actions[t] = module.actor({OBSERVATION: seen[t], MEMORY: memories[t]}).sample(noise)
        memories[t + 1] = actions[t, :, 1:]
    rewards = torch.zeros(delay + 2, num, dtype=F64)
    rewards[-1] = (actions[-1, :, 0] == cue).to(F64)
    rollout, _ = rollout_of(module, {OBSERVATION: seen, MEMORY: memories}, actions, rewards)
    found = policy_gradient(policy_of(module), WORKED, rollout, reward_to_go(rewards, rollout.mask, 1.0))
    errors = (torch.tensor([0.047216, 0.056180, 0.105228], dtype=F64) / num).sqrt().repeat_interleave(2)
    assert abs(float(errors[0]) * num**0.5 - 0.22) < 5e-3
    assert ((found - gradient(WORKED, delay)).abs() < 4 * errors).all()
    assert (found.abs() > 8 * errors).all()  # there is something to find


# ------------------------------------------------------------------ agents on all courses at once


class EveryCourse:
    """In place of a collector: all courses at θ, their rewards times p_n N, so that means over columns are expectations."""

    def __init__(self, module, delay):
        self.module, self.delay = module, delay

    def episodes(self, theta, num_episodes, horizon=None, stream="episodes"):
        with torch.no_grad():
            self.module.logits.copy_(theta)
        rollout, probabilities = enumerate_courses(self.module, self.delay)
        return replace(rollout, rewards=rollout.rewards * probabilities * len(probabilities))


def exact_agent(algorithm, module, **kwargs):
    """An agent of stateful policies whose log π is that of the small module."""
    agent = algorithm("MlpPolicy", Walk(), memory="s2pg", memory_size=2, seed=0, gamma=1.0, device="cpu", **kwargs)
    agent.log_policy = policy_of(module)
    return agent


@pytest.mark.parametrize("delay", DELAYS)
def test_npgigt_walks_the_exact_path(delay):
    """N-PG-IGT on expectations, with ∇J of the closed form: the same iterates."""
    module = Binary()
    agent = exact_agent(NPGIGT, module, baseline="none", step_size=0.3, momentum="power:0.7:1/2")
    state, collector = agent.first_state(UNEVEN), EveryCourse(module, delay)
    theta, previous, direction = UNEVEN, UNEVEN, torch.zeros(6, dtype=F64)
    for t in range(4):
        eta = 1.0 if t == 0 else 0.7 * (2 / (t + 2)) ** 0.5
        point = theta + (1 - eta) / eta * (theta - previous)
        direction = (1 - eta) * direction + eta * gradient(point, delay)
        previous, theta = theta, theta + 0.3 * direction / direction.norm()
        state, metrics = agent.step(state, collector)
        assert_exact(state.direction, direction)
        assert_exact(state.theta, theta)
        assert metrics["weights_mean"].isfinite()
    assert (theta - UNEVEN).norm() > 0.5


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("form", ["doubly_robust", "causal", "trajectory"])
def test_harpg_walks_the_exact_path(delay, form):
    """HARPG on expectations, with ∇J and ∇²J of the closed form at its own points between the iterates."""
    module = Binary()
    agent = exact_agent(
        HARPG, module, baseline="none", step_size=2.0, momentum="power:0.7:1/2", max_correction=None, hvp=form, num_points=2
    )
    state, collector = agent.first_state(UNEVEN), EveryCourse(module, delay)
    theta, previous, direction = UNEVEN, UNEVEN, torch.zeros(6, dtype=F64)
    for t in range(4):
        eta, correction = 1.0 if t == 0 else 0.7 * (2 / (t + 2)) ** 0.5, 0.0
        if t:
            points = [torch.lerp(previous, theta, q) for q in agent._fractions(t)]
            correction = sum(hessian(point, delay) for point in points) / 2 @ (theta - previous)
            product, _ = agent.difference(state, collector)
            assert_exact(product, correction)
            assert product.norm() > 1e-6
        direction = (1 - eta) * (direction + correction) + eta * gradient(theta, delay)
        previous, theta = theta, theta + 2.0 * direction
        state, _ = agent.step(state, collector)
        assert_exact(state.direction, direction)
        assert_exact(state.theta, theta)


def proximal(algorithm, module, **kwargs):
    """An S2PG or PPO of the small module."""
    small = {"n_steps": 4, "batch_size": 4, "memory_size": 2, "gamma": 1.0, "normalize_advantage": False}
    agent = algorithm("MlpPolicy", Walk(), seed=0, device="cpu", **small, **kwargs)
    agent.functional = Functional(module)
    return agent


def expected_surrogate(agent, module, rollout, probabilities, ratio="factor"):
    """∇ of S2PG's own surrogate at θ = θ_old, [6], on all courses, each by its probability; and the rows."""
    batch = agent.stateful_advantages(module.logits.detach(), rollout)
    scale = len(rollout.mask) * len(probabilities) * probabilities.repeat(len(rollout.mask))
    distribution = module.actor(batch.observations)
    log_ratios = agent.log_ratios(distribution, batch)
    assert log_ratios.abs().max() < 1e-12
    surrogate = agent.surrogate(log_ratios, batch.advantages * scale, (0.2, 0.2))
    return torch.autograd.grad(surrogate, module.logits)[0], batch


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("action", ["categorical", "bernoulli"])
@pytest.mark.parametrize("ratio", ["factor", "joint"])
def test_the_gradient_of_s2pgs_surrogate_is_exact(delay, action, ratio):
    """The return to go as the advantage (λ = 1), with a critic of 0 and with one that is wrong: a baseline."""
    wrong = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    for table in (None, wrong):
        module = Binary(UNEVEN, action, table=table)
        agent = proximal(S2PG, module, ratio=ratio, gae_lambda=1.0)
        rollout, probabilities = enumerate_courses(module, delay)
        found, batch = expected_surrogate(agent, module, rollout, probabilities)
        assert_exact(found, gradient(UNEVEN, delay), 1e-12)
        assert isinstance(batch, StatefulBatch)


@pytest.mark.parametrize("delay", [1, 4])
def test_s2pg_without_the_score_of_the_memory_learns_nothing_about_it(delay):
    module = Binary()
    agent = proximal(S2PG, module, ratio="action", gae_lambda=1.0)
    found, _ = expected_surrogate(agent, module, *enumerate_courses(module, delay))
    assert (found[[0, 1, 4, 5]] == 0).all()
    assert_exact(found[ANSWERS], gradient(UNEVEN, delay)[ANSWERS], 1e-12)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_s2pg_leaves_the_score_of_the_last_memory_out(delay):
    """Where s' is absorbing, z' changes nothing: the mean is the same, the noise less; both ratios say so."""
    module = Binary(inert=True)
    agent = proximal(S2PG, module, gae_lambda=1.0)
    rollout, probabilities = enumerate_courses(module, delay)
    found, batch = expected_surrogate(agent, module, rollout, probabilities)
    assert_exact(found, gradient(UNEVEN, delay), 1e-12)
    with torch.no_grad():
        moved = Binary(OTHER, inert=True).actor(batch.observations)
        log_ratios = agent.log_ratios(moved, batch)
    last = batch.observations[OBSERVATION][:, 3] > 0
    assert torch.equal(last, ~batch.lasting)
    assert (log_ratios[last, 1] == 0).all()
    assert (log_ratios[~last, 1].abs() > 1e-3).all()
    assert (log_ratios[:, 0].abs() > 1e-3).all()
    # The rows' joint ratio is π_θ(a, z' | x) / π_old(a, z' | x) elsewhere.
    joint = moved.log_prob(batch.actions) - batch.log_probs.sum(-1)
    assert_exact(log_ratios.sum(-1)[~last], joint[~last], 1e-12)
    assert_misses(log_ratios.sum(-1)[last], joint[last])

    def variance(lasting):
        """Total variance of one trajectory's surrogate."""
        weight = batch._replace(lasting=lasting)
        num, steps = len(probabilities), len(rollout.mask)

        def of_one(n):
            rows = torch.arange(steps) * num + n
            part = StatefulBatch(*(map_observations(lambda x: x[rows], field) for field in weight))

            def surrogate(theta):
                distribution = torch.func.functional_call(Moving(module), {"module.logits": theta}, (part.observations,))
                return steps * agent.surrogate(agent.log_ratios(distribution, part), part.advantages, (0.2, 0.2))

            return torch.func.grad(surrogate)(UNEVEN)

        estimates = torch.func.vmap(of_one)(torch.arange(num))
        assert_exact(probabilities @ estimates, gradient(UNEVEN, delay), 1e-12)
        return float((probabilities @ (estimates - probabilities @ estimates) ** 2).sum())

    assert variance(batch.lasting) < 0.95 * variance(torch.ones_like(batch.lasting))


class Moving(nn.Module):
    """The actor alone, as a module's forward."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, observations):
        return self.module.actor(observations)


def exact_values(logits):
    """v(s, o, z) of the delay 0, [2, 4, 2]: what the policy is paid on average from there."""
    p, q, u, v = logits.sigmoid()[:4]
    table = torch.zeros(2, 4, 2, dtype=F64)
    table[1, 3], table[0, 3] = torch.stack([v, u]), torch.stack([1 - v, 1 - u])
    table[1, 1, 0], table[0, 0, 0] = p * u + (1 - p) * v, q * (1 - u) + (1 - q) * (1 - v)
    return table


def test_the_exact_advantage_of_the_memory_has_the_same_mean_and_far_less_noise():
    """Delay 0; λ = 0 and a critic that knows s make S2PG's advantages exact: .043010 becomes .0018390."""
    found = {}
    for name, table, lambda_ in (("return", None, 1.0), ("exact", exact_values(WORKED), 0.0)):
        module = Binary(WORKED, table=table)
        agent = proximal(S2PG, module, gae_lambda=lambda_)
        rollout, probabilities = enumerate_courses(module, 0)
        whole, batch = expected_surrogate(agent, module, rollout, probabilities)
        estimates = []
        for n in range(len(probabilities)):
            rows = torch.tensor([n, n + len(probabilities)])
            part = StatefulBatch(*(map_observations(lambda x, rows=rows: x[rows], field) for field in batch))
            log_ratios = agent.log_ratios(module.actor(part.observations), part)
            surrogate = 2 * agent.surrogate(log_ratios, part.advantages, (0.2, 0.2))
            estimates.append(torch.autograd.grad(surrogate, module.logits)[0])
        mean = probabilities @ torch.stack(estimates)
        assert_exact(mean, whole, 1e-12)
        assert_exact(mean, gradient(WORKED, 0), 1e-12)
        found[name] = float(mean[0]), float(probabilities @ torch.stack(estimates)[:, 0] ** 2 - mean[0] ** 2)
    np.testing.assert_allclose(found["return"], [0.0240770, 0.043010], rtol=0, atol=5e-7)
    np.testing.assert_allclose(found["exact"], [0.0240770, 0.0018390], rtol=0, atol=5e-8)


def test_a_bootstrapped_critic_that_does_not_know_the_cue_is_biased():
    """A negative control of the above: at the question v(o, z) has forgotten s, so that λ = 0 sees no use of z'."""
    known, chances = exact_values(WORKED), WORKED.sigmoid()
    ones = chances[:2].flip(0)  # P(z' = 1 | s), s = 0, 1
    forgotten = torch.zeros(4, 2, dtype=F64)
    forgotten[0], forgotten[1] = known[0, 0], known[1, 1]
    for bit, weights in enumerate((1 - ones, ones)):
        forgotten[3, bit] = weights @ known[:, 3, bit] / weights.sum()
    module = Binary(WORKED, table=forgotten)
    rollout, probabilities = enumerate_courses(module, 0)
    unbiased, _ = expected_surrogate(proximal(S2PG, module, gae_lambda=1.0), module, rollout, probabilities)
    biased, _ = expected_surrogate(proximal(S2PG, module, gae_lambda=0.0), module, rollout, probabilities)
    assert_exact(unbiased, gradient(WORKED, 0), 1e-12)
    assert_misses(biased[WRITES], gradient(WORKED, 0)[WRITES], by=0.02)


@pytest.mark.parametrize("delay", [0, 4])
def test_ppo_with_memory_descends_the_same_gradient(delay):
    module = Binary()
    agent = proximal(PPO, module, memory="s2pg", gae_lambda=1.0, vf_coef=0.0)
    rollout, probabilities = enumerate_courses(module, delay)
    batch = agent.advantages(UNEVEN, rollout)
    assert isinstance(batch, Batch)
    scale = len(rollout.mask) * len(probabilities) * probabilities.repeat(len(rollout.mask))
    agent.descent = OnlyModule(module)
    log = Silent()
    (loss,), gradients = agent._by_autograd(batch._replace(advantages=batch.advantages * scale), Rates(1e-3, 0.2, None), log)
    assert gradients is None
    assert_exact(-torch.autograd.grad(loss, module.logits)[0], gradient(UNEVEN, delay), 1e-12)


class OnlyModule:
    """In place of a `Descent`."""

    def __init__(self, module):
        self.module = module


class Silent:
    """In place of a log."""

    def add(self, *_):
        pass


# ------------------------------------------------------------------ what `rlopt verify` says


def test_verify_checks_stateful_policies(capsys):
    checks = memory_checks()
    assert len(checks) == 6
    assert all(check.passed and check.deviation < 1e-14 for check in checks)
    with pytest.raises(SystemExit) as stopped:
        verify_main(["--algo", STATEFUL])
    assert stopped.value.code == 0
    assert "s2pg: surrogate, joint" in capsys.readouterr().out
    assert ALGORITHMS.keys() <= PAPER.keys() | OF_OTHERS.keys() | OWN.keys()  # every agent has its checks


def test_verify_sees_that_the_score_of_the_memory_is_missing(monkeypatch):
    def action_alone(distribution, joint):
        of_action, of_memory = distribution.action.log_prob(joint[..., 0]), distribution.memory.log_prob(joint[..., 1:])
        return of_action, 0 * of_memory

    monkeypatch.setattr(JointDistribution, "log_probs", action_alone)
    assert not any(check.passed for check in memory_checks())


# ------------------------------------------------------------------ a linear memory of one number


# k, c, w; T updates of the memory; σ_a and σ_z
LINEAR = torch.tensor([0.8, 1.0, 0.9], dtype=F64)
UPDATES, SIGMA_A, SIGMA_Z = 4, 0.1, 0.2
ROW, ROW_OF_BPTT = [0.607694, 0.246352, 1.290161], [0.607694, 0.486156, 1.620518]


def linear_gradient(parameters, sigma_z, num_updates=UPDATES):
    """∇J of (k, c, w), with J = −[m² + c² σ_z² S + σ_a²]."""

    def value(parameters):
        k, c, w = parameters
        noise = (w ** (2 * torch.arange(num_updates))).sum()
        return -((c * k * w ** (num_updates - 1) - 1) ** 2 + c**2 * sigma_z**2 * noise)

    return torch.func.grad(value)(parameters)


class Linear(nn.Module):
    """z' ~ N(w z + k o, σ_z²), and where it is asked a ~ N(c z, σ_a²): z is what came into the step.

    Observations are (o, whether the action is scored). What changes nothing is drawn around 0, so that it has no score.
    """

    squash, closed_form = False, False
    space = MemoryActions(spaces.Box(-np.inf, np.inf, (1,), np.float32), 1)

    def __init__(self, sigma_z=SIGMA_Z, dtype=F64):
        super().__init__()
        self.parameters_ = nn.Parameter(LINEAR.to(dtype))
        self.register_buffer("log_stds", torch.tensor([SIGMA_A, sigma_z], dtype=F64).log().to(dtype))

    def actor(self, observations):
        (cue, asked), memory = observations[OBSERVATION].split(1, -1), observations[MEMORY]
        k, c, w = self.parameters_
        answer = torch.where(asked > 0, c * memory, 0.0)
        following = torch.where(asked > 0, 0.0, w * memory + k * cue)
        return JointDistribution(
            DiagonalGaussian(answer, self.log_stds[:1]), DiagonalGaussian(following, self.log_stds[1:]), self.space
        )


def linear_episodes(sigma_z, cue, noise, answer_noise):
    """Episodes of these cues [N], memory noises [T, N] and noises of the answer [N], as a rollout of T + 1 steps."""
    k, c, w = LINEAR
    memories = torch.zeros(UPDATES + 2, len(cue), 1, dtype=F64)
    seen = torch.zeros(UPDATES + 2, len(cue), 2, dtype=F64)
    seen[0, :, 0], seen[UPDATES:, :, 1] = cue, 1.0
    for t in range(UPDATES):
        memories[t + 1] = w * memories[t] + k * seen[t, :, :1] + sigma_z * noise[t][:, None]
    actions = torch.zeros(UPDATES + 1, len(cue), 2, dtype=F64)
    actions[:-1, :, 1] = memories[1:-1, :, 0]
    actions[-1, :, 0] = c * memories[-2, :, 0] + SIGMA_A * answer_noise
    rewards = torch.zeros(UPDATES + 1, len(cue), dtype=F64)
    rewards[-1] = -((actions[-1, :, 0] - cue) ** 2)
    return rollout_of(Linear(sigma_z), {OBSERVATION: seen, MEMORY: memories}, actions, rewards)[0]


def quadrature(num_variables, num_nodes):
    """Gauss–Hermite nodes [num_variables, N] of independent standard normals and their weights [N].

    Exact for polynomials of a degree below 2 · `num_nodes` in every variable.
    """
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(num_nodes))
    grid = torch.cartesian_prod(*[torch.arange(num_nodes)] * num_variables).T
    return nodes[grid], (weights / weights.sum())[grid].prod(0)


def plain_estimate(policy):
    """One trajectory's ∇ log p · R, as a function of an episode."""
    return lambda episode: policy_gradient(policy, LINEAR, episode, reward_to_go(episode.rewards, episode.mask, 1.0))


def test_the_closed_form_has_the_worked_rows():
    np.testing.assert_allclose(linear_gradient(LINEAR, SIGMA_Z), ROW, rtol=0, atol=5e-7)
    np.testing.assert_allclose(linear_gradient(LINEAR, 0.0), ROW_OF_BPTT, rtol=0, atol=5e-7)


def test_the_linear_tasks_own_closed_form_agrees():
    problem = pytest.importorskip("rlopt.envs.continuous_recall").ContinuousRecall(UPDATES)
    assert_exact(problem.gradient(LINEAR, SIGMA_Z), linear_gradient(LINEAR, SIGMA_Z), 1e-12)


@pytest.mark.parametrize("sigma_z", [0.4, 0.2, 0.1, 0.05])
def test_the_score_of_the_memory_has_the_exact_mean(sigma_z):
    """An expectation by quadrature: scores times returns are polynomials of degree 3 in every variable."""
    variables, weights = quadrature(UPDATES + 2, 3)
    rollout = linear_episodes(sigma_z, variables[0], variables[1:-1], variables[-1])
    psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0), weights)
    found = policy_gradient(policy_of(Linear(sigma_z)), LINEAR, rollout, psi)
    assert_exact(found, linear_gradient(LINEAR, sigma_z))
    assert_misses(found, linear_gradient(LINEAR, 0.0))  # it is the objective of the noisy memory
    vector = torch.tensor([0.5, -1.0, 0.7], dtype=F64)
    slope = torch.func.jvp(lambda x: linear_gradient(x, sigma_z), (LINEAR,), (vector,))[1]
    variables, weights = quadrature(UPDATES + 2, 4)  # the Hessian's scores come twice
    rollout = linear_episodes(sigma_z, variables[0], variables[1:-1], variables[-1])
    for form in FORMS:
        psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0, None, form), weights)
        assert_exact(hessian_vector_product(policy_of(Linear(sigma_z)), LINEAR, rollout, psi, vector), slope, 1e-9)


def second_moment_of_k(sigma_z):
    """E[(s ε_0 / σ_z)² e⁴], by hand: e = α s + β ε_0 + τ η is the error of the answer, of three independent normals."""
    k, c, w = LINEAR.tolist()
    alpha, beta = c * k * w ** (UPDATES - 1) - 1, c * w ** (UPDATES - 1) * sigma_z
    tau = (c * sigma_z) ** 2 * sum(w ** (2 * i) for i in range(UPDATES - 1)) + SIGMA_A**2  # its square
    both = 15 * alpha**4 + 54 * alpha**2 * beta**2 + 15 * beta**4
    return (both + 18 * tau * (alpha**2 + beta**2) + 3 * tau**2) / sigma_z**2


@pytest.mark.parametrize(("sigma_z", "expected"), [(0.4, 4.8), (0.2, 5.15), (0.1, 7.84), (0.05, 14.37)])
def test_the_noise_of_one_trajectory_grows_like_one_over_the_memorys(sigma_z, expected):
    """The standard deviation of ∂J/∂k by quadrature (squares: degree 6), and of 40 000 sampled episodes."""
    variables, weights = quadrature(UPDATES + 2, 4)
    policy = policy_of(Linear(sigma_z))
    rollout = linear_episodes(sigma_z, variables[0], variables[1:-1], variables[-1])
    estimates = of_every_episode(plain_estimate(policy), rollout)
    mean = weights @ estimates
    exact = (weights @ estimates**2 - mean**2).sqrt()
    assert abs(float(exact[0]) / expected - 1) < 0.01
    assert abs(float(exact[0] ** 2) - second_moment_of_k(sigma_z) + float(mean[0]) ** 2) < 1e-9
    generator = torch.Generator().manual_seed(5)
    variables = torch.randn(UPDATES + 2, 40_000, generator=generator, dtype=F64)
    rollout = linear_episodes(sigma_z, variables[0], variables[1:-1], variables[-1])
    sampled = of_every_episode(plain_estimate(policy), rollout)
    squares = (sampled - mean) ** 2
    errors = squares.std(0) / 200
    assert ((squares.mean(0) - exact**2).abs() < 4 * errors).all()
    assert ((sampled.mean(0) - linear_gradient(LINEAR, sigma_z)).abs() < 4 * exact / 200).all()


def through_time(boundary=None):
    """log π(a | s) of the last action, with a memory without noise that is differentiated through all of its updates.

    Args:
        boundary: updates before it are in another chunk, from which no gradient comes.
    """

    def log_prob(parameters, cues, actions):
        k, c, w = parameters
        memory = torch.zeros_like(cues)
        for t in range(UPDATES):
            if t == boundary:
                memory = memory.detach()
            memory = w * memory + k * (cues if t == 0 else 0.0)
        if boundary == UPDATES:
            memory = memory.detach()
        return DiagonalGaussian(c * memory, torch.tensor([SIGMA_A], dtype=F64).log()).log_prob(actions)

    return log_prob


def expected_through_time(boundary=None):
    """The expectation of backpropagation through time, [3], by quadrature over the cue and the answer's noise."""
    (cue, noise), weights = quadrature(2, 4)
    k, c, w = LINEAR
    actions = (c * k * w ** (UPDATES - 1) * cue + SIGMA_A * noise)[None, :, None]
    rewards = -((actions[..., 0] - cue) ** 2)
    everywhere = torch.ones_like(rewards, dtype=torch.bool)
    policy = through_time(boundary)
    states = cue[None, :, None].repeat(2, 1, 1)
    rollout = Rollout(
        states=states,
        actions=actions,
        log_probs=policy(LINEAR, states[0], actions[0])[None],
        rewards=rewards,
        terminated=everywhere,
        truncated=~everywhere,
        mask=everywhere,
        final_rows=torch.zeros(0, dtype=torch.int64),
        final_observations=states[:0, 0],
    )
    psi = Expected(reward_to_go(rewards, everywhere, 1.0), weights)
    if boundary is None:
        return policy_gradient(policy, LINEAR, rollout, psi)
    leaf = LINEAR.clone().requires_grad_()  # `detach` does not stop the derivatives of torch.func
    log_probs = policy(leaf, states[0], actions[0])
    return torch.autograd.grad((psi(torch.zeros_like(rewards))[0] * log_probs).mean(), leaf, materialize_grads=True)[0]


def test_backpropagation_through_time_has_the_mean_of_the_memory_without_noise():
    assert_exact(expected_through_time(), linear_gradient(LINEAR, 0.0))
    assert_exact(expected_through_time(0), linear_gradient(LINEAR, 0.0))  # the first memory is 0 anyway
    np.testing.assert_allclose(expected_through_time(), ROW_OF_BPTT, rtol=0, atol=5e-7)


@pytest.mark.parametrize("boundary", [1, 2, 3, 4])
def test_a_chunk_boundary_between_cue_and_answer_leaves_no_gradient_for_what_is_written(boundary):
    """Truncated backpropagation is biased: ∂k is exactly 0, and of ∂w the updates after the boundary are left."""
    found, exact = expected_through_time(boundary), linear_gradient(LINEAR, 0.0)
    assert float(found[0]) == 0.0
    assert float(exact[0]) > 0.6
    assert abs(float(found[1] - exact[1])) < 1e-12
    kept = (UPDATES - boundary) / (UPDATES - 1)
    assert abs(float(found[2] - kept * exact[2])) < 1e-12
    if boundary > 1:
        assert_misses(found[2], exact[2], by=0.3)


def sampled_estimates(num, seed):
    """Gradient estimates of every trajectory [num, 3], played by the collector in the environment with `Memory`."""
    recall = pytest.importorskip("rlopt.envs.continuous_recall")
    make_envs = pytest.importorskip("rlopt.envs.vector").make_envs
    envs = Memory(make_envs(recall.ContinuousRecallVectorEnv(recall.ContinuousRecall(UPDATES), num)), 1)
    module = Linear(dtype=torch.float32)
    collector = Collector(envs, Functional(module), torch.Generator().manual_seed(seed), EpisodeStatistics(num), seed=seed)
    rollout = collector.episodes(LINEAR.float(), num)
    assert rollout.mask.shape == (UPDATES + 1, num)
    assert not rollout.observations[PREVIOUS_ACTION][0].any()
    doubled = {field: getattr(rollout, field).to(F64) for field in ("actions", "log_probs", "rewards")}
    rollout = replace(rollout, states=map_observations(lambda x: x.to(F64), rollout.states), **doubled)
    return of_every_episode(plain_estimate(policy_of(Linear())), rollout)


@pytest.mark.parametrize(
    ("num", "seed"), [(100_000, 0), *(pytest.param(400_000, seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_episodes_of_the_collector_have_the_mean_of_the_worked_row(num, seed):
    estimates = torch.cat([sampled_estimates(50_000, 100 * seed + part) for part in range(num // 50_000)])
    errors = estimates.std(0) / num**0.5
    np.testing.assert_allclose(errors * (num / 400_000) ** 0.5, [0.008, 0.007, 0.011], rtol=0.1)
    assert ((estimates.mean(0) - torch.tensor(ROW, dtype=F64)).abs() < 4 * errors).all()
    assert miss(estimates.mean(0), torch.tensor(ROW_OF_BPTT, dtype=F64)) > 8 * float(errors.max())
