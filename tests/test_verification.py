"""`rlopt.verify`: right estimators pass, every usual mistake fails, agents are checked end to end."""

import subprocess
import sys

import pytest
import torch

import rlopt
import rlopt.verification.agents as of_agents
from rlopt.__main__ import main
from rlopt.agents import stormpg
from rlopt.envs.tabular import TabularMDP
from rlopt.estimators import (
    compiled,
    discounted_return,
    hessian_vector_product,
    importance_weights,
    log_ratio,
    policy_gradient,
    reward_to_go,
)
from rlopt.estimators.returns import discount_powers, suffix_sums
from rlopt.verification.agents import agent_check
from rlopt.verification.checks import Check, Report
from rlopt.verification.estimators import ESTIMATORS
from rlopt.verification.exact import Fixture
from rlopt.verification.run import estimator_checks, verify_main


def discounted(rollout, gamma):
    return discount_powers(gamma, rollout.rewards) * rollout.rewards * rollout.mask


def constant(psi):
    return lambda ratios: psi


def plain(policy, theta, rollout, gamma):
    return policy_gradient(policy, theta, rollout, reward_to_go(rollout.rewards, rollout.mask, gamma))


def with_numbers(policy, theta, rollout, gamma):
    """Right, and cannot be vectorised: it looks at values."""
    total = torch.zeros_like(theta)
    for n in range(rollout.mask.shape[1]):
        length = int(rollout.mask[:, n].sum())
        assert length >= 1
        total = total + plain(policy, theta, rollout.columns(slice(n, n + 1)), gamma)
    return total / rollout.mask.shape[1]


def whitened(policy, theta, rollout, gamma):
    returns = suffix_sums(discounted(rollout, gamma))
    return policy_gradient(policy, theta, rollout, constant((returns - returns.mean()) / (returns.std() + 1e-8)))


def relative_discounts(policy, theta, rollout, gamma):
    return policy_gradient(
        policy, theta, rollout, constant(suffix_sums(discounted(rollout, gamma)) / discount_powers(gamma, rollout.rewards))
    )


def mean_with_its_own_episode(policy, theta, rollout, gamma):
    returns = suffix_sums(discounted(rollout, gamma))
    return policy_gradient(policy, theta, rollout, constant(returns - returns.mean(1, keepdim=True)))


def one_episode_dropped_of_the_sum(policy, theta, rollout, gamma):
    psi = suffix_sums(discounted(rollout, gamma))
    keep = torch.ones_like(psi)
    keep[:, -1] = 0.0
    return policy_gradient(policy, theta, rollout, constant(psi * keep))


def padding_counted(policy, theta, rollout, gamma):
    steps = rollout.mask.sum()
    return plain(policy, theta, rollout, gamma) * rollout.mask.numel() / steps


WRONG_GRADIENTS = [whitened, relative_discounts, mean_with_its_own_episode, one_episode_dropped_of_the_sum, padding_counted]


@pytest.mark.parametrize("estimator", [plain, with_numbers])
def test_a_right_gradient_passes(estimator, capsys, monkeypatch):
    if estimator is with_numbers:  # one pair at a time
        smaller = Fixture("fixed", TabularMDP.random(num_states=2, num_actions=2, horizon=2, seed=3))
        monkeypatch.setattr("rlopt.verification.run.FIXTURES", (smaller,))
    report = rlopt.verify(estimator)
    assert report
    assert all(check.variance_ratio == pytest.approx(1.0) for check in report.checks)
    assert estimator.__name__ in capsys.readouterr().out


@pytest.mark.parametrize("estimator", WRONG_GRADIENTS, ids=lambda f: f.__name__)
def test_a_wrong_gradient_fails(estimator):
    report = rlopt.verify(estimator, show=False)
    assert not report
    assert max(check.deviation for check in report.checks) > 1e-3


def inverted(policy, theta, rollout, gamma):
    weights = importance_weights(-log_ratio(policy, theta.detach(), rollout))
    return policy_gradient(policy, theta, rollout, constant(suffix_sums(weights * discounted(rollout, gamma))))


def weight_of_the_score(policy, theta, rollout, gamma):
    weights = importance_weights(log_ratio(policy, theta.detach(), rollout))
    return policy_gradient(policy, theta, rollout, constant(weights * suffix_sums(discounted(rollout, gamma))))


@pytest.mark.parametrize("estimator", [inverted, weight_of_the_score, plain], ids=["inverted", "weight of the score", "right"])
def test_an_off_policy_gradient(estimator):
    report = rlopt.verify(estimator, "off_policy_gradient", show=False)
    assert report.passed == (estimator is plain)


def right_product(policy, theta, rollout, gamma, vector):
    return hessian_vector_product(policy, theta, rollout, reward_to_go(rollout.rewards, rollout.mask, gamma), vector)


def no_score_term(policy, theta, rollout, gamma, vector):
    psi = constant(suffix_sums(discounted(rollout, gamma)))
    return torch.func.jvp(lambda x: policy_gradient(policy, x, rollout, psi), (theta,), (vector,))[1]


