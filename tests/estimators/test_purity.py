"""Nothing that was returned, or given, changes later: two gradients at two parameter vectors live side by side."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch import nn

import rlopt.updates
from rlopt import estimators
from rlopt.estimators import BASELINES, hessian_vector_product, log_ratio, policy_gradient, returns_to_go, reward_to_go
from rlopt.estimators.occupancy_regression import averaged_regression, geometric_time, occupancy_regression
from rlopt.policies import Functional
from tests.oracles import F64, assert_exact, assert_misses, miss, normal, scalarised, small_mdp, two_thetas

MDP = scalarised(small_mdp())
THETA, PREVIOUS = two_thetas(MDP)


class Inputs:
    """Arguments for every public function; another seed gives other ones of the same shapes."""

    def __init__(self, seed):
        self.theta = normal(MDP.num_parameters, seed=seed)
        self.vectors = [normal(MDP.num_parameters, seed=seed + 10 + i) for i in range(3)]
        self.rollout = MDP.sample(MDP.softmax_policy(THETA), 6, torch.Generator().manual_seed(seed))
        self.ratios = log_ratio(MDP.softmax_log_prob, PREVIOUS, self.rollout)
        self.rows = [normal(12, seed=seed + 20 + i) for i in range(4)]
        self.columns = [normal(3, 6, seed=seed + 30 + i) for i in range(5)]
        self.psi = reward_to_go(self.rollout.rewards, self.rollout.mask, MDP.gamma, self.columns[0])

    @property
    def tensors(self):
        return tensors_of((self.theta, self.vectors, self.rollout, self.ratios, self.rows, self.columns, self.psi))


def tensors_of(value):
    """All tensors in lists, tuples and dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        return tensors_of([getattr(value, field.name) for field in fields(value)])
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, (list, tuple)) else []


