"""REBEL's loss by hand, by enumeration of pairs and samples, and against leave-one-out REINFORCE; float64 throughout."""

import itertools

import pytest
import torch

from rlopt.estimators import (
    approx_kl,
    eta_from_kl,
    eta_from_std,
    explained,
    preference_rewards,
    rebel_advantage_loss,
    rebel_all_actions_loss,
    rebel_coefficients,
    rebel_loss,
    rebel_residuals,
    sign_alignment,
)
from rlopt.estimators.rebel import group_sizes, within_group_squares
from rlopt.policies import Categorical

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def relative(mine, theirs):
    return float((mine - theirs).norm() / theirs.norm())


GROUPS = torch.tensor([7, 2, 2, 7, 2, 9, 9, 7, 7])  # of 3, 4 and 2 samples, in no order


def sample_batch(seed=0):
    """New, old and reference log-probabilities and rewards, [9] each."""
    return [normal(9, seed=10 * seed + i) for i in range(4)]


def by_pairs(d, groups):
    """Mean over groups of the mean over ordered pairs i ≠ j of (d_i − d_j)², pair by pair."""
    losses = []
    for group in groups.unique():
        members = d[groups == group]
        pairs = list(itertools.permutations(range(len(members)), 2))
        losses.append(torch.stack([(members[i] - members[j]) ** 2 for i, j in pairs]).mean())
    return torch.stack(losses).mean()


# ---------------------------------------------------------------------- E5, E6: the loss


@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_loss_is_the_mean_over_all_pairs(form):
    """E5: twice the unbiased variance within groups, in O(N)."""
    new, old, _, rewards = sample_batch()
    eta = 0.7
    loss = rebel_loss(new, old, rewards, GROUPS, eta, form)
    d = new - old - eta * rewards
    expected = by_pairs(d if form == "code" else d / eta, GROUPS)
    variances = torch.stack([(d if form == "code" else d / eta)[g == GROUPS].var() for g in (2, 7, 9)])
    assert abs(float(loss - expected)) < 1e-12
    assert abs(float(loss - 2 * variances.mean())) < 1e-12
    mixed = GROUPS.roll(1)
    assert abs(float(rebel_loss(new, old, rewards, mixed, eta, form) - expected)) > 0.1  # negative control


def test_constants_of_a_group_change_nothing():
    """E5: ln Z(x) cancels within a prompt, and only there."""
    new, old, _, rewards = sample_batch()
    shift = torch.zeros(10, dtype=F64)
    shift[[2, 7, 9]] = torch.tensor([3.0, -1.0, 0.5], dtype=F64)
    loss = rebel_loss(new, old, rewards, GROUPS, 0.7)
    assert abs(float(rebel_loss(new, old, rewards + shift[GROUPS], GROUPS, 0.7) - loss)) < 1e-12
    assert abs(float(rebel_loss(new, old + shift[GROUPS], rewards, GROUPS, 0.7) - loss)) < 1e-12
    mixed = GROUPS.roll(1)
    before, after = (rebel_loss(new, old, r, mixed, 0.7) for r in (rewards, rewards + shift[GROUPS]))
    assert abs(float(before - after)) > 0.1


def test_both_forms_and_ipo():
    """E6: paper × η² = code; with r − r' = 1 and η = 1/(2β) a pair's loss is IPO's (h − 1/(2β))²."""
    new, old, _, rewards = sample_batch()
    code, paper = (rebel_loss(new, old, rewards, GROUPS, 0.3, form) for form in ("code", "paper"))
    assert abs(float(code - 0.09 * paper)) < 1e-12
    beta = 0.2
    pair = slice(0, 2)
    h = (new - old)[0] - (new - old)[1]
    loss = rebel_loss(new[pair], old[pair], torch.tensor([1.0, 0.0], dtype=F64), torch.zeros(2, dtype=torch.int64), 0.5 / beta)
    assert abs(float(loss - (h - 1 / (2 * beta)) ** 2)) < 1e-12


