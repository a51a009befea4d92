"""What solving REBEL's regression does to a policy: exponential tilts, natural gradients, fixed points, self-play.

Everything is enumerated, in float64, with the loss of the library. Where logits are the parameters the loss over all
actions is quadratic, and one Newton step solves it.
"""

import itertools
import math

import pytest
import torch

from rlopt.envs.tabular import TabularMDP
from rlopt.estimators import rebel_all_actions_loss, rebel_loss, rebel_residuals
from rlopt.estimators.rebel import within_group_squares

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def integers(*shape):
    return torch.zeros(*shape, dtype=torch.int64)


def newton(loss, theta, steps=1):
    """Newton steps of least length from θ: the minimiser of a quadratic after one."""
    for _ in range(steps):
        hessian, gradient = torch.func.hessian(loss)(theta), torch.func.grad(loss)(theta)
        theta = theta - torch.linalg.pinv(hessian, hermitian=True, rtol=1e-12) @ gradient
    return theta


def lbfgs(loss, theta, steps=400):
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=steps, tolerance_grad=1e-15, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


def tilted(log_policy, values, eta):
    """ln of π e^{ηv} / Z."""
    return torch.log_softmax(log_policy + eta * values, -1)


# ---------------------------------------------------------------------- E1, E2: the exponential tilt


def test_one_gradient_step_adds_the_centred_reward():
    """E1: paper form, mean over all A² pairs, step A η²/4."""
    num, eta = 5, 0.7
    theta, rewards = normal(num), normal(num, seed=1)
    old = torch.log_softmax(theta, 0)

    def step(form, share):
        x = theta.clone().requires_grad_()
        # pairs i = j are 0 and no part of the library's mean
        loss = share * rebel_loss(torch.log_softmax(x, 0), old, rewards, integers(num), eta, form)
        return -num * eta**2 / 4 * torch.autograd.grad(loss, x)[0]

    expected = eta * (rewards - rewards.mean())
    torch.testing.assert_close(step("paper", (num - 1) / num), expected, rtol=0, atol=1e-12)
    assert float((step("paper", 1.0) - expected).abs().max()) > 0.1
    assert float((step("code", (num - 1) / num) - expected).abs().max()) > 0.1


def all_pairs(num):
    """Indices [A(A − 1)] of the members of all pairs i < j, and their groups."""
    pairs = torch.combinations(torch.arange(num))
    return pairs.flatten(), torch.arange(len(pairs)).repeat_interleave(2), pairs


def pair_weights(kind, num):
    """How much each pair counts: drawn, on few edges that connect all actions, or by sampling from π_t and μ."""
    pairs = all_pairs(num)[2]
    first, second = (torch.softmax(normal(num, seed=s), 0) for s in (3, 4))
    if kind == "random":
        return torch.rand(len(pairs), generator=torch.Generator().manual_seed(5), dtype=F64)
    if kind == "tree":
        return (pairs[:, 1] == pairs[:, 0] + 1).to(F64) * (1 + torch.arange(len(pairs)))
    mu = first if kind == "on-policy" else second
    i, j = pairs.T
    return first[i] * mu[j] + first[j] * mu[i]