POLICY = MDP.softmax_log_prob
ESTIMATORS = {
    "approximate_kl": lambda x: estimators.approximate_kl(x.ratios),
    "clip_fraction": lambda x: estimators.clip_fraction(x.ratios, 0.2),
    "clipped_surrogate": lambda x: estimators.clipped_surrogate(*x.rows[:2], 0.2),
    "clipped_surrogate_weights": lambda x: estimators.clipped_surrogate_weights(*x.rows[:2], 0.2),
    "clipped_value_loss": lambda x: estimators.clipped_value_loss(*x.rows[:3], 0.2),
    "clipped_value_loss_slope": lambda x: estimators.clipped_value_loss_slope(*x.rows[:3], 0.2),
    "cosine": lambda x: estimators.cosine(*x.vectors[:2]),
    "discounted_return": lambda x: estimators.discounted_return(x.rollout.rewards, 0.9, x.ratios),
    "discounted_sums": lambda x: estimators.discounted_sums(*x.columns[:2]),
    "effective_sample_size": lambda x: estimators.effective_sample_size(x.rows[0]),
    "explained_variance": lambda x: estimators.explained_variance(*x.rows[:2]),
    "gae": lambda x: estimators.gae(*x.columns),
    "half_batch_noise": lambda x: estimators.half_batch_noise(*x.vectors[:2], (3, 3)),
    "hessian_vector_product": lambda x: hessian_vector_product(POLICY, x.theta, x.rollout, x.psi, x.vectors[0]),
    "importance_weights": lambda x: estimators.importance_weights(x.ratios),
    "log_ratio": lambda x: log_ratio(POLICY, x.theta, x.rollout),
    "mean_of_others": lambda x: estimators.mean_of_others(x.columns[0], x.rollout.mask),
    "occupancy": lambda x: estimators.occupancy(x.rollout.states[:-1], x.rollout.actions, x.rollout.mask, 0.9, 2, 2, x.ratios),
    "pessimistic_value_loss": lambda x: estimators.pessimistic_value_loss(*x.rows[:3], 0.2),
    "pessimistic_value_loss_slope": lambda x: estimators.pessimistic_value_loss_slope(*x.rows[:3], 0.2),
    "policy_gradient": lambda x: policy_gradient(POLICY, x.theta, x.rollout, x.psi),
    "returns_to_go": lambda x: returns_to_go(x.rollout.rewards, x.rollout.mask, 0.9),
    "reward_to_go": lambda x: reward_to_go(x.rollout.rewards, x.rollout.mask, 0.9, x.columns[0], "trajectory"),
    "signal_to_noise": lambda x: estimators.signal_to_noise(*x.vectors[:2], (2, 4)),
    "squared_error": lambda x: estimators.squared_error(*x.vectors),
    "total_return": lambda x: estimators.total_return(x.rollout.rewards, x.rollout.mask, 0.9, x.columns[0]),
    "value_loss": lambda x: estimators.value_loss(*x.rows[:2]),
    "discount_powers": lambda x: estimators.discount_powers(0.9, x.columns[0]),
    "return_differences": lambda x: estimators.return_differences(x.rollout.rewards, 0.9, x.ratios),
}
GROUPS = torch.arange(4).repeat_interleave(3)
ESTIMATORS |= {
    "approx_kl": lambda x: estimators.approx_kl(x.rows[0]),
    "eta_from_kl": lambda x: estimators.eta_from_kl(x.rows[0], 0.1, GROUPS),
    "eta_from_std": lambda x: estimators.eta_from_std(x.rows[0], 1.0, GROUPS),
    "explained": lambda x: estimators.explained(x.rows[0].square().mean(), x.rows[1].square().mean()),
    "preference_rewards": lambda x: estimators.preference_rewards(
        torch.tanh(x.rows[0].view(3, 2, 2) - x.rows[0].view(3, 2, 2).transpose(1, 2))
    ),
    "rebel_advantage_loss": lambda x: estimators.rebel_advantage_loss(*x.rows[:3], 0.2),
    "rebel_all_actions_loss": lambda x: estimators.rebel_all_actions_loss(
        *(row.view(4, 3).log_softmax(-1) for row in x.rows[:2]), x.rows[2].view(4, 3), 0.2
    ),
    "rebel_coefficients": lambda x: estimators.rebel_coefficients(*x.rows[:3], GROUPS, 0.2),
    "rebel_loss": lambda x: estimators.rebel_loss(*x.rows[:3], GROUPS, 0.2),
    "rebel_residuals": lambda x: estimators.rebel_residuals(*x.rows[:3], 0.2, x.rows[3], 0.1, "prox"),
    "sign_alignment": lambda x: estimators.sign_alignment(*x.rows[:2], GROUPS),
}
ESTIMATORS |= {
    f"{name}, {part}": call
    for name, baseline in BASELINES.items()
    for part, call in {
        "fit": lambda x, b=baseline: b.fit(b.init(), x.rollout, x.columns[0]),
        "values": lambda x, b=baseline: b.values(b.fit(b.init(), x.rollout, x.columns[0]), x.rollout, x.columns[1]),
    }.items()
}
ESTIMATORS |= {f"psi, {name}": lambda x, name=name: x.psi.weighted(name)(x.ratios) for name in ("per_step", "trajectory")}
ONE_HOT = torch.eye(2, dtype=F64)
ESTIMATORS |= {
    "averaged_regression": lambda x: averaged_regression(x.columns[0].T, x.columns[0][0] > 0, 0.9, 0.1),
    "geometric_time": lambda x: geometric_time(0.9, (5,), torch.Generator().manual_seed(0)),
    "occupancy_regression": lambda x: occupancy_regression(
        ONE_HOT[x.rollout.states[:-1]], x.rollout.mask, 0.9, ONE_HOT, 0.5, x.ratios
    ),
}
UPDATES = {
    "adam_step": lambda x: (lambda step: [step[0], *step[1].values()])(rlopt.updates.adam_step(*x.vectors[:2], 0.3, {})),
    "bounded_correction": lambda x: rlopt.updates.bounded_correction(*x.vectors[:2], 0.2),
    "corrected_momentum": lambda x: [rlopt.updates.corrected_momentum(*x.vectors, eta) for eta in (0.0, 0.3, 1.0)],
    "lookahead": lambda x: rlopt.updates.lookahead(*x.vectors[:2], 0.3),
    "normalized_step": lambda x: rlopt.updates.normalized_step(*x.vectors[:2], 0.3),
    "scaled_step": lambda x: rlopt.updates.scaled_step(*x.vectors[:2], 0.3),
    "truncated_step": lambda x: [rlopt.updates.truncated_step(*x.vectors[:2], 0.3, radius) for radius in (1e-3, 1e3)],
}
CALLS = {**ESTIMATORS, **UPDATES}


def test_every_public_function_is_called_here():
    public = {name for name in estimators.__all__ if type(getattr(estimators, name)).__name__ == "function"}
    public |= {n for n, v in vars(rlopt.updates).items() if getattr(v, "__module__", "") == "rlopt.updates"}
    assert public <= set(CALLS)


def test_what_was_returned_or_given_stays_as_it_is_after_every_call():
    inputs, others = Inputs(0), Inputs(1)
    given = [tensor.clone() for tensor in inputs.tensors]
    first = {name: tensors_of(call(inputs)) for name, call in CALLS.items()}
    kept = {name: [tensor.clone() for tensor in tensors] for name, tensors in first.items()}
    for name, call in CALLS.items():
        call(others)
        again = tensors_of(call(inputs))
        assert all(torch.equal(a, b) for a, b in zip(again, kept[name], strict=True)), name
        for earlier, tensors in first.items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, kept[earlier], strict=True)), (name, earlier)
    assert all(torch.equal(a, b) for a, b in zip(inputs.tensors, given, strict=True))
    assert not any(tensor.requires_grad for tensors in first.values() for tensor in tensors)