def test_residuals_of_both_kinds_of_regularisation_by_hand():
    new, old, ref, rewards = sample_batch()
    eta, beta = 0.6, 0.3
    reward = rebel_residuals(new, old, rewards, eta, ref, beta)
    torch.testing.assert_close(reward, new - old - eta * (rewards - beta * (old - ref)), rtol=0, atol=1e-14)
    prox = rebel_residuals(new, old, rewards, eta, ref, beta, "prox")
    torch.testing.assert_close(prox, new - old + eta * beta * (new - ref) - eta * rewards, rtol=0, atol=1e-14)
    assert torch.equal(rebel_residuals(new, old, rewards, eta, ref, 0.0), rebel_residuals(new, old, rewards, eta))


def test_nothing_but_the_new_log_probabilities_is_differentiated():
    tensors = [x.requires_grad_() for x in sample_batch()]
    new, old, ref, rewards = tensors
    for mode in ("reward", "prox"):
        loss = rebel_loss(new, old, rewards, GROUPS, 0.5, "code", ref, 0.2, mode)
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        assert gradients[0] is not None
        assert all(g is None or not bool(g.any()) for g in gradients[1:])


# ---------------------------------------------------------------------- the two-pass form


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize(("beta", "mode"), [(0.0, "reward"), (0.3, "reward"), (0.3, "prox")])
def test_the_two_pass_form_has_the_same_gradient(form, beta, mode):
    """Σ c_i ln π(y_i), in pieces that tear groups apart."""
    theta, features = normal(4, seed=1).requires_grad_(), normal(9, 4, seed=2)
    _, old, ref, rewards = sample_batch()
    new = torch.tanh(features @ theta) - 2
    arguments = (old, rewards, GROUPS, 0.7, form, ref, beta, mode)
    (direct,) = torch.autograd.grad(rebel_loss(new, *arguments), theta)
    coefficients = rebel_coefficients((torch.tanh(features @ theta) - 2).detach(), *arguments)
    assert not coefficients.requires_grad
    pieces = []
    for rows in (slice(0, 2), slice(2, 7), slice(7, 9)):
        part = coefficients[rows] @ (torch.tanh(features[rows] @ theta) - 2)
        pieces.append(torch.autograd.grad(part, theta)[0])
    torch.testing.assert_close(sum(pieces), direct, rtol=0, atol=1e-12)
    # negative control: means over micro-batches in place of groups
    torn = []
    for rows in (slice(0, 5), slice(5, 9)):
        local = torch.zeros(rows.stop - rows.start, dtype=torch.int64)
        part = rebel_loss(torch.tanh(features[rows] @ theta) - 2, old[rows], rewards[rows], local, 0.7, form)
        torn.append(torch.autograd.grad(part, theta)[0])
    assert float((sum(torn) / 2 - direct).abs().max()) > 1e-2


def test_second_derivatives_are_those_of_the_variance():
    """The mean keeps its gradient: the first derivative would not notice, the second does."""
    old, rewards = normal(4, seed=1), normal(4, seed=2)
    groups = torch.zeros(4, dtype=torch.int64)
    new = normal(4)
    hessian = torch.func.hessian(lambda x: rebel_loss(x, old, rewards, groups, 0.5))(new)
    expected = (4.0 / 3.0) * (torch.eye(4, dtype=F64) - 0.25)
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-12)

    def detached(x):
        d = x - old - 0.5 * rewards
        return 2 * (d - d.mean().detach()).square().sum() / 3

    (first,) = torch.autograd.grad(detached(x := new.clone().requires_grad_()), x)
    (mine,) = torch.autograd.grad(rebel_loss(x, old, rewards, groups, 0.5), x)
    torch.testing.assert_close(first, mine, rtol=0, atol=1e-12)
    wrong = (4.0 / 3.0) * torch.eye(4, dtype=F64)  # what a detached mean gives
    assert float((hessian - wrong).abs().max()) > 0.3


# ---------------------------------------------------------------------- E4, E13: leave-one-out REINFORCE