@pytest.mark.parametrize("kind", ["random", "tree", "on-policy", "off-policy"])
def test_any_connected_pairs_give_the_exponential_tilt(kind):
    """E2: π_{t+1} = π_t e^{ηr}/Z with loss 0, whatever pairs weigh."""
    num, eta = 6, 1.3
    theta, rewards, weights = normal(num, seed=3), normal(num, seed=1), pair_weights(kind, num)
    members, groups, pairs = all_pairs(num)
    old = torch.log_softmax(theta, 0)

    def loss(x, eta=eta):
        d = rebel_residuals(torch.log_softmax(x, 0), old, rewards, eta)
        return weights @ (2 * within_group_squares(d[members], groups))

    expected = tilted(old, rewards, eta)
    found = lbfgs(loss, theta)
    torch.testing.assert_close(torch.log_softmax(found, 0), expected, rtol=0, atol=1e-8)
    assert float(loss(found)) < 1e-15
    # lstsq: √w (x_i − x_j) = √w (θ_i − θ_j + η (r_i − r_j)), of least length
    i, j = pairs.T
    rows = torch.zeros(len(pairs), num, dtype=F64)
    rows[torch.arange(len(pairs)), i], rows[torch.arange(len(pairs)), j] = 1.0, -1.0
    target = (theta + eta * rewards)[i] - (theta + eta * rewards)[j]
    scale = weights.sqrt()[:, None]
    solved = torch.linalg.lstsq(scale * rows, scale * target[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(torch.log_softmax(solved, 0), expected, rtol=0, atol=1e-12)
    assert float(loss(solved)) < 1e-24
    # negative control: η the other way round is another policy
    other = newton(lambda x: loss(x, 1 / eta), theta)
    assert float((torch.log_softmax(other, 0) - expected).abs().max()) > 0.1


def test_pairs_that_are_not_connected_leave_the_policy_open():
    """Negative control of E2: actions 0, 1 are compared, and 2, 3, never the two with the others."""
    theta, rewards = normal(4), torch.tensor([0.0, 1.0, 5.0, 5.5], dtype=F64)
    old = torch.log_softmax(theta, 0)
    found = newton(lambda x: rebel_loss(torch.log_softmax(x, 0), old, rewards, torch.tensor([0, 0, 1, 1]), 1.0), theta)
    assert float((torch.log_softmax(found, 0) - tilted(old, rewards, 1.0)).abs().max()) > 0.1


def test_groups_mixed_over_prompts_do_not_give_the_tilt():
    """Z(x) is not that of another prompt: within prompts the loss vanishes at the tilt, across them it does not."""
    theta, rewards = normal(2, 4), normal(2, 4, seed=1) + torch.tensor([[0.0], [2.0]])
    old = torch.log_softmax(theta, -1)
    of_prompts = torch.arange(2).repeat_interleave(4)
    expected = tilted(old, rewards, 1.0)

    def loss(x, groups):
        return rebel_loss(torch.log_softmax(x.view(2, 4), -1).flatten(), old.flatten(), rewards.flatten(), groups, 1.0)

    found = newton(lambda x: loss(x, of_prompts), theta.flatten())
    torch.testing.assert_close(torch.log_softmax(found.view(2, 4), -1), expected, rtol=0, atol=1e-10)
    mixed = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    assert float(loss(expected.flatten(), of_prompts)) < 1e-28
    assert float(loss(expected.flatten(), mixed)) > 0.1
    other = lbfgs(lambda x: loss(x, mixed), theta.flatten())
    assert float((torch.log_softmax(other.view(2, 4), -1) - expected).abs().max()) > 0.1


# ---------------------------------------------------------------------- E3: the natural policy gradient


def natural_step(log_policy, theta, rewards, eta):
    """η F† ∇J with F = E[∇ln π ∇ln πᵀ], written out."""
    scores = torch.func.jacrev(log_policy)(theta)  # [A, d]
    probabilities = log_policy(theta).exp()
    advantages = rewards - probabilities @ rewards
    fisher = scores.T @ (probabilities[:, None] * scores)
    return eta * torch.linalg.pinv(fisher, hermitian=True, rtol=1e-12) @ (scores.T @ (probabilities * advantages))


def on_policy_loss(log_policy, theta, rewards, eta):
    """L over a, a' ~ π_t with the samples' policy held at θ."""
    old = log_policy(theta).detach()
    return lambda x: rebel_all_actions_loss(log_policy(x), old, rewards, eta)


def gauss_newton(log_policy, theta, rewards, eta):
    """The minimiser of the loss with ln π_θ linearised at θ_t, as a step."""
    scores = torch.func.jacrev(log_policy)(theta)
    old = log_policy(theta)
    linear = lambda delta: rebel_all_actions_loss(old + scores @ delta, old, rewards, eta)  # noqa: E731
    return newton(linear, torch.zeros_like(theta))


def test_tabular_gauss_newton_is_the_natural_gradient():
    """E3 (i): of least length; an η of another size is not."""
    theta, rewards, eta = normal(6), normal(6, seed=1), 0.8
    log_policy = lambda x: torch.log_softmax(x, 0)  # noqa: E731
    natural = natural_step(log_policy, theta, rewards, eta)
    torch.testing.assert_close(gauss_newton(log_policy, theta, rewards, eta), natural, rtol=0, atol=1e-10)
    assert float((gauss_newton(log_policy, theta, rewards, 1 / eta) - natural).abs().max()) > 0.1


def test_log_linear_regression_is_the_natural_gradient():
    """E3 (ii): the step linearised and the full one, with fewer features than actions: the normaliser cancels."""
    features, theta, rewards, eta = normal(7, 3, seed=2), normal(3), normal(7, seed=1), 0.8
    log_policy = lambda x: torch.log_softmax(features @ x, 0)  # noqa: E731
    natural = natural_step(log_policy, theta, rewards, eta)
    loss = on_policy_loss(log_policy, theta, rewards, eta)
    torch.testing.assert_close(gauss_newton(log_policy, theta, rewards, eta), natural, rtol=0, atol=1e-10)
    torch.testing.assert_close(newton(loss, theta) - theta, natural, rtol=0, atol=1e-10)
    # lstsq of centred features on centred rewards, weighted by π_t
    probabilities = log_policy(theta).exp()
    centred = features - probabilities @ features
    target = eta * (rewards - probabilities @ rewards)
    solved = torch.linalg.lstsq(probabilities.sqrt()[:, None] * centred, (probabilities.sqrt() * target)[:, None]).solution
    torch.testing.assert_close(solved[:, 0], natural, rtol=0, atol=1e-10)
    torch.testing.assert_close(lbfgs(loss, theta) - theta, natural, rtol=0, atol=1e-7)
    assert float(loss(theta + natural)) > 1e-3  # what the features cannot express
    uniform = newton(lambda x: rebel_loss(log_policy(x), log_policy(theta), rewards, integers(7), eta), theta) - theta
    assert float((uniform - natural).abs().max()) > 1e-2  # negative control: pairs that are not on-policy


def test_nonlinear_logits_differ_in_second_order():
    """E3 (iii): ‖θ* − θ_t − δ‖ falls as η²; against another direction only as η."""
    features, theta, rewards = normal(6, 3, seed=2), 0.5 * normal(3), normal(6, seed=1)
    log_policy = lambda x: torch.log_softmax(2 * torch.tanh(features @ x) + features @ x.square(), 0)  # noqa: E731
    etas = [0.1, 0.05, 0.025]
    distances, wrong = [], []
    for eta in etas:
        natural = natural_step(log_policy, theta, rewards, eta)
        found = newton(on_policy_loss(log_policy, theta, rewards, eta), theta + natural, 12)
        distances.append(float((found - theta - natural).norm()))
        wrong.append(float((found - theta - 1.1 * natural).norm()))
    for values, slope in ((distances, 2.0), (wrong, 1.0)):
        for (first, second), (eta, half) in zip(itertools.pairwise(values), itertools.pairwise(etas)):
            assert math.log(first / second) / math.log(eta / half) == pytest.approx(slope, abs=0.1 if slope == 2 else 0.2)


# ---------------------------------------------------------------------- E7: regularised fixed points


def regularised_steps(mode, eta, beta, num_steps):
    """ln π_t after each exact regression of all actions, the fixed point, and rewards' tilt of the reference."""
    num = 4
    rewards, ref = normal(num, seed=1), torch.log_softmax(normal(num, seed=2), 0)
    policy, history = torch.log_softmax(normal(num, seed=3), 0), []
    for _ in range(num_steps):
        old = policy

        def loss(x, old=old):
            new = torch.log_softmax(x, 0)
            if mode == "not detached":  # negative control: the KL of the policy that is trained in the reward
                d = new - old - eta * (rewards - beta * (new - ref))
                return 2 * within_group_squares(d, integers(num)).sum()
            return rebel_loss(new, old, rewards, integers(num), eta, "code", ref, beta, mode)

        policy = torch.log_softmax(newton(loss, old), 0)
        history.append(policy)
    return history, tilted(ref, rewards, 1 / beta)


def distances_to(history, target):
    """Up to a constant, which log-probabilities do not fix."""
    return [float((x - target - (x - target).mean()).norm()) for x in history]


@pytest.mark.parametrize(("mode", "ratio"), [("reward", 0.8), ("prox", 1 / 1.2)])
def test_both_regularisations_have_one_fixed_point(mode, ratio):
    """E7: π* ∝ π_ref e^{r/β}, approached by 1 − ηβ or 1/(1 + ηβ) a step."""
    history, target = regularised_steps(mode, 0.4, 0.5, 12)
    for first, second in itertools.pairwise(distances_to(history, target)):
        assert second / first == pytest.approx(ratio, abs=1e-9)
    settled, target = regularised_steps(mode, 2.0, 0.45, 40)
    torch.testing.assert_close(settled[-1], target, rtol=0, atol=1e-9)


def test_too_large_a_product_diverges_in_the_reward_and_not_in_the_loss():
    for mode, beta in (("reward", 2.2), ("prox", 2.2)):
        history, target = regularised_steps(mode, 1.0, beta, 12)
        distances = distances_to(history, target)
        assert (distances[-1] > 2 * distances[0]) == (mode == "reward")


def test_the_kl_of_the_trained_policy_in_the_reward_is_another_iteration():
    """Negative control of E7: then the rate is that of "prox"."""
    history, target = regularised_steps("not detached", 0.4, 0.5, 4)
    first, second = distances_to(history, target)[-2:]
    assert abs(second / first - 0.8) > 0.03


# ---------------------------------------------------------------------- E8: whole trajectories


def binary_tree():
    """Nodes 0 … 6, children of i are 2i + 1 and 2i + 2; the third action ends the episode in state 7."""
    transitions = torch.zeros(8, 2, 8, dtype=F64)
    for node in range(7):
        for action in range(2):
            transitions[node, action, min(2 * node + 1 + action, 7)] = 1.0
    transitions[7, :, 7] = 1.0
    initial, terminal = torch.eye(8, dtype=F64)[0], torch.arange(8) == 7
    return TabularMDP(initial, transitions, normal(8, 2, seed=4), 1.0, 3, terminal)


def soft_bellman(mdp, policy, eta):
    """W(s) = Σ_a π e^{ηr} W(s') backwards, and π_{t+1}(a | s) = π e^{ηr} W(s') / W(s)."""
    values = torch.ones(8, dtype=F64)
    new = policy.clone()
    for node in reversed(range(7)):
        terms = policy[node] * (eta * mdp.rewards[node]).exp() * (mdp.transitions[node] @ values)
        values[node] = terms.sum()
        new[node] = terms / values[node]
    return new


def test_trajectories_regress_to_the_soft_bellman_policy():
    """E8: deterministic dynamics, all 8 trajectories in one group; log-probabilities are summed over steps."""
    mdp, eta = binary_tree(), 0.9
    theta = normal(16)
    rollout, probabilities = mdp.enumerate(theta)
    assert rollout.actions.shape == (3, 8)
    returns = rollout.rewards.sum(0)

    def log_probs(x):
        return mdp.softmax_log_prob(x, rollout.observations, rollout.actions).sum(0)

    old = log_probs(theta)
    found = lbfgs(lambda x: rebel_loss(log_probs(x), old, returns, integers(8), eta), theta)
    tilt = torch.softmax(probabilities.log() + eta * returns, 0)
    torch.testing.assert_close(log_probs(found).exp(), tilt, rtol=0, atol=1e-8)
    expected = soft_bellman(mdp, mdp.softmax_policy(theta), eta)
    torch.testing.assert_close(mdp.softmax_policy(found)[:7], expected[:7], rtol=0, atol=1e-8)
    averaged = lbfgs(lambda x: rebel_loss(log_probs(x) / 3, old / 3, returns, integers(8), eta), theta)  # negative control
    assert float((mdp.softmax_policy(averaged) - expected)[:7].abs().max()) > 0.05


# ---------------------------------------------------------------------- E9: policy iteration with exact Q


def stationary_values(mdp, policy):
    """V [S] and Q [S, A] without a horizon."""
    moves = torch.einsum("sa,sap->sp", policy, mdp.transitions)
    paid = (policy * mdp.rewards).sum(-1)
    values = torch.linalg.solve(torch.eye(len(paid), dtype=F64) - mdp.gamma * moves, paid)
    return values, mdp.rewards + mdp.gamma * mdp.transitions @ values


def test_all_actions_with_exact_values_are_natural_policy_iteration():
    """E9: π_{t+1} ∝ π_t e^{ηA}; V rises in every state; V* − V_T ≤ ln|A| / ((1 − γ)ηT) + 1/((1 − γ)²T)."""
    mdp = TabularMDP.random(num_states=5, num_actions=3, gamma=0.8, seed=3)
    eta, num_steps = 0.5, 40
    best = torch.zeros(5, dtype=F64)
    for _ in range(400):
        best = (mdp.rewards + mdp.gamma * mdp.transitions @ best).amax(-1)
    theta = torch.zeros(15, dtype=F64)
    values, q = stationary_values(mdp, mdp.softmax_policy(theta))
    assert float((best - values).max()) > 0.2
    for step in range(1, num_steps + 1):
        old = mdp.softmax_policy(theta).log()

        def loss(x, old=old, q=q):
            return rebel_all_actions_loss(mdp.softmax_policy(x).log(), old, q, eta).sum()

        found = newton(loss, theta)
        expected = tilted(old, q - values[:, None], eta)
        torch.testing.assert_close(mdp.softmax_policy(found), expected.exp(), rtol=0, atol=1e-10)
        assert float(rebel_all_actions_loss(expected, old, q, eta).max()) < 1e-28
        new_values, new_q = stationary_values(mdp, mdp.softmax_policy(found))
        assert bool((new_values >= values - 1e-12).all())
        bound = math.log(3) / ((1 - mdp.gamma) * eta * step) + 1 / ((1 - mdp.gamma) ** 2 * step)
        assert float((best - new_values).max()) <= bound
        if step == 1:  # negative controls: down in place of up, and one value of Q for all states
            down = mdp.softmax_policy(
                newton(lambda x, old=old, q=q: rebel_all_actions_loss(mdp.softmax_policy(x).log(), old, -q, eta).sum(), theta)
            )
            assert bool((stationary_values(mdp, down)[0] < values).any())
            assert float((tilted(old, q.roll(1, 0), eta) - expected).abs().max()) > 0.01
        theta, values, q = found, new_values, new_q
    assert float((best - values).max()) < 0.05


# ---------------------------------------------------------------------- E11: self-play


ROCK_PAPER_SCISSORS = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], dtype=F64)


