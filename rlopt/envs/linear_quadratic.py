"""Linear dynamics, quadratic costs, Gaussian noise: a continuous control problem with exact values.

Letters: n components of the state x, m of the action u, H the horizon. All numbers are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlopt.arguments import check_number

# Matrices are symmetric and positive semi-definite up to this, relative to their largest entry.
ROUNDING = 1e-9
# The search for a stationary policy ends where the gradient is this small, relative to J.
STATIONARY = 1e-12


@dataclass(frozen=True, eq=False)
class LinearQuadratic:
    """x_{t+1} = A x_t + B u_t + w_t, paid −(xᵀQx + uᵀRu) in each of H steps; J is the sum discounted by γ^t.

    Policies are u ~ N(K x + k, diag(σ²)), and never clipped.

    Attributes:
        A: [n, n].
        B: [n, m].
        Q: [n, n], symmetric, positive semi-definite.
        R: [m, m], symmetric, positive definite.
        noise_covariance: [n, n], of w_t.
        initial_mean: [n], of x_0, which is Gaussian.
        initial_covariance: [n, n].
        gamma: the discount γ in [0, 1].
        horizon: H.

    Raises:
        ValueError: a shape or a range that does not fit; the message names the attribute.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    noise_covariance: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor
    gamma: float
    horizon: int

    def __post_init__(self) -> None:
        for name in ("A", "B", "Q", "R", "noise_covariance", "initial_mean", "initial_covariance"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        _validate(self)

    @classmethod
    def point_mass(
        cls, horizon: int = 40, gamma: float = 0.99, time_step: float = 0.2, action_cost: float = 0.1, noise: float = 0.0
    ) -> LinearQuadratic:
        """A mass on a line, x = (position, velocity) ~ N(0, I) at first, pushed by u; it costs position² + c u².

        The velocity is updated first and moves the position. `noise` is the standard deviation of a random push.
        """
        check_number("time_step", time_step, positive=True)
        check_number("noise", noise, at_least=0)
        push = torch.tensor([[time_step**2], [time_step]], dtype=torch.float64)
        return cls(
            A=torch.tensor([[1.0, time_step], [0.0, 1.0]]),
            B=push,
            Q=torch.diag(torch.tensor([1.0, 0.0])),
            R=torch.tensor([[action_cost]]),
            noise_covariance=noise**2 * push @ push.T,
            initial_mean=torch.zeros(2),
            initial_covariance=torch.eye(2),
            gamma=gamma,
            horizon=horizon,
        )

    @property
    def num_states(self) -> int:
        """n."""
        return self.B.shape[0]

    @property
    def num_actions(self) -> int:
        """m."""
        return self.B.shape[1]

    def value(self, gain: Tensor, offset: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """J_H of u ~ N(K x + k, diag(σ²)), by the recursion of the state's mean and covariance; a scalar, differentiable.

        Args:
            gain: K, [m, n], or [H, m, n] if it depends on time.
            offset: k, [m]; 0 unless given.
            std: σ, [m]; 0 unless given.

        Raises:
            ValueError: a shape that does not fit.
        """
        offset, std = self._or_zeros("offset", offset), self._or_zeros("std", std)
        noise = torch.diag(std**2)
        mean, covariance = self.initial_mean, self.initial_covariance
        value = torch.zeros((), dtype=torch.float64)
        for t, k in enumerate(self._by_time(gain)):
            action = k @ mean + offset
            action_covariance = k @ covariance @ k.T + noise
            cost = mean @ self.Q @ mean + (self.Q * covariance).sum() + action @ self.R @ action
            value = value - self.gamma**t * (cost + (self.R * action_covariance).sum())
            closed = self.A + self.B @ k
            mean = self.A @ mean + self.B @ action
            covariance = closed @ covariance @ closed.T + self.B @ noise @ self.B.T + self.noise_covariance
        return value

    def gradient(self, gain: Tensor, offset: Tensor | None = None, std: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """∂J/∂K, ∂J/∂k [m] and ∂J/∂σ [m]; the first has the shape of `gain`."""
        arguments = gain, self._or_zeros("offset", offset), self._or_zeros("std", std)
        return torch.func.grad(self.value, argnums=(0, 1, 2))(*arguments)

    def optimal_gains(self) -> Tensor:
        """The best gains K_t, [H, m, n], by the Riccati recursion; with offset 0 and no exploration no policy is better."""
        return self._riccati()[0]

    def optimal_value(self) -> float:
        """max J_H over all policies: −(E[x_0ᵀ P_0 x_0] + Σ_{t<H−1} γ^{t+1} tr(P_{t+1} W)), W the noise covariance."""
        costs = self._riccati()[1]
        second_moment = self.initial_covariance + torch.outer(self.initial_mean, self.initial_mean)
        discounts = self.gamma ** torch.arange(1, self.horizon, dtype=torch.float64)
        return -float((costs[0] * second_moment).sum() + (discounts * (costs[1:] * self.noise_covariance).sum((1, 2))).sum())

    def best_stationary_policy(self, std: Tensor | None = None, iterations: int = 200) -> tuple[Tensor, Tensor]:
        """K [m, n] and k [m], constant in time, at which J_H is largest for exploration σ [m], and its gradient 0.

        Damped Newton ascent from the first Riccati gain: the nearest local maximum, J_H not being concave in K.
        """
        shape = self.num_actions, self.num_states

        def parts(x: Tensor) -> tuple[Tensor, Tensor]:
            return x[: -self.num_actions].reshape(shape), x[-self.num_actions :]

        start = torch.cat([self.optimal_gains()[0].flatten(), torch.zeros(self.num_actions, dtype=torch.float64)])
        best = _newton_ascent(lambda x: self.value(*parts(x), std), start, iterations)
        return parts(best)

    def best_stationary_value(self, std: Tensor | None = None) -> float:
        """J_H of `best_stationary_policy`, with the same exploration; the agents' policies are stationary."""
        return float(self.value(*self.best_stationary_policy(std), std))

    def _riccati(self) -> tuple[Tensor, Tensor]:
        """K_t, [H, m, n], and the costs to go P_t, [H, n, n]: xᵀP_t x is what noise-free control costs from t on."""
        cost = torch.zeros_like(self.Q)
        gains, costs = [], []
        for _ in range(self.horizon):
            ahead = self.gamma * cost
            gain = -torch.linalg.solve(self.R + self.B.T @ ahead @ self.B, self.B.T @ ahead @ self.A)
            closed = self.A + self.B @ gain
            cost = self.Q + gain.T @ self.R @ gain + closed.T @ ahead @ closed
            gains.append(gain)
            costs.append(cost)
        return torch.stack(gains[::-1]), torch.stack(costs[::-1])

    def _by_time(self, gain: Tensor) -> Tensor:
        shape = (self.horizon, self.num_actions, self.num_states)
        if gain.shape not in (shape, shape[1:]):
            raise ValueError(f"gain: expected shape {shape[1:]} or {shape}, got {tuple(gain.shape)}")
        return gain.expand(shape)

    def _or_zeros(self, name: str, vector: Tensor | None) -> Tensor:
        if vector is None:
            return torch.zeros(self.num_actions, dtype=torch.float64)
        if vector.shape != (self.num_actions,):
            raise ValueError(f"{name}: expected shape ({self.num_actions},), got {tuple(vector.shape)}")
        return vector


def _newton_ascent(function: Callable[[Tensor], Tensor], x: Tensor, iterations: int) -> Tensor:
    """A local maximum of a smooth function near x [d]: Newton steps, damped after those that did not gain."""
    slope = torch.func.grad(function)
    curvature = torch.func.jacrev(slope)
    damping, value = 0.0, function(x)
    for _ in range(iterations):
        gradient = slope(x)
        if float(gradient.abs().max()) <= STATIONARY * (1 + abs(float(value))):
            break
        # Absolute curvatures: where the function is convex the step still goes upwards.
        curvatures, axes = torch.linalg.eigh(curvature(x))
        moved = x + axes @ ((axes.T @ gradient) / (curvatures.abs() + damping))
        new_value = function(moved)
        if bool(new_value >= value):
            x, value, damping = moved, new_value, damping / 10
        else:
            damping = max(10 * damping, float(curvatures.abs().max()) * 1e-3)
    return x


def _validate(problem: LinearQuadratic) -> None:
    """Raises ValueError unless shapes and ranges fit."""
    check_number("gamma", problem.gamma, at_least=0, at_most=1)
    check_number("horizon", problem.horizon, positive=True, whole=True)
    if problem.B.ndim != 2 or not problem.B.numel():
        raise ValueError(f"B: expected shape (n, m), got {tuple(problem.B.shape)}")
    n, m = problem.B.shape
    shapes = {"A": (n, n), "Q": (n, n), "R": (m, m), "noise_covariance": (n, n), "initial_covariance": (n, n)}
    for name, shape in {**shapes, "initial_mean": (n,)}.items():
        matrix = getattr(problem, name)
        if matrix.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(matrix.shape)}")
        if not bool(matrix.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers")
    for name in ("Q", "R", "noise_covariance", "initial_covariance"):
        matrix = getattr(problem, name)
        rounding = ROUNDING * float(matrix.abs().max())
        smallest = float(torch.linalg.eigvalsh(matrix).min())
        definite = smallest > 0 if name == "R" else smallest >= -rounding
        if not definite or float((matrix - matrix.T).abs().max()) > rounding:
            raise ValueError(f"{name}: expected a symmetric, positive {'definite' if name == 'R' else 'semi-definite'} matrix")
