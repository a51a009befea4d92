"""Finite-horizon tabular MDPs whose every quantity is known exactly: the oracle of the estimators.

Letters, beside those of `rlopt.rollout`: S states, A actions, H the horizon, K objectives. All numbers are float64 and
differentiable in the policy, which is a matrix [S, A] of probabilities, or [H, S, A] if it depends on time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from rlopt.arguments import check_number
from rlopt.envs import tabular_optimum, tabular_trajectories
from rlopt.rollout import Rollout

# How far probabilities may be from adding up to 1.
ROUNDING = 1e-9

UP, DOWN, LEFT, RIGHT = range(4)


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """J_H(π) = E[Σ_{t<H} γ^t r(s_t, a_t)], where entering a terminal state ends the episode.

    Attributes:
        initial: [S], the distribution of s_0; 0 at terminal states.
        transitions: [S, A, S], P(s' | s, a).
        rewards: [S, A], or [S, A, K]; nothing is paid at terminal states, whatever stands here.
        gamma: the discount γ in [0, 1].
        horizon: H, the steps after which an episode is truncated.
        terminal: [S] bool; none by default.

    Raises:
        ValueError: a shape, a range or a sum that does not fit; the message names the attribute.
    """

    initial: Tensor
    transitions: Tensor
    rewards: Tensor
    gamma: float
    horizon: int
    terminal: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        for name in ("initial", "transitions", "rewards"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        terminal = torch.as_tensor(self.terminal, dtype=torch.bool)
        object.__setattr__(self, "terminal", terminal if len(terminal) else torch.zeros(len(self.initial), dtype=torch.bool))
        _validate(self)

    @classmethod
    def random(
        cls,
        num_states: int = 3,
        num_actions: int = 2,
        horizon: int = 4,
        gamma: float = 0.9,
        num_objectives: int | None = None,
        num_terminal: int = 0,
        seed: int = 0,
    ) -> TabularMDP:
        """Distributions uniform on the simplex and rewards uniform on [0, 1); the last `num_terminal` states are terminal."""
        for name, value in {"num_states": num_states, "num_actions": num_actions, "horizon": horizon}.items():
            check_number(name, value, positive=True, whole=True)
        if num_objectives is not None:
            check_number("num_objectives", num_objectives, positive=True, whole=True)
        check_number("num_terminal", num_terminal, at_least=0, at_most=num_states - 1, whole=True)
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        live = torch.arange(num_states) < num_states - num_terminal
        initial = -uniform(num_states).log() * live
        transitions = -uniform(num_states, num_actions, num_states).log()
        rewards = uniform(num_states, num_actions, *(() if num_objectives is None else (num_objectives,)))
        return cls(
            initial=initial / initial.sum(),
            transitions=transitions / transitions.sum(-1, keepdim=True),
            rewards=rewards,
            gamma=gamma,
            horizon=horizon,
            terminal=~live,
        )

    @classmethod
    def grid(
        cls,
        size: int = 8,
        horizon: int = 50,
        gamma: float = 0.99,
        slip: float = 0.0,
        goal: Sequence[int] | None = None,
    ) -> TabularMDP:
        """A square of `size`² states, row · size + column, entered at (0, 0); actions up, down, left, right.

        Walls keep you in place. With probability `slip` the action is replaced by one drawn uniformly. The reward is 0
        everywhere; with a `goal` (row, column) entering it pays 1 and ends the episode, which stands in `rewards` as its
        mean P(goal | s, a).
        """
        check_number("size", size, positive=True, whole=True)
        check_number("slip", slip, at_least=0, at_most=1)
        num_states = size * size
        moves = torch.zeros(num_states, 4, num_states, dtype=torch.float64)
        for row, column, action in product(range(size), range(size), (UP, DOWN, LEFT, RIGHT)):
            new_row = min(max(row + (action == DOWN) - (action == UP), 0), size - 1)
            new_column = min(max(column + (action == RIGHT) - (action == LEFT), 0), size - 1)
            moves[row * size + column, action, new_row * size + new_column] = 1.0
        transitions = (1 - slip) * moves + slip * moves.mean(1, keepdim=True)
        terminal, rewards = torch.zeros(num_states, dtype=torch.bool), torch.zeros(num_states, 4, dtype=torch.float64)
        if goal is not None:
            state = _grid_state(goal, size)
            terminal[state], rewards = True, transitions[:, :, state].clone()
        initial = torch.eye(num_states, dtype=torch.float64)[0]
        return cls(initial, transitions, rewards, gamma, horizon, terminal)

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.initial)

    @property
    def num_actions(self) -> int:
        """A."""
        return self.transitions.shape[1]

    @property
    def num_parameters(self) -> int:
        """d = S·A, of the softmax policy."""
        return self.num_states * self.num_actions

    def by_time(self, policy: Tensor) -> Tensor:
        """The policy [S, A] or [H, S, A] as [H, S, A].

        Raises:
            ValueError: it has another shape.
        """
        shape = (self.horizon, self.num_states, self.num_actions)
        if policy.shape not in (shape, shape[1:]):
            raise ValueError(f"policy: expected shape {shape[1:]} or {shape}, got {tuple(policy.shape)}")
        return policy.to(torch.float64).expand(shape)

    def state_action_values(self, policy: Tensor) -> Tensor:
        """Q_t(s, a) = E[Σ_{h≥t} γ^{h−t} r_h | s_t = s, a_t = a], [H, S, A] or [H, S, A, K]; 0 at terminal states."""
        live = (~self.terminal).to(torch.float64)
        rewards = self.rewards.reshape(self.num_states, self.num_actions, -1) * live[:, None, None]
        arrivals = self.gamma * self.transitions * live[:, None, None]
        values = [rewards]
        for probabilities in self.by_time(policy).flip(0)[:-1]:
            following = torch.einsum("sa,sak->sk", probabilities, values[-1])
            values.append(rewards + torch.einsum("sap,pk->sak", arrivals, following))
        return torch.stack(values[::-1]).view(self.horizon, *self.rewards.shape)

    def value(self, policy: Tensor) -> Tensor:
        """J_H(π), a scalar or [K], by dynamic programming backwards in time."""
        first = self.state_action_values(policy)[0].reshape(self.num_states, self.num_actions, -1)
        objectives = torch.einsum("s,sa,sak->k", self.initial, self.by_time(policy)[0], first)
        return objectives.view(self.rewards.shape[2:])

    def occupancy(self, policy: Tensor) -> Tensor:
        """λ_H(s, a) = Σ_{t<H} γ^t P(s_t = s, a_t = a), [S, A]; its mass is (1 − γ^H)/(1 − γ) without terminal states."""
        live, moves = (~self.terminal).to(torch.float64), self.transitions.flatten(0, 1)
        states = self.initial
        visits = []
        for t, probabilities in enumerate(self.by_time(policy)):
            pairs = states[:, None] * probabilities
            visits.append(self.gamma**t * pairs)
            states = (pairs.flatten() @ moves) * live
        return torch.stack(visits).sum(0)

    def softmax_policy(self, theta: Tensor) -> Tensor:
        """π_θ of logits θ [S·A], as a matrix [S, A]."""
        return softmax_policy(theta, self.num_actions)

    def softmax_log_prob(self, theta: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """log π_θ(a | s) of logits θ [S·A], for states and actions of one shape, [B] say: what estimators call a policy."""
        return softmax_log_prob(theta, states, actions, self.num_actions)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇J_H(θ) of the softmax policy, [S·A], or [K, S·A]."""
        return torch.func.jacrev(lambda x: self.value(self.softmax_policy(x)))(theta)

    def hessian(self, theta: Tensor) -> Tensor:
        """∇²J_H(θ) of the softmax policy, [S·A, S·A], or [K, S·A, S·A]."""
        return torch.func.jacrev(self.gradient)(theta)

    def enumerate(self, theta: Tensor) -> tuple[Rollout, Tensor]:
        """Every trajectory (s_0, a_0, …, s_{H−1}, a_{H−1}) under the softmax policy, one a column, and p(τ | θ) [N].

        There are up to (S·A)^H; those that ρ or P forbid are left out. Rows after a terminal state are masked and hold
        zeros. s_H is no part of a trajectory: what stands in the last row of `states` repeats s_{H−1}, and the column is
        truncated.
        """
        return tabular_trajectories.enumerate_trajectories(self, self.softmax_policy(theta.detach().to(torch.float64)))

    def sample(self, policy: Tensor, num: int, generator: torch.Generator) -> Rollout:
        """`num` independent episodes under a policy [S, A] or [H, S, A], one a column; here s_H is drawn as well.

        Rows after a terminal state are masked and hold zeros.
        """
        check_number("num", num, positive=True, whole=True)
        return tabular_trajectories.sample_trajectories(self, self.by_time(policy.detach()), num, generator)

    def optimal_policy(self) -> Tensor:
        """The best policy, which depends on time, [H, S, A] of zeros and ones. Needs one reward a step."""
        return tabular_optimum.optimal_policy(self, self.rewards)

    def optimal_value(self) -> float:
        """max J_H over policies that may depend on time. Needs one reward a step."""
        return float(self.value(self.optimal_policy()))

    def best_stationary_policy(self, restarts: int = 8, iterations: int = 300, seed: int = 0) -> Tensor:
        """The best policy [S, A] that a search over stationary stochastic policies found. Needs one reward a step.

        Agents whose policies do not see the time can reach its value, not `optimal_value()`. J_H is not concave: what is
        found is a lower bound of the maximum, and better with more `restarts`. Exact natural-gradient ascent of the
        softmax logits with a step size that adapts, from the uniform policy and `restarts` random ones.
        """
        return tabular_optimum.best_stationary_policy(self, restarts, iterations, seed)

    def best_stationary_value(self, restarts: int = 8, iterations: int = 300, seed: int = 0) -> float:
        """J_H of `best_stationary_policy`."""
        return float(self.value(self.best_stationary_policy(restarts, iterations, seed)))


def softmax_policy(theta: Tensor, num_actions: int) -> Tensor:
    """π_θ(a | s) = exp θ_sa / Σ_b exp θ_sb, [S, A], of logits θ [S·A]."""
    return torch.softmax(theta.reshape(-1, num_actions), -1)


def softmax_log_prob(theta: Tensor, states: Tensor, actions: Tensor, num_actions: int) -> Tensor:
    """log π_θ(a | s) of logits θ [S·A], for states and actions of one shape."""
    return torch.log_softmax(theta.reshape(-1, num_actions), -1)[states, actions]


def _grid_state(cell: Sequence[int], size: int) -> int:
    inside = isinstance(cell, Sequence) and len(cell) == 2 and all(i in range(size) for i in cell)
    if not inside or tuple(cell) == (0, 0):
        raise ValueError(f"goal: expected a row and a column in [0, {size - 1}], other than the start (0, 0), got {cell!r}")
    return int(cell[0]) * size + int(cell[1])


def _validate(mdp: TabularMDP) -> None:
    """Raises ValueError unless shapes, ranges and sums fit."""
    check_number("gamma", mdp.gamma, at_least=0, at_most=1)
    check_number("horizon", mdp.horizon, positive=True, whole=True)
    if mdp.initial.ndim != 1 or not len(mdp.initial):
        raise ValueError(f"initial: expected shape (S,), got {tuple(mdp.initial.shape)}")
    num_states = mdp.num_states
    if mdp.transitions.ndim != 3 or mdp.transitions.shape[::2] != (num_states, num_states) or not mdp.num_actions:
        raise ValueError(f"transitions: expected shape ({num_states}, A, {num_states}), got {tuple(mdp.transitions.shape)}")
    if mdp.rewards.ndim not in (2, 3) or mdp.rewards.shape[:2] != mdp.transitions.shape[:2]:
        shape = f"({num_states}, {mdp.num_actions})"
        raise ValueError(f"rewards: expected shape {shape} or {shape[:-1]}, K), got {tuple(mdp.rewards.shape)}")
    if mdp.terminal.shape != (num_states,):
        raise ValueError(f"terminal: expected shape ({num_states},), got {tuple(mdp.terminal.shape)}")
    if not bool(mdp.rewards.isfinite().all()):
        raise ValueError("rewards: expected finite numbers")
    for name, probabilities in {"initial": mdp.initial, "transitions": mdp.transitions}.items():
        if not bool((probabilities >= 0).all()) or not bool(((probabilities.sum(-1) - 1).abs() <= ROUNDING).all()):
            raise ValueError(f"{name}: expected probabilities that add up to 1 over the last axis")
    if bool((mdp.initial[mdp.terminal] > 0).any()):
        raise ValueError("initial: expected 0 at terminal states")
