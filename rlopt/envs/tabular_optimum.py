"""The best that can be done in a tabular MDP: dynamic programming, search over stationary policies, concave utilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlopt.arguments import check_number

if TYPE_CHECKING:
    from rlopt.envs.tabular import TabularMDP

# The search for a stationary policy ends once no start has gained this much in this many halvings of its step size.
SMALLEST_GAIN, PATIENCE = 1e-13, 30
# How often the line search of Frank–Wolfe narrows the interval of the step length.
NARROWINGS = 12


class UtilityOptimum(NamedTuple):
    """An occupancy that nearly maximises a concave utility, and proof of how nearly.

    Attributes:
        occupancy: λ [S, A], of some policy that may depend on time.
        value: F(λ).
        upper_bound: no policy's utility is above it.
    """

    occupancy: Tensor
    value: float
    upper_bound: float


def optimal_policy(mdp: TabularMDP, rewards: Tensor) -> Tensor:
    """argmax E[Σ γ^t r(s_t, a_t)] for rewards [S, A], by dynamic programming backwards in time, [H, S, A].

    Raises:
        ValueError: `rewards` has K numbers a step.
    """
    _one_reward(rewards)
    live = (~mdp.terminal).to(torch.float64)
    values = torch.zeros(mdp.num_states, dtype=torch.float64)
    best = []
    for _ in range(mdp.horizon):
        values, actions = (rewards + mdp.gamma * (mdp.transitions @ values)).max(-1)
        values = values * live
        best.append(actions)
    return torch.nn.functional.one_hot(torch.stack(best[::-1]), mdp.num_actions).to(torch.float64)


def best_stationary_policy(mdp: TabularMDP, restarts: int, iterations: int, seed: int) -> Tensor:
    """The best policy [S, A] that natural-gradient ascent of softmax logits finds from `restarts` + 1 starts.

    The direction in the logits is (∂J/∂π(a|s)) / λ(s): the policy gradient in the metric of the state occupancy λ(s)
    (Kakade 2001). Every start has a step size of its own, doubled after each step that gained and halved otherwise.

    Raises:
        ValueError: the MDP has K rewards a step, or an argument is out of range.
    """
    _one_reward(mdp.rewards)
    check_number("restarts", restarts, at_least=0, whole=True)
    check_number("iterations", iterations, positive=True, whole=True)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(restarts + 1, mdp.num_states, mdp.num_actions, generator=generator, dtype=torch.float64)
    logits[0] = 0.0
    step_sizes = torch.ones(restarts + 1, 1, 1, dtype=torch.float64)
    values, directions = _ascent(mdp, logits)
    idle = 0
    for _ in range(iterations):
        moved = logits + step_sizes * directions
        moved = moved - moved.amax(-1, keepdim=True)
        new_values, new_directions = _ascent(mdp, moved)
        gained = (new_values > values + SMALLEST_GAIN)[:, None, None]
        logits, directions = moved.where(gained, logits), new_directions.where(gained, directions)
        values = torch.maximum(new_values, values)
        step_sizes = (2 * step_sizes).where(gained, step_sizes / 2)
        idle = 0 if bool(gained.any()) else idle + 1
        if idle == PATIENCE:
            break
    return torch.softmax(logits[values.argmax()], -1)


def maximise_utility(
    mdp: TabularMDP,
    utility: Callable[[Tensor], Tensor],
    gradient: Callable[[Tensor], Tensor] | None = None,
    iterations: int = 300,
    tolerance: float = 1e-6,
) -> UtilityOptimum:
    """max F(λ) over the occupancies λ of policies that may depend on time: a convex set, unlike those of stationary ones.

    Frank–Wolfe with pairwise steps: the linear problem max ⟨∇F(λ), μ⟩ is solved by dynamic programming, and weight moves
    to its solution from the worst of the occupancies that λ is made of. F(λ) + max ⟨∇F(λ), μ − λ⟩ bounds the maximum, and
    so the utility of every stationary policy.

    Args:
        mdp: its own rewards play no part unless `utility` uses them.
        utility: F of an occupancy [S, A], to a scalar; concave, with a finite gradient also where λ is 0 (smooth an
            entropy with log(λ + σ)). The bound holds for concave F only, which is not checked; clamping is not concave.
        gradient: ∇F, [S, A]; by autograd unless given.
        iterations: the most steps to take.
        tolerance: stop once the bound is this near.

    Raises:
        ValueError: the gradient is not finite at some occupancy.

    Source: Lacoste-Julien and Jaggi, arXiv:1511.05932, section 2.
    """
    slope = gradient or torch.func.grad(utility)
    uniform = torch.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions, dtype=torch.float64)
    vertices, weights = mdp.occupancy(uniform)[None], torch.ones(1, dtype=torch.float64)
    upper_bound = float("inf")
    for _ in range(iterations):
        occupancy = torch.einsum("v,vsa->sa", weights, vertices)
        rewards = _finite(slope(occupancy))
        vertex = mdp.occupancy(optimal_policy(mdp, rewards))
        upper_bound = min(upper_bound, float(utility(occupancy) + (rewards * (vertex - occupancy)).sum()))
        if upper_bound - float(utility(occupancy)) <= tolerance:
            break
        worst = int((vertices * rewards).sum((1, 2)).argmin())
        moved = _line_search(slope, occupancy, vertex - vertices[worst], float(weights[worst]))
        weights = torch.cat([weights, torch.tensor([moved], dtype=torch.float64)])
        weights[worst] -= moved
        vertices, weights = torch.cat([vertices, vertex[None]])[weights > 0], weights[weights > 0]
    occupancy = torch.einsum("v,vsa->sa", weights, vertices)
    return UtilityOptimum(occupancy, float(utility(occupancy)), upper_bound)


def _one_reward(rewards: Tensor) -> None:
    """Raises ValueError if K rewards a step are paid, of which there is no one maximum."""
    if rewards.ndim != 2:
        raise ValueError(
            f"rewards: a maximum needs one reward a step, not {rewards.shape[-1]}; use `maximise_utility` with a function of "
            "them"
        )


def _ascent(mdp: TabularMDP, logits: Tensor) -> tuple[Tensor, Tensor]:
    """J [R] of R stationary softmax policies and the natural direction in their logits [R, S, A]."""

    def one(x: Tensor) -> tuple[Tensor, Tensor]:
        policy = torch.softmax(x, -1)
        slope, value = torch.func.grad_and_value(mdp.value)(policy)
        slope = slope / mdp.occupancy(policy).sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        return value, slope - (policy * slope).sum(-1, keepdim=True)

    values, directions = torch.func.vmap(one)(logits)
    return values, directions


def _line_search(slope: Callable[[Tensor], Tensor], start: Tensor, direction: Tensor, longest: float) -> float:
    """The length in [0, longest] at which a concave function with this gradient is largest along `direction`."""

    def rise(length: float) -> float:
        return float((_finite(slope(start + length * direction)) * direction).sum())

    low, high = 0.0, longest
    at_low, at_high = rise(low), rise(high)
    if at_high >= 0:
        return longest
    for i in range(NARROWINGS):
        # The secant is quick where the slope is nearly straight, halving sure where it is not.
        share = at_low / (at_low - at_high) if i % 2 == 0 else 0.5
        middle = low + share * (high - low)
        at_middle = rise(middle)
        if at_middle > 0:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low


def _finite(slope: Tensor) -> Tensor:
    if not bool(slope.isfinite().all()):
        raise ValueError("utility: its gradient is not finite at an occupancy; smooth it, for example log(λ + σ) for log λ")
    return slope