def sequence_model(dtype):
    """ln π_θ of every token of 24 sequences of 1 to 6 tokens, as a function of θ; the tokens' mask."""
    inputs, tokens = (
        normal(24, 6, 5, seed=3, dtype=dtype),
        torch.randint(4, (24, 6), generator=torch.Generator().manual_seed(4)),
    )
    mask = torch.arange(6) < torch.randint(1, 7, (24, 1), generator=torch.Generator().manual_seed(5))

    def log_probs(theta):
        hidden = torch.tanh(inputs @ theta[:40].view(5, 8))
        return torch.log_softmax(hidden @ theta[40:].view(8, 4), -1).gather(-1, tokens[..., None])[..., 0]

    return log_probs, mask, 0.7 * normal(72, seed=6, dtype=dtype)


def leave_one_out(log_probs, rewards, size):
    """ĝ: mean over groups of (1/K) Σ_i (r_i − mean of the others) ln π(y_i), to be maximised."""
    r = rewards.view(-1, size)
    advantages = r - (r.sum(1, keepdim=True) - r) / (size - 1)
    return (advantages * log_probs.view(-1, size)).mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-12)])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_first_gradient_is_that_of_leave_one_out_reinforce(size, dtype, tolerance):
    """E4: ∇L = −4η ĝ at θ_t, with log-probabilities summed over a sequence."""
    model, mask, theta = sequence_model(dtype)
    theta.requires_grad_()
    rewards, groups, eta = normal(24, seed=7, dtype=dtype), torch.arange(24) // size, 0.8
    summed = (model(theta) * mask).sum(1)
    (expected,) = torch.autograd.grad(leave_one_out(summed, rewards, size), theta, retain_graph=True)
    (gradient,) = torch.autograd.grad(rebel_loss(summed, summed.detach(), rewards, groups, eta), theta)
    assert relative(gradient, -4 * eta * expected) < tolerance
    averaged = (model(theta) * mask).sum(1) / mask.sum(1)  # negative control
    (wrong,) = torch.autograd.grad(rebel_loss(averaged, averaged.detach(), rewards, groups, eta), theta)
    assert relative(wrong, -4 * eta * expected) > 0.1


@pytest.mark.parametrize(("eps", "at_least", "at_most"), [(1e-8, 0.0, 1e-4), (1e-12, 0.0, 1e-6), (1e-5, 1e-6, 1e-1)])
def test_one_adam_step_is_that_of_leave_one_out_reinforce(eps, at_least, at_most):
    """E13: Adam does not see the factor 4η, but for its ε."""
    model, mask, start = sequence_model(F64)
    rewards, groups, eta = normal(24, seed=7), torch.arange(24) // 4, 1.0
    steps = []
    for which in ("rebel", "rloo", "second"):
        theta = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=1e-3, eps=eps)
        old = (model(start) * mask).sum(1)
        for _ in range(2 if which == "second" else 1):
            lp = (model(theta) * mask).sum(1)
            loss = -leave_one_out(lp, rewards, 4) if which == "rloo" else rebel_loss(lp, old, rewards, groups, eta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        steps.append((theta - start).detach())
    assert at_least <= relative(steps[0], steps[1]) < at_most
    assert relative(steps[2], 2 * steps[1]) > 1e-4  # further steps on the same samples are what differs


# ---------------------------------------------------------------------- E10: the advantage form


def exact_batch():
    """Old and new distributions [3, 5] and advantages that are 0 on average under the old ones."""
    old, new = Categorical.from_logits(normal(3, 5)), Categorical.from_logits(normal(3, 5, seed=1))
    probabilities = old.log_probabilities.exp()
    values = normal(3, 5, seed=2)
    return old, new, probabilities, values - (probabilities * values).sum(-1, keepdim=True)


def test_the_advantage_form_is_half_the_pair_loss():
    """E10, by enumeration of a, a' ~ π_old, values and gradients; what a state adds to A is a constant."""
    old, _, probabilities, advantages = exact_batch()
    eta = 0.4

    def both(logits):
        new = Categorical.from_logits(logits)
        ratio = new.log_probabilities - old.log_probabilities
        d = ratio - eta * advantages
        pairs = probabilities[:, :, None] * probabilities[:, None] * (d[:, :, None] - d[:, None]).square()
        kl = new.divergence_from(old)[:, None].expand(-1, 5)
        mine = (probabilities * rebel_advantage_loss(ratio, kl, advantages, eta)).sum(-1)
        every = rebel_all_actions_loss(new.log_probabilities, old.log_probabilities, advantages, eta)
        return 0.5 * pairs.sum((1, 2)), mine, every, (ratio, kl)

    logits = normal(3, 5, seed=1).requires_grad_()
    pair_loss, mine, every, (ratio, kl) = both(logits)
    torch.testing.assert_close(mine, pair_loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(every, pair_loss, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (pair_loss, mine, every)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=1e-12)
    shifted = (probabilities * rebel_advantage_loss(ratio, kl, advantages + 2.0, eta)).sum(-1)
    torch.testing.assert_close(shifted - mine, torch.full((3,), (eta * 2.0) ** 2, dtype=F64), rtol=0, atol=1e-12)
    # negative controls: no KL, and KL the other way round
    new = Categorical.from_logits(logits.detach())
    for wrong in (torch.zeros(3, dtype=F64), old.divergence_from(new)):
        loss = (probabilities * rebel_advantage_loss(ratio, wrong[:, None].expand(-1, 5), advantages, eta)).sum(-1)
        assert float((loss - pair_loss).detach().abs().max()) > 1e-3


def test_the_advantage_forms_first_slope_is_minus_twice_the_step():
    ratio, advantages = torch.zeros(50, dtype=F64, requires_grad=True), normal(50, seed=2)
    loss = rebel_advantage_loss(ratio, torch.zeros(50, dtype=F64), advantages, 0.3)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), ratio)[0], -2 * 0.3 * advantages, rtol=0, atol=1e-12)


