"""Memory as an action: are the estimators of stateful policies, and S2PG's own loss, the exact gradient of cue-recall?

Every course of an episode is listed, with a memory of one bit; the closed form is that of `rlopt.envs.cue_recall`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlopt.agents.s2pg import S2PG, Ratio
from rlopt.envs.cue_recall import CueRecall, CueRecallVectorEnv
from rlopt.envs.memory import MemoryActions
from rlopt.estimators import Weighting, hessian_vector_product, policy_gradient, reward_to_go
from rlopt.policies.actor_critic import ActionLogProb
from rlopt.policies.distributions import Bernoulli, Categorical
from rlopt.policies.functional import Functional
from rlopt.policies.stateful import JointDistribution
from rlopt.rollout import Rollout
from rlopt.verification.checks import Check
from rlopt.verification.exact import TOLERANCE

DELAY = 4
LOGITS = (0.7, -0.2, 1.1, -0.4, 1.5, -0.9)  # θ, φ and κ of `CueRecall`
PRODUCTS: dict[str, Weighting] = {"doubly robust": "doubly_robust", "causal": "per_step", "trajectory": "trajectory"}
RATIOS: tuple[Ratio, ...] = ("factor", "joint")


class OneBit(nn.Module):
    """The policy of `CueRecall`, of six logits, as agents see a stateful policy; what changes nothing is a fair coin."""

    squash = False

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(LOGITS, dtype=torch.float64))
        self.space = MemoryActions(spaces.Discrete(2), 1)

    def actor(self, observations: Tensor) -> JointDistribution:
        """π(a, z' | o, z) of observations [B, 5], the one-hot and z."""
        cue_0, cue_1, _, asked, memory = observations.unsqueeze(-1).unbind(-2)
        theta_1, theta_0, phi_1, phi_0, kappa_1, kappa_0 = self.logits
        carries = torch.where(memory > 0, kappa_1, kappa_0)
        writes = torch.where(cue_1 > 0, theta_1, torch.where(cue_0 > 0, theta_0, carries))
        answers = torch.where(asked > 0, torch.where(memory > 0, phi_1, phi_0), 0.0)
        choice = Categorical.from_logits(torch.cat([torch.zeros_like(answers), answers], -1))
        return JointDistribution(choice, Bernoulli(torch.where(asked > 0, 0.0, writes)), self.space)  # type: ignore[arg-type]

    def critic(self, observations: Tensor) -> Tensor:
        """0, [B]: advantages are returns to go."""
        return observations.new_zeros(len(observations))


def memory_checks() -> list[Check]:
    """Gradient and Hessian-vector products of episodes, and the gradient of S2PG's surrogate, beside the closed form."""
    problem, module = CueRecall(DELAY), OneBit()
    theta = module.logits.detach().clone()
    rollout, policy = every_course(problem, module), Functional(ActionLogProb(module))
    gradient, vector = problem.gradient(theta), torch.linspace(-1, 2, len(theta), dtype=theta.dtype)
    found = policy_gradient(policy, theta, rollout, reward_to_go(rollout.rewards, rollout.mask, 1.0))
    checks = [_check("memory: gradient", gradient, found)]
    product = torch.func.jvp(problem.gradient, (theta,), (vector,))[1]
    for name, weighting in PRODUCTS.items():
        psi = reward_to_go(rollout.rewards, rollout.mask, 1.0, weighting=weighting)
        found = hessian_vector_product(policy, theta, rollout, psi, vector)
        checks.append(_check(f"memory: hvp, {name}", product, found))
    of_s2pg = {ratio: surrogate_gradient(problem, module, rollout, ratio) for ratio in RATIOS}
    return checks + [_check(f"s2pg: surrogate, {ratio}", gradient, found) for ratio, found in of_s2pg.items()]


def every_course(problem: CueRecall, module: OneBit) -> Rollout:
    """All courses of an episode, one a column, rewards times p_n N: a mean over columns is an expectation."""
    rollout, probabilities = problem.enumerate(module.logits)
    with torch.no_grad():
        log_probs = module.actor(rollout.observations.flatten(0, 1)).log_prob(rollout.actions.flatten(0, 1))  # type: ignore[union-attr]
    scale = probabilities * len(probabilities)
    return replace(rollout, log_probs=log_probs.view(rollout.mask.shape), rewards=rollout.rewards * scale)


def surrogate_gradient(problem: CueRecall, module: OneBit, rollout: Rollout, ratio: Ratio) -> Tensor:
    """∇ [6] of what S2PG maximises, at the parameters that sampled, times the steps of an episode."""
    agent = S2PG(
        "MlpPolicy",
        CueRecallVectorEnv(problem),
        ratio=ratio,
        seed=0,
        device="cpu",
        gamma=1.0,
        normalize_advantage=False,
        gae_lambda=1.0,
        n_steps=2,
        batch_size=2,
        memory_size=1,
    )
    agent.functional = Functional(module)
    batch = agent.stateful_advantages(module.logits.detach(), rollout)
    assert isinstance(batch.observations, Tensor)
    log_ratios = agent.log_ratios(module.actor(batch.observations), batch)
    surrogate = agent.surrogate(log_ratios, batch.advantages, agent.clip_ranges(1.0))
    return problem.horizon * torch.autograd.grad(surrogate, module.logits)[0]


def _check(quantity: str, exact: Tensor, found: Tensor) -> Check:
    error = float((found - exact).abs().max())
    return Check(quantity, float(exact.norm()), float(found.norm()), error, False, TOLERANCE)