def self_play(eta, num_steps, beta=0.0):
    """π_t of exact regressions on ℓ π_t, regularised in the reward towards the uniform policy; [T + 1, 3]."""
    ref = torch.full((3,), 1 / 3, dtype=F64).log()
    log_policy = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log()
    history = [log_policy.exp()]
    for step in range(num_steps):
        rewards = ROCK_PAPER_SCISSORS @ log_policy.exp()
        new = tilted(log_policy, rewards - beta * (log_policy - ref), eta)
        if step % 200 == 0:  # it is what the library's loss has its zero at
            loss = rebel_loss(new, log_policy, rewards, integers(3), eta, "code", ref, beta)
            assert float(loss) < 1e-28
        log_policy = new
        history.append(log_policy.exp())
    return torch.stack(history)


def exploitability(policy):
    """What the best answer wins."""
    return float((ROCK_PAPER_SCISSORS @ policy).max())


def test_self_play_converges_on_average_and_with_regularisation_at_last():
    """E11: without regularisation the last iterate orbits outwards; that is the control of both claims."""
    num_steps = 2000
    eta = math.sqrt(2 * math.log(3) / num_steps)
    history = self_play(eta, num_steps)
    bound = (math.log(1 / 0.2) / eta + eta * num_steps / 2) / num_steps
    assert bound == pytest.approx(0.0409, abs=1e-4)
    average = exploitability(history[:-1].mean(0))
    assert average <= bound
    assert average == pytest.approx(0.0150, abs=1e-3)
    assert exploitability(history[-1]) > 0.1
    assert exploitability(history[-1]) > exploitability(history[0])
    assert exploitability(self_play(0.2, num_steps, beta=0.1)[-1]) <= 1e-9
    uniform = torch.full((3,), 1 / 3, dtype=F64)
    assert abs(exploitability(uniform)) < 1e-15  # a fixed point: no test may begin there