def test_all_actions_vanish_at_the_exponential_tilt():
    old, _, _, advantages = exact_batch()
    tilted = torch.log_softmax(old.log_probabilities + 0.4 * advantages, -1)
    assert float(rebel_all_actions_loss(tilted, old.log_probabilities, advantages + 3.0, 0.4).abs().max()) < 1e-28
    assert float(rebel_all_actions_loss(old.log_probabilities, old.log_probabilities, advantages, 0.4).min()) > 1e-3


def test_actions_that_are_never_taken_count_nothing():
    """A masked action has log-probability −inf on both sides: no NaN, neither in the loss nor in its gradient."""
    masked = torch.tensor([0.0, 0.0, -torch.inf, 0.0], dtype=F64)
    logits, values = normal(2, 4).requires_grad_(), normal(2, 4, seed=1)
    old = torch.log_softmax(normal(2, 4, seed=2) + masked, -1)
    loss = rebel_all_actions_loss(torch.log_softmax(logits + masked, -1), old, values, 0.4)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(gradient.isfinite().all())
    kept = torch.tensor([0, 1, 3])
    expected = rebel_all_actions_loss(torch.log_softmax(logits[:, kept], -1), old[:, kept], values[:, kept], 0.4)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- E12: preferences


def random_comparisons(num, seed=0):
    """ℓ [A, A] antisymmetric in [−1, 1]: intransitive, as a rule."""
    numbers = torch.rand(num, num, generator=torch.Generator().manual_seed(seed), dtype=F64) * 2 - 1
    return numbers.triu(1) - numbers.triu(1).T


def population_minimiser(comparisons, policy, size, rewards_of):
    """f [A] that minimises the expected group loss over all A^K samples y ~ π_t, as ln π_θ/π_t of the actions."""
    num = len(policy)
    samples = torch.tensor(list(itertools.product(range(num), repeat=size)))
    weights = policy[samples].prod(1)
    rewards = rewards_of(comparisons[samples[:, :, None], samples[:, None]])
    groups = torch.arange(len(samples)).repeat_interleave(size)

    def loss(f):
        residuals = rebel_residuals(f[samples.flatten()], torch.zeros(samples.numel(), dtype=F64), rewards.flatten(), 1.0)
        return weights @ (2 * within_group_squares(residuals, groups) / (group_sizes(groups) - 1))

    zero = torch.zeros(num, dtype=F64)
    f = -torch.linalg.pinv(torch.func.hessian(loss)(zero)) @ torch.func.grad(loss)(zero)
    return f - policy @ f