@pytest.mark.parametrize("name", list(UPDATES))
def test_a_direction_shares_no_memory_with_what_it_was_made_of(name):
    """What an agent keeps must not be written to through the vectors it came from."""
    inputs = Inputs(0)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in inputs.tensors}
    results = tensors_of(UPDATES[name](inputs))
    assert results
    assert not any(result.untyped_storage().data_ptr() in pointers for result in results)


def gradient_in_views(module, rollout, psi):
    """The trap: one flat buffer behind every parameter's `.grad`, returned as it is."""
    loss = (psi(torch.zeros_like(rollout.log_probs)) * module(rollout)).sum() / rollout.mask.shape[1]
    module.zero_grad()  # sets to None: the buffer below takes its place
    for parameter in module.parameters():
        parameter.grad = module.buffer.view_as(parameter).zero_()
    loss.backward()
    return module.buffer


class Logits(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.clone())
        self.buffer = torch.zeros_like(theta)

    def forward(self, rollout):
        return MDP.softmax_log_prob(self.theta, rollout.states[:-1], rollout.actions)


def test_views_of_grad_would_be_rewritten_by_the_next_backward():
    """Negative control."""
    rollout, other = Inputs(0).rollout, Inputs(1).rollout
    module = Logits(THETA)
    psi = reward_to_go(rollout.rewards, rollout.mask, MDP.gamma)
    first = gradient_in_views(module, rollout, psi)
    kept = first.clone()
    assert_exact(first, policy_gradient(POLICY, THETA, rollout, psi), 1e-12)
    gradient_in_views(module, other, reward_to_go(other.rewards, other.mask, MDP.gamma))
    assert_misses(first, kept)


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(MDP.num_states, MDP.num_actions, dtype=F64)

    def forward(self, states, actions):
        one_hot = nn.functional.one_hot(states, MDP.num_states).to(F64)
        return torch.log_softmax(self.logits(one_hot), -1).gather(-1, actions[:, None])[:, 0]


def acting_rollout(actor):
    """Episodes whose log-probabilities are those of the module."""
    rollout = MDP.sample(MDP.softmax_policy(THETA), 6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_probs = actor(rollout.states[:-1].flatten(), rollout.actions.flatten())
    return replace(rollout, log_probs=log_probs.view(rollout.mask.shape))


def test_the_gradient_at_the_reference_parameters_is_its_own_whatever_the_module_holds():
    """Another θ bound for acting, before or in between, changes no gradient, and a gradient changes no bound θ."""
    torch.manual_seed(0)
    actor = Actor()
    functional = Functional(actor)
    theta = functional.init()
    previous = theta + normal(len(theta), seed=3)
    rollout = acting_rollout(actor)
    psi = reward_to_go(rollout.rewards, rollout.mask, MDP.gamma)

    at_theta, at_previous = (policy_gradient(functional, point, rollout, psi) for point in (theta, previous))
    kept, kept_theta, kept_previous = at_previous.clone(), theta.clone(), previous.clone()
    for bound in (theta, previous, torch.zeros_like(theta)):
        functional.bind(bound)
        assert torch.equal(policy_gradient(functional, previous, rollout, psi), kept)
        hessian_vector_product(functional, theta, rollout, psi, previous)
    assert torch.equal(at_previous, kept)
    assert torch.equal(theta, kept_theta)
    assert torch.equal(previous, kept_previous)
    assert float(at_previous.norm()) > 1e-3
    assert miss(at_previous, at_theta) > 1e-3
    assert all(parameter.grad is None for parameter in [*actor.parameters(), *functional.module.parameters()])


def test_log_probabilities_of_the_live_module_would_give_no_gradient_at_the_reference():
    """Negative control: the derivative at θ_{t−1} of what was computed with θ_t is 0, and nobody complains."""
    torch.manual_seed(0)
    actor = Actor()
    rollout = acting_rollout(actor)
    psi = reward_to_go(rollout.rewards, rollout.mask, MDP.gamma)
    previous = (Functional(actor).init() + 0.3).requires_grad_()
    live = actor(rollout.states[:-1].flatten(), rollout.actions.flatten()).view(rollout.mask.shape)
    surrogate = (psi(torch.zeros_like(live)) * live).sum() / rollout.mask.shape[1]
    (gradient,) = torch.autograd.grad(surrogate, previous, allow_unused=True)
    assert gradient is None
    right = policy_gradient(Functional(actor), previous.detach(), rollout, psi)
    assert_misses(torch.zeros_like(right), right)