def product_of_means(policy, theta, rollout, gamma, vector):
    score = policy_gradient(policy, theta, rollout, torch.ones_like)
    return plain(policy, theta, rollout, gamma) * (score @ vector) + no_score_term(policy, theta, rollout, gamma, vector)


@pytest.mark.parametrize("estimator", [right_product, no_score_term, product_of_means], ids=lambda f: f.__name__)
def test_a_hessian_vector_product(estimator):
    report = rlopt.verify(estimator, "hessian_vector_product", show=False)
    assert report.passed == (estimator is right_product)


def test_a_return():
    def right(policy, theta, rollout, gamma):
        weights = importance_weights(log_ratio(policy, theta, rollout))
        return discounted_return(rollout.rewards, gamma, weights).mean()

    assert rlopt.verify(right, "return", show=False)
    assert not rlopt.verify(lambda p, t, r, g: discounted_return(r.rewards, g).mean(), "return", show=False)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"kind: expected one of gradient, .* did you mean 'gradient'"):
        rlopt.verify(plain, "gradiant")
    with pytest.raises(ValueError, match=r"estimator: expected a tensor of shape \(4,\), got \(3,\)"):
        rlopt.verify(lambda p, theta, r, g: theta[:3], show=False)
    with pytest.raises(ValueError, match="estimator: expected it to return a tensor, got None"):
        rlopt.verify(lambda p, theta, r, g: None, show=False)
    with pytest.raises(ZeroDivisionError):  # an estimator's own errors come through
        rlopt.verify(lambda p, theta, r, g: theta / 0 if False else 1 / 0, show=False)


@pytest.mark.parametrize("name", ["gae", "weighted-leave-one-out", "occupancy"])
def test_estimators_of_the_library_pass(name):
    checks = estimator_checks(name)
    assert checks
    assert all(check.passed for check in checks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_of_the_library_passes(name):
    assert all(check.passed for check in estimator_checks(name))


# ---------------------------------------------------------------------- agents


def test_an_agent_passes_and_fails_with_the_wrong_sign(monkeypatch):
    monkeypatch.setattr(of_agents, "NUM_RUNS", 40)
    right = agent_check("harpg")
    assert right.passed
    assert right.variance_ratio < 0.7
    original = compiled.hessian_vector_product
    monkeypatch.setattr(compiled, "hessian_vector_product", lambda *arguments: -8.0 * original(*arguments))
    assert not agent_check("harpg").passed


@pytest.mark.slow
@pytest.mark.parametrize("algo", of_agents.PAPER)
def test_every_agent_passes(algo):
    assert agent_check(algo).passed


@pytest.mark.slow
def test_storm_fails_with_gradients_that_forget_the_weights(monkeypatch):
    def on_policy(agent, theta, batch):
        psi = batch.psi(torch.zeros_like(batch.returns))
        return policy_gradient(agent.log_policy, theta, batch.rollout, lambda ratios: psi)

    monkeypatch.setattr(stormpg.STORMPG, "_policy_gradient", on_policy)
    monkeypatch.setitem(of_agents.PAPER, "stormpg", {**of_agents.PAPER["stormpg"], "step_size": 1.0})
    monkeypatch.setattr(of_agents, "NUM_RUNS", 800)
    assert not agent_check("stormpg").passed


# ---------------------------------------------------------------------- reports and the command line


def check(deviation, sampled=False):
    return Check("something", 1.0, 1.0, deviation, sampled, 5.0 if sampled else 1e-10, 0.5)


def test_a_report_is_true_only_if_everything_passed():
    assert Report([check(0.0), check(4.9, True)])
    assert not Report([check(0.0), check(5.1, True)])
    assert not Report([check(float("nan"))])
    assert not Report([])
    assert "WRONG" in str(Report([check(1.0)]))
    assert "ok" in str(Report([check(0.0)]))


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        verify_main(list(arguments))
    return stopped.value.code


def test_the_command_exits_by_the_verdict(monkeypatch, capsys):
    assert run("--estimator", "gpomdp") == 0
    assert "gpomdp, fixed" in capsys.readouterr().out
    assert run("--estimator", "tests.test_verification:whitened") == 1
    assert "WRONG" in capsys.readouterr().out
    assert run("--algo", "ppo") == 0
    assert "gae" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "harp"], "algo: expected one of .* did you mean 'harpg'"),
        (["--estimator", "gpomp"], "estimator: expected one of .* did you mean 'gpomdp'"),
        (["--estimator", "nowhere:nothing"], "estimator: cannot import 'nowhere:nothing'"),
    ],
)
def test_unknown_names_are_refused(arguments, message, capsys):
    assert run(*arguments) == 2
    assert __import__("re").search(message, capsys.readouterr().err)


def test_the_package_runs_as_a_module(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "verify" in capsys.readouterr().out
    result = subprocess.run([sys.executable, "-m", "rlopt", "verify", "--help"], capture_output=True, text=True, check=True)
    assert "--estimator" in result.stdout