@pytest.mark.parametrize("size", [2, 3, 4])
def test_preferences_regress_to_the_self_play_reward(size):
    """E12: with 1/K Σ_{j≠i} the population's minimiser is r_t = E_{y'~π_t} ℓ(y, y'); 1/(K − 1) overshoots by K/(K − 1)."""
    comparisons, policy = random_comparisons(3), torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    expected = comparisons @ policy
    assert abs(float(policy @ expected)) < 1e-15
    mine = population_minimiser(comparisons, policy, size, preference_rewards)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-8)
    wrong = population_minimiser(comparisons, policy, size, lambda c: c.sum(-1) / (size - 1))
    torch.testing.assert_close(wrong, expected * size / (size - 1), rtol=0, atol=1e-8)
    assert float((wrong - expected).abs().max()) > 0.04


def test_labels_of_pairs_regress_to_the_self_play_reward():
    """E12: Δh on ℓ(y, y') itself, the other way to use two samples."""
    comparisons, policy = random_comparisons(4, seed=3), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)

    def labels(c):
        return torch.stack([c[:, 0, 1], torch.zeros(len(c), dtype=F64)], 1)  # r − r' is the label

    mine = population_minimiser(comparisons, policy, 2, labels)
    torch.testing.assert_close(mine, comparisons @ policy, rtol=0, atol=1e-8)


def test_preference_rewards_by_hand():
    beats = torch.tensor([[[0.0, 1.0, 1.0], [-1.0, 0.0, 0.5], [-1.0, -0.5, 0.0]]])
    torch.testing.assert_close(preference_rewards(beats), torch.tensor([[2 / 3, -1 / 6, -0.5]]))


# ---------------------------------------------------------------------- step sizes and diagnostics


def test_step_sizes_by_hand():
    rewards = torch.tensor([1.0, 3.0, 10.0, 14.0], dtype=F64)
    groups = torch.tensor([0, 0, 1, 1])
    assert float(eta_from_std(rewards, 2.0)) == pytest.approx(2 / float(rewards.std()), abs=1e-12)
    assert float(eta_from_std(rewards, 2.0, groups)) == pytest.approx(2 / 5**0.5, abs=1e-12)  # variances 2 and 8
    assert float(eta_from_kl(rewards, 0.01, groups)) == pytest.approx((0.02 / 5) ** 0.5, abs=1e-12)
    assert float(eta_from_std(torch.ones(4), 2.0)) == 2.0
    shifted = rewards + torch.tensor([5.0, 5.0, -3.0, -3.0], dtype=F64)
    assert float(eta_from_std(shifted, 1.0, groups)) == pytest.approx(float(eta_from_std(rewards, 1.0, groups)), abs=1e-12)


@pytest.mark.parametrize("target", [1e-3, 1e-4])
def test_the_step_size_for_a_target_has_that_kl(target):
    """I8: KL(π_{t+1} ‖ π_t) ≈ ε, here over a sample as good as the population."""
    rewards = normal(100_000)
    eta = eta_from_kl(rewards, target)
    weights = torch.softmax(eta * rewards, 0)
    kl = float((weights * (weights * len(weights)).log()).sum())
    assert kl == pytest.approx(target, rel=0.02)


def test_explained_is_0_at_the_start_and_1_where_it_is_solved():
    _, old, _, rewards = sample_batch()
    first = rebel_loss(old, old, rewards, GROUPS, 0.7)
    assert float(explained(first, first)) == 0.0
    half = rebel_loss(old + 0.35 * rewards, old, rewards, GROUPS, 0.7)
    assert float(explained(half, first)) == pytest.approx(0.75, abs=1e-12)
    solved = rebel_loss(old + 0.7 * rewards, old, rewards, GROUPS, 0.7)
    assert float(explained(solved, first)) == pytest.approx(1.0, abs=1e-12)
    assert bool(explained(first * 0, first * 0).isnan())


def test_sign_alignment_counts_pairs_of_a_group():
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 0.0, 9.0], dtype=F64)
    moved = torch.tensor([0.1, 0.3, 0.2, 0.0, 7.0, 0.5, 0.4], dtype=F64)
    groups = torch.tensor([0, 0, 0, 4, 4, 2, 2])
    # of 3 + 1 + 1 pairs one has equal rewards, and two of the rest agree
    assert float(sign_alignment(moved, rewards, groups)) == pytest.approx(2 / 4)
    order = torch.tensor([6, 2, 0, 4, 5, 1, 3])
    assert float(sign_alignment(moved[order], rewards[order], groups[order])) == pytest.approx(2 / 4)
    assert float(sign_alignment(rewards, rewards, groups)) == 1.0
    assert float(sign_alignment(-rewards, rewards, groups)) == 0.0
    assert bool(sign_alignment(moved[3:5], rewards[3:5], groups[3:5]).isnan())


def test_approx_kl_is_the_kl_of_a_small_step():
    old = torch.log_softmax(normal(6), 0)
    new = torch.log_softmax(normal(6) + 1e-3 * normal(6, seed=1), 0)
    kl = float((old.exp() * (old - new)).sum())
    samples = torch.multinomial(old.exp(), 200_000, True, generator=torch.Generator().manual_seed(0))
    assert float(approx_kl((new - old)[samples])) == pytest.approx(kl, rel=0.02)


# ---------------------------------------------------------------------- arguments


def test_wrong_arguments_are_named():
    new, old, ref, rewards = sample_batch()
    good = (new, old, rewards, GROUPS, 0.5)
    for groups, words in (
        (torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 5]), "at least two members in every group, group 5 has one"),
        (GROUPS[:-1], "groups: expected 9 integers, got 8"),
        (GROUPS.double(), "groups: expected integers"),
        (GROUPS.view(3, 3), "groups: expected integers"),
    ):
        with pytest.raises(ValueError, match=words):
            rebel_loss(new, old, rewards, groups, 0.5)
    with pytest.raises(ValueError, match="group 5 has one"):
        rebel_coefficients(new, old, rewards, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 5]), 0.5)
    for eta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="eta: expected a positive number"):
            rebel_loss(*good[:4], eta)
    with pytest.raises(ValueError, match="eta: expected one number"):
        rebel_loss(*good[:4], rewards)
    with pytest.raises(ValueError, match=r"rewards: expected the shape \(9,\) of log_probs, got \(8,\)"):
        rebel_loss(new, old, rewards[:-1], GROUPS, 0.5)
    with pytest.raises(ValueError, match=r"log_probs: expected float32 or float64, got torch\.bfloat16"):
        rebel_loss(new.bfloat16(), old, rewards, GROUPS, 0.5)
    with pytest.raises(ValueError, match="form: expected one of code, paper"):
        rebel_loss(*good, "book")
    with pytest.raises(ValueError, match="kl_mode: expected one of reward, prox"):
        rebel_loss(*good, "code", ref, 0.1, "loss")
    with pytest.raises(ValueError, match="ref_log_probs: expected the reference's"):
        rebel_loss(*good, "code", None, 0.1)
    with pytest.raises(ValueError, match="beta"):
        rebel_loss(*good, "code", ref, -0.1)
    with pytest.raises(ValueError, match="advantages: expected the shape"):
        rebel_advantage_loss(new, old, rewards[:-1], 0.5)
    with pytest.raises(ValueError, match="values: expected the shape"):
        rebel_all_actions_loss(new.view(3, 3), old.view(3, 3), rewards, 0.5)
    with pytest.raises(ValueError, match="kappa"):
        eta_from_std(rewards, 0.0)
    with pytest.raises(ValueError, match="target"):
        eta_from_kl(rewards, -1.0)
    with pytest.raises(ValueError, match="rewards: expected at least two"):
        eta_from_std(rewards[:1])
    with pytest.raises(ValueError, match=r"comparisons: expected shape \(G, K, K\)"):
        preference_rewards(torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match=r"comparisons: expected numbers in"):
        preference_rewards(2 * random_comparisons(3)[None].sign())
    with pytest.raises(ValueError, match="comparisons: expected ℓ"):
        preference_rewards(torch.ones(1, 2, 2))
